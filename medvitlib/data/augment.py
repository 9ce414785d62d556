"""A data set whose images are augmented as they are read: the same for any batch size, order or number of workers.

torchvision draws once a call, so a batch given to it would be turned by one angle: here every image is drawn for on its
own, from a seed made of (seed, epoch, the image's id).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import numpy as np
import torch
from torchvision import tv_tensors

from medvitlib.data.dataset import Dataset
from medvitlib.data.loading import Images
from medvitlib.data.recipes import recipe
from medvitlib.errors import DataError


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

    def _draw(self, row: int, *image_and_mask: torch.Tensor):
        self._begin(row)
        return self._recipe(*image_and_mask)

    def _begin(self, row: int) -> None:
        # the id, not the position: in a subset or in another order an image is drawn alike
        key = f"{self.seed}\n{int(self.epoch)}\n{self._ids[row]}\n{self._repeat[row]}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        torch.default_generator.manual_seed(int.from_bytes(digest, "little"))


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
