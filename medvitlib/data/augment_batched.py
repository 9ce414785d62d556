"""The steps of augmentation recipes as arithmetic on a batch, on any device: one draw a sample, no loop over images.

What a step draws is drawn by the step itself (see `augment.AugmentedImages.draws`), so an image becomes what it becomes
on the CPU, but for rounding: a resized or turned image differs by a grey level here and there, all else by none.
`randaugment` is not here: its fourteen operations come in another order for each image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from medvitlib.data.recipes import RECIPES, STAINS, Dihedral, Erase, Recipe, Rotate, StainJitter, recipe

GREY = (0.2989, 0.587, 0.114)  # torchvision's shares of R, G, B


@dataclass(frozen=True)
class Batched:
    """A step for a batch.

    Attributes:
        numbers: one image's draw as numbers, of a step that leaves the image alone as well (None).
        arithmetic: images (B, C, H, W), float32 whole numbers 0 to 255, and numbers (B, k) to such images.
    """

    numbers: Callable[[dict | None], tuple[float, ...]]
    arithmetic: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def crop(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Boxes (top, left, height, width), each resized to the whole image; bilinear, without antialiasing."""
    corner, side = numbers[:, :2], numbers[:, 2:]
    where = []
    for axis, size in enumerate(x.shape[-2:]):
        steps = (torch.arange(size, device=x.device) + 0.5) / size
        inside = steps * side[:, axis, None] - 0.5  # (B, size)
        where.append(corner[:, axis, None] + torch.minimum(inside.clamp(min=0), side[:, axis, None] - 1))
    rows, columns = where
    return _sampled(x, columns[:, None, :].expand(-1, x.shape[-2], -1), rows[:, :, None].expand(-1, -1, x.shape[-1]))


