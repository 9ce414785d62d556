"""Two models on the same test images: by how much one is better, and whether luck would do as much.

What makes an image or a patient hard is hard for both, and cancels out: the difference is known better than either
figure, and two intervals that overlap do not say that the models are alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from medvitlib.errors import EvaluationError, one_of
from medvitlib.evaluation.inputs import check, check_share, percent
from medvitlib.evaluation.intervals import Estimate
from medvitlib.evaluation.paired import METRICS, SMALLER
from medvitlib.evaluation.scoring import decide
from medvitlib.evaluation.together import drawn_together, no_rounding, resampled


@dataclass(frozen=True)
class Pair:
    """The first model against the second.

    Attributes:
        metric: one of `paired.METRICS`.
        difference: the first's metric minus the second's, with a percentile interval over patients.
        only_first, only_second: images that one of them decides rightly and the other does not.
        p_value: of McNemar's exact test on these two numbers.
        confidence: of the interval.
    """

    metric: str
    difference: Estimate
    only_first: int
    only_second: int
    p_value: float
    confidence: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False where there is none."""
        return bool(self.difference.low > 0 or self.difference.high < 0)

    def sentence(self, first_name: str, second_name: str) -> str:
        """The result in words, McNemar's test among them, and which of the two holds where patients repeat."""
        if not first_name or not second_name or first_name == second_name:
            raise EvaluationError(f"The names are {first_name!r} and {second_name!r}: expected two different ones.")
        found = self.difference
        better = ", smaller is better" if self.metric in SMALLER else ""
        patients = "patients unknown" if found.n_groups is None else _count(found.n_groups, "patient")
        if np.isnan(found.low):
            verdict = f"there is no interval: {found.reason}"
        else:
            verdict = f"the {percent(self.confidence)} interval {'excludes' if self.excludes_zero else 'includes'} zero"
        p = "< 0.001" if self.p_value < 0.001 else f"= {self.p_value:.2g}"
        said = (
            f"{first_name} minus {second_name}, {METRICS[self.metric]}{better}: {found:+.3f} "
            f"({_count(found.n_images, 'image')}, {patients}); {verdict}. Decided rightly by {first_name} alone: "
            f"{_count(self.only_first, 'image')}; by {second_name} alone: {self.only_second} (McNemar's exact test: "
            f"p {p})."
        )
        if found.n_groups is not None and found.n_groups < found.n_images:
            said += " That test takes images as independent, and patients have several: it is the interval that holds."
        return said


def compare_pair(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    metric: str = "accuracy",
    n_boot: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Pair:
    """Compare two models that were chosen before this test set was looked at; for the best of many, see `paired`.

    The same patients are drawn for both, with replacement, and the metric's difference is taken in each draw; its
    percentiles are the interval. It holds for patients that come in numbers: from fewer than about twenty it is too
    narrow.

    Args:
        labels: (N,) integers, indices into `classes`.
        first, second: (N, K) probabilities, or (N,) of the positive class of two; the same images in the same order.
        classes: K names in label order.
        positive: name of the positive class; must be given for two classes, and only then.
        groups: (N,) patient of each image; None draws images.
        metric: one of `paired.METRICS`; decided at 0.5, or by the largest probability of several classes.
        n_boot: draws.
        confidence: of the interval.

    Raises:
        EvaluationError: arrays that do not fit (naming the model), or a metric undefined on these images.
    """
    one_of("metric", metric, METRICS, EvaluationError)
    check_share(confidence, "confidence")
    both = []
    for which, given in (("first", first), ("second", second)):
        try:
            both.append(check(labels, given, classes, positive, groups))
        except EvaluationError as error:
            raise EvaluationError(f"The {which} model: {error}") from None
    found, replicates = drawn_together([[data] for data in both], metric, n_boot, seed)
    value, *differences = no_rounding(np.r_[found[:1] - found[1:], replicates[:, 0] - replicates[:, 1]])
    difference = resampled(value, np.array(differences), both[0], confidence)
    right, also = (decide(data) == data.y for data in both)
    only_first, only_second = int((right & ~also).sum()), int((also & ~right).sum())
    return Pair(metric, difference, only_first, only_second, mcnemar(only_first, only_second), confidence)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value that each image on which they differ is as likely to be the one's as the other's.

    Binomial at one half (McNemar 1947; exact as in Agresti, "Categorical Data Analysis", section 11.1): 1.0 where no
    image tells the models apart. Takes images as independent.
    """
    if only_first < 0 or only_second < 0:
        raise EvaluationError(f"{only_first} and {only_second} images: expected counts from 0 up.")
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")
