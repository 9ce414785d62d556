"""Every metric as a function of (label, score, weights), for many weightings at once.

A bootstrap replicate is the same images with other multiplicities, so weights of shape (B, N) give B replicates
in a few matrix operations. Each function returns a float without weights and (B,) with them; nan where undefined.
"""

from typing import NamedTuple

import numpy as np

from medvitlib.evaluation.inputs import Checked

ECE_BINS = 15  # equal width; ECE depends on this choice, Brier and NLL do not
SMALLEST = np.finfo(np.float64).eps  # floor of a probability inside a logarithm, as in scikit-learn


def ranked_counts(
    y: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives when every score >= threshold is called positive.

    Args:
        y: (N,) bool.
        score: (N,) higher means more likely positive; equal scores stand or fall together.
        weights: (B, N) non-negative, or None for one row of ones.

    Returns:
        thresholds (M,) falling, the distinct scores; tp (B, M) and fp (B, M), weighted.
    """
    weights = np.ones((1, len(y))) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    everyone = weights[:, order]
    positives = everyone * y[order]
    if len(starts) < len(ranked):
        everyone = np.add.reduceat(everyone, starts, axis=1)
        positives = np.add.reduceat(positives, starts, axis=1)
    tp = np.cumsum(positives, axis=1)
    return ranked[starts], tp, np.cumsum(everyone, axis=1) - tp


def auroc(y: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Area under the ROC curve: P(score of a positive > of a negative) + P(equal) / 2."""
    _, tp, fp = ranked_counts(y, score, weights)
    return _plain(_area(tp, fp), weights)


def average_precision(y: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """AUPRC as the step sum over thresholds of (change in recall) x precision: no interpolation, which flatters."""
    _, tp, fp = ranked_counts(y, score, weights)
    return _plain(_step_sum(tp, fp), weights)


def brier(y: np.ndarray, p: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean squared error of the probabilities.

    Args:
        y: (N,) bool for p (N,), range [0, 1]; (N,) int for p (N, K), summed over classes, range [0, 2].
    """
    target = y if p.ndim == 1 else np.eye(p.shape[1])[y]
    return _mean(((p - target) ** 2).reshape(len(y), -1).sum(axis=1), weights)


def nll(y: np.ndarray, p: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """Mean negative log probability (nats) of the true class; y (N,) int, p (N, K)."""
    return _mean(-np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST)), weights)


def bin_members(confidence: np.ndarray, bins: int = ECE_BINS) -> np.ndarray:
    """(N, M) one-hot: which of the bins ((m - 1) / M, m / M] an image is in, the first including 0."""
    return np.eye(bins)[np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)]


def ece(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None, bins: int = ECE_BINS
) -> float | np.ndarray:
    """Expected calibration error (Guo et al. 2017, eq. 3): |share correct - confidence| of a bin, averaged over images.

    The figure depends on the number of bins, and noise in the bins only ever adds to it: read it beside Brier and NLL.
    """
    surplus = bin_members(confidence, bins) * (correct - confidence)[:, None]  # (N, M)
    rows = np.ones((1, len(confidence))) if weights is None else weights
    return _plain(np.abs(rows @ surplus).sum(axis=1) / rows.sum(axis=1), weights)


class Counts(NamedTuple):
    """Per class, each (B, K): images of the class called so, images of the class, images called so."""

    hit: np.ndarray
    true: np.ndarray
    called: np.ndarray


def class_counts(y: np.ndarray, predicted: np.ndarray, n_classes: int, weights: np.ndarray | None = None) -> Counts:
    """The margins of the confusion matrix from which every thresholded metric follows; y and predicted (N,) int."""
    weights = np.ones((1, len(y))) if weights is None else weights
    one_hot = np.eye(n_classes)
    true = one_hot[y]
    return Counts(weights @ (true * (y == predicted)[:, None]), weights @ true, weights @ one_hot[predicted])


def threshold_metrics(counts: Counts, positive: int | None) -> dict[str, np.ndarray]:
    """Metrics of decisions, each (B,).

    Averages over classes ("macro", and "weighted" by the images of a class) take the classes that occur among the
    labels; a class that occurs and is never called has precision 0. MCC is Gorodkin's R_K, 0 when every image is
    called the same.

    Args:
        positive: column of the positive class of two; None for averages over more.
    """
    hit, true, called = counts
    n = true.sum(axis=1)
    recall = _ratio(hit, true)
    specificity = _ratio(n[:, None] - true - called + hit, n[:, None] - true)
    spread = np.sqrt((n**2 - (called**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1)))
    agreement = hit.sum(axis=1) * n - (true * called).sum(axis=1)
    mcc = np.divide(agreement, spread, out=np.zeros_like(agreement), where=spread > 0)
    several = (true > 0).sum(axis=1) > 1
    values = {
        "accuracy": hit.sum(axis=1) / n,
        "balanced_accuracy": np.where(several, _macro(recall, true), np.nan),
        "mcc": np.where(several, mcc, np.nan),
    }
    if positive is not None:
        return values | {
            "precision": _ratio(hit, called)[:, positive],
            "recall": recall[:, positive],
            "specificity": specificity[:, positive],
            "f1": _ratio(2 * hit, true + called)[:, positive],
        }
    precision = np.nan_to_num(_ratio(hit, called))
    f1 = _ratio(2 * hit, true + called)
    return values | {
        "precision_macro": _macro(precision, true),
        "recall_macro": _macro(recall, true),
        "f1_macro": _macro(f1, true),
        "specificity_macro": _macro(specificity, true),
        "precision_weighted": (precision * true).sum(axis=1) / n,
        "recall_weighted": hit.sum(axis=1) / n,
        "f1_weighted": (np.nan_to_num(f1) * true).sum(axis=1) / n,
    }


def quadratic_kappa(
    y: np.ndarray, predicted: np.ndarray, n_classes: int, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968), for classes that are grades 0 .. K - 1: y, predicted (N,) int.

    1 - (mean squared distance of label and decision) / (that of labels and decisions paired at random); 0 is chance.
    """
    rows = np.ones((1, len(y))) if weights is None else weights
    _, true, called = class_counts(y, predicted, n_classes, rows)
    grade = np.arange(n_classes)
    apart = (grade[:, None] - grade) ** 2.0
    by_chance = ((true @ apart) * called).sum(axis=1) / rows.sum(axis=1)
    return _plain(1 - _ratio(rows @ (y - predicted) ** 2.0, by_chance), weights)


def score_metrics(data: Checked, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of the probabilities, each (B,): AUROC and AUPRC (of a class against the rest), Brier, NLL, ECE."""
    if data.positive is not None:
        _, tp, fp = ranked_counts(data.is_positive, data.p_positive, weights)
        values = {"auroc": _area(tp, fp), "auprc": _step_sum(tp, fp)}
        values["brier"] = brier(data.is_positive, data.p_positive, weights)
    else:
        curves = [ranked_counts(data.y == k, data.p[:, k], weights)[1:] for k in range(len(data.classes))]
        true = np.stack([tp[:, -1] for tp, _ in curves], axis=1)
        values = {
            "auroc_macro": _macro(np.stack([_area(*curve) for curve in curves], axis=1), true),
            "auprc_macro": _macro(np.stack([_step_sum(*curve) for curve in curves], axis=1), true),
            "brier": brier(data.y, data.p, weights),
        }
    return values | {"nll": nll(data.y, data.p, weights), "ece": ece(*data.calibration, weights)}


def _area(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    steps = np.diff(fp, axis=1, prepend=0)
    heights = tp.copy()
    heights[:, 1:] += tp[:, :-1]  # twice the mean height of a step: ties count half
    return _ratio((steps * heights).sum(axis=1), 2 * tp[:, -1] * fp[:, -1])


def _step_sum(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp > 0)
    value = _ratio((np.diff(tp, axis=1, prepend=0) * precision).sum(axis=1), tp[:, -1])
    return np.where(fp[:, -1] > 0, value, np.nan)  # without negatives it is 1 whatever the scores


def _macro(values: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean over the classes that occur: (B, K) to (B,)."""
    present = true > 0
    return np.where(present, values, 0).sum(axis=1) / present.sum(axis=1)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=b != 0)


def _mean(values: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    return float(values.mean()) if weights is None else weights @ values / weights.sum(axis=1)


def _plain(values: np.ndarray, weights: np.ndarray | None) -> float | np.ndarray:
    return float(values[0]) if weights is None else values
