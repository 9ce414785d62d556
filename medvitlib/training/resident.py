"""The training images on the device, as bytes, and augmented there: a batch costs no copy and no loop over images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from medvitlib.data import Augmented, Dataset
from medvitlib.data.augment_batched import BATCHED_RECIPES, as_numbers, augment_batch
from medvitlib.errors import TrainingError
from medvitlib.training.checkpoint import ignore_signals
from medvitlib.training.config import TrainConfig

SHARE = 0.25  # of a CUDA device's free memory that images may take without being asked
_CHUNK = 2**26  # bytes read and sent at a time


def fits(config: TrainConfig, train: Dataset, device: torch.device) -> bool:
    """Whether the images are to be held on the device: as `resident` says, or where nobody said, as it pays.

    Raises:
        TrainingError: asked for with a recipe whose steps cannot be taken on a batch.
    """
    batched = config.recipe in BATCHED_RECIPES
    if config.resident and not batched:
        raise TrainingError(
            f"resident=True with recipe={config.recipe!r}, which is computed image by image, on the CPU: take one of "
            f"{', '.join(BATCHED_RECIPES)}, or leave resident out."
        )
    if config.resident is not None or device.type != "cuda":
        return bool(config.resident)
    free = min(torch.cuda.mem_get_info(device)[0], config.memory_gb * 1e9 or float("inf"))
    return batched and size_of(train) <= SHARE * free


def size_of(train: Dataset) -> int:
    """Bytes of all images."""
    return int(np.prod(train.images.shape, dtype=np.int64))


class Resident:
    """All images of a data set on a device; batches of them, augmented as the data set's own would be.

    The draws are those of `Augmented`, made on the CPU for each image from (seed, epoch, id): the same images come, to
    rounding, in whatever process, order or batch, and after an interruption.

    Args:
        train: with the recipe, or without one.
    """

    def __init__(self, train: Dataset, device: torch.device):
        self.train, (n, height, width, channels) = train, train.images.shape
        stored = train.images.stored if isinstance(train, Augmented) else train.images
        self.planes = torch.empty(n, channels, height, width, dtype=torch.uint8, device=device)
        step = max(1, _CHUNK // (height * width * channels))
        for first in range(0, n, step):
            self.planes[first : first + step] = torch.from_numpy(stored.planes(slice(first, first + step)))

    def load(
        self, order: np.ndarray, bounds: list[tuple[int, int]], *, share: Callable[[int], slice] | None, workers: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As `order.load`, with images on the device; workers only draw."""
        rows = [np.arange(first, last) for first, last in bounds]
        mine = [batch[share(len(batch))] for batch in rows] if share else rows
        labels = torch.from_numpy(self.train.labels[order])
        drawn = self._drawn(order, mine, workers)
        for batch, whole, numbers in zip(mine, rows, drawn, strict=True):
            where = torch.from_numpy(order[batch]).to(self.planes.device, non_blocking=True)
            images = self.planes.index_select(0, where)
            if isinstance(self.train, Augmented):
                images = augment_batch(self.train.images.recipe, images, numbers)
            yield images, labels[whole]

    def _drawn(self, order: np.ndarray, batches: list[np.ndarray], workers: int) -> Iterator[list[torch.Tensor]]:
        """The numbers of each batch's draws."""
        if not isinstance(self.train, Augmented):
            return iter([[]] * len(batches))
        loader = torch.utils.data.DataLoader(
            _Draws(self.train.subset(order).images),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else each pass draws from PyTorch's own
            collate_fn=_as_it_is,
        )
        return iter(loader)


class _Draws(torch.utils.data.Dataset):
    """What is drawn for a batch, where a DataLoader expects the batch."""

    def __init__(self, images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, rows: list[int]) -> list[torch.Tensor]:
        return as_numbers(self.images.recipe, self.images.draws(np.asarray(rows, dtype=int)))


def _as_it_is(batch: list[torch.Tensor]) -> list[torch.Tensor]:
    return batch
