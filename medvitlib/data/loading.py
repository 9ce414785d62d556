"""Batches out of the decoded store, in uint8 and in constant memory."""

import math
import mmap
from collections.abc import Iterator

import numpy as np
import torch

from medvitlib.data.cache import Stored
from medvitlib.errors import DataError

_RELEASE_BYTES = 32 * 2**20  # mapped pages we hold at most
_AROUND = 2**17  # the kernel maps neighbours too: up to 64 KB on either side of a row


class Images:
    """Images as a read-only array-like of uint8 (N, H, W, C); a row is read from the memory map when asked for."""

    def __init__(self, stored: Stored, rows: np.ndarray):
        self._stored, self._rows, self._map, self._touched = stored, rows, None, 0
        _, c, h, w = stored.shape
        self.shape, self.dtype, self.ndim = (len(rows), h, w, c), np.dtype(np.uint8), 4

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index) -> np.ndarray:
        """One image (H, W, C) for an integer, a copy of several (n, H, W, C) for a slice, list or array."""
        if isinstance(index, tuple):
            return np.asarray(self)[index]
        return np.moveaxis(self.planes(index), -3, -1)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def planes(self, index) -> np.ndarray:
        """Like indexing, but (..., C, H, W) and contiguous, as models read it."""
        if self._map is None:
            self._map = np.load(self._stored.path, mmap_mode="r")
        found = np.array(self._map[self._rows[index]])
        self._release(found.nbytes + _AROUND * (found.size // max(1, math.prod(self.shape[1:]))))
        return found

    def take(self, index) -> "Images":
        """The same store seen through fewer rows."""
        return Images(self._stored, self._rows[index])

    def _release(self, touched: int) -> None:
        """Hand mapped pages back now and then: the kernel keeps them cached, but they no longer count as ours."""
        self._touched += touched
        if self._touched > _RELEASE_BYTES and hasattr(mmap, "MADV_DONTNEED"):
            self._map._mmap.madvise(mmap.MADV_DONTNEED)
            self._touched = 0

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_map": None, "_touched": 0}  # a worker process opens the file anew


class Batches:
    """What `batches` returns: can be iterated again and again, each time in a new order where it shuffles."""

    def __init__(self, dataset, batch_size: int, shuffle: bool, generator: torch.Generator | None):
        self.dataset, self.batch_size, self.shuffle, self.generator = dataset, batch_size, shuffle, generator

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n = len(self.dataset)
        order = torch.randperm(n, generator=self.generator).numpy() if self.shuffle else np.arange(n)
        labels = torch.from_numpy(self.dataset.labels[order])
        for start in range(0, n, self.batch_size):
            chosen = order[start : start + self.batch_size]
            images = torch.from_numpy(self.dataset.images.planes(chosen))  # (B, C, H, W)
            yield images, labels[start : start + self.batch_size]


def batches(dataset, batch_size: int, *, shuffle: bool = False, generator: torch.Generator | None = None) -> Batches:
    """Batches of a data set: (uint8 (B, C, H, W), int64 labels (B,)); `len` counts them, the last may be smaller.

    Normalise on the device, once a batch: `normalise(images.to(device), model.preprocessing)`.

    Args:
        dataset: a Dataset.
        batch_size: images a batch.
        shuffle: a new order for each pass, drawn from `generator` (PyTorch's own if None).
    """
    if batch_size < 1:
        raise DataError(f"batch_size={batch_size}: expected 1 or more.")
    return Batches(dataset, batch_size, shuffle, generator)
