"""A data set in memory: arrays that say what each image is, and a view of the decoded images on disk."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from medvitlib.data.loading import Images
from medvitlib.errors import DataError, one_of, printable


@dataclass(frozen=True)
class Quarantined:
    """A file that is left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Dataset(torch.utils.data.Dataset):
    """Images with their labels, groups and official splits; position i means the same image everywhere.

    Args:
        name: the name it was opened by.
        classes: class names; `labels` are positions in this list.
        positive: the class that counts as positive in a two-class report, or None if nobody has said.
        ids: str (N,): path within the set, or the name of a rendered image.
        labels: int64 (N,).
        groups: str (N,): images that belong together (one patient) share it and never meet across a split.
        groups_known: False if some or all groups are unknown; such an image stands for itself.
        splits: str (N,): the official split, "train", "val", "test", or "" if there is none.
        hashes: str (N,): SHA-256 of the file.
        images: uint8 (N, H, W, C), memory-mapped; C is 1 if the whole set is grey, else 3 (RGB).
        quarantine: files left out, with reasons.
        notes: remarks about what was found, in plain words.
        mask_of: evidence mask of an id, bool (H, W), where the images are rendered or masks lie beside them; None of
            an image without one.
        files: str (N,): absolute path of each image's file; None where images are not files.
        metadata: str (N,) by name: what else is known of each image, "" where nothing is.
        window: the values shown as black and as white, of images of more than 8 bits; None if each has its own.
        about: how what was found was understood, one line each (`describe`).
    """

    name: str
    classes: list[str]
    positive: str | None
    ids: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    groups_known: bool
    splits: np.ndarray
    hashes: np.ndarray
    images: Images
    quarantine: list[Quarantined] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    mask_of: Callable[[str], np.ndarray] | None = None
    files: np.ndarray | None = None
    metadata: dict[str, np.ndarray] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    about: tuple[str, ...] = ()

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.images.shape[1:3]

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.images.shape[3]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of contents, labels, groups and image size: equal for equal data wherever it lies."""
        rows = "\n".join(map("\t".join, zip(self.hashes, map(str, self.labels), self.groups, strict=True)))
        head = f"{self.classes} {self.image_size} {self.channels}{f' {self.window}' if self.window else ''}\n"
        return hashlib.sha256((head + rows).encode()).hexdigest()

    def __repr__(self) -> str:
        patients = f"{len(np.unique(self.groups))} patients" if self.groups_known else "patients unknown"
        colour, (h, w) = {1: "grey", 3: "RGB"}[self.channels], self.image_size
        counts = np.bincount(self.labels, minlength=len(self.classes))
        classes = printable(", ".join(f"{n} {name}" for n, name in zip(counts, self.classes, strict=True)))
        return f"Dataset({self.name!r}: {len(self)} images of {h}x{w} px, {colour}, {patients}; {classes})"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Image i as uint8 (C, H, W), and its label."""
        return torch.from_numpy(self.images.planes(int(i))), int(self.labels[i])

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int]]:
        """What a DataLoader asks for: the images of one batch, read together."""
        planes = torch.from_numpy(self.images.planes(np.asarray(indices)))
        return list(zip(planes, self.labels[indices].tolist(), strict=True))

    def subset(self, indices) -> "Dataset":
        """The images at `indices` (integers, or a bool mask (N,)), in that order, as a Dataset of their own."""
        indices = np.asarray(indices)
        rows = np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int)
        arrays = {name: getattr(self, name)[rows] for name in ("ids", "labels", "groups", "splits", "hashes")}
        files = None if self.files is None else self.files[rows]
        metadata = {name: values[rows] for name, values in self.metadata.items()}
        return replace(self, **arrays, images=self.images.take(rows), files=files, metadata=metadata)

    def describe(self) -> str:
        """How what was found was understood, in at most ten lines: layout, classes, patients, parts, what is left out.

        It speaks of the set as it was opened, not of a part of it.
        """
        return "\n".join(self.about) or repr(self)

    def of_classes(self, names: Sequence[str]) -> "Dataset":
        """The images of some classes, labelled anew, as a Dataset of their own.

        Args:
            names: two or more of `classes`, in the order in which they are to be numbered.

        Raises:
            DataError: a name that is none, or stands there twice.
        """
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            one_of("class", name, self.classes, DataError)
        if len(names) < 2 or len(set(names)) < len(names):
            raise DataError(f"classes {names}: expected two or more different ones.")
        number = {self.classes.index(name): k for k, name in enumerate(names)}
        chosen = self.subset(np.isin(self.labels, list(number)))
        labels = np.array([number[k] for k in chosen.labels.tolist()], dtype=np.int64)
        positive = self.positive if self.positive in names else None
        return replace(chosen, classes=names, labels=labels, positive=positive)

    def mask(self, i: int) -> np.ndarray | None:
        """Where the evidence for its class lies in image i, bool (H, W); None where that is not known."""
        return None if self.mask_of is None else self.mask_of(self.ids[i])

    def summary(self):
        """Images and patients (groups) a class, as a pandas DataFrame; `patients` is absent if groups are not known."""
        import pandas as pd

        table = pd.DataFrame({"class": np.array(self.classes)[self.labels], "group": self.groups})
        rows = table.groupby("class").agg(images=("group", "size"), patients=("group", "nunique"))
        rows = rows.reindex(self.classes, fill_value=0).rename(index=unlike("all"))
        rows.loc["all"] = [len(table), table["group"].nunique()]  # a patient may occur in two classes
        return rows if self.groups_known else rows[["images"]]


def unlike(*taken: str) -> Callable[[str], str]:
    """Return what gives the name of a class for a table that has rows or columns of its own: "class all" for "all"."""
    return lambda name: f"class {name}" if name in taken else name
