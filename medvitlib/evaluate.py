"""Evaluate a run: figures with intervals on data it has not seen, and everything that prediction needs.

    run = fit(model, parts, name="my-run")
    report = evaluate(run, parts)

Afterwards model.safetensors and model.json are enough to predict: temperature, thresholds, sets of classes and the
limit beyond which an image is unlike the training images are stored in model.json.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medvitlib.data import Dataset, Split
from medvitlib.data.transforms import Preprocessing
from medvitlib.errors import EvaluationError, MedvitError
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.evaluation.conformal import NotCalibrated, conformal
from medvitlib.evaluation.inputs import check_share
from medvitlib.evaluation.report import Predictions, Report, Stored, build_report
from medvitlib.models.convert import load_converted
from medvitlib.models.model_json import unreadable, update_info
from medvitlib.models.saved import load_model, model_folder
from medvitlib.outliers import familiar
from medvitlib.training.features import extract_features, forward
from medvitlib.training.run import Run
from medvitlib.training.settings import HASH


def evaluate(
    run: Run,
    data: Split | Dataset,
    *,
    target_recall: float = 0.95,
    confidence: float = 0.95,
    coverage: float = 0.9,
    alarms: float = 0.05,
    ordered: bool | Sequence[str] = False,
    n_boot: int = 1000,
    seed: int = 0,
    figures: bool = True,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> Report:
    """Score a run on test data, and store what prediction needs in its model.json.

    Temperature and thresholds are chosen on the run's validation predictions alone. Writes report.json,
    predictions.csv and plots/ into the run folder.

    Args:
        data: the split that the run was trained on: its test part is scored, its validation part calibrates the sets
            of classes, its training part gives the limit for images that are unlike it. This takes one more pass over
            the training and validation images, or none where their features are in the cache (after `fit_probe`).
            Or a data set: only figures are computed, and what is already stored for prediction is kept.
        coverage: of the sets of classes: share of new patients whose true class is in the sets of all their images.
            Promised for each class where there are enough patients, else over all classes, else not at all.
        alarms: share of images like the training images that may be called unlike them.
        ordered: the classes are grades, see `build_report`.
        figures: False skips plots/, which takes longer to draw than a few hundred images to score;
            `report.figures()` draws them later.

    Raises:
        EvaluationError: the data have other classes, or another positive class, than the run, or the split is not the
            one that the run was trained on.
    """
    if not isinstance(run, Run):
        raise EvaluationError(
            f"evaluate takes a run, which knows its validation part; a {type(run).__name__} was given. `fit` and "
            "`fit_probe` return one, `load_run(name)` reads one back."
        )
    check_share(coverage, "coverage")
    check_share(alarms, "alarms")
    parts, dataset = (data, data.test) if isinstance(data, Split) else (None, data)
    if list(dataset.classes) != list(run.classes) or dataset.positive != run.positive:
        raise EvaluationError(
            f"The run in {run.folder} was trained for classes {run.classes} (positive: {run.positive}), the data set "
            f"{dataset.name!r} has {dataset.classes} (positive: {dataset.positive}). Open it with the same ones."
        )
    if parts is not None and list(run.validation["id"]) != list(parts.val.ids):
        raise EvaluationError(
            f"{run.folder} was not trained on this split: open the data and split it as for the training, or pass a "
            "data set, such as parts.test, for figures alone."
        )
    hardware = {"batch_size": batch_size, "device": device, "precision": precision}
    logits = forward(run.model, dataset, description="Evaluating", **hardware)
    y_validation = run.validation["y_true"].map(run.classes.index).to_numpy(np.int64)
    validation_groups = run.validation["group"].to_numpy(str) if run.groups_known else None
    report = build_report(
        dataset.labels,
        _softmax(logits),
        classes=run.classes,
        positive=run.positive,
        groups=dataset.groups if dataset.groups_known else None,
        validation=Predictions(y_validation, _softmax(run.validation_logits), validation_groups),
        ordered=ordered,
        target_recall=target_recall,
        confidence=confidence,
        candidates=run.candidates,
        compared=run.compared,
        n_boot=n_boot,
        seed=seed,
    )
    report.alerts.extend(_alerts(run.folder, dataset))
    found = {
        "temperature": report.temperature,
        "thresholds": report.thresholds,
        "no_threshold": report.refused,
        "target_recall": target_recall,
    }
    if parts is not None:
        p = apply_temperature(run.validation_logits, report.temperature)
        given = {"classes": run.classes, "positive": run.positive, "groups": validation_groups, "coverage": coverage}
        found["prediction"] = _sets(y_validation, p, **given) | _usual(run, parts, alarms, hardware)
        if not found["prediction"]["sets"]:
            report.notes.append(f"No sets of classes for prediction: {found['prediction']['refused'][-1]}")
        if not found["prediction"]["familiar"]:
            report.notes.append(f"Prediction cannot recognise unusual images: {found['prediction']['unchecked']}")
    report.save(run.folder, ids=dataset.ids, splits=dataset.splits, figures=figures)
    update_info(run.folder, **found)
    return report


def _sets(y_true: np.ndarray, probabilities: np.ndarray, **given) -> dict:
    """Conformal sets for each class, else over all classes, else None; `refused` has the reasons for what is not."""
    refused: list[str] = []
    for by in ("class", "all"):
        try:
            return {"sets": conformal(y_true, probabilities, **given, by=by).to_dict(), "refused": refused}
        except NotCalibrated as refusal:
            refused.append(str(refusal))
    return {"sets": None, "refused": refused}


def _usual(run: Run, parts: Split, alarms: float, hardware: dict) -> dict:
    """What the training images are like, or None; `unchecked` has the reason."""
    train, val = (extract_features(run.model, part, **hardware) for part in (parts.train, parts.val))
    given = {"groups_known": parts.val.groups_known, "alarms": alarms}
    try:
        return {"familiar": familiar(train, parts.train.groups, val, parts.val.groups, **given).to_dict()}
    except MedvitError as refusal:
        return {"familiar": None, "unchecked": str(refusal)}


def evaluate_saved(
    folder: str | Path,
    dataset: Dataset,
    *,
    classes: Sequence[str] = (),
    positive: str | None = None,
    out: str | Path | None = None,
    confidence: float = 0.95,
    ordered: bool | Sequence[str] = False,
    n_boot: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> Report:
    """Score a saved model on a data set anew, at its stored temperature and thresholds: nothing is chosen on these.

    Args:
        folder: of a run, or its name, or any folder with its model.safetensors and model.json; or, with `classes`, a
            file of `medvitlib.models.convert`.
        dataset: opened at the model's image size; of the same classes, in whatever order.
        classes, positive: of a converted file, see `medvitlib.models.convert.load_converted`.
        out: where report.json, predictions.csv and plots/ go; None writes nothing.
        ordered: the classes are grades, see `build_report`.

    Raises:
        EvaluationError: no images, other classes than the model was made for, or a folder that cannot be written to.
        MedvitError: a model file that is missing or damaged.
    """
    folder = Path(folder) if classes else model_folder(folder)
    model, info = load_converted(folder, classes, positive) if classes else load_model(folder)
    dataset = _as_trained(dataset, info, folder)
    logits = forward(
        model, dataset, batch_size=batch_size, device=device, precision=precision, description="Evaluating"
    )
    stored = None
    if "temperature" in info:
        stored = Stored(info["temperature"], info.get("thresholds", {}), info.get("no_threshold", {}))
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
    report.alerts.extend(_alerts(folder, dataset))
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
    if dataset.files is not None and dataset.window != (trained := Preprocessing(**info["preprocessing"]).window):
        raise EvaluationError(
            f"The model in {folder} was trained with window={trained}, and {dataset.name!r} was opened with "
            f"window={dataset.window}: open it as the training did."
        )
    if dataset.classes != info["classes"]:
        dataset = dataset.of_classes(info["classes"])
    return replace(dataset, positive=info["positive"])


def own_part(folder: str | Path, dataset: Dataset, part: str) -> Dataset:
    """Return one part of a data set: an official one where it has them, else that of the split a run was trained on.

    Images are recognised by their content. "test" is whatever was neither trained nor validated on.

    Args:
        folder: of a run, or its name.
        part: "train", "val", "test", or "all".

    Raises:
        EvaluationError: the part has no images, or the run does not say which images it was trained on.
    """
    if part == "all":
        return dataset
    rows = dataset.splits == part
    if not (dataset.splits != "").any():
        seen = {} if Path(folder).is_file() else seen_images(model_folder(folder))
        if not seen:
            raise EvaluationError(
                f"{dataset.name!r} has no official parts, and {folder} has no images.csv: leave out --part."
            )
        hashes = [str(digest)[:HASH] for digest in dataset.hashes]
        rows = np.array([seen.get(digest, "test") == part for digest in hashes])
    if not rows.any():
        raise EvaluationError(f"No image of {dataset.name!r} is in the {part} part.")
    return dataset.subset(rows)


def seen_images(folder: Path) -> dict[str, str]:
    """Return the part, "train" or "val", of each image that a run was made with, by the start of its SHA-256."""
    path = folder / "images.csv"
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        return dict(zip(table["sha256"], table["part"], strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise unreadable("run", folder, error) from error


def _alerts(folder: Path, dataset: Dataset) -> list[str]:
    """Warn where images were trained or validated on."""
    seen = seen_images(folder)
    parts = [seen.get(str(digest)[:HASH]) for digest in dataset.hashes]
    counts = {words: parts.count(part) for part, words in (("train", "trained on"), ("val", "used for validation"))}
    if not any(counts.values()):
        return []
    found = " and ".join(f"{n} were {words}" for words, n in counts.items() if n)
    return [
        f"WARNING: of these {len(dataset)} images, {found} when this model was made (same content): the figures are "
        "too good by what these add. Score images it has not seen, such as its test part (--part test)."
    ]


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(1).numpy()
