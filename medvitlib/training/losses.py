"""What is minimised: cross-entropy or focal loss, for labels that are shares of the classes."""

import torch
import torch.nn.functional as F


def loss_sums(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    class_weights: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """The loss of each image, before it is averaged.

    With w the class weights and t the smoothed shares, sum over classes of w t (1 - p)^gamma (-log p). Divided by
    `weight_of(target)`, summed over the batch, it is `F.cross_entropy`'s weighted mean (gamma 0; Lin et al. 2017
    otherwise). The two sums are kept apart so that a batch that goes through the model in parts gives the same update.

    Args:
        logits: (B, K).
        target: float (B, K), the share of each class, rows summing to one.
        class_weights: (K,).
        label_smoothing: in [0, 1): that share of every label is spread over all classes.

    Returns:
        float32 (B,).
    """
    log_p = F.log_softmax(logits.float(), dim=1)  # (B, K)
    smoothed = target * (1 - label_smoothing) + label_smoothing / target.shape[1]
    terms = -smoothed * log_p
    if focal_gamma:
        terms = terms * (-torch.expm1(log_p)).clamp(min=1e-8) ** focal_gamma  # at 0 a root has no slope
    return (terms if class_weights is None else terms * class_weights).sum(dim=1)


def weight_of(target: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """How much each image counts in the mean: (B,), the class weights of its label."""
    return target.sum(dim=1) if class_weights is None else (target * class_weights).sum(dim=1)


def balancing_weights(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(K,) N / (K n_k): with them every class has the same say, and the mean weight of an image is one."""
    counts = torch.bincount(labels, minlength=num_classes).float()
    return len(labels) / (num_classes * counts.clamp(min=1))
