"""Grad-CAM and its relatives: pytorch-grad-cam's maps, the right layer, and a model that is given back as it was."""

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from medvitlib.data import normalise, open_dataset
from medvitlib.errors import DataError, ExplanationError
from medvitlib.explain.gradcam import CAMS, eigencam, gradcam
from medvitlib.explain.layers import default_layer, on_grid
from medvitlib.models.adapt import adapt
from medvitlib.models.zoo import build

KINDS = {
    "ResNet": ("resnet18", 96, {}),
    "ours": ("vit_scratch", (64, 96), {"dim": 48, "depth": 3, "heads": 3}),
    "ViT": ("vit_tiny_patch16_224", 96, {"embed_dim": 48, "depth": 3, "num_heads": 3}),
    "Swin": ("swin_tiny_patch4_window7_224", 112, {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}),
}
THEIRS = {
    "Grad-CAM": "GradCAM",
    "Grad-CAM++": "GradCAMPlusPlus",
    "HiResCAM": "HiResCAM",
    "LayerCAM": "LayerCAM",
    "EigenCAM": "EigenCAM",
}


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request) -> tuple[nn.Module, torch.Tensor]:
    """Taught to tell rendered cells apart, for some steps; and three images of them."""
    name, size, options = KINDS[request.param]
    net = build(name, 4, weights=None, image_size=size, seed=0, **options)
    cells = open_dataset("phantom/wbc4", image_size=size, n_patients=8, difficulty=0.0)
    x = normalise(torch.from_numpy(cells.images.planes(slice(0, 24))), net.preprocessing)
    labels, optimizer = torch.from_numpy(cells.labels[:24]), torch.optim.Adam(net.parameters(), 2e-3)
    before = F.cross_entropy(net(x), labels).item()
    for _ in range(8 if request.param == "ResNet" else 60):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.9 * before
    net.zero_grad()
    return net.eval(), x[:3]


@pytest.fixture
def model(trained) -> nn.Module:
    net = copy.deepcopy(trained[0])
    net.images = trained[1]
    return net


def images_for(model: nn.Module, n: int = 3) -> torch.Tensor:
    drawn = torch.randn(n, 3, *model.preprocessing.image_size, generator=torch.Generator().manual_seed(1))
    return getattr(model, "images", drawn)


def places(model: nn.Module):
    """How pytorch-grad-cam is told of tokens."""
    rows, columns = (side // 16 for side in model.preprocessing.image_size)
    if "resnet" in model.architecture["name"]:
        return None
    if "swin" in model.architecture["name"]:
        return lambda tokens: tokens.permute(0, 3, 1, 2)
    return lambda tokens: tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize("name", CAMS)
def test_the_maps_are_those_of_pytorch_grad_cam(name, model):
    peer = pytest.importorskip("pytorch_grad_cam")
    x, compared = images_for(model), 0
    layer = model.get_submodule(default_layer(model))
    for label in range(4):
        maps = CAMS[name](model, x, label).numpy()
        assert maps.shape == (3, *model.preprocessing.image_size)
        asked = [peer.utils.model_targets.ClassifierOutputTarget(label)] * len(x)
        with getattr(peer, THEIRS[name])(model=model, target_layers=[layer], reshape_transform=places(model)) as cam:
            reference = cam(input_tensor=x.clone(), targets=asked)
            if name == "EigenCAM":  # whose sign is left to chance
                flipped = cam.get_cam_image
                cam.get_cam_image = lambda *args, flipped=flipped: -flipped(*args)
                other = cam(input_tensor=x.clone(), targets=asked)
                nearer = np.abs(maps - other).mean((1, 2)) < np.abs(maps - reference).mean((1, 2))
                reference = np.where(nearer[:, None, None], other, reference)
        for ours, theirs in zip(maps, reference, strict=True):
            assert np.abs(ours - theirs).max() < 1e-3
            if theirs.std() > 0.05:  # of a class that nothing speaks for, the map is empty
                assert spearmanr(ours.ravel(), theirs.ravel())[0] > 0.999
                compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", CAMS)
def test_the_model_is_given_back_as_it_was(name, model):
    adapt(model, "head")
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    maps = CAMS[name](model, images_for(model), target=[0, 1, 2])
    assert maps.min() == 0 and maps.max() == 1 and not maps.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_frozen_or_adapted_model_has_maps_too(model):
    x = images_for(model)
    expected = gradcam(model, x)
    model.requires_grad_(False)
    torch.testing.assert_close(gradcam(model, x), expected)
    if "resnet" not in model.architecture["name"]:
        torch.testing.assert_close(gradcam(adapt(model, "lora"), x), expected)


def test_each_image_has_the_class_that_was_asked_for(model):
    x = images_for(model)
    assert torch.equal(gradcam(model, x), gradcam(model, x, target=model(x).argmax(1)))
    mixed = gradcam(model, x, target=[2, 0, 3])
    for i, target in enumerate([2, 0, 3]):
        torch.testing.assert_close(mixed[i], gradcam(model, x, target=target)[i], rtol=0, atol=1e-5)
    assert torch.equal(eigencam(model, x, target=1), eigencam(model, x, target=2))


@pytest.mark.parametrize("layer", ["blocks.2.norm2", "blocks.2", "norm"])
@pytest.mark.parametrize("kind", ["ours", "ViT"])
def test_a_layer_after_which_only_the_class_token_counts_is_refused(kind, layer):
    name, size, options = KINDS[kind]
    net = build(name, 4, weights=None, image_size=size, **options)
    with pytest.raises(ExplanationError, match=r"has no gradient where .* blank\. Take blocks\.2\.norm1"):
        gradcam(net, images_for(net), layer=layer)
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("deit_tiny_distilled_patch16_224", {}, (64, 96)),  # two prefix tokens
        ("vit_small_patch14_reg4_dinov2", {"patch_size": 16}, (64, 96)),  # five
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, (64, 96)),  # none
    ],
)
def test_prefix_tokens_are_left_out_however_many(name, options, size):
    """What is planted in one patch is found there, on a grid that is not square."""
    net = timm.create_model(name, img_size=size, embed_dim=48, depth=2, num_heads=3, num_classes=3, **options).eval()
    maps = gradcam(net, torch.randn(2, 3, *size), target=0)
    assert maps.shape == (2, *size) and (maps.amax((1, 2)) == 1).all()
    activation = on_grid(net, "x", torch.arange(24.0 + net.num_prefix_tokens)[None, :, None], size)
    assert activation[0, 0].tolist() == (torch.arange(24.0).view(4, 6) + net.num_prefix_tokens).tolist()