def rotate(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """A turn about the centre by so many degrees, counter-clockwise; the border is a mirror."""
    h, w = x.shape[-2:]
    angle = torch.deg2rad(numbers)[..., None]  # (B, 1, 1)
    dy = (torch.arange(h, device=x.device) - (h - 1) / 2)[:, None]
    dx = (torch.arange(w, device=x.device) - (w - 1) / 2)[None]
    columns = angle.cos() * dx - angle.sin() * dy + (w - 1) / 2  # (B, H, W)
    return _sampled(x, columns, angle.sin() * dx + angle.cos() * dy + (h - 1) / 2, "reflection")


def _sampled(x: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor, padding: str = "border") -> torch.Tensor:
    """The images at these pixel coordinates (B, H, W), bilinear."""
    h, w = x.shape[-2:]
    grid = torch.stack([2 * columns / max(w - 1, 1) - 1, 2 * rows / max(h - 1, 1) - 1], dim=-1)  # (B, H, W, 2)
    return F.grid_sample(x, grid, padding_mode=padding, align_corners=True).round_()


def mirror(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Left and right exchanged where the number is 1."""
    return torch.where(_on_images(numbers) > 0, x.flip(-1), x)


def flip(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Top and bottom exchanged where the number is 1."""
    return torch.where(_on_images(numbers) > 0, x.flip(-2), x)


def dihedral(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """`mirror`, `flip` and, of square images, the transpose, each where its number is 1."""
    x = flip(mirror(x, numbers[:, :1]), numbers[:, 1:2])
    return torch.where(_on_images(numbers[:, 2:]) > 0, x.mT, x) if x.shape[-1] == x.shape[-2] else x


def jitter(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Pairs (what, factor), one after the other: 0 brightness, 1 contrast, 2 saturation, 3 nothing.

    Each is torchvision's blend x factor + other (1 - factor), cut off to a whole number: other is black, the mean grey
    or the grey image. An image's first may be brightness and another's contrast.
    """
    for what, factor in zip(numbers[:, ::2].T, numbers[:, 1::2].T, strict=True):
        grey = _grey(x)  # (B, 1, H, W)
        contrast, saturation = (_on_images((what == which).float()[:, None]) for which in (1, 2))
        other = contrast * grey.mean((-2, -1), keepdim=True) + saturation * grey
        factor = torch.where(what == 3, 1.0, factor)
        if x.shape[1] == 1:
            factor = torch.where(what == 2, 1.0, factor)  # grey has no saturation
        factor = _on_images(factor[:, None])
        x = (x * factor).add_(other * (1 - factor)).clamp_(0, 255).floor_()
    return x


def greyed(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Without colour where the number is 1."""
    return torch.where(_on_images(numbers) > 0, _grey(x), x)


def _grey(x: torch.Tensor) -> torch.Tensor:
    """(B, 1, H, W)"""
    if x.shape[1] == 1:
        return x
    red, green, blue = (x[:, k : k + 1] * share for k, share in enumerate(GREY))
    return (red + green + blue).floor_()


def erase(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Boxes (top, left, height, width) in the image's own mean colour; nothing where the height is 0."""
    mean = x.double().mean((-2, -1), keepdim=True).floor().float()
    top, left, height, width = numbers.T[..., None]  # each (B, 1)
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    in_rows, in_columns = (rows >= top) & (rows < top + height), (columns >= left) & (columns < left + width)
    return torch.where(in_rows[:, None, :, None] & in_columns[:, None, None, :], mean, x)


def stain(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """As `recipes.StainJitter`, of factors a and shifts b (B, 6)."""
    a, b = numbers[:, :3], numbers[:, 3:]
    density = -torch.log10((x.flatten(2) + 1) / 256)  # (B, C, H W)
    if x.shape[1] == 1:
        density = a[:, :1, None] * density + b[:, :1, None]
    else:
        stains = STAINS.to(x.device, non_blocking=True)
        back = torch.linalg.inv(STAINS).to(x.device, non_blocking=True)
        mixed = back @ (a[..., None] * stains)  # (B, 3, 3)
        density = mixed.mT @ density + (b @ stains)[..., None]
    light = torch.exp2(density * -math.log2(10)).mul_(256).sub_(1)
    return light.round_().clamp_(0, 255).view_as(x)


def _on_images(numbers: torch.Tensor) -> torch.Tensor:
    """(B, 1) to (B, 1, 1, 1)"""
    return numbers[..., None, None]


def _jitter_numbers(draw: dict) -> tuple[float, ...]:
    names = ("brightness_factor", "contrast_factor", "saturation_factor")
    pairs = [(k, draw[names[k]]) if k < 3 else (3, 1.0) for k in draw["fn_idx"].tolist()]
    return tuple(number for k, factor in pairs for number in ((3, 1.0) if factor is None else (k, factor)))


def _erase_numbers(draw: dict | None) -> tuple[float, ...]:
    found = draw is not None and draw["v"] is not None  # else left out, or torchvision found no box that fits
    return tuple(draw[key] for key in "ijhw") if found else (0.0,) * 4


BATCHED: dict[type, Batched] = {
    v2.RandomResizedCrop: Batched(lambda d: (d["top"], d["left"], d["height"], d["width"]), crop),
    v2.RandomHorizontalFlip: Batched(lambda d: (float(d is not None),), mirror),
    v2.RandomVerticalFlip: Batched(lambda d: (float(d is not None),), flip),
    Rotate: Batched(lambda d: (d["angle"],), rotate),
    v2.ColorJitter: Batched(_jitter_numbers, jitter),
    v2.RandomGrayscale: Batched(lambda d: (float(d is not None),), greyed),
    Erase: Batched(_erase_numbers, erase),
    Dihedral: Batched(lambda d: tuple(map(float, (d["mirror"], d["flip"], d["transpose"]))), dihedral),
    StainJitter: Batched(lambda d: (*d["a"].tolist(), *d["b"].tolist()), stain),
}
BATCHED_RECIPES = tuple(
    name
    for name in RECIPES
    if all(type(step) in BATCHED or isinstance(step, v2.Identity) for step in recipe(name, 8).transforms)
)
"""Recipes of which every step is here: all but `randaugment`."""


def as_numbers(of: Recipe, draws: list[list[dict | None]]) -> list[torch.Tensor]:
    """What was drawn, by image and step, as one float32 tensor (B, k) a step; of steps that are in `BATCHED`."""
    steps = [BATCHED.get(type(step)) for step in of.transforms]
    return [
        torch.tensor([step.numbers(draw[k]) for draw in draws], dtype=torch.float32)
        for k, step in enumerate(steps)
        if step
    ]


def augment_batch(of: Recipe, images: torch.Tensor, numbers: list[torch.Tensor]) -> torch.Tensor:
    """The images after the recipe's steps, on the device where they are.

    Args:
        of: one of `BATCHED_RECIPES`.
        images: uint8 (B, C, H, W).
        numbers: from `as_numbers`.

    Returns:
        uint8 (B, C, H, W).
    """
    steps = [BATCHED[type(step)] for step in of.transforms if type(step) in BATCHED]
    if not steps or not len(images):
        return images
    x = images.float()
    for step, drawn in zip(steps, numbers, strict=True):
        x = step.arithmetic(x, drawn.to(x.device, non_blocking=True))
    return x.to(torch.uint8)
