"""The small weights are zero, as torch's own pruning chooses them, and stay zero where masks hold them."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as reference

from medvitlib.errors import AdaptationError
from medvitlib.models.pruning import (
    Masks,
    count_nonzero,
    cubic,
    prunable,
    prune,
    prune_2_of_4,
    sparsity,
    to_semi_structured,
)
from medvitlib.models.zoo import build, count_parameters


class Adapted(nn.Linear):
    """A layer of another class that keeps its weight where nn.Linear has it."""


@pytest.fixture
def model() -> nn.Module:
    """A convolution, normalisation and two linear layers, one of a subclass; every number differs from zero."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), Adapted(8 * 16, 12), nn.Linear(12, 3)
    return nn.Sequential(*layers)


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in prunable(model).items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int, masks: Masks | None = None) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x, y = torch.randn(8, 3, 4, 4, generator=generator), torch.randint(3, (8,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        if masks:
            masks.hold_gradients()
        optimiser.step()
        if masks:
            masks.hold()


OPTIMISERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.05),
}


def test_weights_of_linear_and_convolution_can_be_pruned_and_a_shared_one_is_named_once(model):
    assert list(prunable(model)) == ["0.weight", "3.weight", "4.weight"]
    assert prunable(model)["3.weight"] is model[3].weight
    model.append(nn.Linear(3, 12, bias=False))
    model[-1].weight = nn.Parameter(model[4].weight.detach().T.clone())
    assert len(prunable(model)) == 4
    model[-1].weight = model[4].weight
    assert len(prunable(model)) == 3
    vit = prunable(build("vit_tiny_test", 3, weights=None))
    assert list(vit)[:2] == ["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"] and len(vit) == 1 + 2 * 4 + 1


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.5, 0.93])
def test_the_same_weights_become_zero_as_with_torchs_pruning(model, amount):
    for scope in ("layer", "global"):
        ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
        layers = [(theirs[i], "weight") for i in (0, 3, 4)]
        if scope == "layer":
            for layer, name in layers:
                reference.l1_unstructured(layer, name, amount)
        else:
            reference.global_unstructured(layers, reference.L1Unstructured, amount=amount)
        for layer, name in layers:
            reference.remove(layer, name)
        prune(ours, amount, scope)
        assert same(state(ours), {name: theirs.state_dict()[name] for name in ours.state_dict()})


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    amount=st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(["layer", "global"]),
)
def test_so_many_are_zero_as_asked_whatever_is_equal_or_zero_already(values, amount, scope):
    layer = nn.Linear(len(values), 1)
    layer.weight.data = torch.tensor([values], dtype=torch.float32)
    before = layer.weight.detach().clone()
    prune(layer, amount, scope)
    zero = layer.weight == 0
    assert zero.sum() == max(round(amount * len(values)), values.count(0))
    assert torch.equal(layer.weight[~zero], before[~zero])
    if zero.any() and not zero.all():
        assert before[zero].abs().max() <= before[~zero].abs().min()
    again = layer.weight.detach().clone()
    prune(layer, amount, scope)
    assert torch.equal(layer.weight, again)


