"""Read the attention of a model: what softmax(q k' / sqrt(K)) gave in every layer and head.

    maps = attention_maps(model, normalise(images, model.preprocessing))
    maps.of_class_token()[-1][0, 2]  # last layer, first image, third head: (rows, columns)

This library's models return their attention by name. Of timm's, it is what enters `attn_drop`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import DataError, ExplanationError
from medvitlib.explain.borrowed import borrowed
from medvitlib.explain.inputs import unwrapped
from medvitlib.explain.maps import AttentionMaps, LayerMaps

READABLE = "this library's Vision Transformers, and timm's ViT, DeiT, DINOv2, BEiT, Swin and SwinV2"
SUFFIX = ".attention"


def attention_maps(model: nn.Module, images: torch.Tensor) -> AttentionMaps:
    """The attention of every layer and head for a batch of images; class-agnostic, and no gradient is kept.

    The model runs once, in evaluation mode, where it is: images are moved to it. Nothing about it is changed after
    the call, whether that returns or raises.

    Args:
        model: one of `READABLE`, or any model whose `forward_intermediates(images)` returns logits and a dictionary
            with weights (B, H, T, T) under names that end in ".attention".
        images: floating (B, C, height, width), normalised (`medvitlib.data.normalise`), of a size the model takes.

    Returns:
        maps in float32 on the CPU; all rows sum to one, to within the precision of the model's dtype.

    Raises:
        DataError: images that are no normalised batch.
        ExplanationError: a model whose attention cannot be read as one map a layer and head.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise DataError(
            f"images of {images.dtype} and shape {tuple(images.shape)}: a floating batch (B, C, height, width) is "
            "expected. Give medvitlib.data.normalise(batch, model.preprocessing)."
        )
    model = unwrapped(model)
    parameter = next(model.parameters(), images)
    images = images.to(device=parameter.device, dtype=parameter.dtype)
    with borrowed(model) as handles, torch.no_grad():
        convolved: list[tuple[int, int]] = []  # the last is the grid of patches: no convolution follows it in a ViT
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                handles.append(module.register_forward_hook(lambda *call: convolved.append(tuple(call[2].shape[-2:]))))
        if hasattr(model, "get_classifier"):  # timm
            found, windows = _read_timm(model, images, handles)
        else:
            found, windows = _read_named(model, images), {}
    if not found:
        raise ExplanationError(f"no attention can be read from {type(model).__name__}. Can be read: {READABLE}.")
    class_token = getattr(model, "cls_token", None) is not None
    prefix = getattr(model, "num_prefix_tokens", int(class_token))  # class token, distillation token, registers
    layers = []
    for name, weights in found:
        if name in windows:
            patches, grid = _in_windows(*windows[name])
        else:
            grid = convolved[-1] if convolved else (0, 0)
            patches = torch.cat([torch.full((prefix,), -1), torch.arange(grid[0] * grid[1])])[None]
        _check(f"{name} of {type(model).__name__}", weights, len(images), patches, grid)
        weights = weights.unflatten(0, (len(images), len(patches))).transpose(1, 2)  # (B, H, W, T, T)
        layers.append(LayerMaps(name, weights, patches, grid))
    return AttentionMaps(tuple(layers), class_token=class_token, windowed=bool(windows))


def _read_named(model: nn.Module, images: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    if not hasattr(model, "forward_intermediates"):
        return []
    _, out = model.forward_intermediates(images)
    return [(name.removesuffix(SUFFIX), _kept(value)) for name, value in out.items() if name.endswith(SUFFIX)]


def _read_timm(model: nn.Module, images: torch.Tensor, handles: list) -> tuple[list, dict]:
    """The maps by the name of their block; for blocks with windows: rows and columns, size and shift of a window."""
    found: list[tuple[str, torch.Tensor]] = []
    windows: dict[str, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {}

    def reader(name: str) -> Callable:
        return lambda module, inputs: found.append((name, _kept(inputs[0])))

    def measure(name: str) -> Callable:
        def hook(block: nn.Module, inputs: tuple) -> None:
            rows, columns = inputs[0].shape[1:3]  # (B, rows, columns, D)
            windows[name] = (rows, columns), tuple(block.window_size), tuple(block.shift_size)

        return hook

    for path, module in model.named_modules():
        if isinstance(drop := getattr(module, "attn_drop", None), nn.Module):
            name = path.removesuffix(".attn")
            handles.append(drop.register_forward_pre_hook(reader(name)))
            block = model.get_submodule(name)
            if hasattr(block, "shift_size"):
                handles.append(block.register_forward_pre_hook(measure(name)))
    model(images)
    return found, windows


def _kept(weights: torch.Tensor) -> torch.Tensor:
    return weights.detach().to("cpu", torch.float32)


def _in_windows(
    grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Which patch each token (W, T) of Swin's windows is: the grid shifted, padded and cut as the patches are."""
    patches = torch.arange(grid[0] * grid[1]).reshape(grid).roll((-shift[0], -shift[1]), (0, 1))
    patches = F.pad(patches, (0, -grid[1] % window[1], 0, -grid[0] % window[0]), value=-1)
    patches = patches.unfold(0, window[0], window[0]).unfold(1, window[1], window[1])  # (down, across, h, w)
    return patches.flatten(2).flatten(0, 1), grid


def _check(where: str, weights: torch.Tensor, images: int, patches: torch.Tensor, grid: tuple[int, int]) -> None:
    """Other models have such modules too, and use them otherwise: a wrong map must not pass for a right one."""
    windows, tokens = patches.shape
    expected = (images * windows, tokens, tokens)
    if weights.ndim != 4 or (len(weights), *weights.shape[2:]) != expected:
        raise ExplanationError(
            f"{where} mixes tokens by weights {tuple(weights.shape)}; for {images} image(s) of {grid[0]} x {grid[1]} "
            f"patches, ({expected[0]}, heads, {tokens}, {tokens}) is expected. Can be read: {READABLE}."
        )
    if not torch.allclose(weights.sum(-1), torch.ones(()), atol=0.02):  # bfloat16 sums to 1 within 0.01
        raise ExplanationError(f"{where} mixes tokens by weights that do not sum to one. Can be read: {READABLE}.")
