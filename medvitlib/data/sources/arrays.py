"""Sets that are arrays rather than files: .npz archives in MedMNIST's layout, read row by row and written.

    {train,val,test}_images   (N, H, W), (N, H, W, 1), RGB or RGBA; whole numbers 0..255, or floats 0..1, -1..1 or
                              0..255, bools, or anything with a `window`
    {train,val,test}_labels   (N,) or (N, 1): numbers or names; (N, K) of 0 and 1: K findings, or one-hot
    {train,val,test}_groups   (N,), optional: images of one patient share a text; "" is not known
    classes, positive, notes  texts, optional: names of the labels 0..K-1, which is positive, what to know

or `images`, `labels` and `groups` alone, without official parts; also X_train and y_train, x and y. All but images and
labels are this library's own addition, which other readers pass over.
"""

import os
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.data.cache import Stored
from medvitlib.data.decode import MAX_PIXELS, Window
from medvitlib.data.folder import SPLITS, Listing, Sample
from medvitlib.data.sources.array_rows import Part, stored_rows
from medvitlib.data.sources.labels import name_labels, texts_of
from medvitlib.errors import DataError
from medvitlib.npzfile import BadNpz, open_npz, read_header, read_member

if TYPE_CHECKING:  # both import torch, for which `medvit data` need not wait
    from medvitlib.data.dataset import Dataset
    from medvitlib.data.splits import Split

KINDS = {
    **dict.fromkeys(("images", "image", "imgs", "x", "data"), "images"),
    **dict.fromkeys(("labels", "label", "y", "targets", "target"), "labels"),
    **dict.fromkeys(("groups", "group", "patients", "patient_ids"), "groups"),
}
"""Names of arrays, in any case, before or after that of a part, and what each one holds."""
ABOUT = ("classes", "positive", "notes")


@dataclass(frozen=True)
class Facts:
    """What is known of a published set beyond its arrays.

    Args:
        classes: names of the labels 0..K-1; None takes the labels as they are.
        positive: the class that a report calls positive.
        md5: of the published file.
        counts: images of each official part.
        notes: remarks for the user.
    """

    classes: list[str] | None
    positive: str | None = None
    md5: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Opened:
    """Samples, their classes and their decoded images: what `open_dataset` makes a Dataset of.

    Args:
        whole: keep images that are filed under two classes, and say so: a published set's parts stay as they are.
    """

    name: str
    listing: Listing
    classes: list[str]
    positive: str | None
    hashes: list[str]
    decoded: Stored
    whole: bool = True


