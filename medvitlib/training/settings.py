"""What a run was asked to do, as config.json remembers it, and whether two runs were asked the same."""

import json
import platform
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from torch import nn

from medvitlib import jsonfile
from medvitlib.data import Split
from medvitlib.jsonfile import write_json


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
    """Write config.json, and quarantine.csv: which files were left out, and why."""
    quarantine = {(q.path, q.reason) for part in (parts.train, parts.val, parts.test) for q in part.quarantine}
    table = pd.DataFrame(sorted(quarantine), columns=["path", "reason"])
    jsonfile.write_text(folder / "quarantine.csv", jsonfile.csv_text(table))
    write_json(folder / "config.json", config)


def differences(folder: Path, config: dict, model: nn.Module) -> list[str]:
    """What stands otherwise in a folder's config.json, in words; versions are none, workers and processes no matter."""
    try:
        before = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        return [f"its config.json cannot be read ({error})"]
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
