"""Structured pruning: the weakest attention heads and MLP neurons are cut out, and the layers become smaller.

    shrink(model, heads=0.3, neurons=0.3)
    model.architecture["shrunk"]  # {"blocks.0.attn": 4, "blocks.0.mlp": 1075, ...}: `build_from` makes it so again

A head or neuron counts as strong as the L1 norm of its weights, those that make it and those that read it (Li et al.,
"Pruning Filters for Efficient ConvNets", ICLR 2017; of heads, Michel et al., "Are Sixteen Heads Really Better than
One?", NeurIPS 2019). Train on afterwards: what was cut out was doing something.
"""

import timm
import torch
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import Attention, Mlp
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.models import vit
from medvitlib.models.adapters import number

ATTENTION = (vit.Attention, Attention, WindowAttention)
MLP = (vit.Mlp, Mlp)
CAN_BE = "this library's Vision Transformers, and timm's ViT, DeiT and Swin"


def shrink(model: nn.Module, heads: float = 0.0, neurons: float = 0.0) -> nn.Module:
    """Cut the weakest heads and neurons out of each block, in place; at least one of a block is left.

    Parameters are new ones afterwards: make the optimiser, a moving average and `Masks` after this. Whether they
    require a gradient is kept, and `.architecture` says what is left, for `build_from`.

    Args:
        model: from `build` or `build_from`.
        heads, neurons: share of each block that goes, from 0 to below 1: round(share * n) of n.

    Returns:
        the model.

    Raises:
        AdaptationError: a share that cannot be, a model that cannot be shrunk or has adapters, weights not finite.
    """
    number("heads", heads, 0, 1)
    number("neurons", neurons, 0, 1)
    if any(getattr(module, "is_adapter", False) for module in model.modules()):
        raise AdaptationError("this model has adapters, which fit its layers as they are: merge them, then shrink.")
    if not hasattr(model, "architecture"):
        raise AdaptationError(f"{type(model).__name__} does not say how it was built, to be built again: use `build`.")
    kept = {}
    for what, share, kinds in (("heads", heads, ATTENTION), ("neurons", neurons, MLP)):
        blocks = {path: module for path, module in model.named_modules() if type(module) in kinds}
        if share and not blocks:
            raise AdaptationError(f"{type(model).__name__} has no {what} that can be cut out. Can be: {CAN_BE}.")
        if share:
            kept |= {path: _strongest(path, module, share) for path, module in blocks.items()}
    for path, indices in kept.items():
        _keep(model.get_submodule(path), indices)
    shrunk = model.architecture.get("shrunk", {}) | {path: len(indices) for path, indices in kept.items()}
    model.architecture = {**model.architecture, "shrunk": shrunk}
    return model


def reshape(model: nn.Module, shrunk: dict[str, int]) -> None:
    """Give the modules at these paths this many heads or neurons, the first ones, in place; weights follow.

    Raises:
        AdaptationError: a path or a number that this model cannot have.
    """
    modules = dict(model.named_modules())
    for path, left in shrunk.items():
        module = modules.get(path)
        if type(module) not in ATTENTION + MLP or not 1 <= left <= _parts(path, module)[3]:
            raise AdaptationError(
                f"{left} heads or neurons of {path} are not to be had from this {type(model).__name__}: "
                "its architecture's 'shrunk' was written for another model."
            )
        _keep(module, torch.arange(left))


def _parts(path: str, module: nn.Module) -> tuple[nn.Linear, nn.Linear, int, int]:
    """What makes a module's heads or neurons, what reads them, how often the first has each, and how many there are.

    Rows of qkv are q of all heads, then k of all, then v of all: it has each head three times.
    """
    if type(module) in MLP:
        first, last, times, extra = module.fc1, module.fc2, 1, ("norm",)
    else:
        first, last, times, extra = module.qkv, module.proj, 3, ("norm", "gate")
    for name in extra:
        if not isinstance(getattr(module, name, None), nn.Identity | None):
            raise AdaptationError(f"{path} has a {name} across its heads or neurons: none can be cut out alone.")
    if type(module) is Attention and not hasattr(module, "attn_dim"):
        raise AdaptationError(
            f"timm {timm.__version__} takes all heads of {path} to be as wide as the model: update timm."
        )
    for layer in (first, last):
        if not isinstance(layer, nn.Linear):
            raise AdaptationError(f"{path} is made of {type(layer).__name__}: only nn.Linear can be cut.")
    return first, last, times, first.out_features if type(module) in MLP else module.num_heads


def _strongest(path: str, module: nn.Module, share: float) -> torch.Tensor:
    """Indices of the heads or neurons that stay, ascending."""
    first, last, times, count = _parts(path, module)
    made = first.weight.detach().float().abs().sum(1).reshape(times, count, -1)  # (3, H, K), or (1, M, 1) of neurons
    read = last.weight.detach().float().abs().sum(0).reshape(count, -1)  # (H, K) or (M, 1)
    strength = made.sum((0, 2)) + read.sum(1)
    if not strength.isfinite().all():
        raise AdaptationError(f"{path} holds NaN or infinity: the model has diverged. Take an earlier checkpoint.")
    gone = min(round(share * count), count - 1)
    return strength.argsort(stable=True)[gone:].sort().values


def _keep(module: nn.Module, kept: torch.Tensor) -> None:
    """Keep these heads or neurons of one module."""
    first, last, times, count = _parts("", module)
    kept = kept.to(first.weight.device)
    units = torch.arange(first.out_features, device=kept.device).reshape(times, count, -1)[:, kept]
    _take(first, units.flatten(), 0)
    _take(last, units[0].flatten(), 1)
    if type(module) in ATTENTION:
        module.num_heads = len(kept)
        if hasattr(module, "attn_dim"):  # timm's Attention
            module.attn_dim = last.in_features
        if hasattr(module, "relative_position_bias_table"):  # Swin's, (offsets in a window, H)
            table = module.relative_position_bias_table
            module.relative_position_bias_table = nn.Parameter(
                table.detach().index_select(1, kept), table.requires_grad
            )


def _take(layer: nn.Linear, indices: torch.Tensor, dim: int) -> None:
    """Keep these outputs (`dim` 0) or inputs (`dim` 1) of a linear layer."""
    taken = {"weight": layer.weight.detach().index_select(dim, indices)}
    if dim == 0 and layer.bias is not None:
        taken["bias"] = layer.bias.detach()[indices]
    for name, values in taken.items():
        setattr(layer, name, nn.Parameter(values, getattr(layer, name).requires_grad))
    layer.out_features, layer.in_features = layer.weight.shape
