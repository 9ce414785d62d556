"""What a run was asked to do, as config.json remembers it, and whether two runs were asked the same."""

import json
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from medvitlib import jsonfile
from medvitlib.data import Split
from medvitlib.errors import MedvitError
from medvitlib.jsonfile import (
    BadJson,
    anything,
    listing,
    mapping,
    maybe,
    number,
    read_json,
    record,
    text,
    write_json,
)
from medvitlib.models.model_json import unreadable


def _weights(where: str, value: Any) -> None:
    if value != "random initialisation":
        mapping(anything)(where, value)


HASH = 16  # characters of an image's SHA-256 in images.csv: enough to recognise it, not to guess one
SEED = maybe(number(-(2**63), 2**63 - 1, whole=True))
FIELDS = {
    "method": text(),
    "data": record(
        {
            "name": text(least=0),
            "parts": record({"train": text(), "val": text(), "test": text()}),
            "table": record(
                {"columns": listing(text()), "index": listing(text()), "data": listing(listing(maybe(number())))}
            ),
            "notes": listing(text()),
        }
    ),
    "weights": _weights,
    "parameters?": record({"total": number(0, whole=True), "trained": number(0, whole=True)}),
    "step_bytes?": number(0, whole=True),
    "adaptation?": record({"method": text()}, others=anything),
    "train?": record({"seed?": SEED}, others=anything),
    "seed?": SEED,
}
"""Of config.json, see `medvitlib.jsonfile`: the fields that are read again. A caller may have added any other."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Read and check the config.json of a run.

    Raises:
        MedvitError: it is missing or damaged.
    """
    try:
        config = read_json(folder / "config.json", FIELDS)
        table = config["data"]["table"]
        if any(len(row) != len(table["columns"]) for row in table["data"]) or len(table["data"]) != len(table["index"]):
            raise BadJson("config.json: data.table has rows of another length than its columns or index")
        if "test" not in table["index"]:
            raise BadJson("config.json: data.table.index does not name the test part")
        return config
    except (OSError, BadJson) as error:
        raise unreadable("run", folder, error) from error


def describe(name: str, model: nn.Module, parts: Split, settings: dict) -> dict:
    """What config.json says of a run: its settings, data, architecture, weights and versions."""
    weights = getattr(model, "weights_info", None)
    packages = ("medvitlib", "torch", "torchvision", "timm", "accelerate", "scikit-learn", "numpy", "opencv-python")
    return {
        "name": name,
        **settings,
        "data": {
            "name": parts.train.name,
            "parts": {k: getattr(parts, k).fingerprint for k in ("train", "val", "test")},
            "table": json.loads(parts.table().to_json(orient="split")),
            "notes": parts.notes,
        },
        "architecture": model.architecture,
        "weights": asdict(weights) if is_dataclass(weights) else weights or "random initialisation",
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
    }


def write_settings(folder: Path, parts: Split, config: dict) -> None:
    """Write config.json; data.txt: how the images were understood; quarantine.csv: which files were left out, and why;
    images.csv: what is trained on."""
    jsonfile.write_text(folder / "data.txt", f"{parts.train.describe()}\n")
    quarantine = {(q.path, q.reason) for part in (parts.train, parts.val, parts.test) for q in part.quarantine}
    table = pd.DataFrame(sorted(quarantine), columns=["path", "reason"])
    jsonfile.write_text(folder / "quarantine.csv", jsonfile.csv_text(table))
    used = [(part, str(digest)[:HASH]) for part in ("train", "val") for digest in getattr(parts, part).hashes]
    jsonfile.write_text(folder / "images.csv", jsonfile.csv_text(pd.DataFrame(used, columns=["part", "sha256"])))
    write_json(folder / "config.json", config)


def differences(folder: Path, config: dict, model: nn.Module) -> list[str]:
    """What stands otherwise in a folder's config.json, in words; versions are none, workers and processes no matter."""
    try:
        before = read_settings(folder)
    except MedvitError as error:
        return [str(error).removesuffix(".")]
    found = jsonfile.differences(before, config)
    keys = [key for key in found if not key.startswith(("versions.", "weights."))]
    keys = [key for key in keys if key not in ("train.workers", "processes")]
    if before.get("initial_weights") == getattr(model, "started_as", None):  # this very model was trained further
        keys = [key for key in keys if key != "initial_weights"]
    return [f"{key} was {found[key][0]}, is {found[key][1]}" for key in keys]


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # PackageNotFoundError: installed under another name, as OpenCV often is
        return "unknown"
