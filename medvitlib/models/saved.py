"""A trained model on disk: model.safetensors and model.json, all that a prediction needs of a training.

A model that was trained in full is whole. Of one that was adapted, model.safetensors holds what was trained, and
model.json names the pretrained weights that hold the rest (see `medvitlib.models.base`). Adapters are kept as they
were trained, and merged when the model is loaded.
"""

import hashlib
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from medvitlib.data import Preprocessing
from medvitlib.errors import MedvitError, WeightsError
from medvitlib.jsonfile import write_json
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import adapters_of, merge_and_unload
from medvitlib.models.base import ZEROS, State, find_base, with_base, without_base
from medvitlib.models.model_json import read_info, unreadable
from medvitlib.models.weights import WeightsInfo, sha256_of
from medvitlib.models.zoo import build_from, head_of, without_values
from medvitlib.paths import WORKING, runs_dir

MOST_TENSORS, MOST_NUMBERS = 10_000, 2**33  # in a model that is built from a model.json


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


def save_model(model: nn.Module, folder: Path, info: dict, *, keep_zeros: bool = False, whole: bool = False) -> None:
    """Write a model's two files, leaving out what its pretrained weights have (see `medvitlib.models.base`).

    Args:
        model: from `build`; adapters in it, merged or not, are kept as they are beside the frozen weights.
        info: the other fields of model.json (see `medvitlib.models.model_json`).
        keep_zeros: merging the adapters leaves weights zero that are zero.
        whole: keep every tensor, and refer to no base.
    """
    if adapters_of(model) and not hasattr(model, "adaptation"):  # put in by hand: nobody could put them in again
        merge_and_unload(model, keep_zeros)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    own, base = (state, None) if whole else without_base(model, state)
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {
        "sha256": sha256_of(folder / "model.safetensors"),
        "tensors": len(state),
        "base": base,
        "adaptation": getattr(model, "adaptation", None),
        "keep_zeros": keep_zeros,
    }
    about = {"architecture": model.architecture, "preprocessing": vars(model.preprocessing), "weights": weights}
    write_json(folder / "model.json", {**about, **info})


def save_whole(run: str | Path, folder: str | Path) -> Path:
    """Copy a run to a new folder where it depends on no other file: all tensors, adapters merged.

    Args:
        run: the folder of a run, or its name.

    Returns:
        the new folder.

    Raises:
        MedvitError: no such run, it cannot be loaded, or the folder exists or cannot be written.
    """
    source, folder = model_folder(run), Path(folder)
    model, info = load_model(source)
    own = ("architecture", "preprocessing", "weights")
    try:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors", "model.json"))
        save_model(model, folder, {key: value for key, value in info.items() if key not in own}, whole=True)
    except FileExistsError:
        raise MedvitError(f"{folder} exists: name a folder that does not.") from None
    except (OSError, SafetensorError) as error:  # of a full disk each of them may tell
        raise MedvitError(f"{folder} cannot be written ({getattr(error, 'strerror', None) or error}).") from error
    return folder


class Saved(NamedTuple):
    """Content of a model's files.

    Attributes:
        info: model.json.
        state: the state dict, adapters not merged, and further tensors of the base.
        own: names of the tensors in model.safetensors.
        file: of the base; None where there is none.
    """

    info: dict[str, Any]
    state: State
    own: set[str]
    file: Path | None


def load_model(folder: str | Path) -> tuple[nn.Module, dict]:
    """Load a trained model from model.safetensors, model.json and the pretrained weights that this names.

    Returns:
        the model in evaluation mode, adapters merged, carrying `.architecture` and `.preprocessing`; and the content of
        model.json, checked (see `medvitlib.models.model_json`).

    Raises:
        MedvitError: one of the two files is missing, damaged or does not belong to the other; or the pretrained
            weights cannot be found, with what to do.
    """
    saved = read_saved(folder)
    info, weights = saved.info, saved.info["weights"]
    try:
        model = _rebuilt(saved)
        if adapters_of(model):
            merge_and_unload(model, weights["keep_zeros"])
        _check_features(model, info)
        model.preprocessing = Preprocessing(**info["preprocessing"])
    except Exception as error:  # options are judged by the architecture's constructor, which can raise anything
        raise unreadable("model", Path(folder), error) from error
    if base := weights["base"]:
        note = "kept by a run; the SHA-256 is over its tensors"
        model.weights_info = WeightsInfo(
            base["source"], str(saved.file), base["licence"], base["sha256"], model.preprocessing, note
        )
    return model.eval(), info


