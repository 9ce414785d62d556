"""Does a map show what the model uses? Scores that a map can fail, to be read beside those of maps that know nothing.

Each takes a model, images (N, C, H, W) as `gradcam` does, and maps (N, H, W), of which more is more important, and
gives one number an image, (N,). A score means something only beside that of `random_maps` and `centred_maps`.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.borrowed import borrowed
from medvitlib.explain.inputs import checked, fitting, targets
from medvitlib.explain.removal import blurred, first, imputed

Method = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
SHARES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
"""Close together at first, where a map that is right makes the difference."""


def deletion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target: int | Sequence[int] | None = None,
    shares: Sequence[float] = SHARES,
) -> torch.Tensor:
    """Mean probability of the class while the most important places are blurred first (Petsiuk et al., BMVC 2018);
    lower is better.

    Blurred, not blackened: an edge of the filling would be evidence of its own.

    Args:
        shares: of the places that are gone, from 0 to 1; the area under the probabilities is taken over them.
    """
    return Blurring(model, images, target).deletion(maps, shares)


def insertion(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target: int | Sequence[int] | None = None,
    shares: Sequence[float] = SHARES,
) -> torch.Tensor:
    """Mean probability of the class while the most important places of a blurred image are made sharp first; higher is
    better. Arguments as `deletion`."""
    return Blurring(model, images, target).insertion(maps, shares)


def road(
    model: nn.Module,
    images: torch.Tensor,
    maps: torch.Tensor,
    target: int | Sequence[int] | None = None,
    shares: Sequence[float] = (0.1, 0.3, 0.5),
    seed: int = 0,
) -> torch.Tensor:
    """How much more the class's probability falls where the most important places are removed than where the least
    important ones are, mean over `shares` (Rong et al., ICML 2022); higher is better.

    Removed: each pixel becomes the mean of its neighbours, those that are removed too included, and a little noise, so
    that neither a shape nor a colour betrays the place.
    """
    images = checked(model, images)
    maps = fitting(maps, images)
    generator = torch.Generator().manual_seed(seed)
    chosen = targets(model, images, target)
    falls = []
    with borrowed(model, frozen=True), torch.no_grad():
        for share in shares:
            kept = []
            for descending in (True, False):
                gone = first(maps, share, descending)
                kept.append(_probability(model, imputed(images, gone, generator), chosen))
            falls.append(kept[1] - kept[0])
    return torch.stack(falls).mean(0)


def pointing(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """1 where the map's highest place lies in the mask, else 0 (Zhang et al., IJCV 2018); nan where the mask is empty.

    An empty map points nowhere, which is 0.

    Args:
        masks: bool (N, H, W).
    """
    masks = _masks(maps, masks).flatten(1)
    highest, where = maps.flatten(1).max(1, keepdim=True)
    hit = masks.gather(1, where) & (highest > 0)
    return torch.where(masks.any(1), hit[:, 0].float(), torch.nan)


def overlap(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Share of the map that lies in the mask, 0 to 1; an empty map has none, an empty mask gives nan."""
    masks = _masks(maps, masks)
    inside = (maps * masks).sum((1, 2)) / maps.sum((1, 2)).clamp_min(1e-12)
    return torch.where(masks.any((1, 2)), inside, torch.nan)


