"""Unstructured pruning: small weights become zero, and the zeros themselves are the mask (Han et al., NeurIPS 2015).

    for epoch in range(1, epochs + 1):  # gradual; once before training for one-shot
        prune(model, cubic(epoch / ramp, 0.9))
        masks = Masks(model)
        ...  # loss.backward(); masks.hold_gradients(); optimiser.step(); masks.hold()

Zeros in dense storage save neither time nor memory; see `medvitlib.models.shrinking` for what does. An adapter that is
merged into a pruned weight fills its zeros: merge, then prune; or `Masks(model)` first, merge, `hold()`.
"""

import torch
from torch import nn

from medvitlib.errors import AdaptationError, one_of
from medvitlib.models.adapters import number
from medvitlib.models.int8 import Int8Linear

SCOPES = ("layer", "global")
CAPABILITY = (8, 0)
TILE = (32, 64)
"""Rows and columns that a 2:4 weight in half precision must be multiples of for every kernel behind torch."""


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of every nn.Linear and nn.Conv2d by their name in the model, a shared one once; biases stay."""
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def prune(model: nn.Module, amount: float, scope: str = "layer") -> None:
    """Set the smallest prunable weights to zero, in place; frozen ones too. Zeros that are there already count.

    Args:
        amount: share that is zero afterwards, from 0 to below 1: round(amount * n) of n weights, unless more are
            zero already.
        scope: "layer" for this share of each layer, "global" for one threshold over all of them.

    Raises:
        AdaptationError: an amount that cannot be, no layer to prune, or weights that are not finite.
    """
    number("amount", amount, 0, 1)
    one_of("scope", scope, SCOPES, AdaptationError)
    weights = [weight.detach() for weight in _finite(prunable(model)).values()]
    if scope == "layer":
        for weight in weights:
            weight.masked_fill_(_smallest(weight.abs().flatten(), amount).view_as(weight), 0)
        return
    chosen = _smallest(torch.cat([weight.abs().flatten() for weight in weights]), amount)
    for weight, part in zip(weights, chosen.split([weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view_as(weight), 0)


def sparsity(model: nn.Module) -> float:
    """Share of zeros among the prunable weights; 0 where there are none."""
    weights = prunable(model).values()
    total = sum(weight.numel() for weight in weights)
    return (total - sum(int(weight.count_nonzero()) for weight in weights)) / max(total, 1)


def count_nonzero(model: nn.Module) -> int:
    """Numbers in all parameters that are not zero, a shared one counted once: of `count_parameters`, what is left."""
    rounded = [t for m in model.modules() if isinstance(m, Int8Linear) for t in (m.weight, m.bias) if t is not None]
    return sum(int(tensor.count_nonzero()) for tensor in (*model.parameters(), *rounded))


def cubic(progress: float, final: float) -> float:
    """The amount after this share of a gradual pruning: fast while much is redundant, slow towards its end.

    Equation 1 of Zhu & Gupta, "To prune, or not to prune" (2017), from nothing at 0 to `final` at 1 and after.
    """
    return final * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


class Masks:
    """Holds at zero, while a model trains, every prunable weight that is zero now.

    The gradient alone is not enough: momentum and moving averages of gradients from before the pruning move a weight
    too, so `hold` follows each step. A layer that starts at zero on purpose would never leave it: make masks of a
    model whose layers are drawn, loaded or trained.
    """

    def __init__(self, model: nn.Module):
        zeros = {name: weight.detach() == 0 for name, weight in prunable(model).items()}
        self.zeros = {name: zero for name, zero in zeros.items() if zero.any()}  # bool, the weight's shape and device
        self.weights = {name: model.get_parameter(name) for name in self.zeros}

    @torch.no_grad()
    def hold_gradients(self) -> None:
        """Zero the gradients of the masked weights: before the step, and before their norm is clipped."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                weight.grad.masked_fill_(self.zeros[name], 0)

    @torch.no_grad()
    def hold(self, *copies: nn.Module) -> None:
        """Zero the masked weights of the model, and of copies with the same names, such as a moving average."""
        for name, zero in self.zeros.items():
            for weight in (self.weights[name], *(copy.get_parameter(name) for copy in copies)):
                weight.masked_fill_(zero.to(weight.device), 0)


def prune_2_of_4(model: nn.Module) -> None:
    """Zero the two smallest of each four neighbouring inputs, in place, in every nn.Linear with a multiple of 4 inputs.

    The pattern that sparse tensor cores multiply (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).

    Raises:
        AdaptationError: no such layer, or weights that are not finite.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    weights = {name: w for name, w in prunable(model).items() if id(w) in linear and w.shape[1] % 4 == 0}
    for weight in _finite(weights).values():
        fours = weight.detach().unflatten(1, (-1, 4))  # (out, in / 4, 4), a view
        order = fours.abs().argsort(dim=-1, stable=True)
        fours.scatter_(-1, order[..., :2], 0)


def to_semi_structured(model: nn.Module) -> list[str]:
    """Store the 2:4 weights of a model compressed, in place and for inference only; a prototype of torch.

    Returns:
        names of the layers that were converted: linear, with the pattern of `prune_2_of_4`, and of a size that the
        kernels take (multiples of 32 outputs and 64 inputs).

    Raises:
        AdaptationError: the model is not on a GPU that multiplies them, or not in half precision, or nothing fits.
    """
    weight = next(iter(_finite(prunable(model)).values()))
    device = torch.cuda.get_device_name(weight.device) if weight.is_cuda else weight.device
    able = weight.is_cuda and torch.cuda.get_device_capability(weight.device) >= CAPABILITY
    if not able or weight.dtype not in (torch.float16, torch.bfloat16):
        raise AdaptationError(
            f"this model is on {device} in {weight.dtype}; 2:4 weights need an NVIDIA GPU of compute capability 8.0 "
            "(Ampere) or above, and float16 or bfloat16: model.to('cuda', torch.float16). Elsewhere the model runs as "
            "it is, with its zeros in dense storage."
        )
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and all(size % tile == 0 for size, tile in zip(module.weight.shape, TILE, strict=True))
        and (module.weight.unflatten(1, (-1, 4)).count_nonzero(-1) <= 2).all()
    }
    if not layers:
        raise AdaptationError("no linear layer has the 2:4 pattern and a size that fits: call prune_2_of_4 first.")
    for module in layers.values():
        sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return list(layers)


def _finite(weights: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The same, checked before anything is changed: NaN and infinity have no place in an order by size."""
    if not weights:
        raise AdaptationError("this model has no layer whose weight could be pruned so.")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise AdaptationError(f"{name} holds NaN or infinity: the model has diverged. Take an earlier checkpoint.")
    return weights


def _smallest(sizes: torch.Tensor, share: float) -> torch.Tensor:
    """Which ones (n,) are the round(share * n) smallest; of equal ones the first."""
    count = round(share * len(sizes))
    if not count:
        return torch.zeros_like(sizes, dtype=torch.bool)
    # a full sort takes seconds on a ViT-B, and kthvalue is refused on a GPU under use_deterministic_algorithms
    threshold = sizes.topk(count, largest=False, sorted=False).values.max()
    chosen = sizes < threshold
    ties = (sizes == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
