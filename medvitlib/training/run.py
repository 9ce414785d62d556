"""A run folder: everything a training leaves behind, and all that anything later needs.

    runs/<name>/
      config.json            every setting, versions, the data's fingerprint, where the weights came from
      metrics.csv            one row an epoch (or a setting that was tried), flushed as it happens
      training.png           loss, validation metrics and learning rate by epoch, where there were epochs
      model.safetensors      what was trained: every tensor, or those that the pretrained weights do not have
      model.json             architecture, classes, preprocessing, SHA-256 of the weights and which pretrained ones they
                             need; after `evaluate`, temperature and thresholds too
      validation.csv         what the thresholds and the temperature are chosen on
      images.csv             content hash and part of each image that was trained or validated on
      data.txt               how the images were understood: layout, classes, patients, values
      quarantine.csv         files that were left out, and why
      report.json, predictions.csv, plots/    written by `evaluate`

While it is being made the folder is called `<name>.unfinished`, and in `last/` holds what a training needs to go on;
it takes its name when it is complete, so an interrupted run never replaces a finished one. Only one process at a time
makes a run of a name.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import nn

from medvitlib.data import Dataset, Split
from medvitlib.errors import DataError, MedvitError, TrainingError
from medvitlib.jsonfile import csv_line, csv_text, write_text
from medvitlib.models.model_json import unreadable
from medvitlib.models.saved import load_model, model_folder, save_model
from medvitlib.paths import WORKING, runs_dir
from medvitlib.training.settings import describe, differences, write_settings

STATE, BEST = "last/state.pt", "last/best.safetensors"
"""What a training goes on with, in the folder of a run in the making (see `checkpoint`)."""


@dataclass
class Run:
    """A trained model with its folder and the validation predictions that later choices rest on.

    Attributes:
        folder: where everything lies.
        model: in evaluation mode, carrying `.preprocessing` and `.architecture`.
        classes, positive: class names; `positive` is the one that recall and thresholds speak of (two classes).
        candidates, compared: how many settings were compared on the validation part, and what they are ("epochs"); a
            certificate corrects for them.
        validation: columns id, group, y_true and one `logit_<class>` a class.
        groups_known: whether `group` is a patient, or only the image itself.
    """

    folder: Path
    model: nn.Module = field(repr=False)
    classes: list[str]
    positive: str | None
    candidates: int
    compared: str
    groups_known: bool
    validation: pd.DataFrame = field(repr=False)

    @property
    def metrics(self) -> pd.DataFrame:
        """`metrics.csv`: one row a setting (or an epoch) that was tried."""
        return pd.read_csv(self.folder / "metrics.csv")

    @property
    def validation_logits(self) -> np.ndarray:
        """(N, classes) float64, in the order of `classes`."""
        return self.validation[[f"logit_{c}" for c in self.classes]].to_numpy(np.float64)


class OtherSettings(TrainingError):
    """An interrupted run of this name was asked something else."""


class UnfinishedRun:
    """The folder of a run in the making; `finish` completes and names it."""

    def __init__(self, folder: Path, dataset: Dataset, resume: bool = False):
        self.target = folder
        self.folder = _unfinished(folder)
        self.dataset = dataset
        interrupted = (self.folder / STATE).is_file()
        self.resumed, self.replaces = interrupted and resume, interrupted and not resume
        if not self.resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)

    def log(self, row: dict) -> None:
        """Append one row to metrics.csv; its columns are those of the first."""
        path = self.folder / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            if new:
                file.write(csv_line(row))
            file.write(csv_line(row.values()))

    def forget_after(self, epoch: int) -> None:
        """Drop the rows of metrics.csv whose epochs will be done again; `epoch` of them are kept."""
        path = self.folder / "metrics.csv"
        if path.exists():
            write_text(path, "".join(path.read_text().splitlines(keepends=True)[: 1 + epoch]))

    def finish(
        self,
        model: nn.Module,
        val: Dataset,
        logits: np.ndarray,
        *,
        candidates: int,
        compared: str,
        chosen: dict,
        keep_zeros: bool = False,
    ) -> Run:
        """Write the model (see `save_model`) and the validation predictions, then give the folder its name."""
        classes = list(self.dataset.classes)
        info = {
            "classes": classes,
            "positive": self.dataset.positive,
            "candidates": candidates,
            "compared": compared,
            "chosen": chosen,
            "groups_known": bool(val.groups_known),
        }
        save_model(model.eval().cpu(), self.folder, info, keep_zeros=keep_zeros)
        table = pd.DataFrame({"id": val.ids, "group": val.groups, "y_true": [classes[i] for i in val.labels]})
        for index, name in enumerate(classes):
            table[f"logit_{name}"] = logits[:, index]
        write_text(self.folder / "validation.csv", csv_text(table))

        run = load_run(self.folder)  # an older run of this name is replaced by one that can be read back
        old = self.target.with_name(self.target.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            os.replace(self.target, old)
        os.replace(self.folder, self.target)
        for folder in (self.target / "last", old):  # not before: until here a training could still go on
            shutil.rmtree(folder, ignore_errors=True)
        return replace(run, folder=self.target)


def need_every_class(parts: Split) -> None:
    """DataError unless every class is in the training and in the validation part."""
    for part_name, part in (("training", parts.train), ("validation", parts.val)):
        if absent := [c for i, c in enumerate(parts.train.classes) if not (part.labels == i).any()]:
            raise DataError(
                f"The {part_name} part has no image of {absent}; every class is needed: use a larger share."
            )


def need_positive(parts: Split) -> None:
    """DataError unless it is known which one of two classes is positive: said before a training, not after it."""
    classes = list(parts.train.classes)
    if len(classes) == 2 and parts.train.positive is None:
        raise DataError(
            f"Which class of {parts.train.name!r} is positive was not given: recall and every threshold speak of it. "
            f"Pass positive= one of {classes} to open_dataset (-p positive NAME on the command line)."
        )


def finished_run(name: str, model: nn.Module, parts: Split, settings: dict) -> Run | None:
    """The complete run of this name, if it had these very settings and none of this name is in the making."""
    folder = runs_dir() / name
    if _unfinished(folder).exists() or not (folder / "config.json").is_file():
        return None
    wanted = describe(name, model, parts, settings)
    return None if differences(folder, wanted, model) else load_run(folder)


def refuse_to_replace(name: str, model: nn.Module, parts: Split, settings: dict) -> None:
    """TrainingError if there is a finished run of this name that had other settings."""
    folder = runs_dir() / name
    if (folder / "model.json").is_file():
        different = differences(folder, describe(name, model, parts, settings), model)
        if different:
            raise TrainingError(
                f"{folder} is finished, and had other settings: {'; '.join(different)}. Give this run another name, or "
                "replace the finished one (replace=True, --force)."
            )


def check_name(name: str) -> None:
    """MedvitError unless a run can be called so."""
    parts = name.split("/")
    if len(parts) > 2 or any(not p or Path(p).name != p or p.startswith(".") or p.endswith(WORKING) for p in parts):
        raise MedvitError(
            f"A run's name is one folder name, or STUDY/NAME, that neither starts with a dot nor ends in "
            f"{' or '.join(WORKING)}; {name!r} was given."
        )


@contextmanager
def start_run(
    name: str, model: nn.Module, parts: Split, settings: dict, resume: bool = False
) -> Iterator[UnfinishedRun]:
    """Make the folder of a new run and write down everything known before it starts; inside, no one else makes it.

    With `resume`, the folder of an interrupted run is taken over as it is.

    Raises:
        TrainingError: the interrupted run had other settings.
    """
    check_name(name)
    if not hasattr(model, "architecture") or not hasattr(model, "preprocessing"):
        raise TrainingError(f"{type(model).__name__} says neither how it was built nor what its input is: use `build`.")
    need_positive(parts)
    if model.preprocessing.window != parts.train.window:  # new images are to be shown as those of the training were
        model.preprocessing = replace(model.preprocessing, window=parts.train.window)
    folder = runs_dir() / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock")).acquire(timeout=0)
    except Timeout:
        raise MedvitError(
            f"Another process is training {folder}: wait for it, or give this run another name."
        ) from None
    except OSError as error:
        raise MedvitError(
            f"Cannot write the run folder {folder}: {error.strerror}. Free some space, or set MEDVIT_RUNS to a folder "
            "that can be written."
        ) from error
    with lock:
        try:
            run = UnfinishedRun(folder, parts.train, resume)
            config = describe(name, model, parts, settings)
            if not run.resumed:
                write_settings(run.folder, parts, config)
                model.started_as = settings.get("initial_weights")  # after an interruption it is this model no more
            elif different := differences(run.folder, config, model):
                raise OtherSettings(
                    f"{run.folder} was interrupted with other settings: {'; '.join(different)}. Give the same ones, "
                    "or start again with resume=False (--force)."
                )
            yield run
        except (OSError, SafetensorError) as error:
            if _full(error):
                raise TrainingError(
                    f"{folder} cannot be written any more ({error}). What was saved before stands: free some "
                    "space, then train on with resume=True."
                ) from error
            raise


def _full(error: Exception) -> bool:
    """Whether a disk, a quota or a file's size ran out; safetensors says so in words only."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    said = str(error)
    return getattr(error, "errno", None) in numbers or any(f"os error {number}" in said for number in numbers)


