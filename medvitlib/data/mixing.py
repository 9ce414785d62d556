"""Mixup and CutMix of a batch: one draw for each image, labels that say what share of each class is in it."""

import numpy as np
import torch

from medvitlib.errors import DataError


def mix(
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    mixup: float = 0.2,
    cutmix: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image mixed with another of the batch: blended (Zhang et al. 2018) or with a box of it (Yun et al. 2019).

    An image's own share is drawn from Beta(mixup, mixup) or Beta(cutmix, cutmix), which of the two by a fair coin.
    A box keeps the image's aspect, lies anywhere and is cut off at the border; its share is counted afterwards.

    Args:
        images: floating (B, C, H, W), on any device, best normalised.
        labels: int64 (B,), on the CPU or with the images; on the CPU, no GPU waits while they are looked at.
        mixup: 0 leaves Mixup out; above 0, the larger, the more even the blend.
        cutmix: likewise; with both 0 nothing is mixed.
        generator: PyTorch's own if None; the draws are the same whatever the images' device.

    Returns:
        New images like `images`, and the share of each class, float32 (B, num_classes), for a soft cross-entropy.

    Raises:
        DataError: if images are not floating (B, C, H, W), labels are not 0 ... num_classes - 1, or a strength is
            below 0 or not finite.
    """
    fits = images.is_floating_point() and images.ndim == 4
    if not fits or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise DataError(
            f"mix was given {images.dtype} {tuple(images.shape)} with labels {labels.dtype} {tuple(labels.shape)}: "
            "expected floating images (B, C, H, W), that is after normalise, with one int64 label each."
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise DataError(f"labels {int(labels.min())} to {int(labels.max())} for num_classes={num_classes}.")
    if not all(0 <= strength < np.inf for strength in (mixup, cutmix)):  # of infinity, Beta makes nan
        raise DataError(f"mixup={mixup}, cutmix={cutmix}: expected 0 (off) or a finite number above it.")
    soft = torch.nn.functional.one_hot(labels, num_classes).float().to(images.device, non_blocking=True)
    b, (h, w) = len(images), images.shape[-2:]
    if b < 2 or mixup == cutmix == 0:
        return images.clone(), soft

    device = generator.device if generator else "cpu"
    rng = np.random.default_rng(torch.randint(2**63 - 1, (), generator=generator, device=device).item())
    boxed = rng.random(b) < (0.5 if mixup and cutmix else float(cutmix > 0))
    share = np.where(boxed, rng.beta(cutmix or 1, cutmix or 1, b), rng.beta(mixup or 1, mixup or 1, b))
    top, bottom = _side(h, share, rng)
    left, right = _side(w, share, rng)
    share = np.where(boxed, 1 - (bottom - top) * (right - left) / (h * w), share).astype(np.float32)

    def column(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(images.device, non_blocking=True)[:, None]

    rows, columns = (torch.arange(n, device=images.device) for n in (h, w))
    in_rows = (rows >= column(top)) & (rows < column(bottom))  # (B, H)
    in_columns = (columns >= column(left)) & (columns < column(right))  # (B, W)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # (B, 1, H, W)
    own = column(share)  # (B, 1)
    weight = torch.where(column(boxed)[..., None, None], ~inside, own[..., None, None]).to(images.dtype)
    shift = int(rng.integers(1, b))  # never oneself
    return torch.lerp(images.roll(shift, 0), images, weight), soft * own + soft.roll(shift, 0) * (1 - own)


def _side(length: int, share: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one row (or column) of each image's box, int64 (B,)."""
    cut = (length * np.sqrt(1 - share)).astype(np.int64)
    first = rng.integers(0, length, len(share)) - cut // 2
    return np.clip(first, 0, length), np.clip(first + cut, 0, length)
