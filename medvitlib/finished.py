"""Run folders as others left them: what each one says of itself, or why it cannot be used. No model is loaded."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors import safe_open

from medvitlib.errors import MedvitError
from medvitlib.evaluation.report import Report
from medvitlib.models.model_json import read_info
from medvitlib.models.saved import sketch
from medvitlib.models.zoo import count_parameters
from medvitlib.paths import WORKING, runs_dir
from medvitlib.training.settings import read_settings

if TYPE_CHECKING:
    import pandas as pd

NAMES = {"lora": "LoRA", "rlrr": "RLRR", "bitfit": "BitFit", "partial": "last blocks"}


@dataclass(frozen=True, eq=False)
class Finished:
    """A run that was trained to its end.

    Attributes:
        name: its folder's, with the study's before it: "my-run", "my-study/003-seed0".
        folder: where it lies.
        config, info: what config.json and model.json say.
        report: what `evaluate` said of it; None if it was not evaluated.
        ids: (N,) str, names of the images that were scored; empty if it was not evaluated.
        parameters: numbers in the model as it was saved, adapters merged.
        megabytes: 10^6 bytes of model.safetensors, which may be what was trained alone.
        minutes: of training, all epochs together; nan where there were none, as of a probe.
    """

    name: str
    folder: Path
    config: dict
    info: dict
    report: Report | None
    ids: np.ndarray
    parameters: int
    megabytes: float
    minutes: float

    @property
    def data(self) -> str:
        """The name that the data set was opened by."""
        return self.config["data"]["name"]

    @property
    def split(self) -> str:
        """How the images were cut: "official test", "by patient", "by cluster" (of near-duplicates) or "by image".

        With ", leaks" where parts share patients or files.
        """
        data, notes = self.config["data"], " ".join(self.config["data"]["notes"])
        if "the official test part is used" in notes:
            kind = "official test"
        elif "split by image, on purpose" in notes or "patients" not in data["table"]["columns"]:
            kind = "by image"
        else:
            kind = "by cluster" if "clusters of near-duplicates among" in notes else "by patient"
        return f"{kind}, leaks" if "LEAK" in notes else kind

    @property
    def model(self) -> str:
        """The architecture's name."""
        return self.info["architecture"]["name"]

    @property
    def weights(self) -> str:
        """ "pretrained" or "random": what the training started from."""
        return "random" if self.config["weights"] == "random initialisation" else "pretrained"

    @property
    def adaptation(self) -> str:
        """How a pretrained model was adapted: "probe", "head", "full", "LoRA", ...; "none" if it was trained from
        random numbers. With ", head first" (LP-FT) or ", pruned"; of what was changed after it, "prune", "int8", ...
        """
        method, settings = self.config["method"], self.config.get("train", {})
        if method != "fit":
            return method
        kind = self.config.get("adaptation", {"method": "full"})["method"]
        if kind == "full" and self.weights == "random":
            kind = "none"
        first = ", head first" if settings.get("head_epochs") and settings.get("epochs") else ""
        return NAMES.get(kind, kind) + first + (", pruned" if settings.get("prune") else "")

    @property
    def seed(self) -> int | None:
        """Of the training, or what the caller gave; None where neither is known."""
        return self.config.get("seed", self.config.get("train", {}).get("seed"))

    @property
    def test_files(self) -> str:
        """Fingerprint of the test part that was cut with the training part, at its image size."""
        return self.config["data"]["parts"]["test"]

    @property
    def own_test(self) -> bool:
        """Whether as many images of each class were scored as that test part has; False if it was not evaluated."""
        if self.report is None:
            return False
        table, classes = self.config["data"]["table"], self.report.classes
        said = dict(zip(table["columns"], table["data"][table["index"].index("test")], strict=True))
        return all(said.get(name) == (self.report.y_true == k).sum() for k, name in enumerate(classes))


def find_runs(root: str | Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of everything that looks like a run: the root itself, or what is in it as NAME or STUDY/NAME.

    Args:
        root: a folder, or the name of a run or study under `runs_dir()`.

    Raises:
        MedvitError: there is no such folder or run.
    """
    given, root = root, Path(root).expanduser()
    if not root.exists() and (runs_dir() / given).is_dir():
        root = runs_dir() / given
    if not root.is_dir():
        raise MedvitError(
            f"There is no folder {root}, and no run of that name in {runs_dir()}: give a run's name, or a folder that "
            "holds runs, such as runs/."
        )
    if _is_run(root):
        yield root.resolve().name, root
        return
    for folder in _folders(root):
        if _is_run(folder):
            yield folder.name, folder
        else:
            yield from ((f"{folder.name}/{inner.name}", inner) for inner in _folders(folder) if _is_run(inner))


def read_run(folder: str | Path, name: str = "") -> Finished:
    """What a run's files say.

    Raises:
        MedvitError: unfinished or damaged; says which file and why.
    """
    import pandas as pd

    folder = Path(folder)
    if folder.name.endswith(WORKING):
        raise MedvitError("it is not finished: `medvit train CONFIG.yaml`, or fit(..., resume=True), continues it.")
    if not (folder / "model.json").is_file():
        raise MedvitError("it has no model.json: the training was not finished, or the folder was not copied whole.")
    config, info = read_settings(folder), read_info(folder)
    with _read("model.json"):
        parameters = _count(json.dumps(info["architecture"], sort_keys=True))
    with _read("model.safetensors"):
        megabytes = _megabytes(folder / "model.safetensors")
    with _read("metrics.csv"):
        minutes = training_minutes(pd.read_csv(folder / "metrics.csv"))
    report, ids = None, np.array([], str)
    if (folder / "report.json").is_file():
        with _read("report.json or predictions.csv"):
            report, ids = Report.load(folder), _ids(folder)
    return Finished(name or folder.name, folder, config, info, report, ids, parameters, megabytes, minutes)


@contextmanager
def _read(file: str) -> Iterator[None]:
    """Whatever a parser meets in a file, in one sentence."""
    try:
        yield
    except MedvitError:
        raise
    except Exception as error:  # an architecture's constructor, and pandas, can raise anything
        raise MedvitError(f"{file} cannot be read: {' '.join(str(error).split())}") from error


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # may not be looked into
        return []


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model.json", "config.json", "report.json"))


@cache
def _count(architecture: str) -> int:
    return count_parameters(sketch(json.loads(architecture)))


def _megabytes(path: Path) -> float:
    with safe_open(path, "pt"):  # the header, which must agree with the number of bytes
        return path.stat().st_size / 1e6


def training_minutes(metrics: "pd.DataFrame") -> float:
    """Of a metrics.csv that holds a row an epoch; else nan: a probe's rows are fits on ready features."""
    return float(metrics["seconds"].sum() / 60) if {"epoch", "seconds"} <= set(metrics.columns) else math.nan


def _ids(folder: Path) -> np.ndarray:
    import pandas as pd

    return pd.read_csv(folder / "predictions.csv", usecols=["id"], dtype=str, keep_default_na=False)["id"].to_numpy(str)
