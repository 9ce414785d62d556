"""From a run to its report: choices on its validation predictions, figures on data it has not seen."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medvitlib.data import Dataset
from medvitlib.errors import EvaluationError
from medvitlib.evaluation.report import Predictions, Report, Stored, build_report
from medvitlib.models.model_json import update_info
from medvitlib.models.saved import load_model, model_folder
from medvitlib.training.features import forward
from medvitlib.training.run import Run, read_validation


def evaluate(
    run: Run,
    dataset: Dataset,
    *,
    target_recall: float = 0.95,
    confidence: float = 0.95,
    ordered: bool = False,
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
    out, and `report.figures()` draws them when they are asked for. `ordered`: the classes are grades, see
    `build_report`.

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
        ordered=ordered,
        target_recall=target_recall,
        confidence=confidence,
        candidates=run.candidates,
        n_boot=n_boot,
        seed=seed,
    )
    report.save(run.folder, ids=dataset.ids, splits=dataset.splits, figures=figures)
    chosen = {"temperature": report.temperature, "thresholds": report.thresholds, "target_recall": target_recall}
    update_info(run.folder, **chosen)
    return report


def evaluate_saved(
    folder: str | Path,
    dataset: Dataset,
    *,
    out: str | Path | None = None,
    confidence: float = 0.95,
    ordered: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> Report:
    """Score a saved model on a data set anew, at its stored temperature and thresholds: nothing is chosen on these.

    Args:
        folder: of a run, or its name, or any folder with its model.safetensors and model.json.
        dataset: opened at the model's image size; of the same classes, in whatever order.
        out: where report.json, predictions.csv and plots/ go; None writes nothing.
        ordered: the classes are grades, see `build_report`.

    Raises:
        EvaluationError: no images, other classes than the model was made for, or a folder that cannot be written to.
        MedvitError: a model file that is missing or damaged.
    """
    folder = model_folder(folder)
    model, info = load_model(folder)
    dataset = _as_trained(dataset, info, folder)
    logits = forward(
        model, dataset, batch_size=batch_size, device=device, precision=precision, description="Evaluating"
    )
    stored = Stored(info.get("temperature", 1.0), info.get("thresholds", {})) if "temperature" in info else None
    report = build_report(
        dataset.labels,
        _softmax(logits),
        classes=info["classes"],
        positive=info["positive"],
        groups=dataset.groups if dataset.groups_known else None,
        stored=stored,
        ordered=ordered,
        target_recall=info.get("target_recall", 0.95),  # models saved before it was written down had the default
        confidence=confidence,
        n_boot=n_boot,
        seed=seed,
    )
    report.notes.extend(_seen_before(folder, info["classes"], dataset))
    if out is not None:
        try:
            report.save(out, ids=dataset.ids, splits=dataset.splits)
        except OSError as error:
            raise EvaluationError(f"{out} cannot be written to ({error.strerror}): name another folder.") from error
    return report


def _as_trained(dataset: Dataset, info: dict, folder: str | Path) -> Dataset:
    """The data set with its classes numbered as the model numbers them, and the positive class that it speaks of."""
    if not len(dataset):
        raise EvaluationError(f"{dataset.name!r} has no images to score.")
    if set(dataset.classes) != set(info["classes"]):
        raise EvaluationError(
            f"The model in {folder} tells apart {', '.join(info['classes'])}; the data set {dataset.name!r} has "
            f"{', '.join(dataset.classes)}. Rename the class folders (or labels), or take a model made for these."
        )
    if dataset.classes != info["classes"]:
        dataset = dataset.of_classes(info["classes"])
    return replace(dataset, positive=info["positive"])


def _seen_before(folder: Path, classes: list[str], dataset: Dataset) -> list[str]:
    """A warning, where the folder remembers validation images of the same names as these."""
    if not (folder / "validation.csv").is_file():
        return []
    shared = len(set(read_validation(folder, classes)["id"]) & set(dataset.ids))
    if not shared:
        return []
    return [
        f"{shared} of these images have names of the model's own validation images: if it is the same data set, the "
        "model was made with them and every figure is too good. Score its test part alone."
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(1).numpy()
