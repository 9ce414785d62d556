"""A trained model on disk: model.safetensors and model.json, all that an answer needs of a training."""

import json
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from medvitlib.data import Preprocessing
from medvitlib.errors import MedvitError
from medvitlib.models.zoo import build_from
from medvitlib.paths import runs_dir

WORKING = (".unfinished", ".old")
"""Endings of the folders that a run in the making uses; no run may be called so."""
_PICKLES = b"PK\x03\x04", b"\x80"  # how the files of torch.save begin


def model_folder(name: str | Path) -> Path:
    """Where a saved model lies: a folder with a model.json, or the run of that name under `runs_dir()`.

    Raises:
        MedvitError: there is none; the runs that there are, are named.
    """
    for folder in (Path(name), runs_dir() / name):
        if (folder / "model.json").is_file():
            return folder
    runs = sorted(p.parent.name for p in runs_dir().glob("*/model.json") if not p.parent.name.endswith(WORKING))
    raise MedvitError(f"No finished run at {folder}. Finished runs in {runs_dir()}: {', '.join(runs) or 'none'}.")


def load_model(folder: str | Path) -> tuple[nn.Module, dict]:
    """A trained model, from its model.safetensors and model.json alone.

    Returns:
        the model in evaluation mode, carrying `.architecture` and `.preprocessing`, and what model.json says.

    Raises:
        MedvitError: one of the two files is missing, damaged, or made for another architecture or other classes.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        info = json.loads((folder / "model.json").read_text())
        classes, positive = info["classes"], info["positive"]
        model = build_from(info["architecture"])
        if len(classes) != info["architecture"]["num_classes"] or positive not in (None, *classes):
            raise ValueError(
                f"model.json names the classes {classes} (positive: {positive}) for a model of "
                f"{info['architecture']['num_classes']}"
            )
        with (folder / "model.safetensors").open("rb") as file:
            begins = file.read(9)
            # the first eight bytes of a safetensors file are its header's length, which may begin like a pickle
            if begins.startswith(_PICKLES) and begins[8:] != b"{":
                raise ValueError(
                    "model.safetensors is a file of torch.save that was renamed; `medvit convert` reads it"
                )
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model.preprocessing = Preprocessing(**info["preprocessing"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable("model", folder, error) from error
    return model.eval(), info


def unreadable(what: str, folder: Path, error: Exception) -> MedvitError:
    """The error to raise for files of a run that cannot be read."""
    return MedvitError(
        f"The {what} in {folder} cannot be read ({error}). Run the training again, or restore the folder."
    )
