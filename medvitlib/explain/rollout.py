"""Attention rollout: attention followed through the layers, residual connections included."""

import torch

from medvitlib.errors import ExplanationError, one_of
from medvitlib.explain.maps import AttentionMaps

FUSIONS = {
    "mean": lambda weights: weights.mean(dim=1),
    "max": lambda weights: weights.amax(dim=1),
    "min": lambda weights: weights.amin(dim=1),
}
QUERIES = ("class", "mean")


def rollout(
    maps: AttentionMaps, head_fusion: str = "mean", discard: float = 0.0, query: str | None = None
) -> torch.Tensor:
    """How much of each patch reaches the output if attention alone mixed the tokens (Abnar & Zuidema, ACL 2020, 3.2).

    A = 0.5 fuse(attention) + 0.5 I, its rows divided by their sum; the product of all layers, the last one leftmost.
    Values and MLPs are ignored, and so is the class: the map is the same whatever is predicted.

    Args:
        head_fusion: one map of a layer's heads: their "mean" (the paper's), "max" or "min".
        discard: share of the fused entries of a layer, the lowest ones of each image, that are set to zero, 0 to below
            1; the class token's attention to itself always stays.
        query: whose row is returned, the "class" token's or the "mean" of the patches'; None for the class token
            where there is one, else the mean.

    Returns:
        (B, rows, columns) float32; sums to one minus what comes from prefix tokens.

    Raises:
        ExplanationError: an unknown option, a class token asked for where there is none, or a model with windows.
    """
    if maps.windowed:
        raise ExplanationError(
            "rollout multiplies the maps of all layers, which needs the same tokens in each; Swin attends within "
            "windows and merges its patches between stages. Use of_mean_query() or of_patch(row, column)."
        )
    query = query or ("class" if maps.class_token else "mean")
    one_of("head_fusion", head_fusion, FUSIONS, ExplanationError)
    one_of("query", query, QUERIES, ExplanationError)
    if not 0 <= discard < 1:
        raise ExplanationError(f"discard={discard}: a share from 0 (keep all) to below 1 is expected.")
    if query == "class":
        maps.need_class_token()

    identity = torch.eye(maps.layers[0].weights.shape[-1])  # (T, T)
    reached = identity
    for layer in maps.layers:
        fused = FUSIONS[head_fusion](layer.full())  # (B, T, T)
        if discard:
            fused = _without_lowest(fused, discard, maps.class_token)
        mixed = 0.5 * fused + 0.5 * identity
        reached = mixed / mixed.sum(dim=-1, keepdim=True) @ reached
    patches = maps.layers[0].patches[0] >= 0  # (T,)
    row = reached[:, 0] if query == "class" else reached[:, patches].mean(dim=1)  # (B, T)
    return row[:, patches].unflatten(-1, maps.grid)


def _without_lowest(fused: torch.Tensor, share: float, class_token: bool) -> torch.Tensor:
    flat = fused.flatten(1)  # (B, T T)
    lowest = flat.topk(int(flat.shape[1] * share), dim=1, largest=False).indices
    kept = flat.scatter(1, lowest, 0.0)
    if class_token:
        kept[:, 0] = flat[:, 0]
    return kept.view_as(fused)
