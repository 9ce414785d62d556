"""Which images each update of an epoch sees, and how they come."""

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import torch

from medvitlib.data import Dataset
from medvitlib.training.checkpoint import ignore_signals


def order_of(n: int, seed: int, epoch: int, weights: torch.Tensor | None = None) -> np.ndarray:
    """Rows of the training part in the order of an epoch; with weights (n,), some of them repeatedly, some not."""
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    if weights is None:
        return torch.randperm(n, generator=generator).numpy()
    return torch.multinomial(weights, n, True, generator=generator).numpy()


def load(
    train: Dataset,
    order: np.ndarray,
    bounds: list[tuple[int, int]],
    *,
    share: Callable[[int], slice] | None,
    workers: int,
    pinned: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches between these bounds of an order: uint8 images (B, C, H, W), int64 labels (B,).

    Args:
        share: which of a batch's images this process wants, of several that get every label; None for all.
        workers: processes that read and augment.
        pinned: in memory that a GPU reads from.
    """
    rows = [list(range(first, last)) for first, last in bounds]
    if share:
        rows = [batch[share(len(batch))] for batch in rows]
    loader = torch.utils.data.DataLoader(
        train.subset(order),
        batch_sampler=[mine for mine in rows if mine],
        num_workers=workers,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # else each pass draws from PyTorch's own
        pin_memory=pinned,
    )
    loaded, (_, h, w, c) = iter(loader), train.images.shape
    for mine, (first, last) in zip(rows, bounds, strict=True):
        images = next(loaded)[0] if mine else torch.empty(0, c, h, w, dtype=torch.uint8)
        yield images, torch.from_numpy(train.labels[order[first:last]])


def bounds_of(n: int, batch_size: int) -> list[tuple[int, int]]:
    """First and last-plus-one of each batch; a single image left over joins the batch before it.

    Batch normalisation cannot train on one image.
    """
    firsts = list(range(0, n, batch_size))
    if len(firsts) > 1 and n - firsts[-1] == 1:
        firsts.pop()
    return list(zip(firsts, [*firsts[1:], n], strict=True))


def seed_of(*what) -> int:
    """A seed for whatever these words and numbers name."""
    digest = hashlib.blake2b(" ".join(map(str, what)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")