def read_saved(folder: str | Path) -> Saved:
    """Read the two files of a model, and the base that they name.

    Raises:
        MedvitError: as `load_model`.
    """
    folder = Path(folder)
    info = read_info(folder)
    try:
        content = (folder / "model.safetensors").read_bytes()
        expected, found = info["weights"]["sha256"], hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ValueError(f"model.safetensors has the SHA-256 {found}; model.json belongs to {expected}")
        own, base = load(content), info["weights"]["base"]
        if base is None:
            return Saved(info, own, set(own), None)
        file, rest = find_base(base)
        return Saved(info, with_base(own, rest), set(own), file)
    except WeightsError as error:
        raise MedvitError(f"The model in {folder} {error}.") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise unreadable("model", folder, error) from error


def sketch(architecture: dict[str, Any]) -> nn.Module:
    """Build a model without values (see `without_values`), refusing absurdly large ones.

    Raises:
        ValueError: more than `MOST_TENSORS` or `MOST_NUMBERS`; the architecture's constructor may raise anything else.
    """
    seen = {"tensors": 0, "numbers": 0}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            seen["tensors"] += 1
            seen["numbers"] += parameter.numel()
        if seen["tensors"] > MOST_TENSORS or seen["numbers"] > MOST_NUMBERS:
            raise ValueError(f"its architecture has more than {MOST_TENSORS:,} tensors or {MOST_NUMBERS:,} numbers")

    hook = register_module_parameter_registration_hook(count)
    try:
        return without_values(lambda: build_from(architecture))
    finally:
        hook.remove()


def _rebuilt(saved: Saved) -> nn.Module:
    """Build the model that model.json describes, adapters included, with the tensors of the files."""
    weights = saved.info["weights"]

    def adapted(model: nn.Module) -> nn.Module:
        names = {name.removesuffix(ZEROS) for name in saved.own}
        if weights["adaptation"] is None or names <= model.state_dict().keys():
            return model
        return adapt(model, **weights["adaptation"])

    model = adapted(sketch(saved.info["architecture"]))
    expected = model.state_dict()
    wrong = [name for name, value in expected.items() if saved.state.get(name, torch.empty(0)).shape != value.shape]
    wrong += [name for name in saved.own if name.removesuffix(ZEROS) not in expected]
    if wrong or len(expected) != weights["tensors"]:
        raise ValueError(
            f"model.json describes a model of {len(expected)} tensors, the files have {weights['tensors']}; "
            f"{len(wrong)} are missing or of another shape{''.join(f', such as {name}' for name in wrong[:1])}"
        )
    state = {name: saved.state[name].to(value.dtype) for name, value in expected.items()}
    model.load_state_dict(state, assign=True)
    if any(tensor.is_meta for tensor in _tensors(model)):  # what is computed when it is built, such as Swin's indices
        model = adapted(build_from(saved.info["architecture"]))
        model.load_state_dict(state)
    return model


def _tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor in a model, those that are plain attributes included."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    plain = (value for value in attributes if isinstance(value, torch.Tensor))
    return chain(model.parameters(), model.buffers(), plain)


def _check_features(model: nn.Module, info: dict[str, Any]) -> None:
    """ValueError where the distance from the training images was made for features of another length."""
    familiar, width = (info.get("prediction") or {}).get("familiar"), getattr(head_of(model), "in_features", None)
    if familiar and width and familiar["shape"][1] != width:
        raise ValueError(
            f"model.json: prediction.familiar.shape is {familiar['shape']} for a model of {width} features"
        )
