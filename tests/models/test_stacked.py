"""Stacked teaching models say what each says by itself, and get the gradients that each would get."""

import copy

import pytest
import torch

from medvitlib.errors import MedvitError
from medvitlib.models.adapt import adapt
from medvitlib.models.attention_classifier import TransformerClassifier
from medvitlib.models.stacked import Stacked
from medvitlib.models.vit import VisionTransformer


def teaching(heads: int = 2, dropout: float = 0.0, **options) -> TransformerClassifier:
    torch.manual_seed(heads)
    return TransformerClassifier(32, 3, 2, **{"patch_size": 8, "dim": 16, "heads": heads, "dropout": dropout} | options)


@pytest.mark.parametrize("positions", [False, True])
def test_logits_and_gradients_are_those_of_each_alone_dropout_included(positions):
    models = [teaching(heads, rate, positions=positions) for heads in (1, 4, 2, 4) for rate in (0.0, 0.5, 0.1)]
    alone, x = copy.deepcopy(models), torch.randn(5, 3, 32, 48)
    logits = Stacked(models)(x, seed=7)
    assert logits.shape == (5, 12, 2)
    logits.square().sum().backward()
    for number, model in enumerate(alone):
        torch.manual_seed(7)
        own = model(x)
        own.square().sum().backward()
        torch.testing.assert_close(logits[:, number], own, rtol=1e-5, atol=1e-6)
        for (name, parameter), stacked in zip(model.named_parameters(), models[number].parameters(), strict=True):
            torch.testing.assert_close(stacked.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("positions", [False, True])
def test_in_bfloat16_too(positions):
    models = [teaching(heads, 0.5, positions=positions) for heads in (1, 2, 2)]
    x = torch.randn(5, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = Stacked(models)(x, seed=7)
        for number, model in enumerate(models):
            torch.manual_seed(7)
            torch.testing.assert_close(logits[:, number], model(x), rtol=0.02, atol=0.01)


def test_in_evaluation_mode_nothing_is_dropped_and_no_seed_is_needed():
    models = [teaching(1, 0.5), teaching(2)]
    stack, x = Stacked(models).eval(), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(stack(x), torch.stack([model(x) for model in models], dim=1), rtol=1e-5, atol=1e-6)
    with pytest.raises(MedvitError, match="pass seed="):
        stack.train()(x)


def test_weights_that_are_not_finite_stay_with_their_model():
    models = [teaching(1), teaching(2), teaching(2)]
    with torch.no_grad():
        models[1].layers[0].query.weight.fill_(torch.nan)
    logits = Stacked(models)(torch.randn(2, 3, 32, 32))
    logits.sum().backward()
    assert logits[:, 1].isnan().all() and logits[:, [0, 2]].isfinite().all()
    assert all(p.grad.isfinite().all() for model in (models[0], models[2]) for p in model.parameters())


def test_what_cannot_be_stacked_is_said():
    with pytest.raises(MedvitError, match="Model 1 has the shapes"):
        Stacked([teaching(), teaching(patch_size=16)])
    with pytest.raises(MedvitError, match="with adapters"):
        Stacked([adapt(teaching(), "lora", targets=("query", "value"))])
    with pytest.raises(MedvitError, match="kind VisionTransformer cannot be stacked"):
        Stacked([VisionTransformer(32, patch_size=8, num_classes=2, dim=16, depth=1, heads=1)])
    with pytest.raises(MedvitError, match="kind none"):
        Stacked([])
