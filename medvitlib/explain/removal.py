"""What a score does to an image: some of its places blurred, or filled from what is around them."""

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import gaussian_blur


def blurred(images: torch.Tensor) -> torch.Tensor:
    """Images in which nothing of a tenth of their side or less can be told apart."""
    side = min(images.shape[-2:])
    return gaussian_blur(images, [2 * (side // 4) + 1] * 2, [side / 10] * 2)


def first(maps: torch.Tensor, share: float, descending: bool) -> torch.Tensor:
    """Bool (N, H, W): this share of the places, the most or the least important ones.

    Of equal ones some, scattered: the first ones would be the top of the image, which is a map of its own.
    """
    flat = maps.flatten(1)
    scattered = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0)).to(flat.device)
    order = scattered[flat[:, scattered].argsort(dim=1, descending=descending, stable=True)]
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    return chosen.scatter(1, order[:, : round(share * flat.shape[1])], True).view_as(maps)


def imputed(images: torch.Tensor, gone: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each pixel that is gone as the mean of its eight neighbours, direct ones twice as heavy, and a little noise."""
    noise = 0.01 * torch.randn(images.shape, generator=generator).to(images)
    return torch.where(gone[:, None], _relaxed(images, gone[:, None].expand_as(images)) + noise, images)


def _relaxed(images: torch.Tensor, holes: torch.Tensor, steps: int = 20) -> torch.Tensor:
    """That linear system, solved nearly: from the solution at half the size, which is where large holes are filled."""
    left = (~holes).to(images)
    if min(images.shape[-2:]) < 4 or not holes.any():
        share = left.sum((2, 3), keepdim=True).clamp_min(1)
        start = ((images * left).sum((2, 3), keepdim=True) / share).expand_as(images)
    else:
        known = F.avg_pool2d(left, 2, ceil_mode=True)
        half = F.avg_pool2d(images * left, 2, ceil_mode=True) / known.clamp_min(1e-6)
        start = F.interpolate(_relaxed(half, known == 0, steps), size=images.shape[-2:], mode="bilinear")
    channels = images.shape[1]
    kernel = torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]], device=images.device)
    kernel = kernel.to(images.dtype).expand(channels, 1, 3, 3)
    inside = F.conv2d(torch.ones_like(images[:1]), kernel, padding=1, groups=channels)
    x = torch.where(holes, start, images)
    for _ in range(steps):
        x = torch.where(holes, F.conv2d(x, kernel, padding=1, groups=channels) / inside, x)
    return x
