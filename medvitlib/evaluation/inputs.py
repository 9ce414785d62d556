"""Labels, probabilities and patients, checked once so that nothing after this has to wonder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medvitlib.errors import EvaluationError

ROW_SUM_TOLERANCE = 1e-3  # what half precision leaves of a softmax


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about a set of images, before any check.

    Attributes:
        y_true: (N,) integers, indices into the class names.
        probabilities: (N, K) rows summing to 1, or (N,) for the positive class of two.
        groups: (N,) patient (or smear, photograph) of each image; None where unknown.
    """

    y_true: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """Predictions that passed `check`: y (N,) int64, p (N, K) float64, groups (N,) int64 numbered from 0.

    Where patients are unknown every image is its own group.
    """

    y: np.ndarray
    p: np.ndarray
    classes: tuple[str, ...]
    positive: int | None  # index of the positive class; None when there are more than two
    groups: np.ndarray
    groups_known: bool

    @property
    def is_positive(self) -> np.ndarray:
        """(N,) bool; two classes only."""
        return self.y == self.positive

    @property
    def p_positive(self) -> np.ndarray:
        """(N,) float64; two classes only."""
        return self.p[:, self.positive]

    @property
    def calibration(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) confidence and (N,) bool correct, whose agreement is calibration.

        Two classes: the positive class's probability, and whether the image is positive. More: the largest
        probability, and whether that class is the true one.
        """
        if self.positive is not None:
            return self.p_positive, self.is_positive
        return self.p.max(axis=1), self.p.argmax(axis=1) == self.y


def check(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    positive: str | None,
    groups: np.ndarray | None = None,
) -> Checked:
    """Turn what the caller has into arrays of one kind.

    Args:
        y_true: (N,) integers in [0, K).
        probabilities: (N, K) in [0, 1] with rows summing to 1, or (N,) for `positive` when K is 2.
        classes: K names, in the order of the columns.
        positive: the name of the positive class; required for two classes, None for more.
        groups: (N,) patient of each image, or None.

    Raises:
        EvaluationError: naming the first thing that does not fit and how to put it right.
    """
    names = check_classes(classes)
    index = check_positive(names, positive)
    y = check_labels(y_true, names)
    p = check_numbers(probabilities, "probabilities")
    if len(p) != len(y):
        raise EvaluationError(f"{len(y)} labels but {len(p)} rows of probabilities: give one row for each label.")
    if p.min() < 0 or p.max() > 1:
        raise EvaluationError(
            f"Probabilities must lie in [0, 1]; these reach from {p.min():.3g} to {p.max():.3g}. "
            "If they are logits, apply a softmax first."
        )
    if p.ndim == 1 and index is not None:
        p = np.stack([1 - p, p] if index == 1 else [p, 1 - p], axis=1)
    if p.ndim != 2 or p.shape[1] != len(names):
        also = f" or ({len(y)},)" if index is not None else ""
        raise EvaluationError(
            f"Probabilities have shape {p.shape}; expected ({len(y)}, {len(names)}){also}, "
            f"one column for each of {', '.join(names)}."
        )
    off = np.abs(p.sum(axis=1) - 1)
    if off.max() > ROW_SUM_TOLERANCE:
        row = int(off.argmax())
        raise EvaluationError(
            f"Each row of probabilities must sum to 1; row {row} sums to {p[row].sum():.4g}. Apply a softmax first."
        )
    known = groups is not None
    return Checked(y, p, names, index, check_groups(groups, len(y)), known)


def check_binary(
    y_true: np.ndarray, p: np.ndarray, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check an indicator of the positive class, its scores and its groups.

    Args:
        y_true: (N,) bool or 0/1, 1 where the image is positive.
        p: (N,) score of the positive class, higher means more likely positive.
        groups: (N,) patient of each image, or None.

    Returns:
        (N,) bool, (N,) float64, (N,) int64 groups numbered from 0.
    """
    y = check_labels(y_true, ("negative", "positive"))
    scores = check_numbers(p, "p")
    if scores.shape != y.shape:
        raise EvaluationError(
            f"p has shape {scores.shape}; expected {y.shape}: the positive class's probability for each image, "
            "that is one column, probabilities[:, classes.index(positive)]."
        )
    return y == 1, scores, check_groups(groups, len(y))


def check_share(value: float, name: str, one_allowed: bool = False) -> None:
    """Raise unless `value` lies in (0, 1), or in (0, 1] where `one_allowed`."""
    if not (0 < value < 1 or (one_allowed and value == 1)):
        raise EvaluationError(
            f"{name} is {value!r}; expected a share in (0, 1{']' if one_allowed else ')'}, such as 0.95."
        )


def percent(share: float) -> str:
    """0.95 as "95 %"."""
    return f"{100 * share:.6g} %"


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """At least two distinct names, as a tuple."""
    names = tuple(str(name) for name in classes) if not isinstance(classes, str) else (classes,)
    if len(names) < 2 or len(set(names)) < len(names):
        raise EvaluationError(f"classes is {classes!r}; expected at least two different names, in label order.")
    return names


