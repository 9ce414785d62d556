"""Augmentation recipes by name: lists of torchvision.transforms.v2 steps on one uint8 image.

`recipe_table()` prints every step and number, read off the steps that run. `augment.augmented` draws for each image.
"""

import inspect
import math
from enum import Enum

import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from medvitlib.data.decode import height_and_width
from medvitlib.errors import DataError, one_of

# Ruifrok & Johnston 2001: optical density in (R, G, B) of one unit of haematoxylin, eosin, DAB
STAINS = torch.nn.functional.normalize(torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))


class Rotate(v2.Transform):
    """A turn about the centre by at most `degrees`; reflection fills the corners, as black ones catch the eye."""

    def __init__(self, degrees: float):
        super().__init__()
        self.degrees = degrees

    def make_params(self, flat_inputs: list) -> dict:
        return {"angle": _uniform(-self.degrees, self.degrees).item()}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        h, w = inpt.shape[-2:]
        matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), params["angle"], 1.0)
        how = cv2.INTER_NEAREST if isinstance(inpt, tv_tensors.Mask) else cv2.INTER_LINEAR
        turned = [cv2.warpAffine(x, matrix, (w, h), flags=how, borderMode=cv2.BORDER_REFLECT_101) for x in inpt.numpy()]
        return tv_tensors.wrap(torch.from_numpy(np.stack(turned)), like=inpt)


class Dihedral(v2.Transform):
    """One of the eight turns and reflections of a square, each as likely; of the four that keep any other shape."""

    def make_params(self, flat_inputs: list) -> dict:
        return dict(zip(("mirror", "flip", "transpose"), torch.randint(2, (3,)).bool().tolist(), strict=True))

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        out = inpt.flip([axis for axis, name in ((-1, "mirror"), (-2, "flip")) if params[name]])
        square = inpt.shape[-1] == inpt.shape[-2]
        return tv_tensors.wrap(out.mT.contiguous() if params["transpose"] and square else out, like=inpt)


class StainJitter(v2.Transform):
    """More or less of each stain, in the space where stains add up (Tellez et al., IEEE TMI 2018).

    Optical density D = -log10 of the share of light let through = C M, with C the stain concentrations and M the
    stains' colours (Ruifrok & Johnston 2001). Each concentration c becomes a c + b, with a from [1 - alpha, 1 + alpha]
    and b from [-beta, beta]. M is a basis of all colours, so it serves stains other than its own.
    A grey image has one concentration: its density.
    """

    def __init__(self, alpha: float, beta: float):
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def make_params(self, flat_inputs: list) -> dict:
        return {"a": _uniform(1 - self.alpha, 1 + self.alpha, 3), "b": _uniform(-self.beta, self.beta, 3)}

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if isinstance(inpt, tv_tensors.Mask):
            return inpt
        a, b = params["a"], params["b"]
        density = -torch.log10((inpt.float().flatten(1) + 1) / 256)  # (C, H W); 255 is clear glass, 0 is still finite
        if len(inpt) == 1:
            density = a[0] * density + b[0]
        else:  # D' = (D M^-1 a + b) M, as one matrix and one shift; pixels are columns here
            density = (torch.linalg.inv(STAINS) @ torch.diag(a) @ STAINS).T @ density + (b @ STAINS)[:, None]
        light = torch.exp2(density * -math.log2(10)).mul_(256).sub_(1)  # ten times as fast as 10**
        return light.round_().clamp_(0, 255).to(torch.uint8).view_as(inpt)


class Erase(v2.RandomErasing):
    """Random erasing (Zhong et al. 2020) with the image's own mean colour: no new colour, no black box."""

    def __init__(self, p: float, scale: tuple[float, float], ratio: tuple[float, float]):
        super().__init__(p, scale, ratio)

    def transform(self, inpt: torch.Tensor, params: dict) -> torch.Tensor:
        if params["v"] is None:  # torchvision found no box that fits into so narrow an image
            return inpt
        mask = isinstance(inpt, tv_tensors.Mask)  # what is erased is evidence no more
        mean = torch.zeros(()) if mask else inpt.double().mean((-2, -1), keepdim=True)
        out, (top, left) = inpt.clone(), (params["i"], params["j"])
        out[:, top : top + params["h"], left : left + params["w"]] = mean.to(out.dtype)
        return out


