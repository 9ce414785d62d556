"""The report on a test set: temperature and thresholds from validation, figures from the test set, scored once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.calibration import BOUNDS, apply_temperature, fit_temperature, log_probabilities
from medvitlib.evaluation.inputs import Checked, Predictions, check, check_share, grades, group_names
from medvitlib.evaluation.intervals import Estimate, bootstrap, percentiles
from medvitlib.evaluation.result import Report
from medvitlib.evaluation.scoring import decide, recall_per_class, score
from medvitlib.evaluation.thresholds import (
    NotCertifiable,
    ThresholdChoice,
    choose_certified_threshold,
    choose_recall_threshold,
    choose_threshold_by_min_recall,
    summarize_at_threshold,
)

CALIBRATION = ("brier", "nll", "ece")


@dataclass(frozen=True)
class Stored:
    """What was chosen before, on a model's own validation images.

    Attributes:
        temperature: 1 leaves the probabilities as they are.
        thresholds: of calibrated probabilities, where they exist: "recall", "published", "certified"; two classes only.
        refused: for a threshold that does not exist, the reason.
    """

    temperature: float = 1.0
    thresholds: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def build_report(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    validation: Predictions | None = None,
    stored: Stored | None = None,
    ordered: bool | Sequence[str] = False,
    target_recall: float = 0.95,
    confidence: float = 0.95,
    candidates: int = 1,
    compared: str = "models",
    n_boot: int = 1000,
    seed: int = 0,
) -> Report:
    """Choose temperature and thresholds on `validation`, then score the test predictions once.

    Thresholds refer to calibrated probabilities. With two classes, calibration moves no image across 0.5.

    Args:
        y_true: (N,) integers, indices into `classes`.
        probabilities: (N, K) as the model gives them, uncalibrated; or (N,) for the positive class of two.
        groups: (N,) patient of each test image; None where unknown.
        validation: predictions of the same model on other patients. Without it nothing is calibrated or chosen.
        stored: in place of `validation`: what was chosen when the model was made, for images that came later.
        ordered: the classes are grades: adds the metric "kappa" (quadratic weights). Their names from the lowest to
            the highest, or True where `classes` tells (see `medvitlib.evaluation.inputs.grades`).
        target_recall: recall for which the thresholds are chosen.
        confidence: coverage of the intervals, and of the certified threshold's guarantee.
        candidates, compared: number of models or settings compared on the validation patients before this one was
            kept, and what they are: "penalties", "epochs".

    Raises:
        EvaluationError: if arrays do not fit, a patient is in both validation and test, or both `validation` and
            `stored` are given.
    """
    check_share(target_recall, "target_recall", one_allowed=True)
    if validation is not None and stored is not None:
        raise EvaluationError("validation and stored were both given: choose anew, or take what was chosen before.")
    test = check(y_true, probabilities, classes, positive, groups)
    temperature, choices, thresholds, refused = 1.0, {}, {}, {}
    notes = ["No validation predictions were given: nothing was calibrated and no threshold was chosen."]
    calibrated = test
    if stored is not None:
        temperature = stored.temperature
        calibrated = _calibrate(test, temperature)
        thresholds = {name: value for name, value in stored.thresholds.items() if name != "0.5"}
        refused = dict(stored.refused)
        notes = ["Temperature and thresholds are those stored with the model: nothing was chosen on these images."]
    if validation is not None:
        held_out = check(validation.y_true, validation.probabilities, classes, positive, validation.groups)
        _assert_disjoint(groups, validation.groups)
        temperature, notes = _temperature(held_out)
        calibrated = _calibrate(test, temperature)
        if positive is not None:
            chosen_on = _calibrate(held_out, temperature)
            certificate = {"confidence": confidence, "candidates": candidates, "compared": compared}
            choices, refused = _choose(chosen_on, validation.groups, target_recall, certificate)
            thresholds = {name: choice.threshold for name, choice in choices.items()}
    notes += [f"No {name} threshold: {reason}" for name, reason in refused.items()]
    if (ranks := grades(test.classes, ordered)) is not None:
        lowest_first = sorted(test.classes, key=lambda name: ranks[test.classes.index(name)])
        notes = [*notes, f"Grades, from the lowest to the highest: {', '.join(lowest_first)}."]
    common = {"groups": groups, "n_boot": n_boot, "seed": seed, "confidence": confidence}
    metrics = score(test.y, calibrated.p, classes=test.classes, positive=positive, ordered=ordered, **common)
    before = score(test.y, test.p, classes=test.classes, positive=positive, **common)
    points = {}
    if positive is not None:
        for name, threshold in {"0.5": 0.5, **thresholds}.items():
            points[name] = summarize_at_threshold(test.is_positive, calibrated.p_positive, threshold, **common)
    return Report(
        classes=test.classes,
        positive=positive,
        y_true=test.y,
        probabilities=calibrated.p,
        groups=None if groups is None else np.asarray(groups).astype(str),
        temperature=temperature,
        metrics=metrics,
        per_class=recall_per_class(calibrated, decide(calibrated), confidence),
        calibration={
            "before": {name: before[name] for name in CALIBRATION},
            "after": {name: metrics[name] for name in CALIBRATION},
            "change": {"nll": _change_of_nll(test, calibrated, metrics["nll"], common)},
        },
        choices=choices,
        operating_points=points,
        refused=refused,
        notes=notes,
        settings={
            "target_recall": target_recall,
            "confidence": confidence,
            "candidates": candidates,
            "n_boot": n_boot,
            "seed": seed,
            "validation_images": 0 if validation is None else len(held_out.y),
        },
    )


def _assert_disjoint(test: np.ndarray | None, validation: np.ndarray | None) -> None:
    if test is None or validation is None:
        return
    shared = sorted(set(group_names(test)) & set(group_names(validation)))
    if shared:
        raise EvaluationError(
            f"{len(shared)} patients are in both validation and test (such as {', '.join(shared[:3])}): thresholds "
            "would have seen the test set. Split by patient; where numbers restart in each part and mean "
            "different patients, put the part's name before them."
        )


def _temperature(held_out: Checked) -> tuple[float, list[str]]:
    """The fitted temperature, or 1 and why it could not be fitted."""
    if (held_out.p.argmax(axis=1) == held_out.y).all():
        return 1.0, ["The temperature was left at 1: no validation image is called wrongly, so that none is the best."]
    fitted = fit_temperature(held_out.y, log_probabilities(held_out.p))
    if fitted > 0.99 * BOUNDS[1]:
        return 1.0, ["The temperature was left at 1: on validation the probabilities say nothing about the class."]
    return fitted, []


def _calibrate(data: Checked, temperature: float) -> Checked:
    return replace(data, p=apply_temperature(log_probabilities(data.p), temperature))


def _change_of_nll(before: Checked, after: Checked, like: Estimate, common: dict) -> Estimate:
    """NLL after scaling minus that before, the same patients drawn for both."""
    rows = np.arange(len(before.y))
    change = log_probabilities(before.p)[rows, before.y] - log_probabilities(after.p)[rows, after.y]
    drawn = bootstrap(lambda w: {"nll": w @ change / w.sum(axis=1)}, before.groups, common["n_boot"], common["seed"])
    low, high, _ = percentiles(drawn["nll"], common["confidence"])
    return replace(like, value=float(change.mean()), low=low, high=high)


def _choose(
    data: Checked, groups: np.ndarray | None, target_recall: float, certificate: dict
) -> tuple[dict[str, ThresholdChoice], dict[str, str]]:
    """The thresholds that exist, and for each that does not, the reason."""
    y, p = data.is_positive, data.p_positive
    choices = {
        "recall": choose_recall_threshold(y, p, target_recall, groups),
        "published": choose_threshold_by_min_recall(y, p, target_recall, groups),
    }
    if target_recall == 1:
        return choices, {"certified": "a recall of 100 % cannot be guaranteed by any number of patients."}
    try:
        choices["certified"] = choose_certified_threshold(y, p, groups, target_recall, **certificate)
    except NotCertifiable as refusal:
        return choices, {"certified": str(refusal)}
    return choices, {}
