"""Augmentation recipes by name: one draw a sample, the same for any batch size, order or number of workers.

A recipe is a list of torchvision.transforms.v2 steps on one uint8 image. torchvision draws once a call, so a batch
given to it would be turned by one angle: here every image is drawn for on its own, from a seed made of
(seed, epoch, the image's id). `recipe_table()` prints every step and number, read off the steps that run.
"""

import hashlib
import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from enum import Enum

import cv2
import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from medvitlib.data.dataset import Dataset
from medvitlib.data.decode import height_and_width
from medvitlib.data.loading import Images
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


class AugmentedImages(Images):
    """`Images` that are augmented as they are read, the same way for the same (seed, epoch, id)."""

    def __init__(self, images: Images, ids: np.ndarray, name: str, seed: int, epoch: torch.Tensor):
        import pandas as pd

        self.shape, self.dtype, self.ndim = images.shape, images.dtype, images.ndim
        self.name, self.seed, self.epoch = name, seed, epoch
        self._images, self._ids, self._recipe = images, ids, recipe(name, images.shape[1:3])
        self._repeat = pd.Series(ids).groupby(ids).cumcount().to_numpy()  # 0, 1, ... where images are repeated

    def __len__(self) -> int:
        return len(self._images)

    def planes(self, index) -> np.ndarray:
        """As `Images.planes`, after one draw for each image."""
        found = torch.from_numpy(self._images.planes(index))
        rows = np.arange(len(self))[index]
        with _aside():
            if found.ndim == 3:
                return self._draw(rows, found).numpy()
            for k, row in enumerate(rows):
                found[k] = self._draw(row, found[k])
        return found.numpy()

    def mask(self, index: int, mask: np.ndarray) -> np.ndarray:
        """The evidence mask bool (H, W) of image `index`, moved and erased as the image is."""
        image = torch.from_numpy(self._images.planes(index))
        with _aside():
            _, moved = self._draw(index, image, tv_tensors.Mask(mask[None].astype(np.uint8)))
        return moved[0].numpy().astype(bool)

    def take(self, index) -> "AugmentedImages":
        """Fewer of the images, each drawn as it was."""
        return AugmentedImages(self._images.take(index), self._ids[index], self.name, self.seed, self.epoch)

    def draws(self, index) -> list[list[dict | None]]:
        """What each step of the recipe draws for each image, None of a step that leaves it alone: as `planes` does."""
        height, width, channels = self.shape[1:]
        like = torch.empty((), dtype=torch.uint8).expand(channels, height, width)  # of an image, steps ask the size
        found = []
        with _aside():
            for row in np.arange(len(self))[index]:
                self._begin(row)
                found.append([_parameters(step, like) for step in self._recipe.transforms])
        return found

    @property
    def recipe(self) -> Recipe:
        """What the images go through."""
        return self._recipe

    @property
    def stored(self) -> Images:
        """The images as they are."""
        return self._images

    def _draw(self, row: int, *image_and_mask: torch.Tensor):
        self._begin(row)
        return self._recipe(*image_and_mask)

    def _begin(self, row: int) -> None:
        # the id, not the position: in a subset or in another order an image is drawn alike
        key = f"{self.seed}\n{int(self.epoch)}\n{self._ids[row]}\n{self._repeat[row]}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest, "little"))


def _parameters(step: v2.Transform, image: torch.Tensor) -> dict | None:
    """What a step would draw for an image, in the order in which torchvision's `forward` draws it."""
    if hasattr(step, "p") and torch.rand(1) >= step.p:
        return None
    return step.make_params([image])


@contextmanager
def _aside() -> Iterator[None]:
    """Leave PyTorch's generator as it was, and compute as a DataLoader's worker does: sums depend on the threads."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)


@dataclass(frozen=True, eq=False, repr=False)
class Augmented(Dataset):
    """A Dataset whose images are augmented as they are read; made by `augmented`."""

    def set_epoch(self, epoch: int) -> None:
        """Draw anew from here on, in this process, in workers that are running, and in subsets of this data set."""
        self.images.epoch.fill_(epoch)

    def mask(self, i: int) -> np.ndarray | None:
        """As `Dataset.mask`, moved with the image; None for `randaugment`, whose steps take no masks."""
        mask = super().mask(i)
        return None if mask is None or self.images.name == "randaugment" else self.images.mask(i, mask)

    def __repr__(self) -> str:
        return f"{super().__repr__()} augmented by {self.images.name!r}, epoch {int(self.images.epoch)}"


def augmented(dataset: Dataset, name: str, seed: int = 0) -> Augmented:
    """The data set with a recipe applied to each image as it is read, by `batches`, a DataLoader or indexing.

    What an image becomes depends on the seed, the epoch and its id alone, and the global generators stay as they are.
    Call `set_epoch` before each pass, or every pass sees the same draws. An index that a sampler repeats within an
    epoch is drawn alike; a row that `subset` has repeated is not.

    Raises:
        DataError: if there is no such recipe, or the data set is augmented already.
    """
    if isinstance(dataset, Augmented):  # its own epoch would stand still
        raise DataError(f"{dataset.name!r} is augmented already, by {dataset.images.name!r}: pass the set as it was.")
    epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that stay for several epochs
    images = AugmentedImages(dataset.images, dataset.ids, name, seed, epoch)
    return Augmented(**{f.name: getattr(dataset, f.name) for f in fields(dataset)} | {"images": images})
