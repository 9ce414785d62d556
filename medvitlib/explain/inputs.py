"""What every explanation asks of its images and classes."""

from collections.abc import Sequence

import torch
from torch import nn

from medvitlib.errors import DataError, ExplanationError
from medvitlib.explain.borrowed import borrowed

LARGEST = 20.0
"""What no normalised image reaches, and one from 0 to 255 does, if anything is in it."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The model in DataParallel, DistributedDataParallel or torch.compile, whose hooks would see parts of a batch, or
    compile it anew."""
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    return model


def checked(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images where the model is.

    Raises:
        DataError: images that are no normalised batch of this model's kind, or half precision, in which gradients
            of single places vanish.
        ExplanationError: a model that is none.
    """
    if not isinstance(model, nn.Module):
        raise ExplanationError(f"the model is a {type(model).__name__}: expected a module, such as a run's `model`.")
    advice = "Give medvitlib.data.normalise(batch, model.preprocessing)."
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
        given = f"{images.dtype} and shape {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images)
        raise DataError(f"images of {given}: a floating batch (N, C, height, width) is expected. {advice}")
    parameter = next(model.parameters(), images)
    for what, dtype, cure in (
        ("images", images.dtype, "images.float()"),
        ("a model", parameter.dtype, "model.float()"),
    ):
        if dtype in (torch.float16, torch.bfloat16):
            raise DataError(f"{what} of {dtype}: explanations are computed in float32. Give {cure}.")
    expected = getattr(model, "preprocessing", None)
    if expected is not None and images.shape[1] != expected.channels:
        raise DataError(f"images with {images.shape[1]} channel(s) for a model of {expected.channels}. {advice}")
    fixed = getattr(getattr(model, "patch_embed", None), "strict_img_size", False)  # timm's
    if expected is not None and fixed and tuple(images.shape[-2:]) != tuple(expected.image_size):
        given, wanted = (" x ".join(map(str, size)) for size in (images.shape[-2:], expected.image_size))
        raise DataError(f"images of {given} px (height x width) for a model of {wanted} px. {advice}")
    largest = images.detach().abs().amax().item()
    if not largest <= LARGEST:
        raise DataError(f"images with values up to {largest:g}: normalised ones stay within about 5. {advice}")
    return images.to(device=parameter.device, dtype=parameter.dtype)


def targets(model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None) -> torch.Tensor:
    """`as_targets` where the logits are not needed: all images pass only where their class is to be predicted."""
    with borrowed(model, frozen=True), torch.no_grad():
        asked = images.split(32) if target is None else [images[:1]]
        logits = torch.cat([model(some) for some in asked])
    return as_targets(target, logits.expand(len(images), -1))


def fitting(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Maps (N, H, W) of these images, where they are.

    Raises:
        ExplanationError: of another shape, or with values that are no numbers.
    """
    expected = (len(images), *images.shape[-2:])
    if not isinstance(maps, torch.Tensor) or tuple(maps.shape) != expected or not torch.isfinite(maps).all():
        given = f"shape {tuple(maps.shape)}" if isinstance(maps, torch.Tensor) else type(maps)
        raise ExplanationError(f"maps of {given} for these images: expected {expected}, (N, H, W), all of them finite.")
    return maps.to(images.device)


def as_targets(target: int | Sequence[int] | None, logits: torch.Tensor) -> torch.Tensor:
    """The class of each image (N,) int64 on the device of the logits (N, K); None for the predicted ones.

    Raises:
        ExplanationError: as many as there are not, or one that is no class.
    """
    n, classes = logits.shape
    if target is None:
        return logits.argmax(dim=1)
    try:
        given = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError):  # words, or lists of unequal length
        given = torch.zeros(())
    if given.is_floating_point() or given.dtype == torch.bool or given.ndim > 1 or given.numel() not in (1, n):
        raise ExplanationError(f"target={target!r}: expected one class, or one for each of {n} images, as numbers.")
    if ((given < 0) | (given >= classes)).any():
        raise ExplanationError(f"target={target!r}: the classes of this model are numbered from 0 to {classes - 1}.")
    return given.long().expand(n)
