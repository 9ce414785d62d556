"""All metrics of a set of predictions, each with its interval and n."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.special import ndtri

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import Checked, check, grades
from medvitlib.evaluation.intervals import Estimate, bootstrap, percentiles, proportion
from medvitlib.evaluation.metrics import bin_members, class_counts, quadratic_kappa, score_metrics, threshold_metrics

ERRORS = {"brier", "nll", "ece"}  # the smaller the better
NEEDS_TWO = {"auroc", "auprc", "balanced_accuracy", "mcc", "auroc_macro", "auprc_macro", "specificity_macro", "kappa"}


def score(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    threshold: float | None = None,
    ordered: bool | Sequence[str] = False,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """Score predictions that any model made.

    Two classes: auroc, auprc, accuracy, balanced_accuracy, precision, recall (sensitivity), specificity, f1, mcc,
    brier, nll, ece, decided at `threshold`. More: decided by the largest probability; precision, recall and F1 as
    macro and weighted averages, specificity, AUROC and AUPRC (one class against the rest) as macro averages.

    Proportions have Wilson's interval at the effective sample size, the others a bootstrap over patients.

    Args:
        y_true: (N,) integers, indices into `classes`.
        probabilities: (N, K), or (N,) for the positive class of two.
        classes: K names in label order.
        positive: name of the positive class; must be given for two classes, and only then.
        groups: (N,) patient of each image. None: every image counts as its own, and n_groups is None.
        threshold: two classes only: called positive when p >= threshold; 0.5 by default.
        ordered: the classes are grades: adds "kappa", with quadratic weights. Their names from the lowest to the
            highest, or True where `classes` tells (see `medvitlib.evaluation.inputs.grades`).
        n_boot: bootstrap replicates.
        confidence: coverage of the intervals.

    Raises:
        EvaluationError: if the arrays do not fit each other or `classes`.
    """
    data = check(y_true, probabilities, classes, positive, groups)
    predicted = decide(data, threshold)
    ranks = grades(data.classes, ordered)
    return estimates(data, predicted, n_boot, seed, confidence, with_scores=True, ranks=ranks)


def decide(data: Checked, threshold: float | None = None) -> np.ndarray:
    """(N,) predicted class indices: p >= threshold (0.5) for two classes, the largest probability for more."""
    if data.positive is None:
        if threshold is not None:
            raise EvaluationError(f"threshold={threshold} was given with {len(data.classes)} classes; it is for two.")
        return data.p.argmax(axis=1)
    if threshold is not None and not np.isfinite(threshold):
        raise EvaluationError(f"threshold is {threshold}; expected a probability.")
    called = data.p_positive >= (0.5 if threshold is None else threshold)
    return np.where(called, data.positive, 1 - data.positive)


def recall_per_class(data: Checked, predicted: np.ndarray, confidence: float = 0.95) -> dict[str, Estimate]:
    """Of each class's images, the share called so."""
    rows = {}
    for k, name in enumerate(data.classes):
        own = data.y == k
        rows[name] = proportion(
            predicted[own] == k, data.groups[own], data.groups_known, confidence, f"no image of {name}"
        )
    return rows


