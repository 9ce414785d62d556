"""Small models of each kind, and adapters that have learned something."""

import pytest
import torch
from torch import nn

from medvitlib.models.adapters import adapters_of
from medvitlib.models.zoo import build

KINDS = {
    "ours": ("vit_tiny_test", 32, {}),
    "ViT": ("vit_tiny_patch16_224", 64, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
    "DeiT": ("deit_tiny_patch16_224", 64, {"embed_dim": 24, "depth": 2, "num_heads": 3}),
    "Swin": ("swin_tiny_patch4_window7_224", 56, {"embed_dim": 12, "depths": (1, 2), "num_heads": (2, 4)}),
}


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    """Each test that asks for it runs once for each architecture."""
    return request.param


@pytest.fixture(scope="session")
def small():
    """Build a small model of a kind: (kind, seed=0) -> module with three classes, in evaluation mode."""

    def make(kind: str, seed: int = 0) -> nn.Module:
        name, size, options = KINDS[kind]
        return build(name, 3, weights=None, image_size=size, seed=seed, **options).eval()

    return make


@pytest.fixture(scope="session")
def images_for():
    """Two images, always the same, of the size that a model takes: (model) -> (2, 3, h, w)."""

    def make(model: nn.Module) -> torch.Tensor:
        return torch.randn(2, 3, *model.preprocessing.image_size, generator=torch.Generator().manual_seed(1))

    return make


@pytest.fixture(scope="session")
def learned():
    """Adapters as after a training, nothing in them zero any more: (model) -> the model."""

    def change(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(2)
        for adapter in adapters_of(model).values():
            for name in sorted(adapter.added):
                with torch.no_grad():
                    getattr(adapter, name).add_(torch.randn(getattr(adapter, name).shape, generator=generator) * 0.1)
        return model

    return change
