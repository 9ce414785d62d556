"""Google's Vision Transformer files (`.npz`, written by JAX) to and from the parameter names used here.

NumPy only. `layout` is the whole translation: one row for each array of the file, with its axes as letters
(D width, H heads, K head width, M hidden width of the MLP, P x P patch, C colours, T tokens, N classes).
Two generations of files differ in the numbers of their sub-modules: the classic ones
(google-research/vision_transformer) and those of big_vision.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medvitlib.errors import WeightsError
from medvitlib.npzfile import BadNpz, open_npz, read_member

META_KEY = "medvitlib"  # our own files carry a JSON text under this name; other readers ignore it
PREFIXES = ("", "params/", "opt/target/")
IGNORED = ("pre_logits/", "head/", META_KEY)  # read separately, or dropped on purpose

# attention, MLP and second LayerNorm of a block
NUMBERING = {"classic": (1, 3, 2), "big_vision": (0, 0, 1)}
POSITION = {"classic": "Transformer/posembed_input/pos_embedding", "big_vision": "pos_embedding"}


@dataclass(frozen=True)
class Checkpoint:
    """Parameters read from a file, before they are fitted to a model.

    Attributes:
        state: parameter name (timm's) to array; linear weights (out, in), convolutions (out, in, h, w).
        heads: attention heads, where the file tells.
        grid: (h, w) of the position embedding in patches, where the file tells.
        meta: what the file says of itself: mean, std, source, licence, note ...; empty for other people's files.
    """

    state: dict[str, Any]
    heads: int | None = None
    grid: tuple[int, int] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One array of the file: its name, its axes as letters, and the parameter it becomes (or is a part of)."""

    npz: str
    axes: str
    parameter: str


def layout(depth: int, numbering: str = "classic") -> list[Row]:
    """The arrays of a file with `depth` blocks; query, key and value are three rows of one parameter, in that order."""
    attention, mlp, norm2 = NUMBERING[numbering]
    rows = [
        Row("embedding/kernel", "PPCD", "patch_embed.proj.weight"),
        Row("embedding/bias", "D", "patch_embed.proj.bias"),
        Row("cls", "11D", "cls_token"),
        Row(POSITION[numbering], "1TD", "pos_embed"),
    ]
    for i in range(depth):
        block, ours = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        rows += _affine(f"{block}/LayerNorm_0", f"{ours}.norm1")
        for part in ("query", "key", "value"):
            rows += _linear(f"{block}/MultiHeadDotProductAttention_{attention}/{part}", "DHK", "HK", f"{ours}.attn.qkv")
        rows += _linear(f"{block}/MultiHeadDotProductAttention_{attention}/out", "HKD", "D", f"{ours}.attn.proj")
        rows += _affine(f"{block}/LayerNorm_{norm2}", f"{ours}.norm2")
        rows += _linear(f"{block}/MlpBlock_{mlp}/Dense_0", "DM", "M", f"{ours}.mlp.fc1")
        rows += _linear(f"{block}/MlpBlock_{mlp}/Dense_1", "MD", "D", f"{ours}.mlp.fc2")
    return rows + _affine("Transformer/encoder_norm", "norm")


def _affine(npz: str, ours: str) -> list[Row]:
    return [Row(f"{npz}/scale", "D", f"{ours}.weight"), Row(f"{npz}/bias", "D", f"{ours}.bias")]


def _linear(npz: str, kernel: str, bias: str, ours: str) -> list[Row]:
    return [Row(f"{npz}/kernel", kernel, f"{ours}.weight"), Row(f"{npz}/bias", bias, f"{ours}.bias")]


HEAD = _linear("head", "DN", "N", "head")

# JAX keeps (in, out) kernels and HWIO convolutions; torch keeps (out, in) and OIHW
TO_TORCH: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "PPCD": lambda w: w.transpose(3, 2, 0, 1),
    "DHK": lambda w: w.reshape(len(w), -1).T,
    "HK": lambda w: w.reshape(-1),
    "HKD": lambda w: w.reshape(-1, w.shape[-1]).T,
    "DM": np.transpose,
    "MD": np.transpose,
    "DN": np.transpose,
}
FROM_TORCH: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "PPCD": lambda w, heads: w.transpose(2, 3, 1, 0),
    "DHK": lambda w, heads: w.T.reshape(w.shape[1], heads, -1),
    "HK": lambda w, heads: w.reshape(heads, -1),
    "HKD": lambda w, heads: w.T.reshape(heads, -1, len(w)),
    "DM": lambda w, heads: w.T,
    "MD": lambda w, heads: w.T,
    "DN": lambda w, heads: w.T,
}


def load_npz(path: str | Path) -> Checkpoint:
    """Read one of Google's files, or one of ours. Never unpickles.

    Returns:
        float32 arrays under our names. A head that is all zeros and `pre_logits` (Dense + tanh before the
        head of the ImageNet-21k files) are left out: neither is of use for another task.

    Raises:
        WeightsError: the file is absent, damaged, a pickle, or not a Vision Transformer; all wrong names
            and shapes are in the one message.
    """
    arrays = _read(Path(path))
    try:
        meta, grid = read_meta(str(arrays.pop(META_KEY, "{}")))
        state, heads = npz_to_state(arrays)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: what it says of itself in {META_KEY} cannot be read ({error}).") from None
    return Checkpoint(state, heads, grid, meta)