def read_npz(
    path: Path,
    size: tuple[int, int],
    *,
    name: str | None = None,
    positive: str | None = None,
    facts: Facts | None = None,
    window: Window = None,
) -> Opened:
    """Open an .npz archive in MedMNIST's layout; its images are streamed into the cache, never held together.

    Args:
        size: (height, width) in pixels; images are stretched to it.
        positive: of K findings an image, the one to tell from its absence.
        facts: of the published set that the file holds.
        window: the values shown as black and as white; None takes 0..255, and of floats 0..1, -1..1 or 0..255,
            whichever holds 95 % of the images.

    Returns:
        ids are `train/00012`; hashes are SHA-256 of pixels and shape, so that one image in two parts is found.

    Raises:
        DataError: the file is damaged, holds pickled objects, or is not in this layout; the labels do not fit.
    """
    try:
        with open_npz(path) as archive:
            parts, about, notes = _parts(path, archive)
        if about["classes"] or not facts:  # what a file says of itself goes before what its name promises
            told = Facts(about["classes"] or None, next(iter(about["positive"]), None), notes=about["notes"])
            facts = replace(told, md5=facts.md5, counts=facts.counts) if facts else told
        named = name_labels(_joined(path, parts), facts.classes, positive, str(path))
        decoded, hashes, md5, ends = stored_rows(path, parts, size, bool(facts.md5), window)
    except BadNpz as error:
        raise DataError(f"{path} {error}. Copy or download it again.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    notes += list(dict.fromkeys(named.notes + facts.notes + _deviations(facts, parts, md5)))
    if window is None and ends != (0, 255):
        kinds = ", ".join(sorted({str(part.dtype) for part in parts}))
        notes.append(f"{kinds} images from {ends[0]:g} to {ends[1]:g}: these were taken for black and white.")
    h, w = max(part.shape[1:3] for part in parts)
    if h < size[0] or w < size[1]:
        notes.append(f"images of {h}x{w} px are enlarged to {size[0]}x{size[1]}: that adds pixels, not detail.")
    ids = [f"{part.split}/{k:05d}".removeprefix("/") for part in parts for k in range(part.shape[0])]
    splits = [part.split for part in parts for _ in range(part.shape[0])]
    groups = [group for part in parts for group in part.groups]
    columns = zip(ids, named.labels, splits, groups, strict=True)
    samples = [Sample(path / ident, ident, label, split, group) for ident, label, split, group in columns]
    listing = Listing(path, samples, notes=notes, how="arrays in an .npz archive")
    positive = named.positive or (facts.positive if facts.positive in named.classes else None)
    return Opened(name or path.stem, listing, named.classes, positive, hashes, decoded)


def save_npz(ds: "Dataset | Split", path: str | Path) -> Path:
    """Write a Dataset in this layout: uint8 images, labels (N, 1), the groups that are known, and what is said of it.

    Written aside, then renamed.

    Args:
        ds: a Dataset, of which the official parts are kept, or a Split, whose three parts become the official ones.

    Raises:
        DataError: for another ending than .npz, or images inside and outside official parts.
    """
    path = Path(path)
    if path.suffix.lower() != ".npz":
        raise DataError(f"{path}: expected a name that ends in .npz.")
    parts = {"train": ds.train, "val": ds.val, "test": ds.test} if hasattr(ds, "train") else _by_split(ds)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, part in parts.items():
                prefix = f"{name}_" if name else ""
                _write(archive, f"{prefix}labels", part.labels[:, None])
                groups = part.groups if part.groups_known else np.where(part.groups == part.ids, "", part.groups)
                if (groups != "").any():
                    _write(archive, f"{prefix}groups", groups)
                _write_images(archive, f"{prefix}images", part.images)
            for key, texts in (("classes", part.classes), ("positive", part.positive or []), ("notes", part.notes)):
                if texts:
                    _write(archive, key, np.array(texts))
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def _by_split(ds: "Dataset") -> dict[str, "Dataset"]:
    names = np.unique(ds.splits).tolist()
    if not names or ("" in names and len(names) > 1):
        raise DataError(f"{ds.name!r}: {(ds.splits == '').sum()} images lie in no official part: save a Split of it.")
    return {name: ds.subset(ds.splits == name) for name in names}


def _write(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def _write_images(archive: zipfile.ZipFile, name: str, images) -> None:
    n, h, w, c = images.shape
    shape = (n, h, w) if c == 1 else images.shape
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for i in range(n):
            file.write(np.ascontiguousarray(images[i]).data)


def _parts(path: Path, archive: zipfile.ZipFile) -> tuple[list[Part], dict[str, list[str]], list[str]]:
    """The parts in the order train, val, test; texts about the set; notes."""
    found: dict[str, dict[str, str]] = {}
    beside, about = [], {key: [] for key in ABOUT}
    for member in archive.namelist():
        stem = member.removesuffix(".npy").lower()
        if stem in ABOUT:
            about[stem] = texts_of(read_member(archive, member), str(path))
        elif meant := _meant(stem):
            split, kind = meant
            part = found.setdefault(split, {})
            if kind in part:
                raise DataError(f"{path} holds {part[kind]} and {member}: keep one of them.")
            part[kind] = member
        else:
            beside.append(member)
    if len(found) > 1:
        beside += found.pop("", {}).values()
    order = ("", "train", "val", "test")
    parts = [_part(path, archive, split, found[split]) for split in order if split in found]
    if not sum(part.shape[0] for part in parts):
        raise DataError(
            f"{path} holds {', '.join(archive.namelist()[:8]) or 'nothing'}: expected images and labels as arrays "
            "train_images, train_labels, val_images, ... (MedMNIST's layout), or images and labels."
        )
    notes = [f"{', '.join(beside)}: not read."] if beside else []
    usual = {f"{split}_{kind}.npy".removeprefix("_") for split in order for kind in ("images", "labels", "groups")}
    if other := [
        f"{member} as {kind}" for split in found for kind, member in found[split].items() if member not in usual
    ]:
        notes.append(f"arrays were taken for what their names say: {', '.join(other)}.")
    if len(types := {str(part.dtype) for part in parts}) > 1:
        raise DataError(f"{path}: its parts have images of {' and '.join(sorted(types))}: expected one type in all.")
    return parts, about, notes


def _meant(stem: str) -> tuple[str, str] | None:
    """The part and the kind of an array that is called so; None of any other."""
    if stem in KINDS:
        return "", KINDS[stem]
    head, _, tail = stem.partition("_")
    for split, kind in ((head, tail), (stem.rpartition("_")[2], stem.rpartition("_")[0])):
        if split in SPLITS and kind in KINDS:
            return SPLITS[split], KINDS[kind]
    return None


def _part(path: Path, archive: zipfile.ZipFile, split: str, members: dict[str, str]) -> Part:
    if lacking := [kind for kind in ("images", "labels") if kind not in members]:
        raise DataError(f"{path} holds {next(iter(members.values()))}, but no {lacking[0]} beside it.")
    member = members["images"]
    shape, fortran, dtype = read_header(archive, member)
    what = f"{path}: {member} is {shape} of {dtype}"
    if len(shape) == 4 and shape[3] not in (1, 3, 4) and shape[1] in (1, 3, 4):
        raise DataError(f"{what}: channels come last here: save images.transpose(0, 2, 3, 1) in C order.")
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)) or 0 in shape[1:3]:
        raise DataError(f"{what}: expected (N, H, W) or (N, H, W, 1, 3 or 4): 2-D images. Volumes are not read.")
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise DataError(f"{what}: expected uint8, other whole numbers, floating point or bools.")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(f"{what}: more than {MAX_PIXELS / 1e6:.0f} million pixels an image: cut it into tiles.")
    if fortran and shape[0] > 1:
        raise DataError(f"{what}, column by column (Fortran order): save np.ascontiguousarray(images).")
    labels = read_member(archive, members["labels"])
    groups = read_member(archive, members["groups"]) if "groups" in members else np.full(shape[0], "")
    if labels.ndim == 0 or len(labels) != shape[0] or groups.size != shape[0]:
        raise DataError(
            f"{path}: {shape[0]} images, labels {labels.shape} and groups {groups.shape} in {split or 'it'}: expected "
            "one of each an image."
        )
    return Part(split, member, shape, dtype, labels, texts_of(groups, str(path)))


def _joined(path: Path, parts: list[Part]) -> np.ndarray:
    """Labels of all parts; a part may have lost its second axis."""
    labels = [part.labels[:, 0] if part.labels.shape[1:] == (1,) else part.labels for part in parts]
    if len({(array.shape[1:], array.dtype.kind in "US") for array in labels}) > 1:
        forms = ", ".join(f"{array.shape} of {array.dtype}" for array in labels)
        raise DataError(f"{path}: its parts have labels {forms}: expected one form in all of them.")
    return np.concatenate(labels)


def _deviations(facts: Facts, parts: list[Part], md5: str) -> list[str]:
    """In what a file differs from the published one that it goes by."""
    if not facts.md5 or md5 == facts.md5:
        return []
    counts = {part.split: part.shape[0] for part in parts}
    others = ", ".join(
        f"{counts.get(split, 0)} {split} images, not {n}"
        for split, n in facts.counts.items()
        if counts.get(split, 0) != n
    )
    return [
        f"not the published file (its MD5 is {md5}, the official one {facts.md5}): re-saved, changed or another version"
        f"{': ' + others if others else ''}. Its parts and labels are taken as they are."
    ]
