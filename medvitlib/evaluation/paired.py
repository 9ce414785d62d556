"""Which points of a search cannot be told apart from the best one, on the same validation images.

The best of many is partly the luckiest of many. Each point's metric is therefore recomputed on the same patients,
drawn with replacement, and its difference to the best is judged against what luck does to all differences at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from medvitlib.errors import EvaluationError, one_of
from medvitlib.evaluation.inputs import Checked, check, check_numbers, check_share
from medvitlib.evaluation.intervals import Estimate, proportion
from medvitlib.evaluation.scoring import decide
from medvitlib.evaluation.together import drawn_together, left_out, no_rounding, resampled

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1",
    "mcc": "MCC",
    "nll": "loss",
    "brier": "Brier score",
}
"""What points can be compared by, and how it reads. For more than two classes AUROC, AUPRC and F1 are macro."""
SMALLER = ("nll", "brier")  # is better
DRAWS = 10_000  # of the greatest difference that luck makes; its 95 % quantile is then known to about 0.02


@dataclass(frozen=True, eq=False)
class Comparison:
    """Each point's metric, and its difference to the best; all in the order in which the points were given.

    Attributes:
        metric: one of `METRICS`.
        best: index of the best point, the first of equal ones.
        values: a point's metric, the mean over its seeds, each with its own interval. The best one's is too good by
            what luck added when it was chosen, which the interval does not take off again.
        differences: the metric minus the best point's. All their intervals hold together with `confidence`.
        indistinguishable: (K,) bool, whether that interval contains zero; True for the best itself.
        confidence: of the intervals.
        critical: standard errors on either side of a difference; 1.96 would do for two points and many patients.
    """

    metric: str
    best: int
    values: tuple[Estimate, ...]
    differences: tuple[Estimate, ...]
    indistinguishable: np.ndarray
    confidence: float
    critical: float

    def sentence(self, names: Sequence[str]) -> str:
        """The result in words.

        Args:
            names: K, a point each, such as "patch_size 16, heads 4, dropout 0.3".
        """
        self._check(names)
        best = self.values[self.best]
        patients = "patients unknown" if best.n_groups is None else f"{best.n_groups} patients"
        what = f"{names[self.best]} with validation {METRICS[self.metric]} {best} ({best.n_images} images, {patients})"
        others = len(names) - 1
        if not others:
            return f"The only point: {what}; there is no other to compare it with."
        same = int(self.indistinguishable.sum()) - 1
        if others == 1:
            rest = "the other one " + ("cannot be told apart from it" if same else "is worse")
        elif same in (0, others):
            rest = f"none of the other {others} can be told apart from it" if same else f"the other {others} are worse"
        else:
            rest = f"{same} of the other {others} cannot be told apart from it"
        return f"Best of {len(names)}: {what}; {rest}."

    def table(self, names: Sequence[str]) -> "pd.DataFrame":
        """A row a point, in their order: value, low, high, difference, difference_low, difference_high, and whether
        it is indistinguishable from the best; indexed by name."""
        import pandas as pd

        self._check(names)
        rows = [
            (v.value, v.low, v.high, d.value, d.low, d.high) for v, d in zip(self.values, self.differences, strict=True)
        ]
        columns = ["value", "low", "high", "difference", "difference_low", "difference_high"]
        table = pd.DataFrame(rows, columns=columns, index=pd.Index(names, name="point"))
        return table.assign(indistinguishable=self.indistinguishable)

    def _check(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or len(names) != len(self.values):
            raise EvaluationError(
                f"names is {names!r}: expected {len(self.values)} names, one for each of the points compared."
            )


def compare_with_best(
    labels: np.ndarray,
    probabilities: Sequence[np.ndarray],
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    metric: str = "accuracy",
    larger_is_better: bool | None = None,
    n_boot: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """Compare the points of a search with the best of them, all on the same images.

    A point's figure is the mean over its seeds: the seeds stay as they are and the patients are drawn. Accuracy has
    Wilson's interval at the effective sample size (of the mean over seeds, which varies less than a single hit
    or miss does: the interval is on the wide side), the others a bootstrap over patients.

    The best was picked because its figure is highest, so that a difference to it is large for two reasons. Of 27 equal
    points simulated on 35 patients, a 5 % test of each difference by itself calls six or seven worse than the best,
    and one of all against a fixed point (Dunnett 1955) calls some worse in two studies of five. The intervals are
    therefore those of all pairs together, as Tukey's are, and hold whichever point came out best: difference ± c
    standard errors, where c is the quantile of the largest |difference| / standard error among all pairs of normal
    variables that vary together as the replicates do (Hothorn, Bretz and Westfall 2008). To each squared standard error
    difference² / patients is added, which for one image a patient makes it that of McNemar's test: n patients never
    tell points apart by more than sqrt(n) standard errors.

    Args:
        labels: (N,) integers, indices into `classes`.
        probabilities: one array a point, (S, N, K) for S seeds, or (N, K) for one; S may differ between points.
        classes: K names in label order.
        positive: name of the positive class; must be given for two classes, and only then.
        groups: (N,) patient of each image; None resamples images.
        metric: one of `METRICS`; decided at 0.5, or by the largest probability of several.
        larger_is_better: None, or what the metric has in any case: False for "nll" and "brier", else True.
        n_boot: bootstrap replicates.
        confidence: that all intervals of differences hold; and of each interval of a value.

    Raises:
        EvaluationError: no point, arrays that do not fit (naming the point), or a metric undefined on these images.
    """
    one_of("metric", metric, METRICS, EvaluationError)
    check_share(confidence, "confidence")
    if larger_is_better not in (None, metric not in SMALLER):
        raise EvaluationError(
            f"larger_is_better={larger_is_better} for {metric}: expected {metric not in SMALLER}, or leave it out."
        )
    points = _points(labels, probabilities, classes, positive, groups)
    data = points[0][0]
    found, replicates = drawn_together(points, metric, n_boot, seed)
    defined = replicates[~np.isnan(replicates).any(axis=1)]
    values = [
        _value(seeds, metric, *pair, confidence) for seeds, *pair in zip(points, found, replicates.T, strict=True)
    ]
    best = int(np.argmax(no_rounding(found - (found.min() if metric in SMALLER else found.max())) == 0))
    patients = int(data.groups.max()) + 1
    errors = _standard_errors(defined, best)
    critical = _critical(defined, seed, confidence)
    gaps = no_rounding(found - found[best])
    half = critical * np.sqrt(errors**2 + gaps**2 / patients)
    undefined = left_out(n_boot - len(defined), n_boot)
    method = f"simultaneous over all pairs, ± {critical:.2f} standard errors{undefined}"
    differences = [
        replace(values[best], value=float(gap), low=float(gap - h), high=float(gap + h), method=method, reason="")
        for gap, h in zip(gaps, half, strict=True)
    ]
    return Comparison(metric, best, tuple(values), tuple(differences), np.abs(gaps) <= half, confidence, critical)


def _points(labels, probabilities, classes, positive, groups) -> list[list[Checked]]:
    """A list a point, of what `check` makes of each seed's probabilities."""
    if not len(probabilities):
        raise EvaluationError("Nothing to compare: expected the probabilities of one point at least.")
    points = []
    for number, given in enumerate(probabilities):
        try:
            p = check_numbers(given, "probabilities")
            if p.ndim not in (2, 3):
                raise EvaluationError(f"shape {p.shape}; expected (seeds, images, classes) or (images, classes).")
            seeds = p[None] if p.ndim == 2 else p
            points.append([check(labels, one, classes, positive, groups) for one in seeds])
        except EvaluationError as error:
            raise EvaluationError(f"Point {number} of {len(probabilities)}, counted from 0: {error}") from None
    return points


