"""Several models on one test set, side by side: what each costs and what it is worth at each operating point."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.report import Report
from medvitlib.finished import training_minutes
from medvitlib.models.zoo import count_parameters
from medvitlib.training.run import Run

if TYPE_CHECKING:
    import pandas as pd

DASH = "–"
TWO = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "F1": "f1"}
MANY = {"accuracy": "accuracy", "precision": "precision_macro", "recall": "recall_macro", "F1": "f1_macro"}


def comparison_table(runs: Mapping[str, tuple[Run, Report]], *, minutes: bool = True) -> "pd.DataFrame":
    """A row a model and operating point, in the order given, ready to be shown: every cell is text.

    Columns: parameters, minutes of training, accuracy, precision, recall, F1 and AUROC, each with its interval, and the
    threshold. AUROC depends on no threshold and is the same in each row of a model. For more than two classes there is
    one row a model, decided by the largest probability; precision, recall, F1 and AUROC are macro averages.

    A frozen-feature probe has no minutes: its table counts the fits, not the features before them.

    Args:
        runs: name of the model -> its run and what `evaluate` said of it; all on the same images.
        minutes: without them, the table is the same whenever the figures are.

    Returns:
        rows indexed by (model, operating point): "@0.5", "@recall" and, where there is one, "@certified".

    Raises:
        EvaluationError: nothing given, or reports on other images or classes, which cannot be compared.
    """
    import pandas as pd

    check_comparable({name: report for name, (_, report) in runs.items()})
    rows = {}
    for name, (run, report) in runs.items():
        cost = {"parameters": f"{count_parameters(run.model):,}"} | ({"minutes": _minutes(run)} if minutes else {})
        auroc = report.metrics["auroc" if report.positive is not None else "auroc_macro"]
        if report.positive is None:
            scores = {column: str(report.metrics[key]) for column, key in MANY.items()}
            rows[name, "argmax"] = {**cost, **scores, "AUROC": str(auroc), "threshold": DASH}
        for point, found in report.operating_points.items():
            scores = {column: str(found[key]) for column, key in TWO.items()}
            threshold = f"{found['threshold']:.3g}"
            rows[name, f"@{point}"] = {**cost, **scores, "AUROC": str(auroc), "threshold": threshold}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["model", "operating point"])
    return table


def check_comparable(reports: Mapping[str, Report]) -> None:
    """EvaluationError unless there is a report, and all are on the same images, classes and settings."""
    check_same_images(reports)
    (first, one), *others = reports.items()
    for name, other in others:
        for setting in ("target_recall", "confidence"):
            mine, theirs = one.settings[setting], other.settings[setting]
            if mine != theirs:
                raise EvaluationError(
                    f"{first!r} was evaluated with {setting}={mine}, {name!r} with {theirs}: evaluate both with one."
                )


def check_same_images(reports: Mapping[str, Report]) -> None:
    """EvaluationError unless there is a report, and all are on the same images and classes, in the same order."""
    if not reports:
        raise EvaluationError("Nothing to compare: expected one run with its report at least.")
    (first, one), *others = reports.items()
    for name, other in others:
        if (other.classes, other.positive) != (one.classes, one.positive):
            raise EvaluationError(
                f"{first!r} was scored on {list(one.classes)} (positive: {one.positive}), {name!r} on "
                f"{list(other.classes)} (positive: {other.positive}): compare models for the same classes."
            )
        patients = one.groups is None or other.groups is None or np.array_equal(other.groups, one.groups)
        if not (np.array_equal(other.y_true, one.y_true) and patients):
            raise EvaluationError(
                f"{first!r} was scored on {len(one.y_true)} images, {name!r} on {len(other.y_true)}, and they are not "
                "the same: evaluate both on one test set, in one order."
            )


def _minutes(run: Run) -> str:
    """Of training, where there were epochs."""
    minutes = training_minutes(run.metrics)
    return DASH if np.isnan(minutes) else f"{minutes:.1f}"
