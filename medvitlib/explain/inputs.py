"""What every explanation asks of its images and classes."""

from collections.abc import Sequence

import torch
from torch import nn

from medvitlib.errors import DataError, ExplanationError


def checked(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images where the model is, and of its kind of number.

    Raises:
        DataError: images that are no normalised batch.
    """
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
        given = f"{images.dtype} and shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images)
        raise DataError(
            f"images of {given}: a floating batch (N, C, height, width) is expected. Give "
            "medvitlib.data.normalise(batch, model.preprocessing)."
        )
    parameter = next(model.parameters(), images)
    return images.to(device=parameter.device, dtype=parameter.dtype)


def as_targets(target: int | Sequence[int] | None, logits: torch.Tensor) -> torch.Tensor:
    """The class of each image (N,) int64 on the device of the logits (N, K); None for the predicted ones.

    Raises:
        ExplanationError: as many as there are not, or one that is no class.
    """
    n, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    given = torch.as_tensor(target, device=logits.device)
    if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1 or given.numel() not in (1, n):
        raise ExplanationError(f"target={target!r}: expected one class, or one for each of {n} images, as numbers.")
    if ((given < 0) | (given >= classes)).any():
        raise ExplanationError(f"target={target!r}: the classes of this model are numbered from 0 to {classes - 1}.")
    return given.long().expand(n)
