"""The areas under two ROC curves of the same images: by how much they differ, and whether luck would do as much.

DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating characteristic
curves", Biometrics 1988, with the ranks of Sun and Xu (2014) in place of all pairs; where patients have several images,
their sums in place of the images, as Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_binary, check_share


@dataclass(frozen=True)
class DeLong:
    """The first AUROC minus the second.

    Attributes:
        difference, standard_error: of the two areas.
        low, high: a normal interval of the difference.
        p_value: two-sided, that the areas are equal; nan where they differ and no error can be estimated.
        clustered: whether patients had several images, and were taken as the units.
    """

    difference: float
    standard_error: float
    low: float
    high: float
    p_value: float
    clustered: bool


def delong(
    y_true: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    groups: np.ndarray | None = None,
    confidence: float = 0.95,
) -> DeLong:
    """Compare two scores of the same images.

    Args:
        y_true: (N,) bool or 0/1, 1 where the image is positive.
        first, second: (N,) scores, higher means more likely positive.
        groups: (N,) patient of each image; None takes each image as its own.
        confidence: of the interval.

    Raises:
        EvaluationError: arrays that do not fit, or fewer than two patients with, or without, a positive image.
    """
    check_share(confidence, "confidence")
    y, one, patients = check_binary(y_true, first, groups)
    _, other, _ = check_binary(y_true, second, groups)
    counts = [len(np.unique(patients[side])) for side in (y, ~y)]
    if min(counts) < 2:
        raise EvaluationError(
            f"DeLong's test needs two patients (or images) of either kind: {counts[0]} have a positive image, "
            f"{counts[1]} a negative one."
        )
    parts = _parts(y, one) - _parts(y, other)  # (N,)
    difference = float(parts[y].mean())
    deviations = [np.bincount(patients, np.where(side, parts - difference, 0) / side.sum()) for side in (y, ~y)]  # (P,)
    factors = [n / (n - 1) for n in (*counts, len(deviations[0]))]
    products = [(deviations[0] ** 2).sum(), (deviations[1] ** 2).sum(), 2 * (deviations[0] * deviations[1]).sum()]
    error = float(np.sqrt(max(0.0, np.dot(factors, products))))
    if error < 1e-12:
        same = abs(difference) < 1e-12
        return DeLong(difference, 0.0, difference, difference, 1.0 if same else np.nan, len(deviations[0]) < len(y))
    half = float(ndtri((1 + confidence) / 2)) * error
    p_value = 2 * float(ndtr(-abs(difference) / error))
    return DeLong(difference, error, difference - half, difference + half, p_value, len(deviations[0]) < len(y))


def _parts(y: np.ndarray, score: np.ndarray) -> np.ndarray:
    """(N,) of each image, the share of the other kind that it stands on the right side of, ties half.

    The mean over the positive ones, and over the negative ones, is the area.
    """
    from scipy.stats import rankdata  # a second of its own

    ranks = rankdata(score)
    own = np.empty(len(y))
    own[y], own[~y] = rankdata(score[y]), rankdata(score[~y])
    positives, negatives = y.sum(), (~y).sum()
    return np.where(y, (ranks - own) / negatives, 1 - (ranks - own) / positives)
