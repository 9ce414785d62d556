"""The smallest image classifier that attends, to be read and drawn: patches, self-attention twice, mean, one layer.

Nothing else is in it: no residual path, no normalisation, no MLP and, unless asked for, no positions. What remains is
scaled dot-product attention (Vaswani et al., "Attention Is All You Need", NeurIPS 2017, sections 3.2.1 and 3.2.2), so
that a picture of its attention is a picture of all that happens between two patches.

Shapes: B images, N patches, D width, H heads, K = D / H head width.
"""

import torch
from torch import nn

from medvitlib.errors import MedvitError
from medvitlib.models.primitives import attention
from medvitlib.models.vit import check_rate, patch_grid, resize_position


class SelfAttention(nn.Module):
    """fc_out(softmax(q k' / sqrt(K)) v): every patch looks at every patch, once a head."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)  # what a patch looks for
        self.key = nn.Linear(dim, dim)  # what it can be found by
        self.value = nn.Linear(dim, dim)  # what it tells those who find it
        self.fc_out = nn.Linear(dim, dim)  # mixes what the heads have found
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to new tokens (B, N, D); fused, so that the weights are never kept in memory."""
        return self._joined(attention(*self._heads(x)))

    def with_weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the attention (B, H, N, N), whose rows sum to one."""
        q, k, v = self._heads(x)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, N, N): row i is what patch i looks at
        attention = scores.softmax(dim=-1)  # (B, H, N, N)
        return self._joined(attention @ v), attention

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values (B, H, N, K): each head has its own K of the D numbers."""
        return tuple(
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )

    def _joined(self, y: torch.Tensor) -> torch.Tensor:
        """What the heads found (B, H, N, K), side by side again: (B, N, D)."""
        y = self.fc_out(y.transpose(1, 2).flatten(2))
        return y if self.dropout is None else self.dropout(y)


class TransformerClassifier(nn.Module):
    """The two-layer teaching model: grey images of 224 px, 49 patches of 32 x 32 pixels, 64 numbers each.

    Args:
        image_size: pixels, one number or (height, width), multiples of `patch_size`. Images of another size are
            accepted too; positions are then resized on the fly.
        in_channels: 1 for grey, 3 for RGB.
        num_classes: logits.
        patch_size: pixels of a patch's side.
        dim: numbers a patch is described by.
        depth: layers of self-attention.
        heads: of each layer; a divisor of `dim`.
        dropout: after each layer.
        positions: whether a learned embedding tells a patch where it lies; without it, the patches are an unordered
            set, and a shuffled image gets the same answer.

    Raises:
        MedvitError: the image size, the number of heads or the dropout cannot be.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        in_channels: int = 1,
        num_classes: int = 2,
        *,
        patch_size: int = 32,
        dim: int = 64,
        depth: int = 2,
        heads: int = 2,
        dropout: float = 0.0,
        positions: bool = False,
    ):
        super().__init__()
        if dim % heads:
            raise MedvitError(f"dim {dim} cannot be shared by {heads} heads: choose a divisor of {dim}.")
        check_rate("dropout", dropout)
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.patch_size = patch_size
        self.grid_size = patch_grid(*size, patch_size)
        self.patch_embedding = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)
        if positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:
            self.pos_embed = None
        self.layers = nn.ModuleList(SelfAttention(dim, heads, dropout) for _ in range(depth))
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, height, width), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """What the last layer makes of each patch (B, N, D), row by row from the top left."""
        x = self._embed(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Average the patches (B, N, D) and classify; with `pre_logits`, stop at the features (B, D) that `fc` sees."""
        features = tokens.mean(dim=1)
        return features if pre_logits else self.fc(features)

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and everything an explanation reads, by name; gradients flow through all of it.

        Returns:
            logits (B, num_classes), and a dictionary with `embedded` (B, N, D); for each layer i
            `layers.i.attention` (B, H, N, N), rows summing to one, and `layers.i` (B, N, D); `pre_logits` (B, D).
        """
        out = {"embedded": self._embed(x)}
        x = out["embedded"]
        for i, layer in enumerate(self.layers):
            x, out[f"layers.{i}.attention"] = layer.with_weights(x)
            out[f"layers.{i}"] = x
        out["pre_logits"] = self.forward_head(x, pre_logits=True)
        return self.fc(out["pre_logits"]), out

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay would only pull towards "nowhere": positions."""
        return {"pos_embed"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters make one layer, as `timm.models.group_parameters` reads it: stem, layers, `fc`."""
        return {"stem": r"^pos_embed|patch_embedding", "blocks": r"^layers\.(\d+)"}

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        grid = patch_grid(*x.shape[-2:], self.patch_size)
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)  # (B, N, D)
        if self.pos_embed is None:
            return x
        return x + resize_position(self.pos_embed, self.grid_size, grid, prefix=0)
