"""Low-rank adaptation: W x + alpha / r B A x, where W is frozen (LoRA: Hu et al., ICLR 2022, equation 3)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.models.adapters import ATTENTION, Adapter, ReadPast, linear_layers, number, put, whole


class LoRALinear(Adapter, nn.Linear):
    """A linear layer with a low-rank addition that is zero at the start.

    Args:
        layer: the layer to adapt.
        rank: r.
        alpha: the addition is scaled by alpha / rank, so that its size does not depend on the rank.
        dropout: probability that an input of the addition is left out, in training.
        parts: the layer's outputs in so many equal parts, each with an A and a B of its own: 3 for a fused q, k and v.
        generator: of A, Kaiming-uniform; B is zero.

    Attributes:
        lora_A: (parts x rank, in).
        lora_B: (out, rank).
    """

    def __init__(
        self,
        layer: nn.Linear,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        parts: int = 1,
        generator: torch.Generator | None = None,
    ):
        super().__init__(layer)
        like = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        self.rank, self.parts, self.scale = rank, parts, alpha / rank
        self.lora_A = nn.Parameter(torch.empty(parts * rank, layer.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(layer.out_features, rank, **like))
        self.dropout = nn.Dropout(dropout).train(layer.training)
        drawn = nn.init.kaiming_uniform_(
            torch.empty(self.lora_A.shape, device="cpu"), a=math.sqrt(5), generator=generator
        )
        with torch.no_grad():
            self.lora_A.copy_(drawn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, *self.own)  # (..., out)
        if self.merged:
            return y
        low = F.linear(self.dropout(x), self.lora_A)  # (..., parts x rank)
        # one pass over the output instead of two: y + scale * (low @ B')
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), self._up().t(), alpha=self.scale).view(y.shape)

    def effective(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W + alpha / r B A, and the bias."""
        weight, bias = self.own
        return weight + self.scale * (self._up() @ self.lora_A), bias

    def _up(self) -> torch.Tensor:
        """B, (out, parts x rank): zero where a part's outputs meet another part's rows of A."""
        return self.lora_B if self.parts == 1 else torch.block_diag(*self.lora_B.chunk(self.parts))


class ReadPastLoRALinear(ReadPast, LoRALinear):
    """The same for a layer that is read past; `dropout` has no input to act on."""


def add_lora(
    model: nn.Module,
    generator: torch.Generator,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: Sequence[str] = ATTENTION,
    separate: bool = False,
    past: Sequence[str] = (),
) -> None:
    """Put a `LoRALinear` in the place of each linear layer whose path ends in one of `targets`.

    Args:
        targets: whole components: "attn.qkv" or "qkv", and never "fc" for "fc1". `adapters.MLP` names those of MLPs.
        separate: give q, k and v of a fused "qkv" an A and a B each, instead of one for all three.
        past: paths of layers that the model reads past; `adapt` finds them.

    Raises:
        AdaptationError: a target that names no linear layer, a rank above a layer's size, numbers out of range.
    """
    whole("rank", rank)
    if number("alpha", alpha, 0, math.inf) == 0:
        raise AdaptationError("alpha=0: the addition would never do anything; take a number above 0, such as 2 x rank.")
    number("dropout", dropout, 0, 1)
    layers = linear_layers(model, targets)
    parts = {name: 3 if separate and name.rpartition(".")[2] == "qkv" else 1 for name in layers}
    for name, layer in layers.items():
        most = min(layer.in_features, layer.out_features // parts[name])
        if rank > most:
            raise AdaptationError(
                f"rank={rank} is above {most}, the full rank of {name} ({layer.in_features} to "
                f"{layer.out_features // parts[name]}): take a smaller one."
            )
    for name, layer in layers.items():
        kind = ReadPastLoRALinear if name in past else LoRALinear
        put(model, name, kind(layer, rank, alpha, dropout, parts[name], generator))
