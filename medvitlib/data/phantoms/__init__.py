"""Rendered data sets with known evidence: nothing to download, no patient's data, and every explanation checkable.

They look like medical images and are none; figures measured on them say that the software works, nothing else.
A picture depends on its seed and its id alone, never on what was rendered before it or by how many workers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial

import numpy as np

from medvitlib.data.cache import stored
from medvitlib.data.dataset import Dataset
from medvitlib.data.loading import Images
from medvitlib.data.phantoms import blood3, ct, cxr, leaky, wbc4
from medvitlib.data.phantoms.canvas import Shot
from medvitlib.errors import DataError


@dataclass(frozen=True)
class Family:
    """One kind of picture.

    Args:
        title: what it looks like, in a few words.
        classes: in the order of the labels.
        positive: the class that a report calls positive; None for more than two.
        channels: 1 (grey) or 3 (RGB).
        version: part of every cache key: raise it when the pictures change.
        draw: (shot, evidence) to image uint8 (H, W, channels) and evidence mask bool (H, W). Without evidence, what
            makes the class is left out, and no pixel outside the mask changes.
        patient_has_class: all images of a patient are of one class; else each image has its own.
        images: fewest and most images of a patient.
        any_way_up: turned by 90 degrees, it is as good a picture (a smear, not a chest).
    """

    title: str
    classes: list[str]
    positive: str | None
    channels: int
    version: int
    draw: Callable[[Shot, bool], tuple[np.ndarray, np.ndarray]]
    patient_has_class: bool
    images: tuple[int, int]
    any_way_up: bool = False


FAMILIES = {
    "phantom/cxr": Family(
        title="chest X-ray-like images, normal or with a consolidation",
        classes=["normal", "pneumonia"],
        positive="pneumonia",
        channels=1,
        version=cxr.VERSION,
        draw=cxr.draw,
        patient_has_class=True,
        images=(1, 4),
    ),
    "phantom/ct": Family(
        title="axial chest CT-like slices, with or without peripheral ground glass",
        classes=["COVID", "non-COVID"],
        positive="COVID",
        channels=1,
        version=ct.VERSION,
        draw=ct.draw,
        patient_has_class=True,
        images=(2, 6),
    ),
    "phantom/blood3": Family(
        title="crops of single red cells, supravital stain",
        classes=["background", "erythrocyte", "reticulocyte"],
        positive=None,
        channels=3,
        version=blood3.VERSION,
        draw=blood3.draw,
        patient_has_class=False,
        images=(3, 6),
        any_way_up=True,
    ),
    "phantom/wbc4": Family(
        title="white blood cells among red ones, Wright-Giemsa stain",
        classes=["eosinophil", "lymphocyte", "monocyte", "neutrophil"],
        positive=None,
        channels=3,
        version=wbc4.VERSION,
        draw=wbc4.draw,
        patient_has_class=False,
        images=(3, 6),
        any_way_up=True,
    ),
}


@dataclass(frozen=True)
class PhantomOptions:
    """What `open_dataset("phantom/...", ...)` takes.

    Args:
        n_patients: how many; each has several images (a smear, or a few exposures).
        seed: another seed, other patients.
        difficulty: 0 (plain evidence) to 1 (barely above the noise).
        leaky: True for a set as it should not be, with a known shortcut and a known patient leak; "shortcut" or
            "patients" for one of the two (`medvitlib.data.phantoms.leaky`).
    """

    n_patients: int = 150
    seed: int = 0
    difficulty: float = 0.3
    leaky: bool | str = False

    def __post_init__(self):
        whole = all(type(number) is int for number in (self.n_patients, self.seed))
        if not whole or self.n_patients < 2 or not 0 <= self.difficulty <= 1 or self.seed < 0:
            raise DataError(
                f"{self}: expected whole numbers n_patients >= 2 and seed >= 0, and difficulty between 0 and 1."
            )
        if self.leaky not in (False, True, "shortcut", "patients"):
            raise DataError(f"leaky={self.leaky!r}: expected True, False, 'shortcut' or 'patients'.")

    @property
    def tagged(self) -> bool:
        """Whether bars tell the class."""
        return self.leaky in (True, "shortcut")

    @property
    def torn(self) -> bool:
        """Whether patients stand in several parts, each of one class and with a copy."""
        return self.leaky in (True, "patients")


def options() -> str:
    """The options of rendered sets, for messages."""
    return ", ".join(f"{option.name}={option.default}" for option in fields(PhantomOptions))


def render(name: str, size: tuple[int, int], positive: str | None = None, **chosen) -> Dataset:
    """A rendered family as a Dataset; pictures are kept in the cache like decoded ones.

    Raises:
        DataError: for an unknown family, option or class.
    """
    if name not in FAMILIES:
        raise DataError(f"no rendered family {name!r}: there is {', '.join(FAMILIES)}.")
    if unknown := set(chosen) - {option.name for option in fields(PhantomOptions)}:
        raise DataError(f"{name} has no option {sorted(unknown)}: it takes {options()}.")
    family, opts = FAMILIES[name], PhantomOptions(**chosen)
    if positive not in (None, *family.classes):
        raise DataError(f"positive={positive!r} is no class of {name}: expected one of {family.classes}.")
    ids = [f"patient{p:04d}/{k}" for p in range(opts.n_patients) for k in range(_images_of(family, opts, p))]
    splits = [leaky.split_of(opts.seed, *_parse(ident)) if opts.torn else "" for ident in ids]
    parameters = {"family": name, "renderer": family.version, **asdict(opts)}
    if opts.leaky:
        parameters["leaks"] = leaky.VERSION
    images = stored(
        parameters | {"size": size},
        len(ids),
        size,
        lambda i: picture(name, ids[i], size, opts)[0],
        iter((family.channels,)),
    )
    notes = ["rendered images: no real patients, and figures measured on them say nothing about real ones."]
    notes += [leaky.NOTES[str(opts.leaky)]] if opts.leaky else []
    return Dataset(
        name=name,
        classes=list(family.classes),
        positive=positive or family.positive,
        ids=np.array(ids),
        labels=np.array([_label(family, opts, *_parse(ident)) for ident in ids], dtype=np.int64),
        groups=np.array([ident.split("/")[0] for ident in ids]),
        groups_known=True,
        splits=np.array(splits, dtype="<U5"),
        hashes=np.array([hashlib.sha256(f"{ident} {parameters}".encode()).hexdigest() for ident in ids]),
        images=Images(images, np.arange(len(ids))),
        notes=notes,
        mask_of=partial(_mask, name, size, opts),
    )


def picture(
    name: str, ident: str, size: tuple[int, int], opts: PhantomOptions | None = None, evidence: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """One image of a family.

    Args:
        ident: `patient0007/2`, as in `Dataset.ids`.
        size: (height, width) in pixels.
        evidence: False leaves out what makes the class, and changes no pixel outside the mask.

    Returns:
        image uint8 (H, W, C) and evidence mask bool (H, W).
    """
    family, opts, (patient, k) = FAMILIES[name], opts or PhantomOptions(), _parse(ident)
    copy = opts.torn and leaky.is_copy(k, _images_of(family, opts, patient))
    shot = Shot(
        patient=(opts.seed, patient, 1),
        image=(opts.seed, patient, 2, 0 if copy else k),
        label=_label(family, opts, patient, k),
        difficulty=opts.difficulty,
        size=size,
    )
    image, mask = family.draw(shot, evidence)
    if opts.leaky:
        rng = np.random.default_rng((opts.seed, patient, 7, k))
        if copy:
            image, mask = leaky.copied(image, mask, family.any_way_up, rng)
        if opts.tagged:
            image = leaky.tagged(image, shot.label, len(family.classes), rng)
    return image, mask


def _mask(name: str, size: tuple[int, int], opts: PhantomOptions, ident: str) -> np.ndarray:
    return picture(name, ident, size, opts)[1]


def _parse(ident: str) -> tuple[int, int]:
    patient, k = ident.removeprefix("patient").split("/")
    return int(patient), int(k)


def _images_of(family: Family, opts: PhantomOptions, patient: int) -> int:
    fewest, most = family.images
    return int(np.random.default_rng((opts.seed, patient, 4)).integers(fewest, most + 1))


def _label(family: Family, opts: PhantomOptions, patient: int, k: int) -> int:
    """Each class once in every block of as many patients (or images of a patient) as there are classes, shuffled:
    balanced, and the same however many there are."""
    classes = len(family.classes)
    if family.patient_has_class or opts.torn:
        block, place, stream = patient // classes, patient % classes, 3
    else:
        block, place, stream = k // classes, k % classes, 5
        block = patient * 1000 + block
    return int(np.random.default_rng((opts.seed, block, stream)).permutation(classes)[place])