def stability(
    method: Method,
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None = None,
    noise: float = 0.05,
    draws: int = 2,
    seed: int = 0,
    maps: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rank correlation of the map with those of the image with a little noise, mean over draws; higher is better.

    Args:
        noise: standard deviation, in normalised units; the class stays that of the image without noise.
        maps: what the method gives for the images as they are, if that is known.
    """
    images = checked(model, images)
    chosen = targets(model, images, target)
    generator = torch.Generator().manual_seed(seed)
    before = method(model, images, chosen) if maps is None else maps
    found = []
    for _ in range(draws):
        drawn = torch.randn(images.shape, generator=generator).to(images)
        found.append(rank_correlation(before, method(model, images + noise * drawn, chosen)))
    return torch.stack(found).mean(0)


def randomisation(
    method: Method,
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None = None,
    seed: int = 0,
    maps: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rank correlation of the map with that of the same model with its weights shuffled, each tensor within itself
    (Adebayo et al., NeurIPS 2018); near 0 is good: a map that stays the same does not look at what was learned.

    The model's weights are put back. Arguments as `stability`.
    """
    images = checked(model, images)
    chosen = targets(model, images, target)
    before = method(model, images, chosen) if maps is None else maps
    generator = torch.Generator().manual_seed(seed)
    weights = [(parameter, parameter.detach().clone()) for parameter in model.parameters() if parameter.ndim > 1]
    try:
        with torch.no_grad():
            for parameter, values in weights:
                order = torch.randperm(values.numel(), generator=generator).to(values.device)
                parameter.copy_(values.flatten()[order].view_as(values))
        return rank_correlation(before, method(model, images, chosen))
    finally:
        with torch.no_grad():
            for parameter, values in weights:
                parameter.copy_(values)


def random_maps(images: torch.Tensor, seed: int = 0, cell: int = 16) -> torch.Tensor:
    """Maps that know nothing: smooth noise with spots of about `cell` pixels, (N, H, W), 0 to 1."""
    n, _, height, width = images.shape
    coarse = (n, 1, -(-height // cell) + 1, -(-width // cell) + 1)
    drawn = torch.rand(coarse, generator=torch.Generator().manual_seed(seed)).to(images.device)
    return F.interpolate(drawn, size=(height, width), mode="bilinear", align_corners=True)[:, 0]


def centred_maps(images: torch.Tensor) -> torch.Tensor:
    """Maps that know one thing, that what matters is in the middle: a Gaussian of a quarter of each side."""
    n, _, height, width = images.shape
    y, x = (torch.linspace(-1, 1, side, device=images.device) for side in (height, width))
    return torch.exp(-2 * (y[:, None] ** 2 + x**2)).expand(n, -1, -1)


def rank_correlation(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Spearman's, of each pair of maps (N, H, W): (N,); 0 where one of the two is the same everywhere.

    Ties, as a map with wide zero regions has them, share their mean rank.
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(m.flatten(1).cpu().numpy(), axis=1)) for m in (one, other)]
    a, b = (r - r.mean(1, keepdim=True) for r in ranks)
    size = (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    return ((a * b).sum(1) / size).float().to(one.device)


class Blurring:
    """Images, their blurred versions and what the model says of both: what deletion and insertion of all maps share."""

    def __init__(self, model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None):
        self.model, self.sharp = model, checked(model, images)
        self.dull, self.chosen = blurred(self.sharp), targets(model, self.sharp, target)
        with borrowed(model, frozen=True), torch.no_grad():
            self.ends = [_probability(model, end, self.chosen) for end in (self.sharp, self.dull)]

    def deletion(self, maps: torch.Tensor, shares: Sequence[float] = SHARES) -> torch.Tensor:
        """As `deletion`."""
        return self._area(maps, shares, self.sharp, self.dull, *self.ends)

    def insertion(self, maps: torch.Tensor, shares: Sequence[float] = SHARES) -> torch.Tensor:
        """As `insertion`."""
        return self._area(maps, shares, self.dull, self.sharp, *self.ends[::-1])

    def _area(self, maps, shares, start, end, at_start, at_end) -> torch.Tensor:
        """Under the probability while places of `start` become those of `end`, the most important first."""
        maps, found = fitting(maps, start), []
        with borrowed(self.model, frozen=True), torch.no_grad():
            for share in shares:
                if share in (0, 1):
                    found.append(at_end if share else at_start)
                    continue
                changed = torch.where(first(maps, share, descending=True)[:, None], end, start)
                found.append(_probability(self.model, changed, self.chosen))
        widths = torch.as_tensor(shares, dtype=torch.float32, device=start.device)
        return torch.trapezoid(torch.stack(found, 1), widths, dim=1) / (widths[-1] - widths[0])


def _probability(model: nn.Module, images: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    return model(images).float().softmax(1).gather(1, chosen[:, None])[:, 0]


def _masks(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    masks = torch.as_tensor(masks, device=maps.device)
    if masks.shape != maps.shape or masks.dtype != torch.bool:
        raise ExplanationError(
            f"masks of {masks.dtype} and shape {tuple(masks.shape)}: bool {tuple(maps.shape)}, one for each map."
        )
    return masks