def estimates(
    data: Checked,
    predicted: np.ndarray,
    n_boot: int,
    seed: int,
    confidence: float,
    with_scores: bool,
    ranks: list[int] | None = None,
) -> dict[str, Estimate]:
    """Metrics of the decisions `predicted` (N,), of the probabilities too where `with_scores`, of grades by `ranks`."""

    def compute(checked: Checked, called: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
        decisions = threshold_metrics(class_counts(checked.y, called, len(data.classes), weights), data.positive)
        if ranks is not None:
            own, said = (np.array(ranks)[labels] for labels in (checked.y, called))
            decisions["kappa"] = quadratic_kappa(own, said, len(ranks), weights)
        return (score_metrics(checked, weights) | decisions) if with_scores else decisions

    point = compute(data, predicted, np.ones((1, len(data.y))))
    replicates = bootstrap(lambda weights: compute(data, predicted, weights), data.groups, n_boot, seed)
    n_groups = int(data.groups.max()) + 1 if data.groups_known else None
    unit = "patient" if data.groups_known else "image"
    proportions = _proportions(data, predicted, confidence)
    pessimistic = None
    result = {}
    for name, (value,) in point.items():
        if name in proportions:
            result[name] = proportions[name]
            continue
        low, high, undefined = percentiles(replicates[name], confidence)
        method, reason = f"{unit} bootstrap", _reason(data, name)
        if undefined:
            method += f", {undefined} of {n_boot} replicates undefined"
        if name == "ece":
            low, high = _ece_interval(value, low, high, _ece_noise(data, n_boot, seed, confidence))
            method = f"{unit} bootstrap, pivoted"
        if value == low == high == 1 and name not in ERRORS:  # resampling cannot invent the error that was not seen
            pessimistic = pessimistic or compute(*_with_unseen_errors(data, predicted, confidence))
            low, method, reason = float(pessimistic[name].min()), "Wilson's bound", "no error was seen"
        elif low == high:
            low = high = np.nan
            reason = reason or f"every sample of the {unit}s gives the same value, which says nothing about new ones"
        if np.isnan(value):
            low = high = np.nan
            reason = reason or "0 / 0: no image is, or is called, positive"
        result[name] = Estimate(float(value), low, high, method, len(data.y), n_groups, reason)
    return result


def _proportions(data: Checked, predicted: np.ndarray, confidence: float) -> dict[str, Estimate]:
    right = predicted == data.y
    subsets = {"accuracy": (np.ones(len(right), bool), "no images")}
    if data.positive is not None:
        name = data.classes[data.positive]
        subsets["precision"] = (predicted == data.positive, f"no image was called {name}")
        subsets["recall"] = (data.is_positive, f"no image is {name}")
        subsets["specificity"] = (~data.is_positive, f"every image is {name}")
    else:
        subsets["recall_weighted"] = subsets["accuracy"]  # the same figure by another name
    return {
        name: proportion(right[chosen], data.groups[chosen], data.groups_known, confidence, empty)
        for name, (chosen, empty) in subsets.items()
    }


def _reason(data: Checked, name: str) -> str:
    absent = [c for k, c in enumerate(data.classes) if not (data.y == k).any()]
    present = [c for c in data.classes if c not in absent]
    if len(present) == 1 and name in NEEDS_TWO:
        return f"needs two classes; every image is {present[0]}"
    return f"without {', '.join(absent)}: no image" if absent and "macro" in name else ""


def _ece_noise(data: Checked, n_boot: int, seed: int, confidence: float) -> float:
    """The upper end of what ECE would be if the model were perfectly calibrated.

    Then each patient's residuals (correct - confidence) are as likely to have the other sign: a wild bootstrap.
    """
    given, correct = data.calibration
    member = bin_members(given) * (correct - given)[:, None]  # (N, M)
    residual = np.stack([np.bincount(data.groups, column) for column in member.T], axis=1)  # (G, M)
    rng = np.random.default_rng(seed)
    draws = [np.abs((2.0 * rng.integers(2, size=len(residual)) - 1) @ residual).sum() for _ in range(n_boot)]
    return float(np.quantile(draws, (1 + confidence) / 2)) / len(data.y)


def _ece_interval(value: float, low: float, high: float, noise: float) -> tuple[float, float]:
    """The bootstrap interval turned round the value, down to 0 where noise alone could have made the value.

    A sum of absolute gaps is biased upwards in the data and once more in each replicate, so the percentile interval
    lies above the truth, always so for a calibrated model; 2 * value - percentile takes the bias off again.
    """
    return (0.0 if value <= noise else max(0.0, 2 * value - high)), min(1.0, max(value, 2 * value - low))


def _with_unseen_errors(
    data: Checked, predicted: np.ndarray, confidence: float
) -> tuple[Checked, np.ndarray, np.ndarray]:
    """The data plus one image of each class that is wholly wrong, for metrics that saw no error.

    Weighing it as z^2 patients gives Wilson's lower bound n / (n + z^2) for that class's recall; the same weighting
    carries the bound over to metrics that have no formula for it.

    Returns:
        data and decisions (N + K,), and weights (K, N + K): row k has the errors in class k alone.
    """
    present = np.unique(data.y)
    wrong = (present + 1) % len(data.classes)
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    own = [data.groups[data.y == k] for k in present]
    errors = np.diag([z2 * len(groups) / len(np.unique(groups)) for groups in own])
    y = np.r_[data.y, present]
    p = np.concatenate([data.p, np.eye(len(data.classes))[wrong]])
    weights = np.concatenate([np.ones((len(present), len(data.y))), errors], axis=1)
    return replace(data, y=y, p=p), np.r_[predicted, wrong], weights
