"""The ways to train a model, and the adapter of a run: which base accepts it."""

import json
from itertools import pairwise

import pytest
import torch
from torch import nn

from medvitlib.costs import training_memory
from medvitlib.errors import AdaptationError, MedvitError
from medvitlib.models.adapt import METHODS, adapt, trained_share
from medvitlib.models.adapter_file import load_adapter
from medvitlib.models.adapters import adapters_of, merge
from medvitlib.models.saved import load_model, save_model
from medvitlib.models.zoo import build, count_parameters, head_of, replace_head

CLASSES = ["normal", "target", "teardrop"]


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_what_it_says(method, small):
    model = small("ViT")
    total, biases = count_parameters(model), sum(p.numel() for n, p in model.named_parameters() if n.endswith(".bias"))
    adapt(model, method, **({"blocks": 1} if method == "partial" else {}))
    head = count_parameters(head_of(model))
    last = count_parameters(model.blocks[-1]) + count_parameters(model.norm)
    added = sum(getattr(a, name).numel() for a in adapters_of(model).values() for name in a.added)
    own = {"full": total, "head": head, "bitfit": biases + head - model.num_classes, "partial": last + head}
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


def test_the_last_blocks_are_trained_and_nothing_is_kept_of_those_before(images_for):
    depth, labels = 6, torch.tensor([0, 1])

    def step(method: str, **options) -> int:
        sizes = {"image_size": 32, "depth": depth, "dim": 64, "drop_path": 0.0}
        model = adapt(build("vit_scratch", 2, weights=None, **sizes), method, **options)
        return training_memory(model, images_for(model), labels)

    sizes = [step("partial", blocks=blocks) for blocks in range(1, depth + 1)]
    steps = {after - before for before, after in pairwise(sizes)}
    assert len(steps) == 1 and step("head") < sizes[0]  # each block more costs the same: the frozen ones cost nothing
    assert sizes[-1] < step("full")  # the patch embedding and the positions stay frozen


def test_partial_trains_blocks_norm_and_head_by_name(small):
    for kind in ("ours", "ViT", "DeiT"):
        model = adapt(small(kind), "partial", blocks=1)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert {name.partition(".")[0] for name in trained} == {"blocks", "norm", "head"}
        assert {name.split(".")[1] for name in trained if name.startswith("blocks")} == {"1"}


@pytest.mark.parametrize(
    ("name", "size"), [("swin_tiny_patch4_window7_224", 56), ("resnet18", 32), ("transformer_classifier", 64)]
)
def test_partial_is_refused_where_the_last_blocks_are_not_defined(name, size):
    model = build(name, 2, weights=None, image_size=size)
    with pytest.raises(AdaptationError, match="is not a sequence of equal blocks, a norm and a classifier"):
        adapt(model, "partial", blocks=1)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("blocks", "words"),
    [(3, "has 2 blocks"), (0, "a whole number, 1 or more"), (True, "a whole number"), ("1", "a whole number")],
)
def test_partial_takes_a_number_of_blocks_that_there_are(blocks, words, small):
    with pytest.raises(AdaptationError, match=words):
        adapt(small("ours"), "partial", blocks=blocks)


# ---------------------------------------------------------------- the adapter of a run


def saved_as(folder, model, classes=CLASSES):
    folder.mkdir(exist_ok=True)
    save_model(model, folder, {"classes": list(classes), "positive": None})
    return folder


