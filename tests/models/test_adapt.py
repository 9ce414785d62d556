"""The ways to train a model, and an adapter's file: what it holds, and which base it accepts."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medvitlib.errors import AdaptationError
from medvitlib.models.adapt import METHODS, adapt, trained_share
from medvitlib.models.adapter_file import load_adapter, save_adapter
from medvitlib.models.adapters import adapters_of, merge
from medvitlib.models.zoo import build, count_parameters, head_of, replace_head

CLASSES = ["normal", "target", "teardrop"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_says(method, small):
    model = small("ViT")
    total, biases = count_parameters(model), sum(p.numel() for n, p in model.named_parameters() if n.endswith(".bias"))
    adapt(model, method)
    head = count_parameters(head_of(model))
    added = sum(getattr(a, name).numel() for a in adapters_of(model).values() for name in a.added)
    own = {"full": total, "head": head, "bitfit": biases + head - model.num_classes}
    assert count_parameters(model, trainable=True) == own.get(method, head + added)
    assert count_parameters(model) == total + added
    assert f"{count_parameters(model, trainable=True):,} of {total + added:,} parameters" in trained_share(model)
    assert model.adaptation["method"] == method


def test_methods_follow_each_other(small):
    model = small("ours")
    adapt(adapt(model, "head"), "full")
    assert all(p.requires_grad for p in model.parameters())
    adapt(model, "bitfit")
    assert not model.blocks[0].attn.qkv.weight.requires_grad
    assert model.blocks[0].attn.qkv.bias.requires_grad
    with pytest.raises(AdaptationError, match=r"method 'Lora' is unknown\. Did you mean 'lora'"):
        adapt(model, "Lora")
    with pytest.raises(AdaptationError, match="head has no options; 'rank' was given"):
        adapt(model, "head", rank=3)


@pytest.mark.parametrize("method", ["head", "bitfit", "lora", "rlrr"])
@pytest.mark.parametrize("kind", ["ours", "Swin"])
def test_an_adapter_comes_back_onto_its_base_with_its_head(method, kind, tmp_path, redraw, small, images_for, learned):
    model = learned(adapt(small(kind), method, **({"rank": 2} if method == "lora" else {})))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    logits = model(images_for(model))
    save_adapter(model, tmp_path / "a.safetensors", CLASSES)
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * count_parameters(model)
    other = load_adapter(small(kind), tmp_path / "a.safetensors", CLASSES)
    assert torch.equal(other(images_for(other)), logits)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_after_bitfit_a_base_is_none_any_more_and_that_is_said(saved, small, learned):
    model = learned(adapt(small("ours"), "bitfit"))
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias.add_(0.01)
    refused(model, saved, "trained by BitFit.*build the base anew")


def test_several_adapters_share_one_base(tmp_path, small, images_for, learned):
    logits = {}
    for seed, (name, method, classes) in enumerate([("a", "lora", 3), ("b", "rlrr", 3), ("c", "lora", 5)]):
        model = small("ours")
        replace_head(model, torch.nn.Linear(16, classes))
        learned(adapt(model, method, seed=seed))
        save_adapter(model, tmp_path / f"{name}.safetensors", list("vwxyz")[:classes])
        logits[name] = model(images_for(model))
    base = small("ours")
    for name in ("a", "b", "c", "a"):
        load_adapter(base, tmp_path / f"{name}.safetensors")
        assert torch.equal(base(images_for(base)), logits[name])
        if name == "b":
            merge(base)  # and the next one still finds its base
    assert base.architecture["num_classes"] == 3


@pytest.fixture
def saved(tmp_path, small, learned):
    path = tmp_path / "a.safetensors"
    save_adapter(learned(adapt(small("ours"), "lora")), path, CLASSES)
    return path


def rewritten(path, tensors=lambda t: t, about=lambda a: a):
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["medvitlib_adapter"])
    save_file(tensors(load_file(path)), path, metadata={"medvitlib_adapter": json.dumps(about(meta))})
    return path


def refused(model, path, words, classes=None):
    before, adapters = {n: t.clone() for n, t in model.state_dict().items()}, set(adapters_of(model))
    with pytest.raises(AdaptationError, match=words):
        load_adapter(model, path, classes)
    assert set(adapters_of(model)) == adapters
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_another_base_is_refused(saved, small, learned):
    refused(build("vit_tiny_test", 3, weights=None, image_size=32, seed=1), saved, "with other weights than these")
    larger = build("vit_tiny_test", 3, weights=None, image_size=40)
    refused(larger, saved, r"image_size was \[32, 32\], is \[40, 40\]")
    refused(small("ViT"), saved, "name was vit_tiny_test, is vit_tiny_patch16_224")
    refused(
        learned(adapt(build("vit_tiny_test", 3, weights=None, image_size=32, seed=1), "rlrr")), saved, "other weights"
    )


def test_other_classes_are_refused(saved, small):
    refused(small("ours"), saved, r"tells apart \['normal', 'target', 'teardrop'\]; \['a', 'b', 'c'\]", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("tensors", "about", "words"),
    [
        (lambda t: {n: v for n, v in t.items() if "lora_B" not in n}, lambda a: a, "not those of the adapter"),
        (lambda t: {n: v[:1] for n, v in t.items()}, lambda a: a, "not those of the adapter"),
        (lambda t: t, lambda a: a | {"adaptation": {"method": "prefix"}}, "damaged, or no adapter's file"),
        (lambda t: t, lambda a: {}, "damaged, or no adapter's file"),
    ],
)
def test_a_file_that_says_other_than_it_holds_is_refused(saved, tensors, about, words, small):
    refused(small("ours"), rewritten(saved, tensors, about), words)


def test_no_file_and_no_adapters_file(saved, tmp_path, small):
    refused(small("ours"), tmp_path / "b.safetensors", "no file at")
    saved.write_bytes(saved.read_bytes()[:100])
    refused(small("ours"), saved, "damaged, or no adapter's file")
    save_file({"a": torch.zeros(1)}, saved)
    refused(small("ours"), saved, "damaged, or no adapter's file")


def test_what_has_no_adapter_is_not_saved_as_one(tmp_path, small):
    for model in (small("ours"), adapt(small("ours"), "full")):
        with pytest.raises(AdaptationError, match="is for a model that went through `adapt`"):
            save_adapter(model, tmp_path / "a.safetensors", CLASSES)
    assert not list(tmp_path.iterdir())
