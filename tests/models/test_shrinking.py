"""A shrunk model is smaller by the formula, computes what its remaining parts computed, and is built again."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.explain import attention_maps, rollout
from medvitlib.models.pruning import Masks, prune, sparsity
from medvitlib.models.shrinking import MLP, shrink
from medvitlib.models.zoo import build, build_from, count_parameters, without_values

SMALL = {"patch_size": 8, "embed_dim": 32, "num_heads": 4, "depth": 2}
SWIN = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
MODELS = {
    "ours": ("vit_scratch", {"patch_size": 8, "dim": 32, "depth": 2, "heads": 4}),
    "vit": ("vit_tiny_patch16_224", SMALL),
    "deit": ("deit_tiny_patch16_224", SMALL),
    "qk_norm": ("vit_tiny_patch16_224", SMALL | {"qk_norm": True, "init_values": 0.1}),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
}


@pytest.fixture
def make(redraw):
    def make(kind: str) -> nn.Module:
        name, options = MODELS[kind]
        return redraw(build(name, 3, weights=None, image_size=(32, 48), **options))

    return make


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def parts(model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """Attention and MLP modules by path."""
    named = dict(model.named_modules())
    attention = {path: module for path, module in named.items() if hasattr(module, "qkv")}
    return attention, {path: module for path, module in named.items() if type(module) in MLP}


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(images)


@pytest.mark.parametrize("kind", MODELS)
def test_heads_and_neurons_that_nothing_reads_are_cut_without_a_trace(make, images, kind):
    model = make(kind)
    attention, mlps = parts(model)
    generator = torch.Generator().manual_seed(2)
    lost = {}
    with torch.no_grad():
        for path, module in attention.items():
            k = module.proj.in_features // module.num_heads
            lost[path] = torch.randperm(module.num_heads, generator=generator)[: module.num_heads // 2]
            for head in lost[path].tolist():
                module.proj.weight[:, head * k : (head + 1) * k] = 0
                for part in range(3):  # weak rows make them the ones to go, and change nothing that is read
                    module.qkv.weight[(part * module.num_heads + head) * k :][:k] *= 0.01
        for path, module in mlps.items():
            lost[path] = torch.randperm(module.fc1.out_features, generator=generator)[: module.fc1.out_features // 4]
            module.fc2.weight[:, lost[path]] = 0
            module.fc1.weight[lost[path]] *= 0.01
    kept = {
        path: module.fc1.weight[[i for i in range(module.fc1.out_features) if i not in lost[path]]]
        for path, module in mlps.items()
    }
    before = logits(model, images)
    assert shrink(model, heads=0.5, neurons=0.25) is model
    assert before.std() > 0.1
    torch.testing.assert_close(logits(model, images), before, rtol=0, atol=1e-5)
    for path, module in mlps.items():
        assert torch.equal(module.fc1.weight, kept[path])


@pytest.mark.parametrize("kind", MODELS)
def test_a_shrunk_model_is_smaller_by_the_formula(make, kind):
    model = make(kind)
    expected = count_parameters(model)
    attention, mlps = parts(model)
    left = {}
    for path, module in attention.items():
        d, h = module.qkv.in_features, module.num_heads
        k, gone = d // h, round(0.5 * h)
        expected -= gone * (3 * k * (d + 1) + k * d)  # q, k, v with their biases; columns of proj
        if kind == "swin":
            expected -= gone * 7 * 7  # each head's bias for the offsets in a window of 4 x 4
        left[path] = h - gone
    for path, module in mlps.items():
        d, m = module.fc1.in_features, module.fc1.out_features
        expected -= round(0.3 * m) * (d + 1 + d)
        left[path] = m - round(0.3 * m)
    shrink(model, heads=0.5, neurons=0.3)
    assert count_parameters(model) == expected
    assert model.architecture["shrunk"] == left
    for path, module in attention.items():
        k = module.proj.in_features // left[path]
        shape = (3 * left[path] * k, module.qkv.in_features)
        assert module.num_heads == left[path] and module.qkv.weight.shape == shape
        assert module.proj.weight.shape == (module.proj.out_features, left[path] * k)


@pytest.mark.parametrize("kind", MODELS)
def test_a_shrunk_model_comes_back_from_its_file(make, images, kind, tmp_path):
    model = shrink(make(kind), heads=0.3, neurons=0.3)
    shrink(model, heads=0.5, neurons=0.1)  # a second time, of what is left
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = build_from(json.loads(json.dumps(model.architecture)), seed=7).eval()
    assert again.architecture == model.architecture
    again.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(again, images), logits(model, images))
    hollow = without_values(lambda: build_from(model.architecture))
    assert {k: v.shape for k, v in hollow.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_architectures_are_not_shared(make):
    model = make("ours")
    first = model.architecture
    twin = build_from(first)
    shrink(model, heads=0.5)
    assert "shrunk" not in first and "shrunk" not in twin.architecture
    assert model.architecture == first | {"shrunk": {"blocks.0.attn": 2, "blocks.1.attn": 2}}
    smaller = build_from(model.architecture)
    shrink(smaller, heads=0.5, neurons=0.5)
    assert model.architecture["shrunk"] == {"blocks.0.attn": 2, "blocks.1.attn": 2}
    expected = {"blocks.0.attn": 1, "blocks.1.attn": 1, "blocks.0.mlp": 64, "blocks.1.mlp": 64}
    assert smaller.architecture["shrunk"] == expected


@pytest.mark.parametrize("kind", MODELS)
def test_at_least_one_is_left(make, images, kind):
    model = shrink(make(kind), heads=0.99, neurons=0.999)
    assert set(model.architecture["shrunk"].values()) == {1}
    assert logits(model, images).isfinite().all()


@pytest.mark.parametrize("kind", ["ours", "swin"])
def test_a_shrunk_model_is_trained_and_what_was_frozen_stays_so(make, images, kind):
    model = make(kind)
    frozen = next(iter(parts(model)[0].values())).qkv
    frozen.requires_grad_(False)
    shrink(model, heads=0.5, neurons=0.5)
    model(images).square().sum().backward()
    assert not frozen.weight.requires_grad and frozen.weight.grad is None
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.is_leaf and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", MODELS)
def test_attention_of_a_shrunk_model_is_read(make, images, kind):
    model = shrink(make(kind), heads=0.5, neurons=0.5)
    maps = attention_maps(model, images)
    assert [layer.full().shape[1] for layer in maps.layers] == [m.num_heads for m in parts(model)[0].values()]
    if kind == "ours":
        with torch.no_grad():
            named, out = model.forward_intermediates(images)
        torch.testing.assert_close(named, logits(model, images), rtol=0, atol=1e-5)
        assert torch.equal(out["blocks.1.attention"], maps.layers[1].full())
        assert rollout(maps).isfinite().all()


def test_a_shrunk_model_is_pruned_and_held(make, images):
    model = shrink(make("ours"), heads=0.25, neurons=0.25)
    prune(model, 0.5)
    masks = Masks(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(2):
        model(images).square().sum().backward()
        masks.hold_gradients()
        optimiser.step()
        masks.hold()
    assert sparsity(model) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("shares", [{"heads": 1}, {"neurons": -0.1}, {"heads": 0.5, "neurons": float("nan")}])
def test_a_share_that_cannot_be_leaves_the_model_as_it_was(make, shares):
    model = make("ours")
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(AdaptationError, match="expected a number from 0 to below 1"):
        shrink(model, **shares)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert "shrunk" not in model.architecture


def refused(model: nn.Module, match: str, **shares: float) -> None:
    """Refused, and not one block of it was cut before."""
    before = {name: value.shape for name, value in model.state_dict().items()}
    with pytest.raises(AdaptationError, match=match):
        shrink(model, **shares or {"heads": 0.5, "neurons": 0.5})
    assert {name: value.shape for name, value in model.state_dict().items()} == before
    assert "shrunk" not in getattr(model, "architecture", {})


def test_models_that_cannot_be_shrunk_are_refused_and_left_as_they_were(make):
    adapted = make("ours")
    adapted.blocks[1].attn.qkv.is_adapter = True
    refused(adapted, "has adapters.*merge them")
    refused(timm.create_model("vit_tiny_patch16_224", img_size=32, **SMALL), "does not say how it was built")
    refused(build("shufflenet_v2_x0_5", 3, weights=None), "has no heads that can be cut out. Can be: this library")
    refused(build("transformer_classifier", 3, weights=None), "has no neurons", neurons=0.5)
    options = SMALL | {"scale_attn_norm": True}
    refused(build("vit_tiny_patch16_224", 3, weights=None, image_size=32, **options), "blocks.0.attn has a norm")
    options = SMALL | {"scale_mlp_norm": True}
    refused(build("vit_tiny_patch16_224", 3, weights=None, image_size=32, **options), "blocks.0.mlp has a norm")
    diverged = make("vit")
    diverged.blocks[1].mlp.fc2.weight.data[0, 0] = float("nan")
    refused(diverged, r"blocks.1.mlp holds NaN")
    other = make("ours")
    other.blocks[1].mlp.fc1 = nn.Identity()  # as a quantised layer, which is no nn.Linear either
    refused(other, "blocks.1.mlp is made of Identity")
    gated = make("vit")
    gated.blocks[0].attn.gate = nn.Linear(32, 32)
    refused(gated, "blocks.0.attn has a gate")
    old = make("vit")
    del old.blocks[0].attn.attn_dim
    refused(old, "update timm")


@pytest.mark.parametrize(
    "shrunk", [{"blocks.9.attn": 1}, {"blocks.0.attn": 5}, {"blocks.0.mlp": 0}, {"blocks.0.norm1": 1}]
)
def test_an_architecture_that_was_shrunk_otherwise_is_refused(make, shrunk):
    architecture = make("ours").architecture | {"shrunk": shrunk}
    with pytest.raises(AdaptationError, match="written for another model"):
        build_from(architecture)
