"""What a model must know to answer for one image: it is computed once, beside the data, and put into model.json.

    run = fit(model, parts, name="my-run")
    report = evaluate(run, parts.test)
    prepare(run, parts)

Calibrated probabilities, sets of classes and a warning for images unlike all that were trained on all rest on data
that a single image does not bring. After this the two files model.safetensors and model.json are enough.
"""

import numpy as np
import torch

from medvitlib.data import Split
from medvitlib.errors import MedvitError
from medvitlib.evaluation.calibration import apply_temperature
from medvitlib.evaluation.conformal import NotCalibrated, conformal
from medvitlib.models.model_json import read_info, update_info
from medvitlib.outliers import familiar
from medvitlib.training.features import extract_features
from medvitlib.training.run import Run


def prepare(
    run: Run,
    parts: Split,
    *,
    coverage: float = 0.9,
    alarms: float = 0.05,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> dict:
    """Calibrate sets of classes on validation, and learn what the training images are like; write both.

    Args:
        run: after `evaluate`, which chose its temperature and thresholds.
        parts: the split it was trained on; the test part is not touched.
        coverage: of the sets, for each class where there are patients enough, else over all classes, else none.
        alarms: share of usual images that may be called unlike.

    Returns:
        what was added to model.json under "prediction".

    Raises:
        MedvitError: a run that was not evaluated, or that was trained on other classes or other images.
    """
    info = read_info(run.folder)
    if "temperature" not in info:
        raise MedvitError(
            f"{run.folder} has no temperature and no thresholds yet: call evaluate(run, parts.test) first."
        )
    if list(parts.train.classes) != list(run.classes) or list(run.validation["id"]) != list(parts.val.ids):
        raise MedvitError(
            f"{run.folder} was not trained on this split: open the data and split it as for the training."
        )
    groups = run.validation["group"].to_numpy(str) if run.groups_known else None
    given = {
        "y_true": run.validation["y_true"].map(run.classes.index).to_numpy(np.int64),
        "probabilities": apply_temperature(run.validation_logits, info["temperature"]),
        "classes": run.classes,
        "positive": run.positive,
        "groups": groups,
        "coverage": coverage,
    }
    sets, refused = None, []
    for by in ("class", "all"):
        try:
            sets = conformal(**given, by=by)
            break
        except NotCalibrated as refusal:
            refused.append(str(refusal))
    hardware = {"device": device, "precision": precision}
    features = [extract_features(run.model, part, **hardware) for part in (parts.train, parts.val)]
    usual = familiar(
        features[0],
        parts.train.groups,
        features[1],
        parts.val.groups,
        groups_known=parts.val.groups_known,
        alarms=alarms,
    )
    found = {"sets": sets.to_dict() if sets else None, "refused": refused, "familiar": usual.to_dict()}
    update_info(run.folder, prediction=found)
    return found
