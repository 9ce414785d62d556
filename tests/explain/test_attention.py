"""The attention that is read is the softmax that the weights give, and the model does not notice."""

import gc

import pytest
import timm
import torch
from torch import nn

from medvitlib.errors import DataError, ExplanationError, MedvitError
from medvitlib.explain import attention_maps
from medvitlib.models.zoo import build

ALL = ["ours", "vit", "distilled", "registers", "mean", "named", "swin", "swinv2"]
PREFIX = {"ours": 1, "vit": 1, "distilled": 2, "registers": 5, "mean": 0, "named": 0}


def inputs_of(model: nn.Module, path: str, images: torch.Tensor) -> torch.Tensor:
    """What a module inside the model is given."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    return seen[0]


def queries_and_keys(attention: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, H, T, K) each, in float64 from the weights, for tokens (B, T, D)."""
    d = x.shape[-1]
    bias = attention.qkv.bias
    if bias is None:  # SwinV2 keeps them apart
        bias = torch.cat([attention.q_bias, attention.k_bias])
    parts = []
    for part in range(2):
        rows = slice(part * d, (part + 1) * d)
        y = x.double() @ attention.qkv.weight[rows].double().T + bias[rows].double()
        parts.append(y.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
    return parts[0], parts[1]


def softmax(scores: torch.Tensor) -> torch.Tensor:
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", ALL)
def test_rows_sum_to_one_and_are_not_even(make, images, name):
    maps = attention_maps(make(name), images)
    assert len(maps.layers) == (4 if "swin" in name else 2)
    for layer in maps.layers:
        assert layer.weights.dtype == torch.float32 and not layer.weights.requires_grad
        assert (layer.weights.sum(-1) - 1).abs().max() < 1e-6
        assert layer.weights.min() >= 0 and layer.weights.max() > 3 / layer.weights.shape[-1]


@pytest.mark.parametrize("name", ["ours", "vit", "distilled", "registers", "mean"])
def test_maps_equal_a_softmax_computed_from_the_weights(make, images, name):
    model = make(name)
    maps = attention_maps(model, images)
    assert maps.grid == (4, 6) and maps.class_token == (name != "mean") and not maps.windowed
    for i, layer in enumerate(maps.layers):
        assert layer.name == f"blocks.{i}"
        q, k = queries_and_keys(model.blocks[i].attn, inputs_of(model, f"blocks.{i}.attn", images))
        expected = softmax(q @ k.mT / q.shape[-1] ** 0.5)
        assert layer.full().shape == (3, model.blocks[i].attn.num_heads, *[PREFIX[name] + 24] * 2)
        assert (layer.full() - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_maps_of_windows_equal_a_masked_softmax_over_the_whole_image(make, images, name):
    """No window is cut here: two patches see each other if they share a window and neither alone was wrapped round."""
    model = make(name)
    maps = attention_maps(model, images)
    assert maps.windowed and not maps.class_token
    shifts = set()
    for layer in maps.layers:
        block = model.get_submodule(layer.name)
        x = inputs_of(model, f"{layer.name}.norm1" if name == "swin" else layer.name, images)
        x = block.norm1(x) if name == "swin" else x
        assert layer.grid == x.shape[1:3]
        (rows, columns), (height, width), (down, right) = layer.grid, block.window_size, block.shift_size
        shifts.add((down, right))
        if rows % height or columns % width:
            continue  # padded: see below
        q, k = queries_and_keys(block.attn, x.flatten(1, 2))
        r, c = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
        row, column = (r - down) % rows, (c - right) % columns  # where the shift puts the patch
        same = (row // height)[:, None] == (row // height)
        same &= (column // width)[:, None] == (column // width)
        same &= ((r < down)[:, None] == (r < down)) & ((c < right)[:, None] == (c < right))
        offsets = (row[:, None] - row + height - 1) * (2 * width - 1) + column[:, None] - column + width - 1
        offsets = offsets.where(same, 0)
        if name == "swin":
            scores = q @ k.mT / q.shape[-1] ** 0.5 + block.attn.relative_position_bias_table[offsets].permute(2, 0, 1)
        else:
            q, k = (part / part.norm(dim=-1, keepdim=True) for part in (q, k))
            table = block.attn.cpb_mlp(block.attn.relative_coords_table).flatten(0, 2)
            bias = 16 * table[offsets].permute(2, 0, 1).sigmoid()
            scores = q @ k.mT * block.attn.logit_scale.clamp(max=4.605170186).exp() + bias
        expected = softmax(scores.masked_fill(~same, -torch.inf))
        assert layer.full().shape == expected.shape
        assert (layer.full() - expected).abs().max() < 1e-6
    assert (2, 2) in shifts and (0, 0) in shifts


def test_what_a_padded_window_gives_to_padding_is_missing_from_its_patches(make, images):
    padded = attention_maps(make("swin"), images).layers[2]
    assert padded.grid == (4, 6) and padded.patches.shape == (2, 16)
    assert sorted(padded.patches.flatten().tolist()) == [-1] * 8 + list(range(24))
    sums = padded.full().sum(-1).unflatten(-1, (4, 6))
    assert (sums[..., :4] - 1).abs().max() < 1e-6 and sums[..., 4:].max() < 0.999


@pytest.mark.parametrize("size", [(64, 32), (40, 72)])
def test_images_of_another_size_have_their_own_grid(make, size):
    grid = size[0] // 8, size[1] // 8
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, dynamic_img_size=True)
    for model in (make("ours"), make("named"), theirs):
        assert attention_maps(model, torch.randn(1, 3, *size)).grid == grid


@pytest.mark.parametrize("name", ALL)
def test_images_of_a_batch_do_not_mix(make, images, name):
    model = make(name)
    together, alone = attention_maps(model, images), attention_maps(model, images[1:2])
    for a, b in zip(together.layers, alone.layers, strict=True):
        assert (a.weights[1] - b.weights[0]).abs().max() < 5e-6  # other sizes, other kernels
        assert (a.weights[0] - b.weights[0]).abs().max() > 1e-3


def state_of(model: nn.Module) -> dict:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "training": [module.training for module in model.modules()],
        "fused": [getattr(module, "fused_attn", None) for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "grad": [(p.requires_grad, p.grad) for p in model.parameters()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_it_was(make, images, name, fails):
    model = make(name)
    if name == "vit":
        model.blocks[1].attn.fused_attn = False  # by the user
        model.blocks[0].attn.qkv.weight.requires_grad_(False)
    last = (
        model.key if name == "named" else [module for module in model.modules() if isinstance(module, nn.LayerNorm)][-1]
    )
    own = last.register_forward_hook(stop) if fails else None  # a hook of the user's stays, too
    run = model if name != "named" else model.forward_intermediates
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    before, random = state_of(model), torch.get_rng_state()
    assert len(set(before["training"])) == 2
    if fails:
        with pytest.raises(Stop):
            attention_maps(model, images)
    else:
        attention_maps(model, images)
    assert state_of(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    if own:
        own.remove()
    fresh = make(name)
    if name == "vit":
        fresh.blocks[1].attn.fused_attn = False
    for one in (model, fresh):
        one.eval()
    run_fresh = fresh if name != "named" else fresh.forward_intermediates
    after, reference = run(images), run_fresh(images)
    torch.testing.assert_close(after, reference, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_nothing_is_left_behind_by_many_calls(make, images, name):
    model = make(name)
    before = state_of(model)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    attention_maps(model, images)
    count = tensors()
    for _ in range(10):
        attention_maps(model, images)
    assert tensors() == count and state_of(model) == before


def test_the_model_runs_once_and_keeps_no_gradient(make, images):
    model, seen = make("vit"), []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    attention_maps(model, images)
    assert seen == [False]


def test_a_models_own_dtype_is_served(make, images):
    model = make("vit")
    exact = attention_maps(model, images).layers[0].weights
    rough = attention_maps(model.bfloat16(), images).layers[0].weights
    assert rough.dtype == torch.float32 and 0 < (rough - exact).abs().max() < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALL)
def test_another_device_gives_the_same_maps(make, images, name):
    here, there = attention_maps(make(name), images), attention_maps(make(name).cuda(), images)
    for a, b in zip(here.layers, there.layers, strict=True):
        assert b.weights.device.type == "cpu"
        torch.testing.assert_close(a.weights, b.weights, atol=1e-2, rtol=0)  # TF32


def test_a_compiled_model_is_read_without_compiling(make, images):
    model = make("vit")
    compiled = torch.compile(model, backend=stop)
    assert torch.equal(
        attention_maps(compiled, images).layers[1].weights, attention_maps(model, images).layers[1].weights
    )


def test_what_the_zoo_builds_can_be_read():
    for name in ("vit_tiny_test", "vit_tiny_patch16_224"):
        model = build(name, 2, weights=None, image_size=32)
        maps = attention_maps(model, torch.zeros(1, 3, 32, 32))
        assert maps.grid == ((4, 4) if name == "vit_tiny_test" else (2, 2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet18", {}, "no attention can be read from ResNet. Can be read: this library's Vision Transformers"),
        ("cait_xxs24_224", {"depth": 1}, "197, 197"),  # its patches attend without the class token
        ("pit_ti_224", {}, "PoolingVisionTransformer mixes"),  # merges patches, with a class token
        ("maxvit_tiny_rw_224", {"depths": (1, 1, 1, 1)}, "MaxxVit mixes"),  # windows of another kind
    ],
)
def test_models_that_attend_otherwise_are_refused(name, options, message):
    with pytest.raises(ExplanationError, match=message):
        attention_maps(timm.create_model(name, **options), torch.zeros(2, 3, 224, 224))


def test_weights_that_do_not_sum_to_one_are_refused(make, images):
    model = make("vit")
    model.blocks[0].attn.attn_drop = nn.Sequential(nn.Identity())
    model.blocks[0].attn.register_forward_pre_hook(lambda module, _: None)
    model.blocks[0].attn.attn_drop.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    with pytest.raises(ExplanationError, match=r"blocks.0 of VisionTransformer .* do not sum to one"):
        attention_maps(model, images)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 32, 48, dtype=torch.uint8), torch.zeros(3, 32, 48)])
def test_images_that_are_no_normalised_batch_are_refused(make, bad):
    with pytest.raises(DataError, match="normalise"):
        attention_maps(make("ours"), bad)


def test_a_size_that_the_model_refuses_is_answered_by_the_model(make):
    with pytest.raises(MedvitError, match="Nearest sizes"):
        attention_maps(make("ours"), torch.zeros(1, 3, 30, 48))
