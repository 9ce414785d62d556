"""From a file of weights to a model: read it, make it fit, and name everything that does not fit at once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from medvitlib.errors import WeightsError
from medvitlib.models.foreign import read_foreign
from medvitlib.models.npz import META_KEY, Checkpoint, listing, load_npz, read_meta
from medvitlib.models.onnx_weights import fold_layer_scale
from medvitlib.models.vit import VisionTransformer, resize_position

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read weights by the file's suffix: .safetensors, .npz (Google's layout), or .pth / .pt / .bin (torch.save).

    Never runs code from the file: pickles are read by torch's restricted reader only.

    Raises:
        WeightsError: the file is absent, damaged, of another kind, or would need unsafe unpickling.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file at {path}. Check the path.")
    if path.suffix == ".npz":
        return load_npz(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in SUFFIXES:
        return Checkpoint(read_foreign(path).state)
    raise WeightsError(f"{path} is not a kind of weights file this library reads: {', '.join(SUFFIXES)}.")


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
            meta, grid = read_meta((file.metadata() or {}).get(META_KEY, "{}"))
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is damaged ({error}). Delete it and fetch it again.") from None
    return Checkpoint(state, meta.get("heads"), grid, meta)


def to_grey(
    checkpoint: Checkpoint, mean: Sequence[float], std: Sequence[float]
) -> tuple[Checkpoint, tuple[float], tuple[float]]:
    """RGB kernels as the one kernel that gives the same for R = G = B, constants of the channels and all.

    With m, s the channels' averages, (x - mean_c) / std_c = (x - m) / s * s / std_c + (m - mean_c) / std_c: the first
    factor goes into the kernel, the rest into the bias.

    Args:
        mean, std: what the weights expect of R, G and B.

    Returns:
        the checkpoint, and m and s, which its input is now to be normalised with. A kernel of another name than ours
        is left as it is.
    """
    m, s = (sum(values) / len(values) for values in (mean, std))
    kernel, bias = (checkpoint.state.get(f"patch_embed.proj.{part}") for part in ("weight", "bias"))
    if kernel is not None and bias is not None and kernel.ndim == 4 and kernel.shape[1] == len(std) == 3:
        kernel, bias, mean, std = (torch.as_tensor(values, dtype=torch.float64) for values in (kernel, bias, mean, std))
        grey = {
            "patch_embed.proj.weight": (kernel * (s / std)[:, None, None]).sum(1, keepdim=True).float(),
            "patch_embed.proj.bias": (bias + (kernel.sum((2, 3)) * ((m - mean) / std)).sum(1)).float(),
        }
        checkpoint = replace(checkpoint, state={**checkpoint.state, **grey})
    return checkpoint, (m,), (s,)


def load_into_vit(model: VisionTransformer, checkpoint: Checkpoint) -> list[str]:
    """Load a checkpoint into our Vision Transformer, in place.

    LayerScale is folded, RGB kernels are summed for a grey model, the position embedding is resized by grids.
    A head for other classes, or of zeros only, is left out, and the model keeps its own.

    Returns:
        What was changed on the way, for the user to read.

    Raises:
        WeightsError: lists every missing and unexpected parameter, every wrong shape, and the number of heads.
    """
    state = {name: torch.as_tensor(value).float() for name, value in checkpoint.state.items()}
    target = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    problems, notes = [], []
    if any(name.endswith(".gamma") for name in state):
        state = fold_layer_scale(state)
        notes.append("LayerScale folded")

    head = {name: state.pop(name) for name in ("head.weight", "head.bias") if name in state}
    fits = all(name in head and tuple(head[name].shape) == target[name] for name in ("head.weight", "head.bias"))
    if fits and head["head.weight"].any():
        state |= head
    else:
        notes.append("head new, not pretrained")
        state |= {name: model.state_dict()[name] for name in ("head.weight", "head.bias")}

    kernel, channels = state.get("patch_embed.proj.weight"), target["patch_embed.proj.weight"][1]
    if kernel is not None and kernel.ndim == 4 and channels == 1 and kernel.shape[1] == 3:
        state["patch_embed.proj.weight"] = kernel.sum(dim=1, keepdim=True)  # grey is R = G = B
        notes.append("RGB kernels summed for grey")

    position, new = state.get("pos_embed"), model.patch_embed.grid_size
    if position is not None and position.ndim == 3:
        old = checkpoint.grid or _square(position.shape[1] - 1) or new
        if math.prod(old) == position.shape[1] - 1 and old != new:
            state["pos_embed"] = resize_position(position, old, new)
            notes.append(f"position embedding {old[0]}x{old[1]} to {new[0]}x{new[1]}")

    heads = model.blocks[0].attn.num_heads
    if checkpoint.heads not in (None, heads):
        problems.append(f"{checkpoint.heads} attention heads, the model has {heads}")
    problems += [
        f"{name} is {tuple(state[name].shape)}, the model has {shape}"
        for name, shape in target.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    message = listing("missing", target.keys() - state.keys()) + listing("unexpected", state.keys() - target.keys())
    message += listing("wrong", problems)
    if message:
        raise WeightsError("these weights are for another architecture than the model's:" + message)
    model.load_state_dict(state)
    return notes


def _square(tokens: int) -> tuple[int, int] | None:
    side = math.isqrt(max(tokens, 0))
    return (side, side) if side * side == tokens else None
