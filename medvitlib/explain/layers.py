"""The layer to look at in each architecture, and its output on the grid of the image's patches."""

import torch
from torch import nn

from medvitlib.errors import ExplanationError


def default_layer(model: nn.Module) -> str:
    """Path of the last layer whose output has places that the classifier depends on.

    Of a Vision Transformer the first norm of the last block: after that block's attention the class token alone
    counts, and the gradient of every patch is zero. Of Swin the same, though its classifier reads all patches. Of a CNN
    the last stage, or whatever its last convolution is in.

    Raises:
        ExplanationError: none is known; `layer=` names one.
    """
    names = [name for name, _ in model.named_modules()]
    last = [name for name in names if name.endswith(".norm1") and "blocks." in name]
    if last:  # this library's, timm's ViT, DeiT, DINOv2 and Swin
        return last[-1]
    for stage in ("layer4", "stages", "features"):  # ResNets; ConvNeXt and others of timm; torchvision's
        if stage in names:
            return stage
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if convolutions:
        return convolutions[-1]
    raise ExplanationError(f"no layer of {type(model).__name__} is known to have places: name one by layer=.")


def on_grid(model: nn.Module, name: str, values: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """A layer's output, or its gradient, as (N, C, rows, columns).

    Args:
        values: (N, C, rows, columns) of a convolution, (N, rows, columns, C) or (N, T, C) of tokens, of which prefix
            tokens come first.
        image_size: height and width in pixels, to tell rows from columns.

    Raises:
        ExplanationError: a layer whose output has no places.
    """
    if values.ndim == 4:
        return values.permute(0, 3, 1, 2) if _channels_last(model, name) else values
    if values.ndim == 3:
        prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
        patches = values[:, prefix:] if not _windowed(model) else values
        rows, columns = grid_of(patches.shape[1], image_size, name)
        return patches.transpose(1, 2).unflatten(2, (rows, columns))
    raise ExplanationError(
        f"{name} gives {tuple(values.shape)}: expected places, (N, C, h, w) or tokens (N, T, C). Without `layer` the "
        "usual one is taken."
    )


def _windowed(model: nn.Module) -> bool:
    return any(hasattr(module, "shift_size") for module in model.modules())


def _channels_last(model: nn.Module, name: str) -> bool:
    """Swin keeps (N, rows, columns, C) between its blocks."""
    module = model.get_submodule(name)
    return _windowed(model) and not isinstance(module, nn.Conv2d)


def grid_of(patches: int, image_size: tuple[int, int], name: str) -> tuple[int, int]:
    """Rows and columns of so many patches, in the proportions of the image."""
    height, width = image_size
    found = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    rows, columns = min(found, key=lambda pair: abs(pair[0] / pair[1] - height / width))
    if not 0.8 < (rows / columns) / (height / width) < 1.25:
        raise ExplanationError(
            f"{name} gives {patches} tokens, which are no grid of an image of {height} x {width} pixels: take a layer "
            "that keeps all patches."
        )
    return rows, columns
