"""Several teaching models of one shape as one: a forward pass for all, on the same images.

A small model leaves a large device idle: it waits for the next small operation. Stacked, nine such models cost as many
operations as one, each nine times as large. Heads and dropout may differ, as they change no weight's shape.

Shapes: M models, B images, N patches, D width, H heads, K = D / H head width.
"""

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import MedvitError
from medvitlib.models.adapters import adapters_of
from medvitlib.models.attention_classifier import SelfAttention, TransformerClassifier
from medvitlib.models.primitives import attention
from medvitlib.models.vit import patch_grid, resize_position


class Stacked(nn.Module):
    """The models stay as they are: their parameters are stacked in each pass, and get their gradients from it.

    The result is that of each model by itself to rounding, dropout included. Models with equal heads should stand
    beside each other: their attention is one operation.

    Raises:
        MedvitError: a model of another kind, with adapters, or of other shapes than the first.
    """

    def __init__(self, models: Sequence[TransformerClassifier]):
        super().__init__()
        if not models or any(type(model) is not TransformerClassifier for model in models):
            kinds = ", ".join(sorted({type(model).__name__ for model in models})) or "none"
            raise MedvitError(
                f"Models of the kind {kinds} cannot be stacked: expected teaching models (transformer_classifier)."
            )
        if any(adapters_of(model) for model in models):
            raise MedvitError("Models with adapters cannot be stacked: their layers are more than one product.")
        shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in models]
        for number, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise MedvitError(
                    f"Model {number} has the shapes {shape}, the first {shapes[0]}: stack models of one shape."
                )
        self.models = nn.ModuleList(models)
        self.preprocessing = getattr(models[0], "preprocessing", None)

    def forward(self, x: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Images (B, C, height, width), normalised, to logits (B, M, classes).

        Args:
            seed: in training, what each model's dropout is drawn from, as after `torch.manual_seed(seed)` and a pass
                of that model alone; the global generators are left where the last one's draws end.
        """
        x = self._embed(x)  # (M, B, N, D)
        masks = self._dropout_masks(x, seed)
        for depth, mask in enumerate(masks):
            x = self._attend([model.layers[depth] for model in self.models], x)
            x = x if mask is None else x * mask
        return _linear([model.fc for model in self.models], x.mean(dim=2)).transpose(0, 1)  # (B, M, classes)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        """Each model's patch embedding (M, B, N, D): one product, as all see the same patches."""
        first, count = self.models[0], len(self.models)
        (h, w), side = patch_grid(*x.shape[-2:], first.patch_size), first.patch_size
        patches = x.unflatten(3, (w, side)).unflatten(2, (h, side))  # (B, C, h, side, w, side)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C side side)
        weight = torch.cat([model.patch_embedding.weight.flatten(1) for model in self.models])  # (M D, C side side)
        bias = torch.cat([model.patch_embedding.bias for model in self.models])
        tokens = F.linear(patches, weight, bias).unflatten(2, (count, -1)).permute(2, 0, 1, 3)  # (M, B, N, D)
        if first.pos_embed is None:
            return tokens
        return tokens + torch.stack([resize_position(m.pos_embed, m.grid_size, (h, w), prefix=0) for m in self.models])

    def _attend(self, layers: list[SelfAttention], x: torch.Tensor) -> torch.Tensor:
        """One layer of each model, without its dropout: (M, B, N, D) to (M, B, N, D)."""
        q, k, v = (_linear([getattr(layer, name) for layer in layers], x) for name in ("query", "key", "value"))
        found, first = [], 0
        for heads, alike in groupby(layers, key=lambda layer: layer.heads):
            rows = slice(first, first := first + len(list(alike)))
            # (m, B, N, D) to (m B, H, N, K): a model more is as good as more images
            parts = (y[rows].unflatten(3, (heads, -1)).transpose(2, 3).flatten(0, 1) for y in (q, k, v))
            y = attention(*parts)
            found.append(y.transpose(1, 2).flatten(2).unflatten(0, (-1, x.shape[1])))  # (m, B, N, D)
        return _linear([layer.fc_out for layer in layers], torch.cat(found))

    def _dropout_masks(self, x: torch.Tensor, seed: int | None) -> list[torch.Tensor | None]:
        """For each layer, what tokens (M, B, N, D) are multiplied by; None where nothing is dropped."""
        rates = [[_rate(layer) for layer in model.layers] for model in self.models]
        depth = len(rates[0])
        if not any(map(any, rates)):
            return [None] * depth
        if seed is None:
            raise MedvitError("Models with dropout are trained together: pass seed=, which says what is dropped.")
        drawn: dict[tuple[float, ...], list[torch.Tensor]] = {}
        for wanted in map(tuple, rates):
            if wanted not in drawn:  # models that drop as much from one seed drop the same
                torch.manual_seed(seed)
                ones = torch.ones_like(x[0], memory_format=torch.contiguous_format)
                drawn[wanted] = [F.dropout(ones, rate) if rate else ones for rate in wanted]
        which = [list(drawn).index(tuple(wanted)) for wanted in rates]
        return [torch.stack([masks[layer] for masks in drawn.values()])[which] for layer in range(depth)]


def _linear(layers: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    """Each layer on its own rows: (M, ..., in) to (M, ..., out)."""
    weight = torch.stack([layer.weight for layer in layers]).transpose(1, 2)  # (M, in, out)
    bias = torch.stack([layer.bias for layer in layers])[:, None]
    return torch.baddbmm(bias, x.flatten(1, -2), weight).unflatten(1, x.shape[1:-1])


def _rate(layer: SelfAttention) -> float:
    return layer.dropout.p if layer.dropout is not None and layer.dropout.training else 0.0