@pytest.mark.parametrize(
    ("method", "kind"),
    [("partial", "ours"), *((m, kind) for m in ("head", "bitfit", "lora", "rlrr") for kind in ("ours", "Swin"))],
)
def test_an_adapter_comes_back_onto_its_base_with_its_head(method, kind, tmp_path, small, images_for, learned):
    options = {"lora": {"rank": 2}, "partial": {"blocks": 1}}.get(method, {})
    model = learned(adapt(small(kind), method, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    logits = model(images_for(model))
    other = load_adapter(small(kind), saved_as(tmp_path / "run", model), CLASSES)
    assert torch.equal(other(images_for(other)), logits)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_after_bitfit_a_base_is_none_any_more_and_that_is_said(saved, small, learned):
    model = learned(adapt(small("ours"), "bitfit"))
    with torch.no_grad():
        model.blocks[0].attn.qkv.bias.add_(0.01)
    refused(model, saved, "with other weights than these.*BitFit")


def test_several_adapters_share_one_base(tmp_path, small, images_for, learned):
    logits = {}
    for seed, (name, method, classes) in enumerate([("a", "lora", 3), ("b", "rlrr", 3), ("c", "lora", 5)]):
        model = small("ours")
        replace_head(model, nn.Linear(16, classes))
        learned(adapt(model, method, seed=seed))
        saved_as(tmp_path / name, model, "vwxyz"[:classes])
        logits[name] = model(images_for(model))
    base = small("ours")
    for name in ("a", "b", "c", "a"):
        load_adapter(base, tmp_path / name)
        assert torch.equal(base(images_for(base)), logits[name])
        if name == "b":
            merge(base)  # and the next one still finds its base
    assert base.architecture["num_classes"] == 3


@pytest.fixture
def saved(tmp_path, small, learned):
    return saved_as(tmp_path / "run", learned(adapt(small("ours"), "lora")))


def refused(model, folder, words, classes=None):
    before, adapters = {n: t.clone() for n, t in model.state_dict().items()}, set(adapters_of(model))
    with pytest.raises(MedvitError, match=words):
        load_adapter(model, folder, classes)
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
    refused(small("ours"), saved, r"trained on classes \['normal', 'target', 'teardrop'\]", ["a", "b", "c"])


@pytest.mark.parametrize(
    ("adaptation", "words"),
    [
        ({"method": "prefix", "seed": 0}, "does not fit its architecture: method 'prefix' is unknown"),
        ({"method": "lora", "seed": 0, "rank": 99}, "does not fit its architecture: rank=99"),
        ({"method": "lora", "seed": 0, "targets": 5}, "does not fit its architecture"),
        ({"method": "rlrr", "seed": 0}, "does not fit its architecture"),
        ({"method": "full", "seed": 0}, "was trained in full and has no adapter"),
        (None, "was trained in full and has no adapter"),
    ],
)
def test_a_run_that_says_other_than_it_holds_is_refused(saved, adaptation, words, small):
    info = json.loads((saved / "model.json").read_text())
    info["weights"]["adaptation"] = adaptation
    (saved / "model.json").write_text(json.dumps(info))
    refused(small("ours"), saved, words)


def test_what_is_no_run_is_refused(saved, tmp_path, small):
    refused(small("ours"), tmp_path / "none", "No finished run at")
    (saved / "model.safetensors").write_bytes(b"cut")
    refused(small("ours"), saved, "has the SHA-256")


TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2}
PAST = {  # timm's models whose attention reads qkv.weight and never calls qkv, and one that calls it
    "beit_base_patch16_224": (32, TINY),
    "eva02_tiny_patch14_224": (28, TINY),
    "swinv2_tiny_window8_256": (64, {"embed_dim": 12, "depths": [2, 2], "num_heads": [1, 2]}),
    "vit_tiny_patch16_224": (32, {**TINY, "qkv_bias": False}),
}


@pytest.mark.parametrize("name", PAST)
@pytest.mark.parametrize("method", ["lora", "rlrr"])
def test_an_adapter_learns_and_merges_though_its_layer_is_read_past(name, method, images_for, tmp_path):
    size, options = PAST[name]
    model = build(name, 3, weights=None, image_size=size, **options)
    with torch.no_grad():  # as after some training
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    adapt(model, method).eval()
    images = images_for(model)
    start = model(images)
    start.square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    qkv = {n: a for n, a in adapters_of(model).items() if n.endswith("qkv")}
    assert qkv
    with torch.no_grad():
        for adapter in qkv.values():
            for added in adapter.added:
                getattr(adapter, added).add_(0.3)
        learned = model(images)
        assert not torch.allclose(learned, start, atol=1e-3)
        save_model(model, tmp_path, {"classes": ["a", "b", "c"], "positive": None})
        merge(model)
        torch.testing.assert_close(model(images), learned, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(load_model(tmp_path)[0](images), learned, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*PAST, "resnet18"])
def test_bitfit_trains_every_bias_by_whatever_name(name):
    size, options = PAST.get(name, (64, {}))
    model = adapt(build(name, 2, weights=None, image_size=size, **options), "bitfit")
    assert all(p.requires_grad for n, p in model.named_parameters() if n.endswith("bias"))


def test_what_the_output_does_not_depend_on_is_not_trained(small):
    model = small("ours")
    model.blocks[0].unused = nn.Linear(16, 16)
    assert not any("unused" in n for n, p in adapt(model, "full").named_parameters() if p.requires_grad)
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(
        AdaptationError, match=r"does not depend on what lora adds to 0\.unused: it would learn nothing"
    ):
        adapt(model, "lora", targets=["unused"])
    assert not adapters_of(model) and before == {n: p.requires_grad for n, p in model.named_parameters()}
