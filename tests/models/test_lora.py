"""LoRA: the function it adds, merging, and what is trained, on this library's and timm's models."""

import copy

import pytest
import torch
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import MLP, adapters_of, merge, merge_and_unload, merged, unload, unmerge
from medvitlib.models.lora import LoRALinear
from medvitlib.models.zoo import build, count_parameters, head_of


@pytest.mark.parametrize("separate", [False, True])
def test_an_adapted_model_starts_as_it_was_and_its_merged_weights_are_its_function(
    kind, separate, small, images_for, learned
):
    model = small(kind)
    x = images_for(model)
    before, state = model(x), copy.deepcopy(model.state_dict())
    adapt(model, "lora", rank=2, separate=separate)
    assert torch.equal(model(x), before)
    learned(model)
    apart = model(x)
    assert (apart - before).abs().max() > 1e-3  # else nothing below says anything
    merge(model)
    together = model(x)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    unmerge(model)
    assert torch.equal(model(x), apart)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items() if name in state)
    merge_and_unload(model)
    assert torch.equal(model(x), together)
    assert model.state_dict().keys() == state.keys()
    assert not adapters_of(model)


def test_merged_in_double_precision_is_the_same_to_a_millionth(small, images_for, learned):
    model = learned(adapt(small("ours").double(), "lora"))
    x = images_for(model).double()
    apart = model(x)
    with merged(model):
        torch.testing.assert_close(model(x), apart, rtol=0, atol=1e-12)
    assert torch.equal(model(x), apart)


def test_the_addition_is_the_published_one():
    layer = nn.Linear(6, 4)
    lora = LoRALinear(layer, rank=2, alpha=3.0)
    nn.init.normal_(lora.lora_B)
    x = torch.randn(5, 7, 6)
    expected = layer(x) + 3.0 / 2 * x @ lora.lora_A.T @ lora.lora_B.T
    torch.testing.assert_close(lora(x), expected, rtol=0, atol=1e-6)


def test_separate_adapters_of_query_key_and_value_do_not_see_each_other():
    layer = nn.Linear(4, 12)
    lora = LoRALinear(layer, rank=2, alpha=2.0, parts=3)
    with torch.no_grad():
        lora.lora_B[4:8].normal_()  # the key's
    x = torch.randn(3, 4)
    expected = layer(x).clone()
    expected[:, 4:8] += x @ lora.lora_A[2:4].T @ lora.lora_B[4:8].T
    torch.testing.assert_close(lora(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ViT", "Swin"])
def test_it_is_pefts_lora(kind, small, images_for, learned):
    """The same weights, the same A and B: the same logits, and the same gradients of A and B."""
    peft = pytest.importorskip("peft")
    model = small(kind)
    theirs = copy.deepcopy(model)
    learned(adapt(model, "lora", rank=4, alpha=7))
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=r".*attn\.(qkv|proj)")
    theirs = peft.get_peft_model(theirs, config).eval()
    pairs = []
    for name, adapter in adapters_of(model).items():
        other = theirs.base_model.model.get_submodule(name)
        for mine, matrix in ((adapter.lora_A, other.lora_A), (adapter.lora_B, other.lora_B)):
            matrix["default"].weight.data.copy_(mine.data)
            pairs.append((mine, matrix["default"].weight))
    x = images_for(model)
    torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=1e-6)
    model(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_adapters_and_the_head_alone(kind, small, images_for, learned):
    model = learned(adapt(small(kind), "lora", rank=2))
    model(images_for(model)).square().sum().backward()
    head = {id(p) for p in head_of(model).parameters()}
    for name, parameter in model.named_parameters():
        expected = "lora_" in name or id(parameter) in head
        assert (parameter.grad is not None) == expected, name
        assert not expected or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({}, 4 * (16 + 48) + 4 * (16 + 16)),  # r (in + out) of qkv and proj
        ({"separate": True}, 4 * (3 * 16 + 48) + 4 * (16 + 16)),
        ({"targets": MLP}, 4 * (16 + 64) + 4 * (64 + 16)),
        ({"targets": ("blocks.1.attn.proj",)}, 4 * (16 + 16) / 2),
    ],
)
def test_trained_parameters_by_formula(options, numbers, small):
    model = adapt(small("ours"), "lora", rank=4, **options)
    assert count_parameters(model, trainable=True) == 2 * numbers + count_parameters(head_of(model))