def _value(seeds: list[Checked], metric: str, value: float, replicates: np.ndarray, confidence: float) -> Estimate:
    data = seeds[0]
    if metric == "accuracy":
        hits = np.mean([decide(one) == one.y for one in seeds], axis=0)
        return proportion(hits, data.groups, data.groups_known, confidence)
    return resampled(value, replicates, data, confidence)


def _standard_errors(replicates: np.ndarray, of: int) -> np.ndarray:
    """(points,) of the differences to the point `of`; exactly 0 for the same predictions."""
    return no_rounding((replicates - replicates[:, [of]]).std(axis=0, ddof=1))


def _critical(replicates: np.ndarray, seed: int, confidence: float) -> float:
    """Quantile of the largest studentised difference of any two points if none is better than another.

    Normal variables with the replicates' covariance, not the replicates: two points that differ in one image have a
    difference as skewed as a Poisson variable, and many such pairs would make every interval wide.
    """
    rng = np.random.default_rng(seed)
    _, scale, axes = np.linalg.svd((replicates - replicates.mean(axis=0)) / np.sqrt(len(replicates) - 1), False)
    drawn = rng.normal(size=(DRAWS, len(scale))) @ (scale[:, None] * axes)  # (DRAWS, points)
    largest = np.zeros(DRAWS)
    for point in range(drawn.shape[1]):
        errors = _standard_errors(replicates, point)
        differ = errors > 0
        ratios = np.abs(drawn[:, differ] - drawn[:, [point]]) / errors[differ]
        largest = np.maximum(largest, ratios.max(axis=1, initial=0))
    one_pair = ndtri((1 + confidence) / 2)  # where all replicates are alike there is nothing to draw
    return float(max(one_pair, np.quantile(largest, confidence)))
