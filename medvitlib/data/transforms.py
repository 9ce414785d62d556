"""From stored bytes to what a model expects: the constants travel with the weights, as `Preprocessing`."""

from dataclasses import dataclass

import numpy as np
import torch

from medvitlib.errors import DataError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""(mean, std) of ImageNet's RGB channels, for DINOv2, DeiT, Swin, ResNet: `Preprocessing(size, *IMAGENET)`."""
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""(mean, std) of Google's ViT: x in [0, 1] becomes (x - 0.5) / 0.5."""

_CACHED = 2**18  # float32 pixels: 1 MB


@dataclass(frozen=True)
class Preprocessing:
    """What a set of weights expects of its input.

    Args:
        image_size: (height, width) in pixels.
        mean: one number a channel, on the scale where images run from 0 to 1.
        std: likewise, above zero.
        channels: 3 (RGB) or 1 (grey).
        window: of images of more than 8 bits, the values that were shown as black and as white in training
            (`open_dataset`); None if each image had its own.
    """

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3
    window: tuple[float, float] | None = None

    def __post_init__(self):
        for field in ("image_size", "mean", "std", "window"):  # JSON gives lists; equality and hashing want tuples
            if (given := getattr(self, field)) is not None:
                object.__setattr__(self, field, tuple(given))
        if len(self.mean) != self.channels or len(self.std) != self.channels or min(self.std) <= 0:
            raise DataError(
                f"mean {self.mean} and std {self.std} for {self.channels} channel(s): "
                "give one number a channel, with std above zero."
            )


def normalise(batch: torch.Tensor, preprocessing: Preprocessing, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(x / 255 - mean) / std, once a batch, on the batch's own device.

    Args:
        batch: uint8 (B, C, H, W), C 1 or 3. One grey channel serves all channels of a colour model.
        dtype: a floating type; the arithmetic is float32, rounded once.

    Returns:
        (B, preprocessing.channels, H, W). Where a grey batch meets the same constants in every channel (`HALF`),
        the channels are one channel expanded as a view, a third of the memory: copy it before writing into it.

    Raises:
        DataError: if the batch is not uint8, not of the expected size, or in colour for a one-channel model.
    """
    b, c, h, w = batch.shape
    if batch.dtype != torch.uint8 or c not in (1, preprocessing.channels):
        raise DataError(
            f"a batch of {batch.dtype} with {c} channel(s) for a model of {preprocessing.channels} channel(s): "
            "normalise takes uint8 images, grey or with as many channels as the model has."
        )
    if (h, w) != preprocessing.image_size:
        raise DataError(
            f"images of {h}x{w} px (height x width) for a model of {preprocessing.image_size[0]}x"
            f"{preprocessing.image_size[1]} px: open the data set with image_size={preprocessing.image_size}."
        )
    constants = list(zip(preprocessing.mean, preprocessing.std, strict=True))
    alike = c == 1 and len(set(constants)) == 1
    out = _empty((b, 1 if alike else preprocessing.channels, h, w), batch.device)
    # A few images at a time stay in the processor's cache between the passes; a GPU would rather have them all.
    step = max(1, _CACHED // (h * w)) if batch.device.type == "cpu" else max(1, b)
    for start in range(0, b, step):
        some = slice(start, start + step)
        values = batch[some].float()  # (n, C, H, W), 0 to 255
        for channel, (mean, std) in enumerate(constants[: out.shape[1]]):
            shift = torch.tensor(-mean / std)
            torch.add(shift, values[:, channel % c], alpha=1 / (255 * std), out=out[some, channel])
    return out.to(dtype).expand(-1, preprocessing.channels, -1, -1)


def _empty(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An uninitialised float32 tensor; on the CPU from NumPy, which asks the kernel for huge pages.

    A batch of 64 colour images at 224 px is 39 MB: with ordinary pages the page faults of a fresh block of that size
    take twice as long as the arithmetic.
    """
    if device.type != "cpu":
        return torch.empty(shape, device=device)
    return torch.from_numpy(np.empty(shape, np.float32))
