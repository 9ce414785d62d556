"""The Vision Transformer computes what timm's computes, for parameters that leave no mistake hidden."""

import numpy as np
import pytest
import timm
import timm.optim
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medvitlib.errors import MedvitError
from medvitlib.models.named import MODELS, vit_scratch
from medvitlib.models.primitives import MOST_WRITTEN_OUT, Dropout, attention
from medvitlib.models.vit import VisionTransformer, resize_position
from medvitlib.models.zoo import count_parameters

# image (h, w), patch, dim, depth, heads, mlp_ratio, classes
SIZES = [
    ((32, 32), 8, 16, 2, 2, 4.0, 3),
    ((48, 96), 16, 48, 3, 3, 2.0, 2),
    ((70, 28), 14, 64, 5, 4, 4.0, 7),
    ((112, 112), 16, 192, 12, 3, 4.0, 10),
]


@pytest.fixture
def pair_of(redraw):
    """Ours and timm's of the same sizes, with the same weights."""

    def build(image, patch, dim, depth, heads, mlp_ratio, classes, pool="token") -> tuple[VisionTransformer, TimmViT]:
        ours = VisionTransformer(
            image, patch, num_classes=classes, dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, pool=pool
        )
        pooling = {"global_pool": "avg", "fc_norm": False} if pool == "mean" else {}
        theirs = TimmViT(
            image, patch, 3, classes, embed_dim=dim, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio, **pooling
        )
        theirs.load_state_dict(redraw(ours).state_dict(), strict=True)
        return ours, theirs.eval()

    return build


