"""Integrated gradients as Captum's and complete; occlusion finds the only place that counts; relevance points there."""

import pytest
import torch
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain.gradcam import hirescam
from medvitlib.explain.perturbation import attributions, integrated_gradients, occlusion
from medvitlib.explain.relevance import attention_rollout, relevance
from medvitlib.models.zoo import build


class Square(nn.Module):
    """Its first logit is what the square from (8, 16) to (16, 24) holds, and nothing else."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1, bias=False)
        nn.init.constant_(self.conv.weight, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        inside = torch.zeros_like(y)
        inside[:, :, 8:16, 16:24] = 1
        return (y * inside).mean((2, 3)) * torch.tensor([1.0, -1.0])


def share_inside(maps: torch.Tensor) -> torch.Tensor:
    return maps[:, 8:16, 16:24].sum((1, 2)) / maps.sum((1, 2))


def test_what_alone_counts_is_found():
    x = torch.rand(2, 3, 32, 32) + 0.5
    model = Square().eval()
    assert (share_inside(integrated_gradients(model, x, 0)) > 0.999).all()
    assert (share_inside(occlusion(model, x, 0, window=4, stride=2)) > 0.6).all()
    assert (share_inside(hirescam(model, x, 0, layer="conv")) > 0.9).all()


def vit(size: int = 32) -> nn.Module:
    net = build("vit_scratch", 3, weights=None, image_size=size, dim=32, depth=2, heads=2, patch_size=8).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(0))
    return net


def test_attributions_are_captums_and_complete():
    captum = pytest.importorskip("captum.attr")
    net, x = vit(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for target in (0, 2):
        ours = attributions(net, x, target, steps=50)
        theirs = captum.IntegratedGradients(net).attribute(x, target=target, n_steps=50)
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            difference = (net(x) - net(torch.zeros_like(x)))[:, target]
        torch.testing.assert_close(ours.sum((1, 2, 3)), difference, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", [relevance, attention_rollout, occlusion, integrated_gradients])
def test_every_method_has_one_shape_and_leaves_the_model_alone(method):
    net, x = vit().train(), torch.randn(2, 3, 32, 32)
    maps = method(net, x, 1)
    assert maps.shape == (2, 32, 32) and maps.min() >= 0 and maps.max() <= 1 and not maps.requires_grad
    assert net.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_relevance_is_the_published_rule():
    """R = 1, then R <- R + mean((dy/dA * A)+) R, written out for two layers; and it needs one map of all tokens."""
    net, x = vit(), torch.randn(1, 3, 32, 32)
    logits, out = net.forward_intermediates(x)
    attention = [out[f"blocks.{i}.attention"] for i in (0, 1)]
    gradients = torch.autograd.grad(logits[0, 1], attention)
    reached = torch.eye(17)
    for a, g in zip(attention, gradients, strict=True):
        reached = reached + (a * g).clamp_min(0).mean(1)[0] @ reached
    expected = reached[0, 1:].view(1, 4, 4)
    maps = relevance(net, x, 1)
    found = maps[:, 4::8, 4::8]  # centres of patches, nearly
    assert torch.corrcoef(torch.stack([expected.flatten(), found.flatten()]))[0, 1] > 0.99
    with pytest.raises(ExplanationError, match="take gradcam"):
        relevance(build("resnet18", 3, weights=None), torch.randn(1, 3, 64, 64))


def test_windows_that_cannot_be_are_refused():
    net, x = vit(), torch.randn(1, 3, 32, 32)
    for options in (
        {"window": 0},
        {"window": 33},
        {"window": 8.5},
        {"window": 8, "stride": -1},
        {"window": 8, "stride": 0},
    ):
        with pytest.raises(ExplanationError, match="expected whole numbers, 1 to 32"):
            occlusion(net, x, **options)
    for steps in (0, "50"):
        with pytest.raises(ExplanationError, match=f"steps={steps!r}"):
            integrated_gradients(net, x, steps=steps)
    with pytest.raises(ExplanationError, match=r"a baseline of shape \(3, 7, 7\) for images"):
        integrated_gradients(net, x, baseline=torch.zeros(3, 7, 7))