def test_of_equal_weights_the_first_go(model):
    with torch.no_grad():
        for weight in prunable(model).values():
            weight.fill_(-0.5)
    prune(model, 0.25, "global")
    flat = torch.cat([zero.flatten() for zero in zeros(model).values()])
    assert flat.sum() == round(0.25 * len(flat)) and flat[: flat.sum()].all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_frozen_weights_of_any_precision_are_pruned_and_stay_frozen(model, dtype):
    model.to(dtype).requires_grad_(False)
    prune(model, 0.5)
    assert sparsity(model) == 0.5 and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_what_is_counted_is_what_a_saved_file_holds(model, tmp_path):
    names = list(model.state_dict())
    prune(model, 0.3, "global")
    n = 8 * 3 * 9 + 8 * 16 * 12 + 12 * 3
    assert sparsity(model) == round(0.3 * n) / n
    assert count_nonzero(model) == count_parameters(model) - round(0.3 * n) - 8  # BatchNorm's shifts start at zero
    torch.save(model.state_dict(), tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt")
    assert list(saved) == names and sum(int((saved[name] == 0).sum()) for name in prunable(model)) == round(0.3 * n)
    assert sparsity(nn.LayerNorm(3)) == 0


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("amount", [-0.1, 1, 1.5, float("nan")])
def test_an_amount_that_cannot_be_leaves_the_model_as_it_was(model, amount, scope):
    before = state(model)
    with pytest.raises(AdaptationError, match="expected a number from 0 to below 1"):
        prune(model, amount, scope)
    assert same(state(model), before)


def test_what_cannot_be_pruned_is_refused_and_left_as_it_was(model):
    with pytest.raises(AdaptationError, match="Did you mean 'layer'"):
        prune(model, 0.5, "layers")
    with pytest.raises(AdaptationError, match="no layer whose weight"):
        prune(nn.LayerNorm(4), 0.5)
    for value in (float("nan"), float("inf")):
        model[4].weight.data[1, 1] = value
        before = state(model)
        for change in (lambda: prune(model, 0.5), lambda: prune(model, 0.5, "global"), lambda: prune_2_of_4(model)):
            with pytest.raises(AdaptationError, match=r"4\.weight holds NaN or infinity"):
                change()
        assert torch.equal(model[3].weight, before["3.weight"]) and torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_under_masks_and_grow_back_without(model, name):
    optimiser = OPTIMISERS[name](model.parameters())
    train(model, optimiser, 3)  # momentum from before the pruning would move a weight without any gradient
    prune(model, 0.5)
    free, chosen = copy.deepcopy(model), zeros(model)
    free_optimiser = OPTIMISERS[name](free.parameters())
    free_optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    before = state(model)
    train(model, optimiser, 5, Masks(model))
    train(free, free_optimiser, 5)
    assert same(zeros(model), chosen) and sparsity(model) == 0.5
    assert sparsity(free) < 0.01
    for key, zero in chosen.items():
        assert (model.state_dict()[key] != before[key])[~zero].all()


def test_gradients_alone_do_not_hold_what_momentum_moves(model):
    optimiser = OPTIMISERS["sgd"](model.parameters())
    train(model, optimiser, 3)
    prune(model, 0.5)
    masks = Masks(model)
    masks.hold = lambda: None
    train(model, optimiser, 1, masks)
    assert sparsity(model) < 0.01


def test_gradients_of_masked_weights_are_zero_and_the_others_as_they_were(model):
    prune(model, 0.5)
    masks = Masks(model)
    model(torch.randn(2, 3, 4, 4)).square().sum().backward()
    model[4].weight.grad = None
    before = {name: weight.grad.clone() for name, weight in prunable(model).items() if weight.grad is not None}
    masks.hold_gradients()
    for name, gradient in before.items():
        zero, now = prunable(model)[name] == 0, prunable(model)[name].grad
        assert not now[zero].any() and torch.equal(now[~zero], gradient[~zero]) and gradient[zero].any()
    assert model[4].weight.grad is None


def test_a_moving_average_is_held_too_and_layers_without_zeros_cost_nothing(model):
    average = copy.deepcopy(model)
    prune(model, 0.5)
    model[4].weight.data.fill_(1)
    masks = Masks(model)
    assert set(masks.zeros) == {"0.weight", "3.weight"}
    masks.hold(average)
    assert same({k: v for k, v in zeros(average).items() if v.any()}, masks.zeros)


def test_masks_hold_a_merged_weight_as_sparse_as_the_base_was(model):
    prune(model, 0.5)
    masks = Masks(model)
    with torch.no_grad():
        model[3].weight += torch.randn(12, 2) @ torch.randn(2, 128)
    assert sparsity(model) < 0.1
    masks.hold()
    assert sparsity(model) == 0.5


def test_gradual_pruning_follows_the_cubic_and_never_gives_a_zero_back(model):
    assert [cubic(t, 0.8) for t in (-1, 0, 1, 7)] == [0, 0, 0.8, 0.8]
    assert cubic(0.5, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    optimiser = OPTIMISERS["adamw"](model.parameters())
    last = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in prunable(model).items()}
    for epoch in range(1, 6):
        prune(model, cubic(epoch / 4, 0.75))
        train(model, optimiser, 2, Masks(model))
        for name, zero in zeros(model).items():
            assert zero.sum() == round(cubic(epoch / 4, 0.75) * zero.numel()) and (zero | ~last[name]).all()
        last = zeros(model)
    assert sparsity(model) == 0.75


def test_two_of_four_neighbouring_inputs_become_zero_the_smallest():
    model = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 6), nn.Conv2d(4, 4, 1))
    model[0].weight.data = torch.tensor([[1, -4, 3, 2, 5, 5, 5, 5], [0, 0, 0, 7, -1, 2, -3, 4]]).float()
    before = state(model)
    prune_2_of_4(model)
    assert model[0].weight.tolist() == [[0, -4, 3, 0, 0, 0, 5, 5], [0, 0, 0, 7, 0, 0, -3, 4]]
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if name != "0.weight")
    vit = build("vit_tiny_test", 3, weights=None).requires_grad_(False)
    prune_2_of_4(vit)
    for name, weight in prunable(vit).items():
        if not name.startswith("patch_embed"):
            assert (weight.unflatten(1, (-1, 4)).count_nonzero(-1) == 2).all()
    with pytest.raises(AdaptationError, match="no layer"):
        prune_2_of_4(nn.Conv2d(4, 4, 1))


def test_compressed_two_of_four_says_what_it_needs():
    model = build("vit_tiny_test", 3, weights=None)
    prune_2_of_4(model)
    with pytest.raises(AdaptationError, match=r"on cpu in torch.float32; .* compute capability 8.0"):
        to_semi_structured(model)
    assert type(model.head.weight) is nn.Parameter


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="needs an Ampere GPU or newer"
)
def test_compressed_two_of_four_computes_the_same_on_a_gpu():
    model = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64), nn.Linear(64, 3)).cuda().half().eval()
    with pytest.raises(AdaptationError, match="call prune_2_of_4 first"):
        to_semi_structured(model)
    prune_2_of_4(model)
    x = torch.randn(4, 50, 128, device="cuda", dtype=torch.half)
    with torch.no_grad():
        expected = model(x)
        assert to_semi_structured(model) == ["0", "2"]
        torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)
