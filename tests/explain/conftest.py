"""Small models of every kind whose attention can be read, with weights that make it far from even."""

import pytest
import timm
import torch
from torch import nn

from medvitlib.models.vit import VisionTransformer

SWIN = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 3}
SMALL = {"img_size": (32, 48), "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "num_classes": 3}
MODELS = {
    "ours": lambda: VisionTransformer((32, 48), 8, dim=16, depth=2, heads=2, dropout=0.1, drop_path=0.5),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", **SMALL),
    "distilled": lambda: timm.create_model("deit_tiny_distilled_patch16_224", **SMALL),
    "registers": lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **SMALL),
    "mean": lambda: timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **SMALL),
    # 8 x 12 patches in windows of 4, then 4 x 6, padded to 4 x 8
    "swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=(32, 48), window_size=4, **SWIN),
    "swinv2": lambda: timm.create_model("swinv2_tiny_window8_256", img_size=(32, 48), window_size=4, **SWIN),
}


class TwoLayers(nn.Module):
    """A classifier without class token that names its attention."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward_intermediates(self, x):
        x, out = self.patches(x).flatten(2).mT, {}
        for layer in range(2):
            q, k = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key))
            out[f"layers.{layer}.attention"] = (q @ k.mT / 2).softmax(-1)
            x = x + out[f"layers.{layer}.attention"].mean(1) @ x
            out[f"layers.{layer}"] = x
        return x.mean(1), out


MODELS["named"] = TwoLayers


@pytest.fixture
def make(redraw):
    """A model of `MODELS` by name: weights drawn anew, in training mode with one module in evaluation mode."""

    def build(kind: str) -> nn.Module:
        model = redraw(MODELS[kind]())
        list(model.train().modules())[-1].eval()
        return model

    return build


@pytest.fixture
def images() -> torch.Tensor:
    """Three normalised images of 32 x 48 pixels."""
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1))
