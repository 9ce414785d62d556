"""Rendered data sets with known evidence: nothing to download, no patient's data, and every explanation checkable.

They look like medical images and are none; figures measured on them say that the software works, nothing else.
"""

import hashlib
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial

import numpy as np

from medvitlib.data.cache import stored
from medvitlib.data.dataset import Dataset
from medvitlib.data.loading import Images
from medvitlib.data.phantom_anatomy import Anatomy, draw_anatomy
from medvitlib.data.phantom_cxr import RENDER_VERSION, expose
from medvitlib.errors import DataError

FAMILIES = {"phantom/cxr": "chest X-ray-like images, normal or with a consolidation"}
CLASSES = ["normal", "pneumonia"]


@dataclass(frozen=True)
class CxrOptions:
    """What `open_dataset("phantom/cxr", ...)` takes.

    Args:
        n_patients: half of them ill; each has one to four images.
        seed: another seed, other patients.
        difficulty: 0 (dense, large opacities) to 1 (faint, small ones).
    """

    n_patients: int = 150
    seed: int = 0
    difficulty: float = 0.3

    def __post_init__(self):
        whole = all(isinstance(number, int) for number in (self.n_patients, self.seed))
        if not whole or self.n_patients < 2 or not 0 <= self.difficulty <= 1 or self.seed < 0:
            raise DataError(
                f"{self}: expected whole numbers n_patients >= 2 and seed >= 0, and difficulty between 0 and 1."
            )


def options() -> str:
    """The options of rendered sets, for messages."""
    return ", ".join(f"{option.name}={option.default}" for option in fields(CxrOptions))


def render(name: str, size: tuple[int, int], positive: str | None = None, **chosen) -> Dataset:
    """A rendered family as a Dataset; pictures are kept in the cache like decoded ones.

    Raises:
        DataError: for an unknown family, option or class.
    """
    if name not in FAMILIES:
        raise DataError(f"no rendered family {name!r}: there is {', '.join(FAMILIES)}.")
    if unknown := set(chosen) - {option.name for option in fields(CxrOptions)}:
        raise DataError(f"{name} has no option {sorted(unknown)}: it takes {options()}.")
    if positive not in (None, *CLASSES):
        raise DataError(f"positive={positive!r} is no class of {name}: expected one of {CLASSES}.")
    cxr = CxrOptions(**chosen)
    ids = [f"patient{p:04d}/{k}" for p in range(cxr.n_patients) for k in range(_images_of(cxr, p))]
    parameters = {"family": name, "renderer": RENDER_VERSION, **asdict(cxr)}
    images = stored(
        parameters | {"size": size}, len(ids), size, lambda i: cxr_image(ids[i], size, cxr)[0][..., None], iter((1,))
    )
    patients = [ident.split("/")[0] for ident in ids]
    return Dataset(
        name=name,
        classes=list(CLASSES),
        positive=positive or "pneumonia",
        ids=np.array(ids),
        labels=np.array([_is_ill(cxr, int(patient[7:])) for patient in patients], dtype=np.int64),
        groups=np.array(patients),
        groups_known=True,
        splits=np.full(len(ids), "", dtype="<U5"),
        hashes=np.array([hashlib.sha256(f"{ident} {parameters}".encode()).hexdigest() for ident in ids]),
        images=Images(images, np.arange(len(ids))),
        notes=["rendered images: no real patients, and figures measured on them say nothing about real ones."],
        mask_of=partial(_mask, size=size, cxr=cxr),
    )


def cxr_image(
    ident: str, size: tuple[int, int], cxr: CxrOptions, evidence: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """One image, the same whatever was rendered before it.

    Args:
        ident: `patient0007/2`, as in `Dataset.ids`.
        evidence: False leaves the consolidation out and changes no other pixel.

    Returns:
        image uint8 (H, W) and evidence mask bool (H, W).
    """
    patient, k = (int(part) for part in ident.removeprefix("patient").split("/"))
    ill = evidence and _is_ill(cxr, patient)
    return expose(_anatomy(cxr, patient), ill, cxr.difficulty, size, (cxr.seed, patient, 2, k))


@lru_cache(maxsize=64)
def _anatomy(cxr: CxrOptions, patient: int) -> Anatomy:
    return draw_anatomy(np.random.default_rng((cxr.seed, patient, 1)), cxr.difficulty)


def _mask(ident: str, size: tuple[int, int], cxr: CxrOptions) -> np.ndarray:
    return cxr_image(ident, size, cxr)[1]


def _is_ill(cxr: CxrOptions, patient: int) -> bool:
    """One of each pair of patients, by a coin: balanced, and the same however many patients there are."""
    coin = np.random.default_rng((cxr.seed, patient // 2, 3)).integers(2)
    return bool((patient + coin) % 2)


def _images_of(cxr: CxrOptions, patient: int) -> int:
    return int(np.random.default_rng((cxr.seed, patient, 4)).integers(1, 5))
