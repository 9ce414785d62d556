"""What a Transformer's blocks are made of, each the fastest way that its hardware has.

Shapes: B images, N tokens, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import nn

MOST_WRITTEN_OUT = 300
"""Tokens: 224 px in patches of 14 are 257."""


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k' / sqrt(K)) v of queries, keys and values (B, H, N, K), by the fastest way there is.

    That is PyTorch's fused kernel, but for bfloat16 on a CPU: there it takes two to three times as long as the two
    products written out, whose (B, H, N, N) weights are worth keeping as long as they are small.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or k.shape[-2] > MOST_WRITTEN_OUT:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):  # which would take the softmax, and so its memory, to float32
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose noise costs a fraction of PyTorch's on a CPU, where it is a third of a step in bfloat16.

    Each number is kept or not by 16 random bits, so that there the rate is a multiple of 1 / 65,536.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p or x.device.type != "cpu":
            return super().forward(x)
        drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers each
        bits = drawn.view(torch.int16)[: x.numel()].view(x.shape)  # -32,768 to 32,767
        kept = (bits >= round(2**16 * self.p) - 2**15).to(x.dtype)
        return x * kept.div_(1 - self.p)


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's branch is left out with this probability, else divided by the rest."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.drop_prob or not self.training:
            return x
        kept = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)  # (B, 1, ...)
        return x * kept.div_(1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"
