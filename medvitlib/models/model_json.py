"""The fields of model.json and of the metadata in an exported .onnx file, and their check; without PyTorch.

They are checked once, when a model is loaded: type, shape and range of every field (`FIELDS`), then that the fields fit
each other (`check_fit`). Code that gets them afterwards does not check again.
"""

import base64
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from medvitlib.errors import MedvitError
from medvitlib.evaluation.calibration import BOUNDS
from medvitlib.evaluation.conformal import BY
from medvitlib.evaluation.report_json import COUNT, ESTIMATE, SHARE
from medvitlib.jsonfile import (
    BadJson,
    anything,
    flag,
    listing,
    mapping,
    maybe,
    number,
    read_json,
    record,
    text,
    write_json,
)

LARGEST_SIDE = 8192  # pixels of an image
MOST_CLASSES = 100_000
LONGEST_REASON = 400  # characters
LARGEST_OPTION = 1e6  # of a number among a model's options, so that building it ends


def _option(where: str, value: Any) -> None:
    """Accept any value without huge numbers; the model's constructor checks the rest."""
    if isinstance(value, dict | list):
        (mapping if isinstance(value, dict) else listing)(_option)(where, value)
    elif type(value) in (int, float):
        number(-LARGEST_OPTION, LARGEST_OPTION)(where, value)