def _unfinished(folder: Path) -> Path:
    return folder.with_name(folder.name + ".unfinished")


def load_run(folder: str | Path) -> Run:
    """Read a finished run back: from its path, or its name under `runs_dir()`.

    Raises:
        MedvitError: no such run, or a file of it is missing, damaged or made for another model.
    """
    folder = model_folder(folder)
    model, info = load_model(folder)
    keys = ("classes", "positive", "candidates", "compared", "groups_known")
    if absent := [key for key in keys if key not in info]:
        raise unreadable("run", folder, ValueError(f"model.json has no field {absent[0]!r}"))
    about = {key: info[key] for key in keys}
    return Run(folder, model, validation=read_validation(folder, info["classes"]), **about)


def read_validation(folder: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Read and check the table validation.csv.

    Raises:
        MedvitError: it is missing or damaged, or made for other classes.
    """
    logits = [f"logit_{name}" for name in classes]
    try:
        # a class or a patient may be called NA or None: no word means "missing" here
        table = pd.read_csv(folder / "validation.csv", dtype=str, keep_default_na=False)
        table = table[["id", "group", "y_true", *logits]].astype(dict.fromkeys(logits, np.float64))
        if len(table) == 0 or not np.isfinite(table[logits].to_numpy()).all() or set(table["y_true"]) - set(classes):
            raise ValueError("validation.csv has no rows, an unknown class, or a logit that is not finite")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise unreadable("run", folder, error) from error
    return table


def choices(models: int, settings: int, kind: str) -> dict[str, int | str]:
    """How many settings of how many models were compared on validation, for `UnfinishedRun.finish`.

    Args:
        kind: what the settings are, in the plural.
    """
    what = kind if models == 1 else f"choices ({models} models, {settings} {kind} each)"
    return {"candidates": models * settings, "compared": what}