@pytest.mark.parametrize("layer", ["norm1", "norm2", "mlp", ""])
def test_swins_two_layouts_are_one_map(layer):
    """Rows and columns, or tokens: the same places."""
    name, size, options = KINDS["Swin"]
    net = build(name, 4, weights=None, image_size=size, **options).eval()
    block = default_layer(net).removesuffix(".norm1")
    maps = gradcam(net, images_for(net), layer=f"{block}.{layer}".rstrip("."))
    assert maps.shape == (3, 112, 112) and maps.std() > 0.05


def test_swins_windows_are_no_places():
    name, _, options = KINDS["Swin"]
    net = build(name, 4, weights=None, image_size=224, **options).eval()
    with pytest.raises(ExplanationError, match=r"windows, or something else .* Take layers\.1\.blocks\.1\.norm1"):
        gradcam(net, images_for(net), layer="layers.1.blocks.1.attn")


def test_a_thousand_calls_keep_nothing():
    import gc

    net, x = build("vit_tiny_test", 3, weights=None), torch.randn(1, 3, 32, 32)
    counts = []
    for call in range(1001):
        gradcam(net, x)
        if call in (0, 1000):
            gc.collect()
            counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))
    assert counts[0] == counts[1]


def test_what_cannot_be_is_said(model):
    x = images_for(model)
    for given, words in (
        ({"target": 4}, "numbered from 0 to 3"),
        ({"target": [0, 1]}, "one for each of 3 images"),
        ({"target": 0.5}, "as numbers"),
        ({"target": "monocyte"}, "as numbers"),
        ({"layer": "layr4"}, "has no layer 'layr4'"),
    ):
        with pytest.raises(ExplanationError, match=words):
            gradcam(model, x, **given)
    for images, words in (
        (x[0], "a floating batch"),
        ((x * 50).byte(), "a floating batch"),
        (x[:, :1], r"1 channel\(s\) for a model of 3"),
        (x * 100, "normalised ones stay within about 5"),
        (x * float("nan"), "values up to nan"),
        (x.half(), r"images of torch\.float16: .* Give images\.float\(\)"),
    ):
        with pytest.raises(DataError, match=words):
            gradcam(model, images)
    with pytest.raises(ExplanationError, match="the model is a str"):
        gradcam("resnet18", x)
    with pytest.raises(DataError, match=r"a model of torch\.bfloat16: .* Give model\.float\(\)"):
        gradcam(model.bfloat16(), x)


@pytest.mark.parametrize("kind", ["ours", "ViT", "Swin"])
def test_images_of_another_size_are_refused_or_taken_as_the_model_takes_them(kind):
    name, size, options = KINDS[kind]
    net = build(name, 4, weights=None, image_size=size, **options).eval()
    if kind == "ours":  # its position embedding is resized
        assert gradcam(net, torch.randn(2, 3, 96, 96)).shape == (2, 96, 96)
        return
    with pytest.raises(DataError, match=r"images of 80 x 80 px \(height x width\) for a model of"):
        gradcam(net, torch.randn(2, 3, 80, 80))