class RandAugment(v2.RandAugment):
    """RandAugment (Cubuk et al. 2020) less some operations; what a shift or turn moves in is mid-grey."""

    def __init__(self, num_ops: int, magnitude: int, without: tuple[str, ...]):
        super().__init__(num_ops, magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
        self.without = without
        self._AUGMENTATION_SPACE = {name: how for name, how in self._AUGMENTATION_SPACE.items() if name not in without}


def _uniform(low: float, high: float, n: int = 1) -> torch.Tensor:
    return torch.empty(n).uniform_(low, high)  # from PyTorch's own generator, as torchvision's steps do


def _crop(size: tuple[int, int], smallest: float) -> v2.Transform:
    aspect = size[1] / size[0]  # a crop is squeezed by a tenth at most: roundness is a sign in cells
    # antialiasing only serves images that shrink, and a crop grows back to its image's size; it costs 2 ms in grey
    return v2.RandomResizedCrop(size, (smallest, 1.0), (0.9 * aspect, aspect / 0.9), antialias=False)


_STEPS = {
    "none": lambda size: [v2.Identity()],
    # no flip: safe where left and right matter
    "light": lambda size: [_crop(size, 0.85), v2.ColorJitter(0.1, 0.1)],
    # no hue: the blue of the stained threads is the sign; small boxes: a larger one would hide the only cell
    "reticulocyte": lambda size: [
        _crop(size, 0.7),
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        Rotate(15),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.RandomGrayscale(0.1),
        Erase(0.25, (0.02, 0.1), (0.5, 2.0)),
    ],
    "cells": lambda size: [Dihedral(), StainJitter(0.15, 0.015)],
    # what is published with most ResNets on white cells: flips, a turn, colour
    "flip_turn_jitter": lambda size: [
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        Rotate(20),
        v2.ColorJitter(0.2, 0.2, 0.2),
    ],
    # nobody is X-rayed upside down; no erasing: an opacity may be small
    "xray": lambda size: [_crop(size, 0.85), v2.RandomHorizontalFlip(0.5), Rotate(7), v2.ColorJitter(0.2, 0.2)],
    # torchvision's defaults; left out is what turns bright to dark, and what blows up the noise of empty background
    "randaugment": lambda size: [RandAugment(2, 9, without=("Solarize", "Equalize"))],
}
RECIPES = tuple(_STEPS)


class Recipe(v2.Compose):
    """The steps of a recipe, called on one uint8 image (C, H, W), or on (image, tv_tensors.Mask (1, H, W) uint8)."""

    def __init__(self, name: str, image_size: tuple[int, int]):
        super().__init__(_STEPS[name](image_size))
        self.name, self.image_size = name, image_size

    def __reduce__(self):
        return Recipe, (self.name, self.image_size)  # torchvision's RandAugment holds lambdas; workers may be spawned

    def forward(self, image: torch.Tensor, mask: tv_tensors.Mask | None = None):
        """The image, or (image, mask), after one draw from PyTorch's own generator; geometry moves both alike."""
        if image.dtype != torch.uint8 or image.ndim != 3 or tuple(image.shape[1:]) != self.image_size:
            raise DataError(
                f"a recipe for images of {self.image_size} px was given {image.dtype} {tuple(image.shape)}: expected "
                "one uint8 image (C, H, W) of that size. Call it once an image, or use augmented(dataset, name)."
            )
        return super().forward(image) if mask is None else super().forward(image, mask)


def recipe(name: str, image_size: int | tuple[int, int] = 224) -> Recipe:
    """A recipe, for images of one size; `RECIPES` has the names.

    Args:
        image_size: side, or (height, width), in pixels.

    Raises:
        DataError: if there is no such recipe (with the nearest name) or no such size.
    """
    one_of("recipe", name, RECIPES, DataError)
    return Recipe(name, height_and_width(image_size))


def recipe_table(name: str | None = None, image_size: int | tuple[int, int] = 224):
    """Every step and parameter of a recipe, or of all, in the order they run, as a pandas DataFrame.

    Columns recipe, step, parameter and value; a step without parameters has one row with "-".
    """
    import pandas as pd

    rows = []
    for which in RECIPES if name is None else (name,):
        for step in recipe(which, image_size).transforms:
            of_step = [p for p in inspect.signature(type(step)).parameters if p not in ("args", "kwargs")] or ["-"]
            values = [getattr(step, p, "-") for p in of_step]
            values = [value.value if isinstance(value, Enum) else value for value in values]
            rows += [(which, type(step).__name__, *pair) for pair in zip(of_step, values, strict=True)]
    return pd.DataFrame(rows, columns=["recipe", "step", "parameter", "value"])