def test_a_target_is_a_whole_name(small):
    """The published "fc" unfreezes every fc1 and fc2; here it is asked what was meant."""
    model = build("resnet18", 2, weights=None)
    with pytest.raises(AdaptationError, match="has no linear layer but its classifier"):
        adapt(model, "lora")
    model = small("ViT")
    with pytest.raises(AdaptationError, match=r"target 'fc' is unknown\. Did you mean '(mlp\.)?fc\d'\?"):
        adapt(model, "lora", targets=["fc"])
    assert not adapters_of(model)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ["head"]}, "the classifier 'head', which is trained in any case"),
        ({"targets": ["norm1"]}, "is a LayerNorm: expected the name of plain linear layers"),
        ({"targets": "qkv"}, "expected a list of names"),
        ({"targets": []}, "expected a list of names"),
        ({"rank": 17}, "rank=17 is above 16, the full rank of blocks.0.attn.qkv"),
        ({"rank": 0}, "rank=0: expected a whole number"),
        ({"rank": 2.0}, "rank=2.0: expected a whole number"),
        ({"alpha": 0}, "alpha=0: the addition would never do anything"),
        ({"alpha": "16"}, "alpha='16': expected a number from 0"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number from 0 to below 1"),
        ({"dropout": "0.1"}, "dropout='0.1': expected a number"),
        ({"rnak": 4}, "lora's option 'rnak' is unknown. Did you mean 'rank'"),
    ],
)
def test_what_cannot_be_is_said_and_leaves_the_model_as_it_was(options, words, small):
    model = small("ours")
    with pytest.raises(AdaptationError, match=words):
        adapt(model, "lora", **options)
    assert not adapters_of(model)
    assert all(p.requires_grad for p in model.parameters())


def test_merging_twice_or_nothing_is_refused_and_changes_nothing(small, images_for, learned):
    model = small("ours")
    with pytest.raises(AdaptationError, match="has no adapters to merge"):
        merge(model)
    learned(adapt(model, "lora"))
    merge(model)
    once = model(images_for(model))
    with pytest.raises(AdaptationError, match=r"merged already: unmerge the model first"):
        merge(model)
    assert torch.equal(model(images_for(model)), once)
    unmerge(model)
    apart = model(images_for(model))
    unmerge(model)  # nothing is left to take out
    assert torch.equal(model(images_for(model)), apart)
    with pytest.raises(AdaptationError, match=r"adapted already .*'lora'"):
        adapt(model, "rlrr")


def test_a_state_is_the_same_merged_or_not_and_is_never_counted_twice(small, images_for, learned):
    model = learned(adapt(small("ours"), "lora"))
    state = copy.deepcopy(model.state_dict())
    logits = model(images_for(model))
    with merged(model):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.state_dict().keys() == state.keys()
    merge(model)
    model.load_state_dict(state)
    assert torch.equal(model(images_for(model)), logits)


def test_zeros_of_a_pruned_weight_outlive_a_merge_where_that_is_asked(small, learned):
    model = small("ours")
    weight = model.blocks[0].attn.qkv.weight
    with torch.no_grad():
        weight[:, ::2] = 0
    learned(adapt(model, "lora"))
    with merged(model):
        assert (weight[:, ::2] != 0).all()
    with merged(model, keep_zeros=True):
        assert (weight[:, ::2] == 0).all()
        assert (weight[:, 1::2] != 0).all()


def test_unloading_gives_the_base_back(small, images_for, learned):
    model = small("ours")
    before = model(images_for(model))
    unload(learned(adapt(model, "lora")))
    assert torch.equal(model(images_for(model)), before)
    assert all(p.requires_grad for p in model.parameters())
    adapt(model, "lora", rank=3)  # and another may take the place


def test_dropout_is_for_training_and_a_copy_has_its_own_numbers(small, images_for, learned):
    model = learned(adapt(small("ours"), "lora", dropout=0.5))
    x = images_for(model)
    assert torch.equal(model(x), model(x))
    other = copy.deepcopy(model)
    model.train()
    assert not torch.equal(model(x), model(x))
    merge(other)
    unmerge(other)
    assert torch.equal(other(x), model.eval()(x))
