"""Which places speak for a class: Grad-CAM and its relatives, one call for CNNs, Vision Transformers and Swin.

    maps = gradcam(model, normalise(images, model.preprocessing))  # (N, height, width), 0 to 1

Each takes one layer's output A (N, C, h, w) and, but for EigenCAM, the gradient G of the class's logit with respect to
it. Tokens are put back on their grid, prefix tokens left out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.borrowed import borrowed
from medvitlib.explain.inputs import as_targets, checked, unwrapped
from medvitlib.explain.layers import default_layer, on_grid
from medvitlib.explain.maps import upsample

Weighting = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gradcam(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, *, layer: str | None = None
) -> torch.Tensor:
    """Channels weighted by their mean gradient: relu(sum_c mean(G_c) A_c) (Selvaraju et al., ICCV 2017, equation 2).

    Args:
        model: one of this library's, timm's or torchvision's; left as it was, whatever happens.
        images: floating (N, C, height, width), normalised (`medvitlib.data.normalise`).
        target: class to explain, one for all images or one each; None for the predicted one of each.
        layer: path of the layer in the model; None for the last one whose output still has places and a gradient.

    Returns:
        (N, height, width) float32 on the model's device, each image's map stretched to 0 to 1; a map in which nothing
        speaks for the class is zero everywhere.

    Raises:
        DataError: images that are no normalised batch.
        ExplanationError: an unknown layer or class, or a layer whose gradient is zero wherever there are places.
    """
    return _cam(model, images, target, layer, lambda a, g: (g.mean((2, 3), keepdim=True) * a).sum(1))


def gradcam_plus_plus(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, *, layer: str | None = None
) -> torch.Tensor:
    """Channels weighted by their positive gradients, each place by how much it adds (Chattopadhay et al., WACV 2018,
    equations 12, 19 and 20). Arguments as `gradcam`."""

    def weighted(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdim=True) * g**3 + 1e-6)
        alpha = torch.where(g != 0, alpha, 0.0)
        return ((alpha * g.relu()).sum((2, 3), keepdim=True) * a).sum(1)

    return _cam(model, images, target, layer, weighted)


def hirescam(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, *, layer: str | None = None
) -> torch.Tensor:
    """Each place weighted by its own gradient: relu(sum_c G_c A_c) (Draelos & Carin, 2020, equation 3). Arguments as
    `gradcam`."""
    return _cam(model, images, target, layer, lambda a, g: (g * a).sum(1))


def layercam(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, *, layer: str | None = None
) -> torch.Tensor:
    """Each place weighted by its own positive gradient: relu(sum_c relu(G_c) A_c) (Jiang et al., TIP 2021, equation 6).
    Arguments as `gradcam`."""
    return _cam(model, images, target, layer, lambda a, g: (g.relu() * a).sum(1))


def eigencam(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, *, layer: str | None = None
) -> torch.Tensor:
    """A projected on its first principal component (Muhammad & Yeasin, IJCNN 2020): no gradient, and no class either.

    A component has no sign of its own; here more of it is where the channels are large on average. Arguments as
    `gradcam`; `target` is accepted and changes nothing.
    """

    def projected(a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        points = a.flatten(2).transpose(1, 2)  # (N, h w, C)
        centred = points - points.mean(1, keepdim=True)
        first = torch.linalg.svd(centred.float(), full_matrices=False).Vh[:, :1]  # (N, 1, C)
        scores = (centred * first).sum(-1)  # (N, h w)
        sign = (scores * (points.mean(-1) - points.mean((1, 2), keepdim=True)[..., 0])).sum(1, keepdim=True).sign()
        return (scores * torch.where(sign == 0, 1.0, sign)).view(len(a), *a.shape[2:])

    return _cam(model, images, target, layer, projected, needs_gradient=False)


CAMS = {
    "Grad-CAM": gradcam,
    "Grad-CAM++": gradcam_plus_plus,
    "HiResCAM": hirescam,
    "LayerCAM": layercam,
    "EigenCAM": eigencam,
}


def _cam(
    model: nn.Module,
    images: torch.Tensor,
    target: int | Sequence[int] | None,
    layer: str | None,
    weighting: Weighting,
    needs_gradient: bool = True,
) -> torch.Tensor:
    """A map of each image, from what the layer gave and the gradient that came back to it."""
    model = unwrapped(model)
    images = checked(model, images)
    usual = default_layer(model, tuple(images.shape[-2:]))
    name = layer or usual
    module = _module(model, name, usual)
    seen: list[torch.Tensor] = []

    def begin_here(_: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
        """What follows depends on this alone, so that nothing below it is differentiated, nor kept for that."""
        if not isinstance(output, torch.Tensor):
            return None
        seen.append(output.detach().requires_grad_(needs_gradient))
        return seen[-1].clone()  # what follows may change it in place

    with borrowed(model, frozen=True) as handles, torch.set_grad_enabled(needs_gradient):
        handles.append(module.register_forward_hook(begin_here))
        logits = model(images.detach())
        if not seen:
            raise ExplanationError(f"{name} gave no tensor when the model ran: take another layer, such as {usual}.")
        if len(seen[-1]) != len(images):
            raise ExplanationError(
                f"{name} gives {tuple(seen[-1].shape)} for {len(images)} image(s): windows, or something else than "
                f"places of an image. Take {usual}."
            )
        chosen, gradient = as_targets(target, logits), None
        if needs_gradient and logits.requires_grad:
            score = logits.gather(1, chosen[:, None]).sum()
            gradient = torch.autograd.grad(score, seen[-1], allow_unused=True)[0]
    shape = tuple(images.shape[-2:])
    activation = on_grid(model, name, seen[-1].detach().float(), shape)
    if needs_gradient:
        gradient = None if gradient is None else on_grid(model, name, gradient.float(), shape)
        if gradient is None or not gradient.any():
            raise ExplanationError(
                f"{name} has no gradient where the image's patches are: what follows reads other tokens only, so that "
                f"its map would be blank. Take {usual}."
            )
    found = weighting(activation, gradient).relu()  # (N, h, w)
    return stretched(upsample(found, shape))


def stretched(maps: torch.Tensor) -> torch.Tensor:
    """Each map (N, height, width) from 0 to 1; one that is the same everywhere becomes zero."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)


def _module(model: nn.Module, name: str, usual: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules or not name:
        import difflib

        nearest = difflib.get_close_matches(name, modules, n=3, cutoff=0.3)
        raise ExplanationError(
            f"{type(model).__name__} has no layer {name!r}. Nearest: {', '.join(nearest) or 'none'}; usual: {usual}."
        )
    return modules[name]
