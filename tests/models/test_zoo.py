"""Models by name: ours, timm's and torchvision's behave alike."""

import json
import re

import numpy as np
import pytest
import timm
import torch
import torchsummary
import torchvision
from safetensors.torch import save_file
from torch import nn

from medvitlib.errors import MedvitError, WeightsError
from medvitlib.models.npz import save_npz
from medvitlib.models.vit import VisionTransformer
from medvitlib.models.zoo import build, build_from, count_parameters, head_of, replace_head

# one of each kind of head: ours, timm's plain and nested, torchvision's fc and classifier[-1]
NAMES = ["vit_tiny_test", "transformer_classifier", "test_vit", "test_convnext", "shufflenet_v2_x0_5", "mnasnet0_5"]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_rebuilt_from_its_architecture_as_json(name):
    model = build(name, 3, weights=None).eval()
    again = build_from(json.loads(json.dumps(model.architecture)), seed=1).eval()
    assert again.preprocessing == model.preprocessing and again.weights_info is None
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, model.preprocessing.channels, *model.preprocessing.image_size)
    with torch.no_grad():
        assert model(x).shape == (2, 3)
        assert torch.equal(model(x), again(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_head_can_be_taken_off_and_replaced(name):
    model = build(name, 3, weights=None).eval()
    x = torch.randn(1, model.preprocessing.channels, *model.preprocessing.image_size)
    head = head_of(model)
    with torch.no_grad():
        logits = model(x)
        replace_head(model, nn.Identity())
        features = model(x)
        torch.testing.assert_close(head(features), logits)
        replace_head(model, nn.Linear(head.in_features, 5))
        assert model(x).shape == (1, 5)
    assert model.architecture["num_classes"] == 5 == build_from(model.architecture).eval()(x).shape[1]
    with pytest.raises(MedvitError, match=f"sees {head.in_features}"):
        replace_head(model, nn.Linear(head.in_features + 1, 5))


def test_models_without_one_final_classifier_are_named():
    distilled = timm.create_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(MedvitError, match="2 heads"):
        head_of(distilled)
    with pytest.raises(MedvitError, match="SqueezeNet has no single final classifier"):
        head_of(torchvision.models.squeezenet1_0())


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(MedvitError, match="Nearest: vit_small_patch14_dinov2"):
        build("vit_small_patch14_dino_v2", 2)
    with pytest.raises(MedvitError, match="Nearest: none"):
        build("zzzzzzzzzzzzzzzzzzzzz", 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_small_patch14_dinov2", {"image_size": 230}, "224 or 238"),
        ("resnet18", {"pool": "mean"}, "for this library's Vision Transformers"),
        ("transformer_classifier", {"pool": "mean"}, "for this library's Vision Transformers"),
        ("shufflenet_v2_x0_5", {"in_channels": 1}, "takes 3 channels"),
        ("vit_b_16", {"image_size": 112}, "published image size only"),
        ("resnet50.foo", {}, "no weights 'foo' of resnet50; it has: a1_in1k"),
        ("vit_tiny_test", {"in_channels": 4}, r"3 \(RGB\) or 1 \(grey\)"),
    ],
)
def test_settings_that_a_model_cannot_have_are_refused(name, options, message):
    with pytest.raises(MedvitError, match=message):
        build(name, 2, weights=None, **options)


# model, options, and where they can be seen: a module's path and attribute
OPTIONS = [
    ("vit_tiny_test", {"dropout": 0.2, "drop_path": 0.4}, {"pos_drop.p": 0.2, "blocks.1.drop_path.drop_prob": 0.4}),
    ("vit_scratch", {"patch_size": 32, "dropout": 0.0}, {"patch_embed.patch_size": 32, "pos_drop.p": 0.0}),
    ("transformer_classifier", {"heads": 4, "depth": 3}, {"layers.2.heads": 4}),
    ("test_vit", {"drop_rate": 0.2, "drop_path_rate": 0.3}, {"head_drop.p": 0.2, "blocks.5.drop_path1.drop_prob": 0.3}),
    ("resnet18", {"drop_rate": 0.25}, {"drop_rate": 0.25}),
    ("mnasnet0_5", {"dropout": 0.35}, {"classifier.0.p": 0.35}),
]


@pytest.mark.parametrize(("name", "options", "seen"), OPTIONS, ids=[name for name, *_ in OPTIONS])
def test_options_reach_the_model_and_the_one_rebuilt_from_its_file(name, options, seen):
    model = build(name, 2, weights=None, **options)
    assert model.architecture["options"] == options
    for one in (model, build_from(json.loads(json.dumps(model.architecture)))):
        for path, value in seen.items():
            module, _, attribute = path.rpartition(".")
            assert getattr(one.get_submodule(module), attribute) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("vit_tiny_test", {"dropuot": 0.1}, "vit_tiny_test has no option 'dropuot'. Nearest: dropout"),
        ("vit_b16", {"depth": 6}, "vit_b16 has no option 'depth'. Nearest: drop_path, dropout"),
        ("vit_scratch", {"head": 6}, "vit_scratch has no option 'head'. Nearest: heads"),
        ("test_vit", {"drop_path": 0.1}, "test_vit has no option 'drop_path'. Nearest: drop_path_rate"),
        ("shufflenet_v2_x0_5", {"stage_repeats": [1]}, "Nearest: stages_repeats"),
        ("test_vit", {"drop_rate": "much"}, "test_vit cannot be built with the options {'drop_rate': 'much'}"),
        ("test_vit", {"checkpoint_path": "/etc/passwd"}, "'checkpoint_path' is no option"),
        ("test_vit", {"img_size": 32}, "'img_size' is no option: weights, image_size"),
        ("vit_tiny_test", {"dropout": torch.zeros(1)}, "options are kept as JSON"),
    ],
)
def test_unknown_options_are_answered_with_the_nearest(name, option, message):
    with pytest.raises(MedvitError, match=message):
        build(name, 2, weights=None, **option)