def _sha256(where: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise BadJson(f"{where} is {value!r:.70}; expected a SHA-256: 64 digits and letters from a to f")


def _file(where: str, value: Any) -> None:
    text()(where, value)
    if Path(value).name != value:
        raise BadJson(f"{where} is {value!r:.70}; expected a file's name without folders")


def _name(where: str, value: Any) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+", value):  # a colon would send timm to the network
        raise BadJson(f"{where} is {value!r:.70}; expected a model's name: letters, digits, and any of _ . -")


CLASSES = listing(text(), 2, MOST_CLASSES)
SIZE = listing(number(1, LARGEST_SIDE, whole=True), 2, 2)
ARCHITECTURE = {
    "library": text("medvitlib", "timm", "torchvision"),
    "name": _name,
    "num_classes": number(2, MOST_CLASSES, whole=True),
    "image_size": SIZE,
    "pool": maybe(text("token", "mean", "token_mean")),
    "in_channels": number(1, 3, whole=True),
    "options": mapping(_option),
    "shrunk?": mapping(number(1, 1e6, whole=True)),
    "int8?": flag,
}
PREPROCESSING = {
    "image_size": SIZE,
    "mean": listing(number(-1e6, 1e6), 1, 3),
    "std": listing(number(1e-6, 1e6), 1, 3),
    "channels": number(1, 3, whole=True),
    "window?": maybe(listing(number(-1e9, 1e9), 2, 2)),
}
SETS = {
    "coverage": SHARE,
    "by": text(*BY),
    "classes": CLASSES,
    "cutoffs": listing(SHARE),
    "patients": listing(COUNT),
}
FAMILIAR = {
    "mean": text(),
    "basis": text(),
    "shape": listing(number(1, 1e6, whole=True), 2, 2),
    "rest": number(1e-9, 1e9),
    "limit": number(0, 1e9),
    "alarms": SHARE,
    "measured": ESTIMATE,
}
PREDICTION = {
    "sets": maybe(record(SETS)),
    "refused": listing(text()),
    "familiar": maybe(record(FAMILIAR)),
    "unchecked?": text(least=0),
}
BASE = {"name": _name, "file": _file, "source": text(), "licence": text(), "sha256": _sha256}
WEIGHTS = {
    "sha256": _sha256,
    "tensors": number(1, 1e6, whole=True),
    "base": maybe(record(BASE)),
    "adaptation": maybe(record({"method": text(), "seed": number(0, 2**63 - 1, whole=True)}, others=anything)),
    "keep_zeros": flag,
}
FIELDS = {
    "architecture": record(ARCHITECTURE),
    "classes": CLASSES,
    "positive": maybe(text()),
    "preprocessing": record(PREPROCESSING),
    "candidates?": number(1, 1e12, whole=True),
    "compared?": text(),
    "chosen?": mapping(anything),
    "groups_known?": flag,
    "temperature?": number(*BOUNDS),
    "thresholds?": mapping(SHARE),
    "no_threshold?": mapping(text()),
    "target_recall?": number(1e-9, 1),
    "prediction?": maybe(record(PREDICTION, others=anything)),
}
ONNX_FIELDS = {**FIELDS, "precision": text("float32", "int8, dynamic", "int8, static")}


def read_info(folder: Path) -> dict[str, Any]:
    """Read and check the model.json of a folder.

    Raises:
        MedvitError: it is missing or cannot be read, or a field is missing or not as it should be.
    """
    try:
        info = read_json(folder / "model.json", FIELDS | {"weights": record(WEIGHTS)})
        check_fit("model.json", info)
        return info
    except (OSError, BadJson) as error:
        raise unreadable("model", folder, error) from error


def update_info(folder: Path, **changed: Any) -> None:
    """Change or add fields of the model.json in a folder.

    Raises:
        MedvitError: as `read_info`.
    """
    write_json(folder / "model.json", {**read_info(folder), **changed})


def unreadable(what: str, folder: Path, error: Exception) -> MedvitError:
    """Make the error for files of a run that cannot be read."""
    reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
    return MedvitError(
        f"The {what} in {folder} cannot be read ({reason}). Run the training again, or restore the folder."
    )


def check_fit(where: str, info: dict[str, Any]) -> None:
    """Check that the fields of a model.json fit each other; each one was checked alone before.

    Raises:
        BadJson: names the two that do not.
    """
    architecture, preprocessing, classes = info["architecture"], info["preprocessing"], info["classes"]
    positive, prediction = info["positive"], info.get("prediction") or {}
    sets, familiar = prediction.get("sets"), prediction.get("familiar")

    def expect(good: bool, what: str) -> None:
        if not good:
            raise BadJson(f"{where}: {what}")

    expect(len(set(classes)) == len(classes), f"classes names one class twice: {', '.join(classes)}")
    count = architecture["num_classes"]
    expect(len(classes) == count, f"classes has {len(classes)} names for a model of {count} classes")
    allowed = classes if count == 2 else [None]
    expect(positive in allowed, f"positive is {positive!r}; expected one of two classes, or null for more: {allowed}")
    channels = preprocessing["channels"]
    expect(
        channels == architecture["in_channels"] and channels != 2,
        f"preprocessing.channels is {channels}; the architecture takes {architecture['in_channels']}, and 1 or 3 fit",
    )
    for name in ("mean", "std"):
        numbers = len(preprocessing[name])
        expect(numbers == channels, f"preprocessing.{name} has {numbers} numbers for {channels} channels")
    expect(
        preprocessing["image_size"] == architecture["image_size"],
        f"preprocessing.image_size is {preprocessing['image_size']}, the architecture's {architecture['image_size']}",
    )
    base = info.get("weights", {}).get("base")
    expect(not base or base["name"] == architecture["name"], "weights.base.name is not the architecture's name")
    if sets:
        expect(sets["classes"] == classes, "prediction.sets.classes are not the model's classes")
        for name in ("cutoffs", "patients"):
            expect(len(sets[name]) == count, f"prediction.sets.{name} has {len(sets[name])} items for {count} classes")
    if familiar:
        rows, width = familiar["shape"]
        for name, shape in (("mean", (1, width)), ("basis", (rows, width))):
            values = _floats(familiar[name], shape)
            expect(
                values is not None and values.any(axis=1).all() | (name == "mean"),
                f"prediction.familiar.{name} is not {rows * width} finite float32 numbers in base64, no row all zero",
            )


def _floats(encoded: str, shape: tuple[int, int]) -> np.ndarray | None:
    """A text in base64 as finite little-endian float32 numbers of this shape, or None if it is anything else."""
    if len(encoded) != 4 * math.ceil(4 * math.prod(shape) / 3):
        return None
    try:
        values = np.frombuffer(base64.b64decode(encoded, validate=True), "<f4").reshape(shape)
    except ValueError:
        return None
    return values if np.isfinite(values).all() else None
