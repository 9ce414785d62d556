"""Objects of Hugging Face's `datasets`: an image column and a label column, known by their types.

Nothing is imported for it: whoever passes such an object has the package.
"""

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medvitlib.data.cache import stored_contents
from medvitlib.data.decode import Unreadable
from medvitlib.data.folder import SPLITS, Listing, Sample
from medvitlib.data.sources.arrays import Opened
from medvitlib.data.sources.labels import name_labels
from medvitlib.data.sources.medmnist import facts_of_file
from medvitlib.data.tables import GROUP, find_column, known_group
from medvitlib.errors import DataError
from medvitlib.progress import track

LABEL_NAMES = ("label", "labels", "class", "target")
"""Columns taken for the label, in any case, where none is of type ClassLabel."""
_BLOCK = 64  # rows read together


def is_datasets(source: Any) -> bool:
    """Whether this is a Dataset or DatasetDict of that package, or something that behaves like one."""
    first = next(iter(source.values()), None) if isinstance(source, Mapping) else source
    return hasattr(first, "features") and hasattr(first, "cast_column")


def read_datasets(
    source: Any,
    size: tuple[int, int],
    *,
    positive: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
) -> Opened:
    """Open such an object; encoded images are checked and decoded as files are.

    Args:
        source: a Dataset, or a DatasetDict whose keys name the official parts (train, validation, test).
        size: (height, width) in pixels; images are stretched to it.
        positive: where an image can have several labels, the one to tell from its absence.
        image_column: needed where several columns hold images; otherwise the one that does.
        label_column: likewise; otherwise the ClassLabel column, or one called label, labels, class or target.
        group_column: the patient; otherwise a column called patient_id, subject or the like (`medvitlib.data.tables`).

    Raises:
        DataError: no such column or several, a stream, labels that differ between parts or make no classes.
    """
    parts, notes = _parts(source)
    first = next(iter(parts.values()))
    image = _image_column(first.features, image_column)
    label = _label_column(first.features, label_column)
    if group_column is None and (group_column := find_column(first.features, GROUP)) not in (None, "group"):
        notes.append(f"column {group_column!r} says which images belong together.")
    columns = [image, label] + ([_named(first.features, group_column)] if group_column is not None else [])
    for split, part in parts.items():
        if differ := [c for c in columns if str(part.features.get(c)) != str(first.features[c])]:
            raise DataError(
                f"part {split!r} has another column {differ[0]!r} than the first: give all the same features."
            )
    contents = _Contents([part.select_columns(list(dict.fromkeys(columns))) for part in parts.values()], image)
    files, hashes, labels = contents.survey(label)
    coded = _class_label(first.features[label]) is not None  # then -1 is how a missing label is written
    reasons = {i: "no label" for i, value in enumerate(labels) if value is None or (coded and value == -1)}
    groups = contents.column(group_column) if group_column is not None else [None] * len(labels)
    name = _name(first)
    array, names = _label_array(labels, first.features[label], reasons, label)
    named = name_labels(array, names, positive, f"column {label!r} of {name}")
    filled = iter(named.labels)
    texts = [named.classes[0] if i in reasons else next(filled) for i in range(len(labels))]
    splits = [split for split, part in parts.items() for _ in range(len(part))]
    ids = [f"{split}/{k:05d}".removeprefix("/") for split, part in parts.items() for k in range(len(part))]
    decoded = stored_contents(files, contents.read, hashes, size)
    rows = zip(ids, texts, splits, map(known_group, groups), strict=True)
    samples = [Sample(Path(name, ident), ident, text, split, group) for ident, text, split, group in rows]
    facts = facts_of_file(Path(name))
    if facts and set(facts.classes) != set(named.classes):
        facts = None
    notes += named.notes + (facts.notes if facts else [])
    return Opened(
        name=name,
        listing=Listing(Path(name), samples, notes=notes, how="rows of a datasets object"),
        classes=named.classes,
        positive=named.positive or (facts.positive if facts else None),
        hashes=["" if i in reasons else digest for i, digest in enumerate(hashes)],  # or it would clash with a copy
        decoded=replace(decoded, reasons=decoded.reasons | reasons),
    )


class _Contents:
    """Encoded images of all parts by number; several threads may ask."""

    def __init__(self, parts: list[Any], column: str):
        plain = [part.with_format(None) for part in parts]  # no tensors, no transforms
        self._parts = [part.cast_column(column, type(part.features[column])(decode=False)) for part in plain]
        self._ends = np.cumsum([len(part) for part in parts])
        self._column, self._lock = column, threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def survey(self, label: str) -> tuple[list[str], list[str], list[Any]]:
        """File name, SHA-256 ("" if there is no content) and label of every row; nothing is decoded."""
        files, hashes, labels = [], [], []
        for cell, value in track(self._pairs(label), "reading images", total=len(self)):
            files.append((cell or {}).get("path") or "")
            labels.append(value)
            try:
                hashes.append(hashlib.sha256(_content(cell)).hexdigest())
            except Unreadable:
                hashes.append("")
        return files, hashes, labels

    def _pairs(self, label: str) -> Iterator[tuple[dict[str, Any] | None, Any]]:
        for part in self._parts:
            for start in range(0, len(part), _BLOCK):
                block = part[start : start + _BLOCK]
                yield from zip(block[self._column], block[label], strict=True)

    def column(self, name: str) -> list[Any]:
        return [value for part in self._parts for value in part[name]]

    def read(self, i: int) -> bytes:
        part = int(np.searchsorted(self._ends, i, side="right"))
        with self._lock:
            row = self._parts[part][i - int(self._ends[part - 1] if part else 0)]
        return _content(row[self._column])