def test_options_and_weights_go_together(tmp_path):
    for name, options in (("vit_tiny_test", {"dropout": 0.5}), ("test_vit", {"drop_rate": 0.5})):
        donor = build(name, 3, weights=None, seed=4).eval()
        save_file(donor.state_dict(), tmp_path / "donor.safetensors")
        model = build(name, 3, weights=tmp_path / "donor.safetensors", quiet=True, **options).eval()
        x = torch.randn(2, 3, *donor.preprocessing.image_size)
        with torch.no_grad():
            assert torch.equal(model(x), donor(x))
            assert not torch.equal(model.train()(x), donor.train()(x))


def test_sizes_channels_and_pools_reach_the_model():
    model = build("vit_tiny_test", 4, weights=None, image_size=(48, 64), in_channels=1, pool="token_mean")
    assert model(torch.zeros(1, 1, 48, 64)).shape == (1, 4)
    assert head_of(model).in_features == 32
    assert (model.preprocessing.image_size, model.preprocessing.mean) == ((48, 64), (0.5,))
    assert build("test_vit", 2, weights=None, image_size=96)(torch.zeros(1, 3, 96, 96)).shape == (1, 2)
    assert build("vit_tiny_test", 2, weights=None, image_size=np.int64(48)).preprocessing.image_size == (48, 48)
    assert build("vit_small_patch14_dinov2", 2, weights=None).preprocessing.image_size == (224, 224)


def test_the_teaching_model_is_grey_unless_told_otherwise():
    grey = build("transformer_classifier", 2, weights=None)
    assert (grey.preprocessing.channels, grey.preprocessing.mean, grey.preprocessing.std) == (1, (0.5,), (0.5,))
    assert grey.preprocessing.image_size == (224, 224) and grey.architecture["in_channels"] == 1
    colour = build(
        "transformer_classifier", 2, weights=None, in_channels=3, image_size=64, patch_size=16, positions=True
    )
    assert colour(torch.zeros(1, 3, 64, 64)).shape == (1, 2) and colour.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_seed_decides_the_parameters_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build("vit_tiny_test", 2, weights=None, seed=1).head.weight
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, build("vit_tiny_test", 2, weights=None, seed=1).head.weight)
    assert not torch.equal(first, build("vit_tiny_test", 2, weights=None, seed=2).head.weight)