def save_npz(
    state: Mapping[str, Any],
    path: str | Path,
    *,
    heads: int,
    meta: Mapping[str, Any] | None = None,
    numbering: str = "classic",
) -> Path:
    """Write parameters in Google's layout: aside first, then renamed, so that no half-written file is ever found.

    Args:
        state: a state dict under our (timm's) names, arrays or tensors; LayerScale must have been folded.
        meta: JSON-able facts to travel with the file: `grid` (h, w), `mean`, `std`, `source`, `licence`, `note`.
    """
    path = Path(path)
    arrays = state_to_npz(state, heads, numbering)
    if meta:
        arrays[META_KEY] = np.array(json.dumps(dict(meta)))
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def npz_to_state(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], int]:
    """Translate a file's arrays to our names; also the number of attention heads.

    Raises:
        WeightsError: lists every missing and unexpected array and every wrong shape.
    """
    prefix = next((p for p in PREFIXES if f"{p}embedding/kernel" in arrays), "")
    arrays = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    blocks = [int(m[1]) for name in arrays if (m := re.match(r"Transformer/encoderblock_(\d+)/", name))]
    new = any("/MultiHeadDotProductAttention_0/" in name or "/MlpBlock_0/" in name for name in arrays)
    rows = layout(max(blocks, default=0) + 1, "big_vision" if new else "classic")
    sizes = _check(arrays, rows)

    parts = defaultdict(list)
    for row in rows + ([] if _empty_head(arrays) else HEAD):
        array = np.asarray(arrays[row.npz], dtype=np.float32)
        parts[row.parameter].append(TO_TORCH.get(row.axes, lambda a: a)(array))
    return {name: np.ascontiguousarray(np.concatenate(arrays)) for name, arrays in parts.items()}, sizes["H"]


def state_to_npz(state: Mapping[str, Any], heads: int, numbering: str = "classic") -> dict[str, np.ndarray]:
    """Translate parameters to Google's names and axes; the exact inverse of `npz_to_state`.

    Raises:
        WeightsError: lists every parameter that this layout needs or has no place for.
    """
    state = {name: _array(value) for name, value in state.items()}
    blocks = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    rows = layout(max(blocks, default=0) + 1, numbering)
    rows += HEAD if "head.weight" in state else []
    known = {row.parameter for row in rows}
    problems = listing("missing", known - set(state)) + listing("no place in this layout for", set(state) - known)
    if problems:
        raise WeightsError(
            "these parameters do not make a plain Vision Transformer (fold LayerScale first):" + problems
        )

    prefix = "params/" if numbering == "big_vision" else ""  # by which timm's loader knows them
    arrays = {}
    for parameter, group in _by_parameter(rows).items():
        for row, part in zip(group, np.split(state[parameter], len(group)), strict=True):
            restore = FROM_TORCH.get(row.axes)
            arrays[prefix + row.npz] = np.ascontiguousarray(restore(part, heads) if restore else part)
    return arrays


def _by_parameter(rows: list[Row]) -> dict[str, list[Row]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row.parameter].append(row)
    return groups


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _empty_head(arrays: Mapping[str, np.ndarray]) -> bool:
    return not all(row.npz in arrays for row in HEAD) or not np.any(arrays["head/kernel"])


def _check(arrays: Mapping[str, np.ndarray], rows: list[Row]) -> dict[str, int]:
    """Size of each axis letter; raises with all that is missing, unexpected or of the wrong shape."""
    expected = {row.npz for row in rows}
    unexpected = {name for name in set(arrays) - expected if not name.startswith(IGNORED)}
    found = [row for row in (*rows, *HEAD) if row.npz in arrays]
    votes = defaultdict(Counter)  # what most arrays say a letter is, so that one bad array cannot blame the others
    for row in found:
        for letter, size in zip(row.axes, arrays[row.npz].shape, strict=False):
            votes[letter][size] += 1
    sizes = {letter: counts.most_common(1)[0][0] for letter, counts in votes.items()} | {"1": 1}
    wrong = []
    for row in found:
        shape, wanted = arrays[row.npz].shape, tuple(sizes.get(letter, 0) for letter in row.axes)
        if shape != wanted:
            wrong.append(f"{row.npz} is {shape}, the other arrays ask for {wanted}")
        elif arrays[row.npz].dtype.kind != "f":
            wrong.append(f"{row.npz} holds {arrays[row.npz].dtype}, not floating-point numbers")
    problems = listing("missing", expected - set(arrays)) + listing("unexpected", unexpected) + listing("wrong", wrong)
    if problems:
        raise WeightsError("not a Vision Transformer in Google's layout:" + problems)
    return sizes


def read_meta(text: str) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """What one of our files says of itself, and the patch grid (h, w) in it; ValueError or TypeError if broken."""
    meta = json.loads(text)
    if not isinstance(meta, dict):
        raise ValueError(f"no JSON object, but {text[:20]!r}")
    return meta, tuple(meta["grid"]) if "grid" in meta else None


def listing(title: str, items: Collection[str]) -> str:
    """One line of an error message, empty where there is nothing to list."""
    return f"\n  {title} ({len(items)}): " + "; ".join(sorted(items)) if items else ""


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with open_npz(path) as archive:
            return {name.removesuffix(".npy"): read_member(archive, name) for name in archive.namelist()}
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}. Check the path.") from None
    except BadNpz as error:
        raise WeightsError(f"{path} {error}. Download the .npz again from where it was published.") from None
