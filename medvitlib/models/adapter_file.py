"""An adapter with its head as a file of its own: about a megabyte, for a base that it names by its fingerprint.

One base then serves many tasks: `load_adapter(model, "smears.safetensors")`, and another file for the next.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.jsonfile import differences
from medvitlib.models.adapt import METHODS, adapt
from medvitlib.models.adapters import adapters_of, unload, unmerge
from medvitlib.models.zoo import build_from, head_of, replace_head, without_values

META = "medvitlib_adapter"


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


def save_adapter(model: nn.Module, path: str | Path, classes: Sequence[str]) -> None:
    """Write what was trained of an adapted model, its head and its buffers, to a .safetensors file.

    Args:
        model: after `adapt` and training, merged or not.
        classes: K names in label order; whoever loads it for others is told.

    Raises:
        AdaptationError: a model that did not go through `adapt`, or of which everything is trained.
    """
    from safetensors.torch import save_file

    adaptation = getattr(model, "adaptation", None)
    if adaptation is None or adaptation["method"] == "full":
        raise AdaptationError(
            "An adapter's file is for a model that went through `adapt` with 'head', 'bitfit', 'lora' or 'rlrr'; "
            "save all of this one instead, with its run."
        )
    state = model.state_dict()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    own = {name: tensor.contiguous() for name, tensor in state.items() if name not in frozen}
    about = {
        "adaptation": adaptation,
        "architecture": model.architecture,
        "classes": list(classes),
        "base": digest({name: state[name] for name in frozen & state.keys()}),
    }
    save_file(own, path, metadata={META: json.dumps(about)})


def load_adapter(model: nn.Module, path: str | Path, classes: Sequence[str] | None = None) -> nn.Module:
    """Put a saved adapter and its head onto its base, in the place of those that may be there.

    Args:
        model: from `build` with the name, weights and image size that the adapter was trained on; changed in place.
        classes: that it is expected to tell apart; None takes those of the file.

    Returns:
        the same model, adapted and not merged.

    Raises:
        AdaptationError: a damaged file, another base or other classes; the model is left as it was.
    """
    own, about = _read(Path(path))
    mine = {key: value for key, value in model.architecture.items() if key != "num_classes"}
    theirs = {key: value for key, value in about["architecture"].items() if key != "num_classes"}
    if different := differences(theirs, mine):
        said = "; ".join(f"{key} was {was}, is {now}" for key, (was, now) in different.items())
        raise AdaptationError(f"{path} belongs to another base: {said}. Build the model that it was trained on.")
    if classes is not None and list(classes) != about["classes"]:
        raise AdaptationError(f"{path} tells apart {about['classes']}; {list(classes)} was asked for.")
    added = {f"{name}.{part}" for name, adapter in adapters_of(model).items() for part in adapter.added}
    base = {name: tensor for name, tensor in model.state_dict().items() if name not in own and name not in added}
    if digest(base) != about["base"]:
        if (getattr(model, "adaptation", None) or {}).get("method") == "bitfit":
            raise AdaptationError(
                f"This model's biases were trained by BitFit, so it is the base of {path} no more: build the base anew."
            )
        raise AdaptationError(
            f"{path} belongs to {about['architecture']['name']} with other weights than these: build the model "
            "with the weights that the adapter was trained on."
        )
    sketch = without_values(lambda: build_from(about["architecture"]))
    adapt(sketch, **about["adaptation"])
    shapes = {name: tuple(tensor.shape) for name, tensor in sketch.state_dict().items()}
    trained = {name for name, parameter in sketch.named_parameters() if parameter.requires_grad}
    if trained - own.keys() or any(shapes.get(name) != tuple(tensor.shape) for name, tensor in own.items()):
        raise _damaged(path, "its tensors are not those of the adapter that it describes")
    unmerge(model)
    unload(model)
    head, like = head_of(sketch), next(model.parameters())
    new = nn.Linear(head.in_features, head.out_features, head.bias is not None, device=like.device, dtype=like.dtype)
    replace_head(model, new)
    adapt(model, **about["adaptation"]).load_state_dict(own, strict=False)
    return model


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            about = json.loads((file.metadata() or {})[META])
            adaptation = about["adaptation"]
            if adaptation["method"] not in METHODS or not {"architecture", "classes", "base"} <= about.keys():
                raise ValueError(f"method {adaptation['method']!r}")
            return own, about
    except FileNotFoundError:
        raise AdaptationError(f"no file at {path}. Check the path.") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, reason: str) -> AdaptationError:
    return AdaptationError(
        f"{path} is damaged, or no adapter's file ({reason}): `save_adapter` writes them, and so does every run of an "
        "adapted model."
    )