def test_one_line_says_where_the_weights_came_from(tmp_path, capsys):
    donor = build("vit_tiny_test", 2, weights=None, seed=3)
    path = save_npz(donor.state_dict(), tmp_path / "donor.npz", heads=2)
    model = build("vit_tiny_test", 2, weights=path, image_size=48)
    line = capsys.readouterr().out
    assert line == model.weights_info.message() + "\n" and line.count("\n") == 1
    assert "donor.npz (argument)" in line and "position embedding 4x4 to 6x6" in line
    assert torch.equal(model.head.weight, donor.head.weight)
    build("vit_tiny_test", 2, weights=path, quiet=True)
    build("vit_tiny_test", 2, weights=None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["transformer_classifier", "test_vit", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("classes", [3, 7])
def test_a_local_file_fills_a_model_of_another_library(tmp_path, name, classes):
    donor = build(name, 3, weights=None, seed=4).eval()
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    model = build(name, classes, weights=tmp_path / "donor.safetensors", quiet=True).eval()
    x = torch.randn(1, donor.preprocessing.channels, *donor.preprocessing.image_size)
    with torch.no_grad():
        assert model(x).shape == (1, classes)
        if classes == 3:
            assert torch.equal(model(x), donor(x))
        else:
            assert model.weights_info.note == "head new, not pretrained"
        for m in (model, donor):
            replace_head(m, nn.Identity())
        assert torch.equal(model(x), donor(x))


@pytest.mark.parametrize("name", ["test_vit", "shufflenet_v2_x0_5", "vit_tiny_test", "transformer_classifier"])
def test_a_file_for_another_model_is_refused_and_its_differences_are_listed(tmp_path, name):
    other = timm.create_model("test_resnet", num_classes=3)
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"(?s)conv1.*layer1"):
        build(name, 3, weights=tmp_path / "other.safetensors")


def test_googles_file_fills_timms_model_through_our_reader(tmp_path):
    ours = VisionTransformer(160, 16, num_classes=3, dim=64, depth=6, heads=2, mlp_ratio=3.0)
    theirs = timm.create_model("test_vit", num_classes=3)
    if ours.state_dict().keys() != theirs.state_dict().keys():
        pytest.fail("timm's test_vit is no plain Vision Transformer any more: choose another")
    path = save_npz(theirs.state_dict(), tmp_path / "google.npz", heads=theirs.blocks[0].attn.num_heads)
    model = build("test_vit", 3, weights=path, quiet=True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in theirs.state_dict().items())


def summarised(model, channels: int, capsys) -> int:
    """The total that torchsummary prints."""
    torchsummary.summary(model, (channels, 224, 224), device="cpu")
    return int(re.search(r"Total params: ([\d,]+)", capsys.readouterr().out)[1].replace(",", ""))


def test_every_parameter_is_counted_where_torchsummary_misses_class_token_and_positions(capsys):
    ours = VisionTransformer(224, 16, num_classes=1000, dim=192, depth=12, heads=3)
    theirs = timm.create_model("vit_tiny_patch16_224")
    assert summarised(ours, 3, capsys) == summarised(theirs, 3, capsys) == 5_679_400
    assert count_parameters(ours) == count_parameters(theirs) == 5_717_416 == 5_679_400 + (1 + 1 + 196) * 192
    ours.requires_grad_(False).head.requires_grad_(True)
    assert count_parameters(ours, trainable=True) == 192 * 1000 + 1000
    assert count_parameters(ours) == 5_717_416


def test_the_teaching_model_has_a_hundred_thousand_parameters(capsys):
    model = build("transformer_classifier", 2, weights=None)
    assert count_parameters(model) == summarised(model, 1, capsys) == 99_010


@pytest.mark.pretrained
def test_the_pretrained_model_is_found_without_arguments(pretrained_weights, monkeypatch, capsys):
    monkeypatch.setenv("MEDVIT_CACHE", str(pretrained_weights.parent))
    model = build("vit_small_patch14_dinov2", 2)
    line = capsys.readouterr().out
    assert "vit_small_patch14_dinov2.safetensors" in line and "fine-tuned it is unknown" in line
    from_npz = build("vit_small_patch14_dinov2", 2, weights="vit_small_patch14_dinov2.npz", quiet=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(from_npz.state_dict()[name], value, rtol=0, atol=1e-6)
    assert from_npz.preprocessing == model.preprocessing
