"""Attention maps as they were read, and views of them on the grid of patches. No model is needed here.

Shapes: B images, H heads, T tokens of a window (a ViT has one window, of all its tokens), W windows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from medvitlib.errors import ExplanationError


@dataclass(frozen=True, eq=False)
class LayerMaps:
    """The attention of one layer.

    Args:
        name: of the layer in the model.
        weights: float32 (B, H, W, T, T), queries before keys; rows sum to one.
        patches: int64 (W, T), which patch each token is, counted along the rows of the image; -1 for tokens that
            are no patch: prefix tokens (class, distillation, registers) and what Swin pads its windows with.
        grid: rows and columns of patches.
    """

    name: str
    weights: torch.Tensor
    patches: torch.Tensor
    grid: tuple[int, int]

    def full(self) -> torch.Tensor:
        """Every token to every token: (B, H, T, T), rows summing to one.

        Of several windows: every patch to every patch of the image (B, H, N, N), zero outside its window. At
        56 x 56 patches that is 39 MB a head and image.
        """
        if len(self.patches) == 1:
            return self.weights[:, :, 0]
        count = self.grid[0] * self.grid[1]
        out = self.weights.new_zeros(*self.weights.shape[:2], count, count)  # (B, H, N, N)
        for window, patches in enumerate(self.patches):
            tokens = (patches >= 0).nonzero()[:, 0]
            place = patches[tokens]
            out[:, :, place[:, None], place] = self.weights[:, :, window, tokens[:, None], tokens]
        return out

    def of_token(self, token: int) -> torch.Tensor:
        """From one token of the only window, such as 0, the class token, to the patches: (B, H, rows, columns)."""
        return self._on_grid(self.weights[:, :, :, token])

    def of_patch(self, row: int, column: int) -> torch.Tensor:
        """From one patch to all patches, zero outside its window: (B, H, rows, columns)."""
        window, token = (self.patches == row * self.grid[1] + column).nonzero()[0].tolist()
        out = torch.zeros_like(self.weights[:, :, :, 0])  # (B, H, W, T)
        out[:, :, window] = self.weights[:, :, window, token]
        return self._on_grid(out)

    def of_all(self) -> torch.Tensor:
        """What each patch receives, averaged over all patches as queries: (B, H, rows, columns)."""
        queries = (self.patches >= 0)[..., None]  # (W, T, 1)
        return self._on_grid((self.weights * queries).sum(dim=-2)) / (self.grid[0] * self.grid[1])

    def _on_grid(self, values: torch.Tensor) -> torch.Tensor:
        """Values of tokens (B, H, W, T) at the places of their patches (B, H, rows, columns)."""
        order = self.patches.flatten().argsort()[-self.grid[0] * self.grid[1] :]  # the -1 come first
        return values.flatten(2)[..., order].unflatten(-1, self.grid)


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of every layer, first to last, with three views for a (B, H, rows, columns) map of each layer.

    A view holds what goes to patches. Prefix tokens and padding are left out, so a map sums to one minus what went to
    them; with `renormalise` it is divided by that sum.

    Args:
        layers: see `LayerMaps`; Swin's stages differ in heads and grid, a ViT's layers do not.
        class_token: whether token 0 is a class token.
        windowed: whether attention stays within windows, as Swin's does.
    """

    layers: tuple[LayerMaps, ...]
    class_token: bool = False
    windowed: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in the first layer."""
        return self.layers[0].grid

    def of_class_token(self, *, renormalise: bool = False) -> list[torch.Tensor]:
        """From the class token to each patch.

        Raises:
            ExplanationError: the model has no class token.
        """
        self.need_class_token()
        return _shares([layer.of_token(0) for layer in self.layers], renormalise)

    def of_mean_query(self, *, renormalise: bool = False) -> list[torch.Tensor]:
        """What each patch receives from a patch on average: for models that pool the mean of their patches."""
        return _shares([layer.of_all() for layer in self.layers], renormalise)

    def of_patch(self, row: int, column: int, *, renormalise: bool = False) -> list[torch.Tensor]:
        """From the patch in this row and column of the first layer's grid; where patches merge, from what holds it.

        Raises:
            ExplanationError: there is no such patch.
        """
        rows, columns = self.grid
        if not (0 <= row < rows and 0 <= column < columns):
            raise ExplanationError(
                f"patch ({row}, {column}) of a grid of {rows} x {columns}: "
                f"rows are 0 to {rows - 1}, columns 0 to {columns - 1}."
            )
        views = []
        for layer in self.layers:
            if layer.grid != (rows, columns):  # Swin merges two by two, an odd last one with padding
                row, column = row // round(rows / layer.grid[0]), column // round(columns / layer.grid[1])
                rows, columns = layer.grid
            views.append(layer.of_patch(row, column))
        return _shares(views, renormalise)

    def need_class_token(self) -> None:
        """ExplanationError where there is none, naming what to use."""
        if not self.class_token:
            raise ExplanationError(
                "this model has no class token. Use the mean over the patches as queries, of_mean_query(), or one "
                "patch, of_patch(row, column)."
            )


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps (..., rows, columns) at the size of an image (..., height, width), bilinear between centres of patches."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=tuple(size), mode="bilinear").reshape(*maps.shape[:-2], *size)


def _shares(views: list[torch.Tensor], renormalise: bool) -> list[torch.Tensor]:
    if not renormalise:
        return views
    return [view / view.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-12) for view in views]
