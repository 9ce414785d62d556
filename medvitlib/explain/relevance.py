"""Attention weighted by its gradient: what each patch contributed to one class (Chefer, Gur & Wolf, "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021)."""

from collections.abc import Sequence

import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.attention import attention_maps
from medvitlib.explain.borrowed import borrowed
from medvitlib.explain.gradcam import stretched
from medvitlib.explain.inputs import as_targets, checked, unwrapped
from medvitlib.explain.layers import grid_of
from medvitlib.explain.maps import upsample
from medvitlib.explain.rollout import rollout


def attention_rollout(
    model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None, **options
) -> torch.Tensor:
    """`rollout` of a model's attention as a map of the image; the same for every class, so `target` changes nothing.

    Args:
        options: of `rollout`.

    Returns:
        (N, height, width) float32 on the model's device, stretched to 0 to 1.
    """
    images = checked(model, images)
    reached = rollout(attention_maps(model, images), **options)  # (N, rows, columns)
    return stretched(upsample(reached, tuple(images.shape[-2:]))).to(images.device)


def relevance(model: nn.Module, images: torch.Tensor, target: int | Sequence[int] | None = None) -> torch.Tensor:
    """R = 1, then for each layer R <- R + mean_h((dy/dA * A)+) R; the class token's row, or the patches' mean
    (equations 5 and 6).

    Arguments and result as `gradcam`.

    Raises:
        DataError: images that are no normalised batch.
        ExplanationError: an unknown class, or a model whose attention is not one map of all tokens a layer and head.
    """
    model = unwrapped(model)
    images = checked(model, images)
    found: list[torch.Tensor] = []
    with borrowed(model) as handles, torch.enable_grad():
        x = images.detach().requires_grad_(True)
        if hasattr(model, "forward_intermediates") and not hasattr(model, "get_classifier"):
            logits, out = model.forward_intermediates(x)
            found = [value for name, value in out.items() if name.endswith(".attention")]
        else:
            for module in model.modules():
                if isinstance(drop := getattr(module, "attn_drop", None), nn.Module):
                    handles.append(drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])))
            logits = model(x)
        if not found or len({tuple(a.shape) for a in found}) > 1 or len(found[0]) != len(x):
            raise ExplanationError(
                f"relevance follows one map of all tokens through the layers, which {type(model).__name__} does not "
                "have: take gradcam."
            )
        score = logits.gather(1, as_targets(target, logits)[:, None]).sum()
        gradients = torch.autograd.grad(score, found)
    tokens = found[0].shape[-1]
    reached = torch.eye(tokens, device=images.device).expand(len(images), -1, -1)  # (N, T, T)
    for attention, gradient in zip(found, gradients, strict=True):
        weighted = (attention.detach() * gradient).float().relu().mean(1)  # (N, T, T)
        reached = reached + weighted @ reached
    prefix = getattr(model, "num_prefix_tokens", int(getattr(model, "cls_token", None) is not None))
    row = reached[:, 0, prefix:] if prefix else (reached - torch.eye(tokens, device=reached.device)).mean(1)  # (N, P)
    shape = tuple(images.shape[-2:])
    return stretched(upsample(row.unflatten(1, grid_of(row.shape[1], shape, "the attention")), shape))
