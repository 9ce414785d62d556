"""The layer whose map is shown has its places where the image has them, in every family of timm and torchvision."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain import gradcam
from medvitlib.explain.layers import default_layer, on_grid

ANY_SIZE = (
    "resnet18",
    "convnext_atto",
    "mambaout_femto",
    "mobilevit_xxs",
    "poolformer_s12",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "regnetx_002",
    "repvit_m0_9",
    "fastvit_t8",
    "starnet_s1",
    "efficientvit_b0",
    "rdnet_tiny",
    "hgnetv2_b0",
    "edgenext_xx_small",
    "inception_next_atto",
    "densenet121",
    "pvt_v2_b0",
    "davit_tiny",
    "focalnet_tiny_srf",
)
"""Of timm, at 128 px; those below at sizes that they are built for."""
SIZED = {
    **{"vit_tiny_patch16_224": 128, "deit_tiny_distilled_patch16_224": 128, "beit_base_patch16_224": 64},
    **{"eva02_tiny_patch14_224": 112, "cait_xxs24_224": 128, "convit_tiny": 128, "mixer_s32_224": 224},
    **{"swin_tiny_patch4_window7_224": 224, "swinv2_cr_tiny_ns_224": 224, "mvitv2_tiny": 128, "hiera_tiny_224": 224},
    **{"maxvit_pico_rw_256": 256, "coatnet_pico_rw_224": 224, "gcvit_xxtiny": 224, "sequencer2d_s": 128},
    **{"tiny_vit_5m_224": 224, "resmlp_12_224": 128, "crossvit_tiny_240": 240, "tnt_s_patch16_224": 224},
}
TORCHVISION = ("resnet18", "vit_b_32", "swin_t", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5")


def built(library: str, name: str) -> tuple[nn.Module, int]:
    """A model as after a training: nothing in it is exactly zero."""
    torch.manual_seed(0)
    size = {"timm": SIZED.get(name, 128)}.get(library, 224)
    if library == "timm":
        other = name in SIZED and not name.endswith(f"_{size}")
        net = timm.create_model(name, num_classes=3, **({"img_size": size} if other else {}))
    else:
        extra = {"init_weights": False} if name == "googlenet" else {}
        net = torchvision.models.get_model(name, weights=None, num_classes=3, **extra)
    for key, value in net.named_parameters():
        scale = "gamma" in key or "scale" in key
        if scale or key.startswith("head") or (value.ndim <= 1 and (value == 0).all()):
            value.data.normal_(0.5 if scale else 0, 0.1)
    return net.eval(), size


MODELS = [("timm", name) for name in (*ANY_SIZE, *SIZED)] + [("torchvision", name) for name in TORCHVISION]


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_a_cell_of_the_map_lies_where_the_image_moves_it(library, name):
    """Found in another way than by the library's own square: the pixels on which a cell depends are around it."""
    net, size = built(library, name)
    layer, seen = default_layer(net, (size, size)), []
    handle = net.get_submodule(layer).register_forward_hook(lambda _, inputs, output: seen.append(output))
    x = torch.randn(1, 3, size, size, requires_grad=True)
    net(x)
    handle.remove()
    grid = on_grid(net, layer, seen[-1], (size, size))
    h, w = grid.shape[2:]
    assert h == w > 1
    rng, cells, centres = np.random.default_rng(0), [], []
    for row, column in [(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1), (h // 2, 0), (0, w // 2)]:
        weights = torch.from_numpy(rng.normal(size=grid.shape[1])).float()
        found = torch.autograd.grad((grid[0, :, row, column] * weights).sum(), x, retain_graph=True)[0][0]
        mass = found.square().sum(0)
        at = torch.arange(size) / mass.sum()
        centres.append([(mass.sum(1) * at).sum().item(), (mass.sum(0) * at).sum().item()])
        cells.append([row, column])
    cells, centres = np.array(cells), np.array(centres)
    assert min(np.corrcoef(cells[:, axis], centres[:, axis])[0, 1] for axis in (0, 1)) > 0.5
    assert gradcam(net, x.detach(), 1).shape == (1, size, size)


class _Transposed(nn.Module):
    """A convolution whose places are turned round: rows are columns."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 8, stride=8)
        self.stages = nn.Identity()

    def forward(self, x):
        return self.stages(self.first(x).transpose(2, 3)).mean((2, 3))[:, :3]


def test_a_layer_that_does_not_follow_the_square_gives_way_to_one_that_does():
    assert default_layer(_Transposed().eval(), (64, 64)) == "first"


def test_a_model_without_places_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    with pytest.raises(ExplanationError, match=r"no layer of Sequential .* 32 x 32 pixels: .* Take occlusion"):
        default_layer(net, (32, 32))


def test_the_square_is_moved_once_for_a_model_and_a_size():
    net, calls = timm.create_model("resnet18", num_classes=3).eval(), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    x = torch.randn(1, 3, 64, 64)
    gradcam(net, x)
    first = len(calls)
    gradcam(net, x)
    assert len(calls) == first + 1


def test_a_parallel_or_compiled_model_has_the_maps_of_the_one_inside():
    net, x = timm.create_model("resnet18", num_classes=3).eval(), torch.randn(2, 3, 64, 64)
    expected = gradcam(net, x)
    for wrapped in (nn.DataParallel(net), torch.compile(net), torch.compile(nn.DataParallel(net))):
        torch.testing.assert_close(gradcam(wrapped, x), expected)
