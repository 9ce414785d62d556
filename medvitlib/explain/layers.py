"""The layer to look at in each architecture, proved by moving a bright square, and its output on the patches' grid."""

import copy
from weakref import WeakKeyDictionary

import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.borrowed import borrowed

FOLLOWS = 0.5
"""Least correlation, of rows and of columns, between where a square is and where a layer's output changes."""
MOST_PLACES = 80 * 80
"""A finer grid is a first layer's, of edges."""
_proved: WeakKeyDictionary[nn.Module, dict[tuple[int, int], str]] = WeakKeyDictionary()


def default_layer(model: nn.Module, image_size: tuple[int, int] | None = None) -> str:
    """Path of the last layer whose output has places that the classifier depends on.

    Of a Vision Transformer the first norm of the last block: after that block's attention the class token alone
    counts, and the gradient of every patch is zero. Of Swin the same, though its classifier reads all patches. Of a CNN
    the last stage. Each is proved once for a model and image size: a bright
    square is moved over nine places of an image, and the layer's output, put on the grid of `on_grid`, must change
    where the square is; the classifier must have a gradient there. Where none of these passes, the last layer that
    does is taken.

    Args:
        image_size: height and width in pixels; None for the model's own, or 224.

    Raises:
        ExplanationError: no layer follows the square.
    """
    size = tuple(image_size or _own_size(model))
    known = _proved.setdefault(model, {})
    if known.get(size) not in dict(model.named_modules()):  # None, or cut out since
        known[size] = _proved_layer(model, _squares(model, size))
    return known[size]


def _proved_layer(model: nn.Module, squares: torch.Tensor) -> str:
    usual, every = _usual(model), [name for name, _ in model.named_modules() if name and "att" not in name]
    blank = []
    for names, exact in ((usual, False), (usual, True), (every, False)):
        net = copy.deepcopy(model).cpu().double() if exact else model  # what is untrained may lose the difference
        if following := _following(net, names, squares.cpu().double() if exact else squares):
            if found := _with_gradient(model, following, squares[:1]):
                return found
            blank += following
    if blank:  # a head of zeros: nothing has a gradient yet
        return blank[0]
    raise ExplanationError(
        f"no layer of {type(model).__name__} changes where a bright square moves to in an image of "
        f"{squares.shape[2]} x {squares.shape[3]} pixels: it keeps no places, so that it has no heat map of this kind. "
        "Take occlusion."
    )


def _usual(model: nn.Module) -> list[str]:
    """The layers to try first, the best one first."""
    names = [name for name, _ in model.named_modules()]
    last = [name for name in names if name.endswith(".norm1") and "blocks." in name]  # our ViT, timm's, DeiT, Swin
    stages = [stage for stage in ("layer4", "stages", "features") if stage in names]  # ResNets; timm's; torchvision's
    return last[-1:] + stages[:1]


def _own_size(model: nn.Module) -> tuple[int, int]:
    if preprocessing := getattr(model, "preprocessing", None):
        return preprocessing.image_size
    if size := getattr(getattr(model, "patch_embed", None), "img_size", None):  # timm's, as it was built
        return size
    return getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[1:]


