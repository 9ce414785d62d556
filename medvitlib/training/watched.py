"""What a model says of a data set after every epoch of its training."""

import os
from pathlib import Path

import numpy as np
from torch import nn

from medvitlib.data import Dataset
from medvitlib.errors import TrainingError
from medvitlib.training.features import forward


class Watched:
    """Keeps the logits of a data set after each epoch: `fit(model, ..., each_epoch=Watched(model, dataset, file))`.

    They are in a file, so that a training that was interrupted and is taken up again has them all. What is
    looked at here cannot be a test set any more, unless nothing follows from it.

    Args:
        model: the one that `fit` trains.
        file: an .npy file; a training that starts anew begins it anew.
        hardware: device and precision, as `fit` has them.
    """

    def __init__(self, model: nn.Module, dataset: Dataset, file: str | Path, **hardware):
        self.model, self.dataset, self.file, self.hardware = model, dataset, Path(file), hardware

    def __call__(self, row: dict) -> None:
        """After an epoch, whose row of metrics.csv this is."""
        epoch = int(row["epoch"])
        before = self.logits if epoch > 1 else np.empty((0, 0, 0), np.float32)
        if len(before) < epoch - 1:
            raise TrainingError(
                f"{self.file} has {len(before)} epochs, and epoch {epoch} was trained: the training was begun without "
                "it. Start it anew."
            )
        found = forward(self.model, self.dataset, description="Watching", **self.hardware)[None]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial.npy")
        np.save(partial, np.concatenate([before[: epoch - 1], found]) if epoch > 1 else found)
        os.replace(partial, self.file)

    @property
    def logits(self) -> np.ndarray:
        """(E, N, K) float32, of all epochs so far.

        Raises:
            TrainingError: there is none yet.
        """
        try:
            return np.load(self.file)
        except (OSError, ValueError) as error:
            raise TrainingError(f"{self.file} holds no epochs ({error}): train with each_epoch=this.") from None