def images(height: int, width: int, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokens", [1, 65, MOST_WRITTEN_OUT, MOST_WRITTEN_OUT + 1])
def test_attention_in_bfloat16_is_attention(tokens):
    """Written out or fused, its values and gradients are those of float64, to bfloat16's three digits."""
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, tokens, 16, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    weights = torch.randn(2, 3, tokens, 16, dtype=torch.float64)
    (torch.nn.functional.scaled_dot_product_attention(*exact) * weights).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = attention(*rounded)
    assert y.dtype == torch.bfloat16
    (y * weights.bfloat16()).sum().backward()
    for x, reference in zip(rounded, exact, strict=True):
        assert (x.grad - reference.grad).norm() <= 0.02 * reference.grad.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_is_dropout(p, dtype):
    """Each number is kept with probability 1 - p, alone, and divided by it; so is its gradient; a seed repeats it."""
    x = torch.ones(50, 41, 101, dtype=dtype, requires_grad=True)
    y, again = (Dropout(p)(x) for _ in range(2) if torch.manual_seed(3))
    assert torch.equal(y, again)
    kept = (y != 0).double()
    torch.testing.assert_close(y.max(), torch.tensor(1 / (1 - p), dtype=dtype))
    n = kept.numel()
    assert abs(kept.mean() - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    for step in (1, 2, 3, 101):  # neighbours, those of one draw of 64 bits, and those of other rows are independent
        pairs = kept.flatten()[:-step] * kept.flatten()[step:]
        assert abs(pairs.mean() - (1 - p) ** 2) < 5 * 2 * (p * (1 - p) / n) ** 0.5
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(Dropout(p).eval()(x), x)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_logits_equal_timms(pair_of, size):
    ours, theirs = pair_of(*size)
    x = images(*size[0])
    with torch.no_grad():
        logits, reference = ours(x), theirs(x)
    assert logits.abs().max() > 0.3  # or equality would mean little
    assert (logits - reference).abs().max() < 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_swapped_query_and_key_are_noticed(pair_of, size):
    ours, theirs = pair_of(*size)
    state = ours.state_dict()
    for i in range(size[3]):
        for kind in ("weight", "bias"):
            q, k, v = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([k, q, v])
    ours.load_state_dict(state)
    x = images(*size[0])
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() > 1e-3  # a hundred times the tolerance


def test_mean_pool_equals_timms(pair_of):
    ours, theirs = pair_of(*SIZES[1], pool="mean")
    x = images(*SIZES[1][0])
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() < 1e-5


def test_token_mean_pool_sees_class_token_and_mean_patch(redraw):
    ours = redraw(VisionTransformer(32, 8, dim=16, depth=2, heads=2, pool="token_mean", num_classes=3))
    tokens = ours.forward_features(images(32, 32))
    features = ours.forward_head(tokens, pre_logits=True)
    assert ours.head.in_features == 32
    torch.testing.assert_close(features[:, :16], tokens[:, 0])
    torch.testing.assert_close(features[:, 16:], tokens[:, 1:].mean(1))
    torch.testing.assert_close(ours(images(32, 32)), ours.head(features))


def test_images_of_another_size_equal_timms_dynamic_size(pair_of):
    ours, _ = pair_of(*SIZES[0])
    theirs = TimmViT(32, 8, 3, 3, embed_dim=16, depth=2, num_heads=2, dynamic_img_size=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x = images(64, 40)
    with torch.no_grad():
        assert (ours(x) - theirs(x)).abs().max() < 1e-5


def test_intermediates_are_those_of_the_forward_pass(pair_of):
    ours, theirs = pair_of(*SIZES[2])
    x = images(*SIZES[2][0])
    seen = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokens = theirs.forward_features(x)
    logits, out = ours.forward_intermediates(x)
    torch.testing.assert_close(logits, ours(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(out["norm"], tokens, atol=1e-5, rtol=0)
    assert len(seen) == 5
    for i, weights in enumerate(seen):
        torch.testing.assert_close(out[f"blocks.{i}.attention"], weights, atol=1e-6, rtol=0)
        assert out[f"blocks.{i}"].shape == (2, 11, 64)
    gradient = torch.autograd.grad(logits[0, 0], out["blocks.0.attention"])[0]
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0


def test_drop_path_draws_once_a_sample_and_is_off_in_evaluation(redraw):
    model = VisionTransformer(32, 8, dim=16, depth=5, heads=2, drop_path=0.5)
    np.testing.assert_allclose([block.drop_path.drop_prob for block in model.blocks], [0, 0.125, 0.25, 0.375, 0.5])
    drop = model.blocks[-1].drop_path
    torch.manual_seed(0)
    out = drop(torch.ones(2000, 3, 4))
    assert set(out.unique().tolist()) == {0.0, 2.0}  # dropped, or scaled by 1 / keep
    assert (out == out[:, :1, :1]).all()  # a whole sample shares its draw
    assert abs(out.mean() - 1) < 0.1
    redraw(model)
    torch.testing.assert_close(model(images(32, 32)), model(images(32, 32)), rtol=0, atol=0)


def test_dropout_acts_in_training_only(redraw):
    model = redraw(VisionTransformer(32, 8, dim=16, depth=2, heads=2, dropout=0.5))
    x = images(32, 32)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


@given(st.tuples(*[st.integers(2, 9)] * 4))  # one patch wide, torch's channels-last kernel that timm meets is wrong
@settings(max_examples=30, deadline=None)
def test_resized_position_equals_timms(sides):
    old, new = sides[:2], sides[2:]
    position = torch.randn(1, 1 + old[0] * old[1], 4, generator=torch.Generator().manual_seed(0))
    ours = resize_position(position, old, new)
    assert torch.equal(ours[:, :1], position[:, :1])
    if old != new and old[0] * old[1] != new[0] * new[1]:
        theirs = resample_abs_pos_embed(position, list(new), list(old), num_prefix_tokens=1)
        torch.testing.assert_close(ours, theirs)


def test_position_is_resized_by_grids_not_by_counts():
    rows = torch.arange(14.0).repeat_interleave(14)  # constant along each row
    position = torch.cat([torch.zeros(1), rows]).reshape(1, -1, 1)
    resized = resize_position(position, (14, 14), (7, 28))[0, 1:, 0].reshape(7, 28)
    assert (resized - resized[:, :1]).abs().max() < 1e-5
    assert (resized[1:, 0] - resized[:-1, 0]).min() > 1.5
    assert resize_position(position, (14, 14), (14, 14)) is position


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"image_size": 230}, "Nearest sizes that are: 224 or 238"),
        ({"image_size": (224, 7)}, "224 x 7"),
        ({"heads": 5}, "5 heads"),
        ({"pool": "max"}, "token, mean, token_mean"),
        ({"dropout": 1.0}, "dropout is a probability from 0 to below 1; 1.0"),
        ({"drop_path": -0.1}, "drop_path is a probability"),
    ],
)
def test_impossible_settings_are_answered_with_what_is_possible(settings_, message):
    with pytest.raises(MedvitError, match=message):
        VisionTransformer(**{"image_size": 224, "patch_size": 14, "dim": 16, "depth": 1, "heads": 2, **settings_})


def test_the_scratch_model_is_the_one_described():
    model = vit_scratch()
    assert count_parameters(model) == 4_987_138
    assert model.pos_embed.shape == (1, 1 + 14 * 14, 256) and model.cls_token.shape == (1, 1, 256)
    block = model.blocks[-1]
    assert (len(model.blocks), block.attn.num_heads, block.mlp.fc1.out_features) == (6, 8, 1024)
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.1}
    rates = [block.drop_path.drop_prob for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.01, 0.02, 0.03, 0.04, 0.05], atol=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_every_named_model_takes_sizes_channels_classes_and_options(name):
    with torch.device("meta"):  # the larger ones would take a second to draw
        model = MODELS[name](112, 1, 5, dropout=0.2, drop_path=0.3, pool="mean")
        assert model(torch.zeros(2, 1, 112, 112)).shape == (2, 5)
    assert (model.pos_drop.p, model.blocks[-1].drop_path.drop_prob, model.pool) == (0.2, pytest.approx(0.3), "mean")
    assert len(model.pos_embed[0]) == 1 + (112 // model.patch_embed.patch_size) ** 2


@pytest.mark.parametrize(
    ("name", "timms"),
    [
        ("vit_s16", "vit_small_patch16_224"),
        ("vit_b16", "vit_base_patch16_224"),
        ("vit_small_patch16_224", "vit_small_patch16_224"),
        ("vit_base_patch16_224", "vit_base_patch16_224"),
    ],
)
def test_published_sizes_are_timms(name, timms):
    with torch.device("meta"):
        ours, theirs = MODELS[name](num_classes=1000), timm.create_model(timms)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert ours.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads


def test_the_scratch_models_sizes_can_be_chosen():
    model = vit_scratch(64, patch_size=8, dim=32, depth=3, heads=4, mlp_ratio=2.0, dropout=0.0)
    assert (model.pos_embed.shape, len(model.blocks)) == ((1, 65, 32), 3)
    assert (model.blocks[0].attn.num_heads, model.blocks[0].mlp.fc1.out_features) == (4, 64)


def test_layers_for_decay_are_timms_and_positions_are_spared(pair_of):
    ours, theirs = pair_of(*SIZES[2])
    layers = timm.models.group_parameters(ours, ours.group_matcher(), reverse=True)
    assert layers == timm.models.group_parameters(theirs, theirs.group_matcher(), reverse=True)
    chosen = ("pos_embed", "blocks.0.norm1.bias", "blocks.4.norm1.bias", "norm.bias", "head.bias")
    assert [layers[name] for name in chosen] == [0, 1, 5, 5, 6]
    names = dict(ours.named_parameters()).keys()
    assert ours.no_weight_decay() == theirs.no_weight_decay() & names
    groups, reference = (
        timm.optim.param_groups_layer_decay(m, 0.05, m.no_weight_decay(), layer_decay=0.7) for m in (ours, theirs)
    )
    described = [[(g["lr_scale"], g["weight_decay"], len(g["params"])) for g in gs] for gs in (groups, reference)]
    assert described[0] == described[1] and len(groups) > 7


class Operations(TorchDispatchMode):
    """Counts what is computed inside, forward and backward."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dropout", "drop_path"), [(0.0, 0.0), (0.1, 0.05)])
def test_a_training_step_computes_and_keeps_no_more_than_timms(dropout, drop_path):
    rates = {"pos_drop_rate": dropout, "proj_drop_rate": dropout, "drop_path_rate": drop_path}
    ours = vit_scratch(64, dim=32, heads=4, dropout=dropout, drop_path=drop_path)
    theirs = TimmViT(64, 16, num_classes=2, embed_dim=32, depth=6, num_heads=4, **rates)
    costs = []
    for model in (ours, theirs):
        kept = {}  # bytes for the backward pass, a storage counted once

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Operations() as operations:
            model.train()(images(64, 64)).sum().backward()
        costs.append((operations.count, sum(kept.values())))
    if not dropout:  # whose noise takes more and shorter operations here than PyTorch's
        assert costs[0][0] <= costs[1][0], costs
    assert costs[0][1] <= costs[1][1], costs