def _squares(model: nn.Module, size: tuple[int, int]) -> torch.Tensor:
    """Images (10, C, height, width): faint noise, and the same with a bright square in each of 3 by 3 places."""
    height, width = size
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    channels = model.preprocessing.channels if hasattr(model, "preprocessing") else getattr(first, "in_channels", 3)
    ground = 0.3 * torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(0))
    images = ground.repeat(10, 1, 1, 1)
    for i, image in enumerate(images[1:]):
        row, column = height * (i // 3) // 3, width * (i % 3) // 3
        image[:, row + height // 12 : row + height // 4, column + width // 12 : column + width // 4] += 2.5
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype)


def _following(model: nn.Module, names: list[str], squares: torch.Tensor) -> list[str]:
    """Those layers whose output changes where the square is, the last to run first."""
    found: dict[str, bool] = {}
    size = tuple(squares.shape[-2:])

    def judge(name: str):
        def hook(_: nn.Module, inputs: tuple, output: object) -> None:
            if not isinstance(output, torch.Tensor) or len(output) != len(squares) or output.ndim not in (3, 4):
                return
            try:
                grid = on_grid(model, name, output.detach(), size)
            except ExplanationError:
                return
            found.pop(name, None)  # a layer that runs twice is judged by what it gives last, as its map is
            if grid.shape[2:].numel() <= MOST_PLACES:
                found[name] = min(_correlations(grid)) > FOLLOWS

        return hook

    if not names:
        return []
    with borrowed(model, frozen=True) as handles, torch.no_grad():
        handles += [model.get_submodule(name).register_forward_hook(judge(name)) for name in names]
        model(squares)
    return [name for name in reversed(found) if found[name]]


def _correlations(grid: torch.Tensor) -> tuple[float, float]:
    """Of the square's row, and column, with the centre of what changes in (10, C, h, w); 0 where nothing does."""
    changes = (grid[1:] - grid[:1]).abs().mean(1)  # (9, h, w)
    changes = changes / changes.sum((1, 2), keepdim=True).clamp_min(torch.finfo(changes.dtype).tiny)
    changes = (changes - changes.mean(0)).relu()  # without what changes wherever the square is
    weight = changes.sum((1, 2))
    if not (weight > 0).all():
        return 0.0, 0.0
    centres = [
        (changes.sum(2) * torch.arange(changes.shape[1], device=grid.device)).sum(1) / weight,
        (changes.sum(1) * torch.arange(changes.shape[2], device=grid.device)).sum(1) / weight,
    ]
    at = torch.arange(9, device=grid.device).to(changes.dtype)
    pairs = zip(centres, (at // 3, at % 3), strict=True)
    both = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]
    return tuple(torch.nan_to_num(torch.stack(both)).tolist())


def _with_gradient(model: nn.Module, names: list[str], images: torch.Tensor) -> str | None:
    """The first of the layers where the logits have a gradient at the places of the image."""
    seen: dict[str, torch.Tensor] = {}
    size = tuple(images.shape[-2:])
    with borrowed(model, frozen=True) as handles, torch.enable_grad():
        for name in names:
            keep = lambda _, inputs, output, name=name: seen.__setitem__(name, output)  # noqa: E731
            handles.append(model.get_submodule(name).register_forward_hook(keep))
        logits = model(images.clone().requires_grad_(True))
        gradients = torch.autograd.grad(logits.square().sum(), [seen[name] for name in names], allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None and on_grid(model, name, gradient.float(), size).any():
            return name
    return None


def on_grid(model: nn.Module, name: str, values: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
    """A layer's output, or its gradient, as (N, C, rows, columns).

    Args:
        values: (N, C, rows, columns) of a convolution, (N, rows, columns, C) or (N, T, C) of tokens, of which prefix
            tokens come first. What is rows and columns is told by the proportions of the image.
        image_size: height and width in pixels.

    Raises:
        ExplanationError: a layer whose output has no places.
    """
    if values.ndim == 4:
        _, a, b, c = values.shape
        return values.permute(0, 3, 1, 2) if _off(a, b, image_size) < _off(b, c, image_size) else values
    if values.ndim == 3:
        prefix = _prefix(model, values.shape[1], image_size)
        rows, columns = grid_of(values.shape[1] - prefix, image_size, name)
        return values[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))
    raise ExplanationError(
        f"{name} gives {tuple(values.shape)}: expected places, (N, C, h, w) or tokens (N, T, C). Without `layer` the "
        "usual one is taken."
    )


def _off(rows: int, columns: int, image_size: tuple[int, int]) -> float:
    """How far from the image's proportions a grid is: the ratio of ratios, 1 or more."""
    ratio = rows * image_size[1] / (columns * image_size[0])
    return max(ratio, 1 / ratio)


def _prefix(model: nn.Module, tokens: int, image_size: tuple[int, int]) -> int:
    """How many of the tokens come before the patches: the declared number, unless another makes the better grid.

    Swin has a norm and no class token; CaiT adds its class token in the last blocks only.
    """
    declared = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
    return min(
        (number for number in dict.fromkeys((declared, 0, 1)) if number < tokens),
        key=lambda number: _off(*_nearest(tokens - number, image_size), image_size),
    )


def _nearest(patches: int, image_size: tuple[int, int]) -> tuple[int, int]:
    pairs = [(rows, patches // rows) for rows in range(1, patches + 1) if patches % rows == 0]
    return min(pairs, key=lambda pair: _off(*pair, image_size))


def grid_of(patches: int, image_size: tuple[int, int], name: str) -> tuple[int, int]:
    """Rows and columns of so many patches, in the proportions of the image."""
    rows, columns = _nearest(patches, image_size)
    if _off(rows, columns, image_size) >= 1.25:
        raise ExplanationError(
            f"{name} gives {patches} tokens, which are no grid of an image of {image_size[0]} x {image_size[1]} "
            "pixels: take a layer that keeps all patches."
        )
    return rows, columns