def check_positive(names: tuple[str, ...], positive: str | None) -> int | None:
    """The index of the positive one of two classes; None for more, which have none."""
    listed = ", ".join(repr(name) for name in names)
    if len(names) > 2:
        if positive is not None:
            raise EvaluationError(
                f"positive={positive!r} was given with {len(names)} classes ({listed}): a positive class is for two. "
                "Leave it out, or merge the others into one class first."
            )
        return None
    if positive is None:
        raise EvaluationError(
            f"Which of the two classes is positive was not given. Pass positive= one of {listed}: "
            "recall, precision, AUPRC and every threshold refer to it."
        )
    if positive not in names:
        raise EvaluationError(f"positive={positive!r} is not a class name. Pass one of {listed}.")
    return names.index(positive)


def check_labels(y_true: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    y = np.asarray(y_true)
    if y.ndim != 1 or y.size == 0:
        raise EvaluationError(f"y_true has shape {y.shape}; expected (N,) with N > 0. A column (N, 1) needs .ravel().")
    if y.dtype.kind in "USO":
        raise EvaluationError(
            f"y_true holds {y.flat[0]!r}; expected integers. Use the index of each name: classes.index(name)."
        )
    if y.dtype.kind not in "biu":
        raise EvaluationError(f"y_true has type {y.dtype}; expected integers. Use y_true.astype(int).")
    y = y.astype(np.int64)
    if y.min() < 0 or y.max() >= len(names):
        raise EvaluationError(
            f"y_true reaches from {y.min()} to {y.max()}; expected 0 to {len(names) - 1}, "
            f"indices into {', '.join(names)}."
        )
    return y


def check_numbers(values: np.ndarray, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, RuntimeError) as error:  # tensors of types that NumPy lacks, or that ask for gradients
        raise EvaluationError(f"{name} cannot be an array: {error}. From a tensor: .detach().float().cpu().") from None
    if array.dtype.kind not in "fiub":
        raise EvaluationError(f"{name} has type {array.dtype}; expected floating-point numbers.")
    array = array.astype(np.float64)
    if bad := int((~np.isfinite(array)).sum()):
        raise EvaluationError(f"{name} holds {bad} NaN or infinite values: look at the model's outputs before scoring.")
    if array.ndim == 0 or array.size == 0:
        raise EvaluationError(f"{name} has shape {array.shape}; expected at least one image.")
    return array


def check_groups(groups: np.ndarray | None, n: int) -> np.ndarray:
    if groups is None:
        return np.arange(n)
    ids = np.asarray(groups)
    if ids.shape != (n,):
        raise EvaluationError(f"groups has shape {ids.shape}; expected ({n},): the patient of each image, or None.")
    names = group_names(ids)
    if missing := int((names == "").sum()):
        raise EvaluationError(
            f"{missing} of {n} images have no group. Give every image one (its own id, where the patient is "
            "unknown), or pass groups=None for all."
        )
    return np.unique(names, return_inverse=True)[1].reshape(-1)


def group_names(groups: np.ndarray) -> np.ndarray:
    """(N,) str; "" for None, NaN and NA. Patient 7.0, as pandas reads 7 from a column with gaps, is patient 7."""
    import pandas as pd

    values = np.asarray(groups)
    if values.dtype.kind == "f" and (values[np.isfinite(values)] % 1 == 0).all():
        values = np.array([int(v) if np.isfinite(v) else None for v in values], dtype=object)
    return np.where(pd.isna(values), "", values.astype(str))


def grades(classes: Sequence[str], ordered: bool | Sequence[str]) -> list[int] | None:
    """Return the grade of each class, 0 for the lowest; None where the classes are no grades.

    Args:
        ordered: False; the names of the classes from the lowest to the highest; or True, where the names are numbers or
            one word and a number ("grade 2"), or stand in another order than the alphabet's, which folders come in.

    Raises:
        EvaluationError: names that are not the classes, or True where the order could only be guessed.
    """
    names = [str(name) for name in classes]
    if ordered is False:
        return None
    if ordered is not True:
        given = [str(name) for name in ([ordered] if isinstance(ordered, str) else ordered)]
        if sorted(given) != sorted(names):
            raise EvaluationError(f"ordered={given}: expected each of {', '.join(names)} once, the lowest first.")
        return [given.index(name) for name in names]
    numbered = [re.fullmatch(r"(\D*?)[ _-]?(\d+(?:\.\d+)?)", name) for name in names]
    if all(numbered) and len({match[1] for match in numbered}) == 1:
        values = [float(match[2]) for match in numbered]
        if len(set(values)) == len(values):
            return [sorted(values).index(value) for value in values]
    if names == sorted(names):
        raise EvaluationError(
            f"The order of the grades {', '.join(names)} could only be guessed: they stand as in the alphabet. Name "
            "them from the lowest to the highest, ordered=[...] (--ordered LOW,...,HIGH)."
        )
    return list(range(len(names)))
