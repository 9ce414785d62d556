"""Label arrays of other people's, as class names."""

from dataclasses import dataclass, field

import numpy as np

from medvitlib.errors import DataError


@dataclass(frozen=True)
class Named:
    """A class name for every image, all class names in order, the positive one if the labels tell, and notes."""

    labels: list[str]
    classes: list[str]
    positive: str | None = None
    notes: list[str] = field(default_factory=list)


def name_labels(labels: np.ndarray, names: list[str] | None, positive: str | None, what: str) -> Named:
    """Give every image one class.

    Args:
        labels: (N,) or (N, 1) whole numbers (also as floats), bools or texts; or (N, K) of 0 and 1. Where each row has
            exactly one 1, that is the class; otherwise the K columns are findings, of which an image can have several.
        names: of the numbers 0..K-1; None takes the numbers themselves, which then need not be consecutive.
        positive: the positive class; of several findings, the one to tell from its absence.
        what: named in messages.

    Raises:
        DataError: labels of another form, numbers without a name, fewer than two classes, or several findings an
            image and no word of which is meant.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    labels = _whole(labels, what)
    if labels.ndim == 2 and labels.shape[1]:
        return _of_columns(labels, names, positive, what)
    if labels.ndim != 1:
        raise DataError(f"{what}: labels are {labels.shape}: expected (N,), (N, 1) or (N, findings).")
    if labels.dtype.kind in "US":
        texts = texts_of(labels, what)
        if empty := texts.count(""):
            raise DataError(f"{what}: {empty} labels are empty texts: give every image a class, or leave it out.")
        return _checked(Named(texts, sorted(set(texts))), positive, what)
    values = np.unique(labels).tolist()
    if names is None:
        named = {value: str(value) for value in values}
        return _checked(Named([named[v] for v in labels.tolist()], list(named.values())), positive, what)
    if outside := [value for value in values if not 0 <= value < len(names)]:
        raise DataError(
            f"{what}: labels {outside[:5]} have no name: expected 0 to {len(names) - 1} ({', '.join(names)})."
        )
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"{what}: class names {names}: expected different ones, none empty.")
    return _checked(Named([names[v] for v in labels.tolist()], list(names)), positive, what)


def texts_of(array: np.ndarray, what: str) -> list[str]:
    """An array's elements as texts; bytes that are not ASCII, and numbers that are no characters, are a DataError."""
    try:
        return array.ravel().astype(str).tolist()
    except ValueError as error:
        raise DataError(f"{what}: texts that cannot be read ({error}): save them as str.") from None


def _whole(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.dtype.kind in "iuUS":
        return labels
    if labels.dtype.kind in "bf" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        return labels.astype(np.int64)
    raise DataError(f"{what}: labels are {labels.dtype}: expected whole numbers or texts, one for every image.")


def _of_columns(labels: np.ndarray, names: list[str] | None, positive: str | None, what: str) -> Named:
    k = labels.shape[1]
    if labels.dtype.kind in "US" or not np.isin(labels, (0, 1)).all():
        raise DataError(f"{what}: labels are {labels.shape} of {labels.dtype}: expected (N,), (N, 1), or 0 and 1 only.")
    names = names or [str(column) for column in range(k)]
    if len(names) != k:
        raise DataError(f"{what}: labels have {k} columns for {len(names)} names ({', '.join(names)}).")
    if (labels.sum(1) == 1).all():
        one = name_labels(labels.argmax(1), names, positive, what)
        return Named(one.labels, one.classes, notes=["labels were one-hot: the column is the class."])
    if positive not in names:
        raise DataError(
            f"{what}: an image can have several of {k} findings ({', '.join(names)}), and positive={positive!r}. A "
            f"classifier here tells one from its absence: pass positive={names[0]!r}, for instance."
        )
    absent = f"no {positive}"
    hit = labels[:, names.index(positive)]
    several = int((labels.sum(1) > 1).sum())
    note = f"one of {k} findings: images without {positive} can have others ({several} images have more than one)."
    return _checked(
        Named([positive if x else absent for x in hit.tolist()], [absent, positive], positive, [note]), positive, what
    )


def _checked(named: Named, positive: str | None, what: str) -> Named:
    check_positive(positive, named.classes, what)
    if len(present := sorted(set(named.labels))) < 2:
        raise DataError(f"{what} has images of one class only, {present}: a classifier needs two.")
    return named


def check_positive(positive: str | None, classes: list[str], what: str) -> None:
    """Raise DataError for a positive class that is none."""
    if positive is not None and positive not in classes:
        raise DataError(f"positive={positive!r} is no class of {what}: expected one of {classes}.")
