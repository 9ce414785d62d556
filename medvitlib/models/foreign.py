"""Other people's PyTorch files: out of whatever a training script saved, the plain state dict, and nothing run."""

import contextlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medvitlib.errors import WeightsError

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params")
EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")  # averages of the weights over training
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")  # DDP, torch.compile, Lightning
COMPANIONS = ("criterion.", "loss.", "loss_fn.", "n_averaged")  # what training keeps beside the network
DEPTH = 5  # wrappers in wrappers
PICKLES = b"\x80"  # first byte of torch.save's format before 1.6, and of any plain pickle
BLOCKED = re.compile(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL|unsupported class) ([\w.<>]+)")


@dataclass(frozen=True)
class Foreign:
    """What a file held.

    Attributes:
        state: parameter and buffer names to tensors, as the file has them: shared, strided, of any dtype.
        notes: sentences for the user: where in the file that lay, what was renamed, what was dropped.
        ema: whether these weights are an average over training.
    """

    state: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    ema: bool = False


def read_foreign(path: str | Path, take: str | None = None) -> Foreign:
    """Read a file of torch.save, whatever its name, with the restricted reader only, and find the state dict in it.

    Args:
        take: key of the state dict, where the file holds several, such as "state_dict_ema".

    Raises:
        WeightsError: no such file, damaged, of another kind, or in need of code to be read, naming which.
    """
    path = Path(path)
    return clean(_load(path), path, take)


def clean(content: Any, path: Path, take: str | None = None) -> Foreign:
    """Unwrap and rename what a file held: see `read_foreign`; the path is for messages."""
    notes, ema, found = [], False, content
    place: list[str] = []
    while (key := _wrapper(found, path, None if place else take)) is not None:
        if len(place) == DEPTH:
            raise WeightsError(f"{path} holds no state dict within {DEPTH} levels ({' / '.join(place)} / ...).")
        beside = {name: value for name, value in found.items() if name != key}
        averages = [name for name in beside if name in EMA and _holds_tensors(beside[name])]
        if averages:
            notes.append(f"Beside it are averaged weights (EMA), not taken: {', '.join(averages)}.")
        if dropped := [_described(name, value) for name, value in beside.items() if name not in averages]:
            notes.append(f"Dropped, beside the weights: {', '.join(dropped)}.")
        ema = ema or key in EMA
        place.append(str(key))
        found = found[key]
    if place:
        what = "the averaged weights (EMA)" if ema else "the weights"
        notes.insert(0, f"Read {what} under {' / '.join(place)}.")

    state, others = {}, []
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            state[name] = value.detach()
        elif isinstance(value, bool | int | float) and "." in name:  # a buffer; "epoch" has no module before it
            state[name] = torch.tensor(value)
        else:
            others.append(_described(name, value))
    if others:
        notes.append(f"Dropped, no tensors: {', '.join(others)}.")
    return Foreign(_renamed(state, notes), notes, ema)


def _load(path: Path) -> Any:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: give the checkpoint in it.")
    if not path.is_file():
        raise WeightsError(f"no file at {path}. Check the path.")
    _check_kind(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats and protocols, which either work or are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = _unsafe_globals(path, error)
        what = f"more than tensors ({few(names)})" if names else "more than tensors, or is damaged"
        raise WeightsError(
            f"{path} holds {what}: reading it could run any code, so it is refused. Where you trust its source, load "
            "it yourself with torch.load(..., weights_only=False), torch.save the model's state_dict() alone, and "
            "use that file."
        ) from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error).splitlines() or [""])[0].split(". ")[0] or type(error).__name__
        raise WeightsError(f"{path} is damaged or cut off ({reason}). Fetch or save it again.") from None


