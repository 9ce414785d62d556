"""The loss equals PyTorch's, whole or in parts."""

import pytest
import torch
import torch.nn.functional as F

from medvitlib.training.losses import balancing_weights, loss_sums, weight_of

LOGITS = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)) * 3
LABELS = torch.tensor([0, 1, 2, 0, 0, 0, 1, 1, 2, 0, 0, 1])
HARD = F.one_hot(LABELS, 3).float()
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def mean(target, **options):
    return loss_sums(LOGITS, target, **options).sum() / weight_of(target, options.get("class_weights")).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_it_is_pytorchs_cross_entropy(smoothing, weights):
    expected = F.cross_entropy(LOGITS, LABELS, weight=weights, label_smoothing=smoothing)
    torch.testing.assert_close(mean(HARD, class_weights=weights, label_smoothing=smoothing), expected)


def test_soft_labels_are_pytorchs_too():
    soft = torch.rand(12, 3, generator=torch.Generator().manual_seed(1))
    soft /= soft.sum(1, keepdim=True)
    torch.testing.assert_close(mean(soft, label_smoothing=0.2), F.cross_entropy(LOGITS, soft, label_smoothing=0.2))


def test_focal_loss_is_the_formula_and_cross_entropy_at_gamma_0():
    p = LOGITS.softmax(1)[torch.arange(12), LABELS]
    torch.testing.assert_close(mean(HARD, focal_gamma=2.0), ((1 - p) ** 2 * -p.log()).mean())
    assert mean(HARD, focal_gamma=0.0) == mean(HARD)


def test_focal_loss_of_a_sure_answer_has_a_finite_gradient():
    logits = torch.tensor([[80.0, 0.0], [0.0, 80.0]], requires_grad=True)
    loss_sums(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), focal_gamma=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_parts_of_a_batch_add_up_to_the_whole():
    whole = mean(HARD, class_weights=WEIGHTS, label_smoothing=0.1)
    parts = [
        loss_sums(x, t, class_weights=WEIGHTS, label_smoothing=0.1).sum() / weight_of(HARD, WEIGHTS).sum()
        for x, t in zip(LOGITS.tensor_split(5), HARD.tensor_split(5), strict=True)
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_balancing_gives_every_class_the_same_say():
    weights = balancing_weights(LABELS, 3)
    totals = torch.stack([weights[k] * (k == LABELS).sum() for k in range(3)])
    torch.testing.assert_close(totals, torch.full((3,), 4.0))
