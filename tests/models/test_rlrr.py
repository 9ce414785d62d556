"""RLRR: the published function and its number of parameters, two ways to start, and exact merging."""

import copy

import pytest
import torch
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import adapters_of, merge_and_unload, unload
from medvitlib.models.rlrr import RLRRLinear, SSFConv2d, SSFLayerNorm
from medvitlib.models.zoo import build, count_parameters, head_of, without_values


@pytest.mark.parametrize(
    ("name", "published"), [("vit_b16", 288_768), ("vit_s16", 144_384), ("vit_base_patch16_224.augreg_in21k", 288_768)]
)
def test_its_parameters_are_as_many_as_published(name, published):
    model = without_values(lambda: build(name, 3, weights=None))
    adapt(model, "rlrr")
    assert count_parameters(model, trainable=True) - count_parameters(head_of(model)) == published


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_computes_the_published_function(bias):
    layer = nn.Linear(6, 4, bias=bias)
    rlrr = RLRRLinear(layer, "paper")
    nn.init.normal_(rlrr.shift)
    x = torch.randn(5, 6)
    weight = layer.weight * rlrr.scale_in * rlrr.scale_out + layer.weight  # as the published code writes it
    expected = x @ weight.T + rlrr.shift + (layer.bias if bias else 0)
    torch.testing.assert_close(rlrr(x), expected, rtol=0, atol=1e-6)


def test_query_key_and_value_have_scales_of_their_own():
    layer = nn.Linear(6, 12)
    fused = RLRRLinear(layer, "paper", parts=3)
    x, rows = torch.randn(5, 6), []
    for part in range(3):
        alone = nn.Linear(6, 4)
        alone.weight, alone.bias = (
            nn.Parameter(p[4 * part : 4 * part + 4].clone()) for p in (layer.weight, layer.bias)
        )
        rlrr = RLRRLinear(alone)
        with torch.no_grad():
            rlrr.scale_in.copy_(fused.scale_in[part : part + 1])
            rlrr.scale_out.copy_(fused.scale_out[4 * part : 4 * part + 4])
        rows.append(rlrr(x))
    torch.testing.assert_close(fused(x), torch.cat(rows, dim=1), rtol=0, atol=1e-6)


def test_norms_and_patches_are_scaled_and_shifted():
    norm, conv = nn.LayerNorm(6), nn.Conv2d(3, 6, 4, stride=4)
    nn.init.normal_(norm.weight)
    ssf_norm, ssf_conv = SSFLayerNorm(norm, "paper"), SSFConv2d(conv, "paper")
    x, image = torch.randn(5, 6), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(ssf_norm(x), norm(x) * ssf_norm.ssf_scale + ssf_norm.ssf_shift, rtol=0, atol=1e-6)
    scale, shift = ssf_conv.ssf_scale[:, None, None], ssf_conv.ssf_shift[:, None, None]
    torch.testing.assert_close(ssf_conv(image), conv(image) * scale + shift, rtol=0, atol=1e-6)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_what_was_learned_is_merged_exactly(kind, init, small, images_for, learned):
    model = small(kind)
    x, plain = images_for(model), model.state_dict().keys()
    before = model(x)
    adapt(model, "rlrr", init=init)
    assert torch.equal(model(x), before) == (init == "identity")
    learned(model)
    apart = model(x)
    assert (apart - before).abs().max() > 1e-3
    merge_and_unload(model)
    assert torch.equal(model(x), apart)  # the same product of the same weight
    assert model.state_dict().keys() == plain


def test_a_layer_without_a_bias_gets_one_and_gives_it_back(small, images_for, learned):
    model = small("ours")
    model.blocks[0].attn.qkv = nn.Linear(16, 48, bias=False)
    names, before = set(model.state_dict()), model(images_for(model))
    learned(adapt(model, "rlrr"))
    other, apart = copy.deepcopy(model), model(images_for(model))
    merge_and_unload(model)
    assert set(model.state_dict()) == names | {"blocks.0.attn.qkv.bias"}
    assert torch.equal(model(images_for(model)), apart)
    unload(other)
    assert set(other.state_dict()) == names
    assert torch.equal(other(images_for(other)), before)


@pytest.mark.parametrize("init", ["identity", "paper"])
def test_a_step_moves_every_scale_and_shift_and_nothing_frozen(kind, init, small, images_for):
    model = adapt(small(kind), "rlrr", init=init)
    before = copy.deepcopy(model.state_dict())
    head = {f"{name}." for name, module in model.named_modules() if module is head_of(model)}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(2):  # where s_out is zero, s_in follows one step later
        optimizer.zero_grad()
        model(images_for(model)).square().sum().backward()
        optimizer.step()
    added = {f"{name}.{part}" for name, adapter in adapters_of(model).items() for part in adapter.added}
    for name, value in model.state_dict().items():
        moves = name in added or name.startswith(tuple(head))
        assert torch.equal(value, before[name]) != moves, name


def test_what_cannot_be_is_said(small):
    with pytest.raises(AdaptationError, match=r"init 'idenity' is unknown\. Did you mean 'identity'"):
        adapt(small("ours"), "rlrr", init="idenity")
    with pytest.raises(AdaptationError, match="has no linear layer but its classifier"):
        adapt(build("resnet18", 2, weights=None), "rlrr")
