"""Re-scaling of frozen weights: W + W * (s_out s_in).

RLRR: Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach", CVPR 2024; with the
scale and shift of SSF (Lian et al., "Scaling & Shifting Your Features", NeurIPS 2022) after norms and the patch
embedding, as its published code has them.
"""

import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import AdaptationError, one_of
from medvitlib.models.adapters import ATTENTION, MLP, Adapter, ReadPast, linear_layers, put

INITS = ("identity", "paper")


class RLRRLinear(Adapter, nn.Linear):
    """A linear layer whose frozen weight is re-scaled by a matrix of rank one, and whose bias is shifted.

    Args:
        layer: the layer to adapt.
        init: "identity" starts as the layer itself (s_out zero, s_in Kaiming-uniform); "paper" draws both, which
            changes the function before anything is learned.
        parts: the outputs in so many equal parts, each with an s_in of its own: 3 for a fused q, k and v.
        generator: of what is drawn.

    Attributes:
        scale_in: (parts, in); s_in.
        scale_out: (out, 1); s_out.
        shift: (out,), zero at the start.
    """

    def __init__(
        self, layer: nn.Linear, init: str = "identity", parts: int = 1, generator: torch.Generator | None = None
    ):
        super().__init__(layer)
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.parts = parts
        self.scale_in = nn.Parameter(torch.empty(parts, layer.in_features, **like))
        self.scale_out = nn.Parameter(torch.zeros(layer.out_features, 1, **like))
        self.shift = nn.Parameter(torch.zeros(layer.out_features, **like)) if self.shifts(layer) else None
        for scale in (self.scale_in, self.scale_out) if init == "paper" else (self.scale_in,):
            with torch.no_grad():
                scale.copy_(nn.init.kaiming_uniform_(torch.empty(scale.shape, device="cpu"), generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, *_effective(self))

    @staticmethod
    def shifts(layer: nn.Linear) -> bool:
        """Whether the outputs of a layer can be shifted."""
        return True

    def effective(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W * (1 + s_out s_in), and b + shift."""
        weight, bias = self.own
        scale = self.scale_out.unflatten(0, (self.parts, -1)) * self.scale_in[:, None]  # (parts, out / parts, in)
        shifted = [term for term in (bias, self.shift) if term is not None]
        return weight * (1 + scale.flatten(0, 1)), sum(shifted) if shifted else None


class ReadPastRLRRLinear(ReadPast, RLRRLinear):
    """The same for a layer that is read past: nobody would read the shift of one without a bias."""

    @staticmethod
    def shifts(layer: nn.Linear) -> bool:
        """Whether the layer has a bias, which the model then reads."""
        return layer.bias is not None


class SSFLayerNorm(Adapter, nn.LayerNorm):
    """A LayerNorm whose output is scaled and shifted; `ssf_scale` and `ssf_shift` are (D,)."""

    def __init__(self, layer: nn.LayerNorm, init: str = "identity", generator: torch.Generator | None = None):
        super().__init__(layer)
        self.ssf_scale, self.ssf_shift = _scale_and_shift(layer, init, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.normalized_shape, *_effective(self), self.eps)

    def effective(self) -> tuple[torch.Tensor, torch.Tensor]:
        """w * scale, and b * scale + shift."""
        return _scaled(self, self.ssf_scale)


class SSFConv2d(Adapter, nn.Conv2d):
    """A convolution whose output channels are scaled and shifted; `ssf_scale` and `ssf_shift` are (channels,)."""

    def __init__(self, layer: nn.Conv2d, init: str = "identity", generator: torch.Generator | None = None):
        super().__init__(layer)
        self.ssf_scale, self.ssf_shift = _scale_and_shift(layer, init, generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, *_effective(self))

    def effective(self) -> tuple[torch.Tensor, torch.Tensor]:
        """w * scale by output channel, and b * scale + shift."""
        return _scaled(self, self.ssf_scale[:, None, None, None])


def add_rlrr(model: nn.Module, generator: torch.Generator, *, init: str = "identity", past: Sequence[str] = ()) -> None:
    """Re-scale q, k, v, the projection and both MLP layers of every block; SSF on every LayerNorm and the patches.

    288,768 parameters on ViT-B/16 without its head.

    Args:
        init: "identity" (the model starts as it is) or "paper"; for SSF N(1, 0.02) and N(0, 0.02) then.
        past: paths of layers that the model reads past; `adapt` finds them.

    Raises:
        AdaptationError: an unknown init, or a model without such blocks.
    """
    one_of("init", init, INITS, AdaptationError)
    kinds = {nn.LayerNorm, getattr(sys.modules.get("timm.layers"), "LayerNorm", nn.LayerNorm)}  # importing timm is slow
    layers = linear_layers(model, (*ATTENTION, *MLP))
    norms = {name: m for name, m in model.named_modules() if type(m) in kinds}
    patches = {n: m for n, m in model.named_modules() if n == "patch_embed.proj" and type(m) is nn.Conv2d}
    for name, layer in layers.items():
        kind = ReadPastRLRRLinear if name in past else RLRRLinear
        put(model, name, kind(layer, init, 3 if name.rpartition(".")[2] == "qkv" else 1, generator))
    for name, layer in norms.items():
        put(model, name, SSFLayerNorm(layer, init, generator))
    for name, layer in patches.items():
        put(model, name, SSFConv2d(layer, init, generator))


def _scale_and_shift(
    layer: nn.Module, init: str, generator: torch.Generator | None
) -> tuple[nn.Parameter, nn.Parameter]:
    """One and zero for each output, or drawn around them."""
    scale, shift = (torch.full((len(layer.weight),), value, device="cpu") for value in (1.0, 0.0))
    if init == "paper":
        scale.normal_(1, 0.02, generator=generator)
        shift.normal_(0, 0.02, generator=generator)
    return nn.Parameter(scale.to(layer.weight)), nn.Parameter(shift.to(layer.weight))


def _effective(adapter: Adapter) -> tuple[torch.Tensor, torch.Tensor | None]:
    return adapter.own if adapter.merged else adapter.effective()


def _scaled(adapter: SSFLayerNorm | SSFConv2d, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    (weight, bias), shift = adapter.own, adapter.ssf_shift
    return weight * scale, shift if bias is None else bias * adapter.ssf_scale + shift
