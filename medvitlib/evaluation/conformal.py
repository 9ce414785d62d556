"""Sets of classes that hold the true one as often as was asked, however poor the model: split conformal prediction.

A class is in an image's set where its probability reaches a cut-off, chosen on validation so that a new image's true
class is missed at most as often as allowed (Vovk, Gammerman & Shafer 2005; the score is that of Sadinle, Lei &
Wasserman, JASA 2019). A poor model gives large sets. The promise is about patients like those of the validation part.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from medvitlib.errors import EvaluationError, one_of
from medvitlib.evaluation.inputs import check, check_share, percent

BY = ("class", "all")


class NotCalibrated(EvaluationError):
    """Too few patients for the coverage that was asked for; the message says how many are needed."""


@dataclass(frozen=True)
class Conformal:
    """Cut-offs, and what stands behind them.

    Attributes:
        coverage: share of new patients whose true class is in all sets of their images, at least.
        by: "class": for each class on its own; "all": over all classes together, so that a rare one may be missed.
        classes: K names.
        cutoffs: K probabilities; a class is in the set where its own is as large.
        patients: K numbers, of patients (images, where patients are unknown) behind each cut-off.
    """

    coverage: float
    by: str
    classes: tuple[str, ...]
    cutoffs: tuple[float, ...]
    patients: tuple[int, ...]

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """Bool (N, K): which classes are in the set of each image (N, K). None at all: it is like no class seen."""
        return np.asarray(probabilities) >= np.array(self.cutoffs)

    def to_dict(self) -> dict:
        """Plain values, as `Conformal(**values)` takes them."""
        return asdict(self)


def conformal(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    coverage: float = 0.9,
    by: str = "class",
) -> Conformal:
    """Choose cut-offs on data that nothing else was trained on.

    Images of one patient are no independent draws: each patient counts once for a class, with the smallest
    probability that one of its images gave it, so that sets are wide enough for all images of a new patient.

    Args:
        y_true: (N,) integers, indices into `classes`.
        probabilities: (N, K), as predictions will have them, that is calibrated.
        groups: (N,) patient of each image; None where unknown.
        coverage: above 0 and below 1.

    Raises:
        NotCalibrated: a class (or all together) has fewer patients than the coverage takes.
        EvaluationError: arrays that do not fit, an unknown `by`.
    """
    one_of("by", by, BY, EvaluationError)
    check_share(coverage, "coverage")
    data = check(y_true, probabilities, classes, positive, groups)
    own = data.p[np.arange(len(data.y)), data.y]
    found = {}
    for label, name in enumerate(data.classes):
        chosen = data.y == label if by == "class" else np.ones(len(data.y), bool)
        lowest = _lowest(own[chosen], data.groups[chosen])
        rank = len(lowest) + 1 - math.ceil((len(lowest) + 1) * coverage)  # from below, counted from 1
        if rank < 1:
            what = name if by == "class" else "all classes"
            unit = "patients" if data.groups_known else "images"
            needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            raise NotCalibrated(
                f"Sets that hold {what} {percent(coverage)} of the time take {needed} {unit} to calibrate on; there "
                f"are {len(lowest)}. Ask for less, collect more"
                + (', or take by="all", which promises it over all classes only.' if by == "class" else ".")
            )
        found[name] = float(np.sort(lowest)[rank - 1]), len(lowest)
    cutoffs, patients = zip(*found.values(), strict=True)
    return Conformal(coverage, by, tuple(data.classes), cutoffs, patients)


def _lowest(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The smallest of each group's values."""
    names, member = np.unique(groups, return_inverse=True)
    lowest = np.full(len(names), np.inf)
    np.minimum.at(lowest, member, values)
    return lowest
