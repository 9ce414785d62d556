"""The Vision Transformer, read top to bottom (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021).

Pre-norm blocks, a class token, a learned position embedding, exact GELU, LayerNorm eps 1e-6. Parameters are
named as in timm's `VisionTransformer`, so that a state dict loads into both.

Shapes: B images, N patches, D width, H heads, K head width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import MedvitError, one_of
from medvitlib.models.primitives import Dropout, DropPath, attention

POOLS = ("token", "mean", "token_mean")


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Patches down and across an image of this size in pixels; MedvitError where they do not fit."""
    if height % patch_size or width % patch_size or min(height, width) < patch_size:
        fits = " or ".join(
            str((size // patch_size + step) * patch_size)
            for size in (height, width)[: 1 if height == width else 2]
            for step in (0, 1)
        )
        raise MedvitError(
            f"image size {height} x {width} is not made of {patch_size} x {patch_size} patches. "
            f"Nearest sizes that are: {fits}."
        )
    return height // patch_size, width // patch_size


def check_rate(name: str, rate: float) -> None:
    """MedvitError unless a dropout's or DropPath's rate leaves something over."""
    if not 0 <= rate < 1:
        raise MedvitError(f"{name} is a probability from 0 to below 1; {rate} was given.")


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each one: a convolution whose stride is its kernel."""

    def __init__(self, image_size: tuple[int, int], patch_size: int, in_channels: int, dim: int):
        super().__init__()
        self.patch_size = patch_size
        self.grid_size = self.grid_of(*image_size)
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def grid_of(self, height: int, width: int) -> tuple[int, int]:
        """As `patch_grid`."""
        return patch_grid(height, width, self.patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, D)


class Attention(nn.Module):
    """Multi-head self-attention: softmax(q k' / sqrt(K)) v, one linear layer for q, k and v.

    K is D / H until heads are cut out (`medvitlib.models.shrinking`); it then stays as it was.
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._joined(attention(*self._heads(x)))  # (B, N, D)

    def with_weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the weights (B, H, N, N), which the fused kernel of `forward` never materialises."""
        q, k, v = self._heads(x)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, N, N)
        return self._joined(weights @ v), weights

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, H, K)
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)  # q, k, v, each (B, H, N, K)

    def _joined(self, y: torch.Tensor) -> torch.Tensor:
        y = y.transpose(1, 2).flatten(2)  # (B, N, H K): heads side by side again
        return self.proj_drop(self.proj(y))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them (flax's default, a tanh, is within 5e-4 of it)."""

    def __init__(self, dim: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(F.gelu(self.fc1(x)))  # (B, N, hidden)
        return self.drop(self.fc2(x))  # (B, N, D)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); in training a sample may skip either (DropPath)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # (B, N, D)

    def with_weights(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the attention's weights (B, H, N, N)."""
        y, weights = self.attn.with_weights(self.norm1(x))
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x))), weights


class VisionTransformer(nn.Module):
    """A Vision Transformer classifier.

    Args:
        image_size: pixels, one number or (height, width), multiples of `patch_size`. Images of another size are
            accepted too: the position embedding is then resized on the fly.
        patch_size: pixels of a patch's side.
        num_classes: logits.
        dim, depth, heads, mlp_ratio: width, number of blocks, attention heads, hidden width of the MLP over `dim`.
        dropout: after the position embedding and after each linear layer of a block, but not on attention
            weights, as in Google's models.
        drop_path: probability that a sample skips the last block's branches; grows linearly from 0 at the first
            (stochastic depth, Huang et al. 2016).
        pool: what the head sees of the final norm's output: the class "token", the "mean" of the patch tokens,
            or "token_mean", both side by side (the head is then 2 x `dim` wide).

    Raises:
        MedvitError: the image size, heads, pool or a probability cannot be.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int = 3,
        num_classes: int = 2,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        pool: str = "token",
    ):
        super().__init__()
        if dim % heads:
            raise MedvitError(f"dim {dim} cannot be shared by {heads} heads: choose a divisor of {dim}.")
        one_of("pool", pool, POOLS)
        check_rate("dropout", dropout)
        check_rate("drop_path", drop_path)
        self.pool = pool
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.patch_embed = PatchEmbed(size, patch_size, in_channels, dim)
        rows, columns = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + rows * columns, dim))
        self.pos_drop = Dropout(dropout)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, dropout, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(2 * dim if pool == "token_mean" else dim, num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, height, width), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens after the final norm (B, 1 + N, D), the class token first."""
        x = self._embed(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool tokens (B, 1 + N, D) and classify; with `pre_logits`, stop at the features the head sees."""
        if self.pool == "token":
            features = tokens[:, 0]
        elif self.pool == "mean":
            features = tokens[:, 1:].mean(dim=1)
        else:
            features = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
        return features if pre_logits else self.head(features)

    def forward_intermediates(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and everything an explanation reads, by name; gradients flow through all of it.

        Returns:
            logits (B, num_classes), and a dictionary with `embedded` (B, 1 + N, D); for each block i
            `blocks.i.attention` (B, H, 1 + N, 1 + N), rows summing to one, and `blocks.i` (B, 1 + N, D);
            `norm` (B, 1 + N, D); `pre_logits` (B, D or 2 D).
        """
        out = {"embedded": self._embed(x)}
        x = out["embedded"]
        for i, block in enumerate(self.blocks):
            x, out[f"blocks.{i}.attention"] = block.with_weights(x)
            out[f"blocks.{i}"] = x
        out["norm"] = self.norm(x)
        out["pre_logits"] = self.forward_head(out["norm"], pre_logits=True)
        return self.head(out["pre_logits"]), out

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay would only pull towards "nowhere": positions, and the class token."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, str | list]:
        """Which parameters make one layer, as `timm.models.group_parameters` reads it: stem, blocks and norm, head.

        `coarse` belongs to timm's convention; its Vision Transformer does not distinguish either.
        """
        return {
            "stem": r"^cls_token|pos_embed|patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        grid = self.patch_embed.grid_of(*x.shape[-2:])
        x = self.patch_embed(x)  # (B, N, D)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, 1 + N, D)
        return self.pos_drop(x + resize_position(self.pos_embed, self.patch_embed.grid_size, grid))


def resize_position(
    position: torch.Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int = 1
) -> torch.Tensor:
    """Resize a position embedding (1, prefix + h w, D) from one (h, w) grid of patches to another.

    Bicubic with antialiasing; the rows of the `prefix` tokens (the class token's) are kept. Grids are compared, not
    token counts: 14 x 14 and 7 x 28 both have 196 patches, and timm's function (before 1.0.27) takes one for the other.
    """
    if tuple(old) == tuple(new):
        return position
    tokens, patches = position[:, :prefix], position[:, prefix:]  # (1, prefix, D), (1, h w, D)
    patches = patches.transpose(1, 2).unflatten(2, old).float().contiguous()  # (1, D, h, w)
    patches = F.interpolate(patches, size=new, mode="bicubic", antialias=True)
    return torch.cat([tokens, patches.flatten(2).transpose(1, 2).to(tokens.dtype)], dim=1)
