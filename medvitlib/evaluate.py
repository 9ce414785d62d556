"""From a run to its report: choices on its validation predictions, figures on data it has not seen."""

import json

import numpy as np
import torch

from medvitlib.data import Dataset
from medvitlib.errors import EvaluationError
from medvitlib.evaluation.report import Predictions, Report, build_report
from medvitlib.jsonfile import write_json
from medvitlib.training.features import forward
from medvitlib.training.run import Run


def evaluate(
    run: Run,
    dataset: Dataset,
    *,
    target_recall: float = 0.95,
    confidence: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
    figures: bool = True,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> Report:
    """Score a run on a data set; temperature and thresholds come from the run's validation part alone.

    Writes report.json, predictions.csv and plots/ into the run folder; temperature and thresholds go into model.json.
    Drawing takes longer than scoring a few hundred images: where many runs are scored, `figures=False` leaves plots/
    out, and `report.figures()` draws them when they are asked for.

    Raises:
        EvaluationError: the data set has other classes, or another positive class, than the run.
    """
    if list(dataset.classes) != list(run.classes) or dataset.positive != run.positive:
        raise EvaluationError(
            f"The run in {run.folder} was trained for classes {run.classes} (positive: {run.positive}), the data set "
            f"{dataset.name!r} has {dataset.classes} (positive: {dataset.positive}). Open it with the same ones."
        )
    logits = forward(
        run.model, dataset, batch_size=batch_size, device=device, precision=precision, description="Evaluating"
    )
    validation = Predictions(
        y_true=run.validation["y_true"].map(run.classes.index).to_numpy(np.int64),
        probabilities=_softmax(run.validation_logits),
        groups=run.validation["group"].to_numpy(str) if run.groups_known else None,
    )
    report = build_report(
        dataset.labels,
        _softmax(logits),
        classes=run.classes,
        positive=run.positive,
        groups=dataset.groups if dataset.groups_known else None,
        validation=validation,
        target_recall=target_recall,
        confidence=confidence,
        candidates=run.candidates,
        n_boot=n_boot,
        seed=seed,
    )
    report.save(run.folder, ids=dataset.ids, splits=dataset.splits, figures=figures)
    path = run.folder / "model.json"
    write_json(
        path, {**json.loads(path.read_text()), "temperature": report.temperature, "thresholds": report.thresholds}
    )
    return report


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(1).numpy()
