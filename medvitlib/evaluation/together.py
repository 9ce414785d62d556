"""One metric of several models on the same images, and on the same patients each time some are drawn."""

from collections.abc import Sequence

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import Checked
from medvitlib.evaluation.intervals import Estimate, bootstrap, percentiles
from medvitlib.evaluation.metrics import class_counts, score_metrics, threshold_metrics
from medvitlib.evaluation.scoring import decide

OF_PROBABILITIES = ("auroc", "auprc", "nll", "brier")


def drawn_together(
    points: Sequence[Sequence[Checked]], metric: str, n_boot: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of models that saw the same images, each time on the same patients for all of them.

    Args:
        points: for each one, what `check` makes of its seeds' probabilities; its figure is their mean.
        metric: one of `paired.METRICS`.

    Returns:
        (points,) on the images as they are, and (n_boot, points) on patients drawn with replacement; nan where a draw
        lacks a class that the metric needs.

    Raises:
        EvaluationError: undefined on the images, or in all but a few of the draws.
    """
    data = points[0][0]

    def figures(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = [np.mean([_figure(one, metric, weights) for one in seeds], axis=0) for seeds in points]
        return {metric: np.stack(means, axis=1)}

    found = figures(np.ones((1, len(data.y))))[metric][0]  # (points,)
    if np.isnan(found).any():
        occurring = ", ".join(data.classes[k] for k in np.unique(data.y))
        raise EvaluationError(f"{metric} is undefined on these {len(data.y)} images, whose classes are: {occurring}.")
    replicates = bootstrap(figures, data.groups, n_boot, seed)[metric]  # (n_boot, points)
    defined = int((~np.isnan(replicates).any(axis=1)).sum())
    if defined < 100:
        raise EvaluationError(
            f"{metric} is defined in {defined} of {n_boot} resamples, and 100 are needed: too few patients of a "
            "class. Compare by accuracy, or validate on more patients."
        )
    return found, replicates


def resampled(value: float, replicates: np.ndarray, data: Checked, confidence: float) -> Estimate:
    """A figure with the percentile interval of its replicates (n_boot,), of which some may be nan."""
    low, high, undefined = percentiles(replicates, confidence)
    unit, n_groups = ("patient", int(data.groups.max()) + 1) if data.groups_known else ("image", None)
    reason = ""
    if low == high:
        low = high = np.nan
        reason = f"every sample of the {unit}s gives the same value, which says nothing about new ones"
    method = f"{unit} bootstrap" + left_out(undefined, len(replicates))
    return Estimate(float(value), low, high, method, len(data.y), n_groups, reason)


def no_rounding(values: np.ndarray) -> np.ndarray:
    """The same figures summed in another order differ in the last place, and mean the same."""
    return np.where(np.abs(values) < 1e-12, 0.0, values)


def left_out(count: int, n_boot: int) -> str:
    """For `Estimate.method`: of how many replicates an interval knows nothing."""
    return f", {count} of {n_boot} replicates undefined" if count else ""


def _figure(data: Checked, metric: str, weights: np.ndarray) -> np.ndarray:
    """(B,) of the metric, macro where there are more than two classes; nan where undefined."""
    if metric in OF_PROBABILITIES:
        values = score_metrics(data, weights)
    else:
        counts = class_counts(data.y, decide(data), len(data.classes), weights)
        values = threshold_metrics(counts, data.positive)
    return values[metric] if metric in values else values[f"{metric}_macro"]