def _content(cell: dict[str, Any] | None) -> bytes:
    if cell and cell.get("bytes"):
        return cell["bytes"]
    if not cell or not cell.get("path"):
        raise Unreadable("no image in this row")
    try:
        return Path(cell["path"]).read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None


def _parts(source: Any) -> tuple[dict[str, Any], list[str]]:
    """Parts by split, in the order train, val, test; a single Dataset is one without official parts."""
    given = dict(source) if isinstance(source, Mapping) else {"": source}
    if any(not hasattr(part, "__len__") or not part.features for part in given.values()):
        raise DataError("a data set that is streamed has no length: load it without streaming=True.")
    parts = {SPLITS.get(str(name).lower(), ""): part for name, part in given.items()}
    beside = [str(name) for name in given if name and str(name).lower() not in SPLITS]
    if len(given) == 1:
        beside = []
    elif beside:
        parts.pop("", None)
    if len(parts) + len(beside) < len(given) or not parts:
        raise DataError(f"parts {list(given)}: expected each of train, validation, test once; open one part by itself.")
    notes = [f"{', '.join(beside)}: parts beside train, validation and test, not read."] if beside else []
    if not sum(map(len, parts.values())):
        raise DataError(f"parts {list(given)} have no rows.")
    return {split: parts[split] for split in ("", "train", "val", "test") if split in parts}, notes


def _image_column(features: Mapping[str, Any], wanted: str | None) -> str:
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if wanted is not None and _named(features, wanted) not in found:
        raise DataError(f"image_column={wanted!r} is {features[wanted]}: expected a column of type Image, {found}.")
    return _only(
        found, wanted, "image_column", "of type Image (`ds.cast_column(name, datasets.Image())` makes one)", features
    )


def _label_column(features: Mapping[str, Any], wanted: str | None) -> str:
    found = [name for name, feature in features.items() if _class_label(feature) is not None]
    if not found:
        found = [name for name in features if name.lower() in LABEL_NAMES]
    what = f"of type ClassLabel, or called {', '.join(LABEL_NAMES)}"
    return _only(found, wanted and _named(features, wanted), "label_column", what, features)


def _named(features: Mapping[str, Any], wanted: str) -> str:
    if wanted not in features:
        raise DataError(f"no column {wanted!r}: there are {', '.join(features)}.")
    return wanted


def _only(found: list[str], wanted: str | None, option: str, what: str, features: Mapping[str, Any]) -> str:
    if wanted is not None:
        return wanted
    if len(found) != 1:
        which = f"several columns {what}: {', '.join(found)}" if found else f"no column {what}"
        raise DataError(f"{which}. Columns: {', '.join(features)}. Name the one to use: {option}=...")
    return found[0]


def _class_label(feature: Any) -> Any:
    """The ClassLabel that a feature is, or is a list of."""
    inner = getattr(feature, "feature", feature)
    return inner if type(inner).__name__ == "ClassLabel" else None


def _label_array(labels: list[Any], feature: Any, reasons: dict[int, str], column: str) -> tuple[np.ndarray, Any]:
    """Labels of the rows that have one, as `name_labels` takes them, and the names of the numbers if there are any."""
    given = [label for i, label in enumerate(labels) if i not in reasons]
    names = list(_class_label(feature).names) if _class_label(feature) is not None else None
    if not given:
        raise DataError(f"column {column!r} has no label in any row.")
    if not isinstance(given[0], list):
        array = np.array(given)
    elif len(lengths := {len(label) for label in given}) == 1 and (
        lengths == {1}
        or (names is None)
        or (len(names) in (2, *lengths) and {x for row in given for x in row} <= {0, 1})
    ):
        array = np.array(given)  # one label each, or 0 and 1 for every finding
        names = names if array.shape[1] in (1, len(names or ())) else None
    elif names is not None:
        if outside := {x for row in given for x in row if x not in range(len(names))}:
            raise DataError(f"column {column!r} holds {sorted(outside, key=str)[:5]}: expected 0 to {len(names) - 1}.")
        array = np.zeros((len(given), len(names)), np.int64)  # the numbers of those that are present
        for row, present in enumerate(given):
            array[row, present] = 1
    else:
        raise DataError(f"column {column!r} holds lists of {sorted(lengths)} labels: expected one label a row.")
    if array.dtype == object:
        raise DataError(f"column {column!r} holds {type(given[0]).__name__}: expected whole numbers or texts.")
    return array, names


def _name(part: Any) -> str:
    info = getattr(part, "info", None)
    names = [getattr(info, key, None) for key in ("config_name", "dataset_name", "builder_name")]
    return next((name for name in names if name and name != "default"), "datasets")
