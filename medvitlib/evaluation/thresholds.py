"""Where to call an image positive: chosen on validation, by recall first.

Every decision is "positive when p >= threshold". In this module labels are an indicator of the positive class,
made with `y_true == classes.index(positive)`, so that no index is positive by accident.
"""

from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import bdtr

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check, check_binary, check_share, percent
from medvitlib.evaluation.intervals import Estimate, proportion
from medvitlib.evaluation.metrics import ranked_counts
from medvitlib.evaluation.scoring import decide, estimates


class NotCertifiable(EvaluationError):
    """Too few positive patients for the guarantee that was asked for; the message says how many are needed."""


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and what it did where it was chosen.

    Attributes:
        threshold: call positive when p >= threshold.
        recall, precision: of images, on the data it was chosen on.
        n_positive: positive images there.
        n_patients: patients with a positive image there; None where patients are unknown.
        certified: whether a finite-sample guarantee stands behind it.
        confidence: of that guarantee; None without one.
        sentence: the same in words.
    """

    threshold: float
    recall: float
    precision: float
    n_positive: int
    n_patients: int | None
    certified: bool
    confidence: float | None
    sentence: str

    def to_dict(self) -> dict:
        return asdict(self)


def choose_recall_threshold(
    y_true: np.ndarray, p: np.ndarray, min_recall: float, groups: np.ndarray | None = None
) -> ThresholdChoice:
    """Choose a threshold for recall: that of `choose_threshold_by_min_recall`, made safe for few images.

    Where the scores of the classes are far apart, the published rule picks the lowest score of a positive image, which
    new positive images often fall short of. Here the threshold is the middle of the gap between that score and the
    next lower one, which decides every given image alike, and never more than 0.5: recall on any images is then at
    least what it is at 0.5.

    Args and raises: as `choose_threshold_by_min_recall`.
    """
    published = choose_threshold_by_min_recall(y_true, p, min_recall, groups)
    y, scores, _ = _with_positives(y_true, p, groups)
    below = scores[scores < published.threshold].max(initial=0.0)
    middle = (published.threshold + below) / 2
    threshold = min(middle, 0.5)
    found = f"{percent(min_recall)} recall on {_counted(y, published.n_patients)}"
    if threshold < middle:
        sentence = (
            f"The threshold stays at 0.5. One of {published.threshold:.3g} would reach {found} too, but no threshold "
            "above 0.5 is chosen for recall: on new images it can only lower it."
        )
    else:
        sentence = f"The threshold {threshold:.3g} reaches {found}; it guarantees nothing about new images."
    return _choice(y, scores, threshold, published.n_patients, None, sentence)


def choose_threshold_by_min_recall(
    y_true: np.ndarray, p: np.ndarray, min_recall: float, groups: np.ndarray | None = None
) -> ThresholdChoice:
    """Choose the observed score with the highest precision among those whose recall reaches `min_recall`.

    The rule of published recall-first work. Equal precision goes to the higher threshold. On new images recall is
    lower about as often as higher, and on few images much lower: see `choose_recall_threshold`, which reports use, and
    `choose_certified_threshold`.

    Args:
        y_true: (N,) bool or 0/1, 1 where the image is positive.
        p: (N,) probability of the positive class.
        min_recall: in (0, 1].
        groups: (N,) patient of each image, only to be counted.

    Raises:
        EvaluationError: if no image is positive, or the arrays do not fit each other.
    """
    check_share(min_recall, "min_recall", one_allowed=True)
    y, scores, patients = _with_positives(y_true, p, groups)
    thresholds, (tp,), (fp,) = ranked_counts(y, scores)
    enough = np.flatnonzero(tp >= min_recall * y.sum() - 1e-9)  # 0.95 * 20 may be just above 19
    precision = tp[enough] / (tp[enough] + fp[enough])
    best = enough[precision.argmax()]  # thresholds fall, so the first maximum is the highest threshold
    n_patients = len(np.unique(patients[y])) if groups is not None else None
    sentence = (
        f"The threshold {thresholds[best]:.3g} has the highest precision among those that reach {percent(min_recall)} "
        f"recall on {_counted(y, n_patients)}; it guarantees nothing about new images."
    )
    return _choice(y, scores, thresholds[best], n_patients, None, sentence)


def choose_certified_threshold(
    y_true: np.ndarray,
    p: np.ndarray,
    groups: np.ndarray | None,
    min_recall: float,
    confidence: float = 0.95,
    candidates: int = 1,
    compared: str = "models",
) -> ThresholdChoice:
    """The highest threshold that misses at most 1 - min_recall of new positive patients, at a stated confidence.

    A patient is missed if any of their positive images is below the threshold, so a patient's score is the smallest
    of these. With n patients and k = the largest number for which P(Binomial(n, 1 - min_recall) <= k) <= 1 -
    confidence, the (k + 1)-th smallest score is the threshold (a one-sided tolerance limit, Wilks 1941). No
    distribution is assumed, only that new patients come from where these came from. Ties only add to recall.

    Args:
        y_true: (N,) bool or 0/1, 1 where the image is positive.
        p: (N,) probability of the positive class.
        groups: (N,) patient of each image; None makes each image a patient, and the guarantee one about images.
        min_recall: share of positive patients to be found, in (0, 1).
        confidence: probability, over draws of these patients, that the promise is kept.
        candidates: how many models or settings were compared on these same patients before this one was kept; the
            permitted risk is divided among them (union bound).
        compared: what they are, in the plural: "penalties", "epochs".

    Raises:
        NotCertifiable: if there are too few positive patients.
        EvaluationError: if no image is positive, or the arrays do not fit each other.
    """
    check_share(min_recall, "min_recall")
    check_share(confidence, "confidence")
    if candidates < 1:
        raise EvaluationError(f"candidates is {candidates}; expected the number of models compared, at least 1.")
    y, scores, patients = _with_positives(y_true, p, groups)
    smallest = np.full(int(patients.max()) + 1, np.inf)
    np.minimum.at(smallest, patients[y], scores[y])
    ranked = np.sort(smallest[np.isfinite(smallest)])
    n, unit = len(ranked), "patients" if groups is not None else "images (patients unknown)"
    risk = (1 - confidence) / candidates
    allowed = np.flatnonzero(bdtr(np.arange(n), n, 1 - min_recall) <= risk)
    among = f", allowing for {candidates} {compared} compared on them" if candidates > 1 else ""
    if len(allowed) == 0:
        raise NotCertifiable(
            f"{n} positive {unit}; at least {patients_needed(min_recall, 1 - risk)} needed for {percent(min_recall)} "
            f"recall with {percent(confidence)} confidence{among}."
        )
    misses = int(allowed[-1])
    missed = "; a patient counts as missed if any of their positive images is" if groups is not None else ""
    sentence = (
        f"With {percent(confidence)} confidence, the threshold {ranked[misses]:.3g} finds at least "
        f"{percent(min_recall)} of new positive {unit}, if they are like the {n} it was set on "
        f"({misses} of which it may miss{among}){missed}."
    )
    n_patients = n if groups is not None else None
    return _choice(y, scores, ranked[misses], n_patients, confidence, sentence)


def patients_needed(min_recall: float, confidence: float = 0.95, misses: int = 0) -> int:
    """The fewest positive patients of whom `misses` may be missed: 59, 93, 124, 153, 181 for 0 to 4 at 95 % / 95 %."""
    check_share(min_recall, "min_recall")
    check_share(confidence, "confidence")

    def enough(n: int) -> bool:
        return bdtr(misses, n, 1 - min_recall) <= 1 - confidence

    high = misses + 1
    while not enough(high):
        high *= 2
    low = misses
    while high - low > 1:  # enough(high) holds, enough(low) does not
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def summarize_at_threshold(
    y_true: np.ndarray,
    p: np.ndarray,
    threshold: float,
    groups: np.ndarray | None = None,
    *,
    n_boot: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Estimate | float | int]:
    """What a threshold does: accuracy, balanced_accuracy, precision, recall, specificity, f1, mcc, and four counts.

    Where patients are known, `patient_recall` is the share of positive patients none of whose positive images is
    missed: the figure that `choose_certified_threshold` speaks of.

    Args:
        y_true: (N,) bool or 0/1, 1 where the image is positive.
        p: (N,) probability of the positive class.
        threshold: positive when p >= threshold.
        groups: (N,) patient of each image, or None.

    Returns:
        an Estimate under each metric's name; `threshold`; and the images `tp`, `fp`, `fn`, `tn`.
    """
    check_binary(y_true, p, groups)
    data = check(y_true, p, ["negative", "positive"], "positive", groups)
    called = decide(data, threshold) == 1
    found = estimates(data, called.astype(np.int64), n_boot, seed, confidence, with_scores=False)
    y = data.is_positive
    if groups is not None:
        positive_patients, missed = np.unique(data.groups[y]), np.unique(data.groups[y & ~called])
        complete = ~np.isin(positive_patients, missed)
        found["patient_recall"] = proportion(complete, positive_patients, True, confidence, "no patient is positive")
    counts = {"tp": y & called, "fp": ~y & called, "fn": y & ~called, "tn": ~y & ~called}
    return {"threshold": float(threshold), **found, **{name: int(images.sum()) for name, images in counts.items()}}


def _with_positives(y_true, p, groups):
    y, scores, patients = check_binary(y_true, p, groups)
    if not y.any():
        raise EvaluationError("No image is positive: recall needs some. Check which class y_true marks with 1.")
    return y, scores, patients


def _counted(y: np.ndarray, n_patients: int | None) -> str:
    who = "patients unknown" if n_patients is None else f"{n_patients} patients"
    return f"{int(y.sum())} positive images ({who})"


def _choice(y, scores, threshold, n_patients, confidence, sentence) -> ThresholdChoice:
    called = scores >= threshold
    return ThresholdChoice(
        threshold=float(threshold),
        recall=float(called[y].mean()),
        precision=float(y[called].mean()),
        n_positive=int(y.sum()),
        n_patients=n_patients,
        certified=confidence is not None,
        confidence=confidence,
        sentence=sentence,
    )
