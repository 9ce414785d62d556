"""Explanations that change the image and look at what the class's logit does: occlusion and integrated gradients."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.borrowed import borrowed
from medvitlib.explain.gradcam import stretched
from medvitlib.explain.inputs import as_targets, checked, unwrapped


def occlusion(
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None = None,
    *,
    window: int = 16,
    stride: int | None = None,
    fill: float = 0.0,
    batch_size: int = 64,
) -> torch.Tensor:
    """How far the class's logit falls when a square is covered (Zeiler & Fergus, ECCV 2014, section 4.2).

    Each place has the mean fall of the squares that cover it; a rise counts as none. Other arguments and the result as
    `gradcam`.

    Args:
        window: pixels of the square's side.
        stride: pixels between squares; None for half the window.
        fill: what covers, in normalised units: 0 is the mean colour of the data the weights were made from.
        batch_size: covered images at a time.
    """
    model = unwrapped(model)
    images = checked(model, images)
    height, width = images.shape[-2:]
    stride = max(1, int(window) // 2) if stride is None else stride
    whole_numbers = isinstance(window, int) and isinstance(stride, int)
    if not whole_numbers or not 0 < window <= min(height, width) or stride < 1:
        raise ExplanationError(
            f"window={window}, stride={stride}: expected whole numbers, 1 to {min(height, width)}, and 1 or more."
        )
    corners = [(y, x) for y in _starts(height, window, stride) for x in _starts(width, window, stride)]
    falls, covers = (torch.zeros(len(images), height, width, device=images.device) for _ in range(2))
    with borrowed(model, frozen=True), torch.inference_mode():
        logits = model(images)
        chosen = as_targets(target, logits)
        whole = logits.gather(1, chosen[:, None])[:, 0].float()  # (N,)
        for i, image in enumerate(images):
            for first in range(0, len(corners), batch_size):
                some = corners[first : first + batch_size]
                covered = image.repeat(len(some), 1, 1, 1)
                for k, (y, x) in enumerate(some):
                    covered[k, :, y : y + window, x : x + window] = fill
                fall = whole[i] - model(covered)[:, chosen[i]].float()
                for (y, x), value in zip(some, fall, strict=True):
                    falls[i, y : y + window, x : x + window] += value
                    covers[i, y : y + window, x : x + window] += 1
    return stretched((falls / covers.clamp_min(1)).relu())


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Of the squares along one side: a last one ends with the image."""
    return sorted({*range(0, length - window + 1, stride), length - window})


def integrated_gradients(
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None = None,
    *,
    steps: int = 50,
    baseline: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """The sizes of `attributions`, summed over channels. Arguments as there, result as `gradcam`."""
    return stretched(attributions(model, images, target, steps=steps, baseline=baseline).sum(1).abs())


def attributions(
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None = None,
    *,
    steps: int = 50,
    baseline: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Integrated gradients: (x - x') times the mean gradient on the straight way from x' to x, by Gauss-Legendre
    quadrature (Sundararajan et al., ICML 2017, equation 1).

    They add up to the logit's difference between image and baseline (completeness), the better the more steps.

    Args:
        steps: points on the way.
        baseline: x', normalised: a number, or a tensor that broadcasts to the images.

    Returns:
        (N, C, height, width) float32, signed.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ExplanationError(f"steps={steps!r}: expected a whole number, 1 or more; 50 is usual.")
    model = unwrapped(model)
    images = checked(model, images)
    try:
        start = torch.as_tensor(baseline, device=images.device, dtype=images.dtype).expand_as(images)
    except RuntimeError:
        raise ExplanationError(
            f"a baseline of shape {tuple(baseline.shape)} for images {tuple(images.shape)}: expected a number, or "
            "what broadcasts."
        ) from None
    places, weights = np.polynomial.legendre.leggauss(steps)  # on -1 to 1
    total = torch.zeros_like(images, dtype=torch.float32)
    with borrowed(model, frozen=True), torch.enable_grad():
        with torch.no_grad():
            chosen = as_targets(target, model(images))
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            x = (start + float(place) * (images - start)).detach().requires_grad_(True)
            score = model(x).gather(1, chosen[:, None]).sum()
            total += float(weight) * torch.autograd.grad(score, x)[0].float()
    return total * (images - start).float()