def _check_kind(path: Path) -> None:
    """Refuse what is no file of torch.save by its first bytes and its members, before anything is unpickled."""
    try:
        with path.open("rb") as file:
            start = file.read(24)
        names = zipfile.ZipFile(path).namelist() if start.startswith(b"PK") else None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from None
    except Exception:  # BadZipFile where the end is missing; a damaged table of contents can raise more
        raise WeightsError(f"{path} is damaged: its end is missing or broken. Fetch or save it again.") from None
    if names is None:
        if not start:
            raise WeightsError(f"{path} is empty. Fetch or save it again.")
        if not start.startswith(PICKLES):
            raise WeightsError(f"{path} is no PyTorch checkpoint: it begins with {start!r}.")
    elif any(name.endswith("/constants.pkl") for name in names):
        raise WeightsError(
            f"{path} is a TorchScript archive, which is a program with its weights: load it with torch.jit.load where "
            "you trust its source, torch.save its state_dict(), and use that file."
        )
    elif not any(name.endswith("/data.pkl") for name in names):
        raise WeightsError(f"{path} is a zip archive, but no PyTorch checkpoint: it has no data.pkl.")


def _unsafe_globals(path: Path, error: Exception) -> list[str]:
    """What a pickle wants to import, found without importing it."""
    found = BLOCKED.findall(str(error))  # the first one met, which of a whole model is its own class
    with contextlib.suppress(Exception):  # it reads zip archives only; the first name is in the error
        found += sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return list(dict.fromkeys(found))


def _wrapper(content: Any, path: Path, take: str | None) -> str | None:
    """The key under which the weights lie: `take`, a usual one, or the only possible; None for a state dict itself."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds no state dict (parameter names to tensors), but a {_kind(content)}.")
    if take is not None:
        if take not in content:
            raise WeightsError(f"{path} has no {take!r}; it has: {', '.join(map(str, content)) or 'nothing'}.")
        return take
    for key in (*WRAPPERS, *EMA):  # before any tensors here: a script may save a loss or class weights beside them
        if key in content and isinstance(content[key], Mapping) and _holds_tensors(content[key]):
            return key
    if _is_state(content):
        return None
    candidates = [key for key, value in content.items() if _is_state(value)]
    if len(candidates) > 1:
        raise WeightsError(
            f"{path} holds several state dicts: {', '.join(map(str, candidates))}. Say which one with take= (--take)."
        )
    if not candidates:
        holds = ", ".join(_described(key, value) for key, value in content.items()) or "nothing"
        raise WeightsError(f"{path} holds no state dict (parameter names to tensors), but: {holds}.")
    return candidates[0]


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return False
    return any(isinstance(tensor, torch.Tensor) for tensor in value.values())


def _holds_tensors(value: Any, depth: int = DEPTH) -> bool:
    """Whether there is a tensor in it, or in what it holds; a pickle may hold itself."""
    if not isinstance(value, Mapping) or not depth:
        return isinstance(value, torch.Tensor)
    return any(_holds_tensors(item, depth - 1) for item in value.values())


def _renamed(state: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Without the prefixes that all names share, and without what stands beside the network."""
    removed = []
    beside = [name for name in state if name.startswith(COMPANIONS)]
    network = {name: value for name, value in state.items() if name not in beside}
    while prefix := next((p for p in PREFIXES if network and all(n.startswith(p) and n != p for n in network)), None):
        network = {name.removeprefix(prefix): value for name, value in network.items()}
        removed.append(prefix)
    if removed:
        notes.append(f"Prefix {''.join(removed)} removed from every name.")
        if beside:
            notes.append(f"Dropped, of the training and not of the network: {', '.join(beside)}.")
        state = network
    compiled = [name for name in state if "_orig_mod." in name]  # torch.compile of a part
    if compiled and not {name.replace("_orig_mod.", "") for name in compiled} & state.keys():
        notes.append(f"_orig_mod. removed from {len(compiled)} names.")
        state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    return state


def few(items: Collection[str], shown: int = 5) -> str:
    """The first of them, and how many more there are."""
    items = list(items)
    return "; ".join(items[:shown]) + (f"; and {len(items) - shown} more" if len(items) > shown else "")


def _described(name: Any, value: Any) -> str:
    if isinstance(value, bool | int | float | str):
        text = repr(value)
        return f"{name} = {text if len(text) < 40 else text[:36] + '...'}"
    return f"{name} ({_kind(value)})"


def _kind(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__
