"""Adapted and pruned models in `fit`: what is trained, what stays zero, and that what was validated is saved."""

import json
import signal

import numpy as np
import pytest
import torch

from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.evaluate import evaluate
from medvitlib.models.adapt import METHODS, adapt
from medvitlib.models.adapter_file import load_adapter
from medvitlib.models.adapters import adapters_of, merge
from medvitlib.models.pruning import sparsity
from medvitlib.models.zoo import build, count_parameters
from medvitlib.training import loop
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit

CPU = {"device": "cpu", "precision": None, "quiet": True}
QUICK = {"epochs": 3, "batch_size": 16, "lr": 1e-2}


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/cxr", image_size=32, n_patients=40, difficulty=0.0))


def model(method: str | None = None, **options):
    net = build("vit_tiny_test", 2, weights=None)
    return net if method is None else adapt(net, method, **options)


@pytest.mark.parametrize("method", METHODS)
def test_the_run_s_model_is_a_plain_one_and_the_one_that_was_validated(method, parts):
    trained = model(method)
    run = fit(trained, parts, TrainConfig(**QUICK), name=method, **CPU)
    assert run.model.state_dict().keys() == model().state_dict().keys()
    assert all(torch.equal(tensor, run.model.state_dict()[name]) for name, tensor in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in run.model.parameters())
    logits = forward(run.model, parts.val, device="cpu", precision=None, batch_size=16)
    np.testing.assert_allclose(run.validation_logits, logits, rtol=0, atol=1e-6)
    saved = json.loads((run.folder / "config.json").read_text())
    assert saved["adaptation"]["method"] == method
    fresh = model(method)
    assert saved["parameters"] == {
        "total": count_parameters(fresh),
        "trained": count_parameters(fresh, trainable=True),
    }
    assert evaluate(run, parts.test, n_boot=100, device="cpu", precision=None).metrics["auroc"].value >= 0


@pytest.mark.parametrize("method", ["lora", "rlrr"])
def test_the_adapter_of_a_run_gives_the_same_model_on_its_base(method, parts):
    net = model(method)
    before = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    run = fit(net, parts, TrainConfig(**QUICK, ema=0.9), name=f"{method}-file", **CPU)
    assert not adapters_of(net)
    again = load_adapter(model(), run.folder, run.classes)
    for name, parameter in before.items():
        assert torch.equal(again.get_parameter(name), parameter), name
    merged = run.model.state_dict()
    assert any(not torch.equal(tensor, merged[name]) for name, tensor in before.items())
    merge(again)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(again.eval()(x), run.model(x))


def test_merged_adapters_are_not_trained(parts):
    net = model("lora")
    merge(net)
    with pytest.raises(TrainingError, match="adapters of this model are merged"):
        fit(net, parts, TrainConfig(**QUICK), name="merged", **CPU)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "settings", [{}, {"prune_epochs": 3}, {"ema": 0.9, "prune_epochs": 2, "prune_scope": "global"}]
)
def test_the_file_is_as_sparse_as_was_asked(optimizer, settings, parts):
    config = TrainConfig(**QUICK, prune=0.6, optimizer=optimizer, **settings)
    run = fit(model(), parts, config, name="pruned", **CPU)
    assert sparsity(run.model) == pytest.approx(0.6, abs=2e-3)
    first = settings.get("prune_epochs", 1)
    assert run.metrics.loc[run.metrics["best"] == 1, "epoch"].min() >= first  # none before all of it is zero
    logits = forward(run.model, parts.val, device="cpu", precision=None, batch_size=16)
    np.testing.assert_allclose(run.validation_logits, logits, rtol=0, atol=1e-6)


def test_the_share_grows_by_a_cubic(parts, monkeypatch):
    seen, validate = [], loop.Loop._validate
    monkeypatch.setattr(loop.Loop, "_validate", lambda self: (seen.append(sparsity(self.model)), validate(self))[1])
    config = TrainConfig(**(QUICK | {"epochs": 5}), head_epochs=1, prune=0.8, prune_epochs=4)
    fit(model(), parts, config, name="gradual", **CPU)
    expected = [0.0] + [0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)] + [0.8]
    assert seen == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("method", ["lora", "rlrr"])
def test_what_an_adapter_learned_does_not_fill_the_zeros_of_its_base(method, parts):
    run = fit(model(method), parts, TrainConfig(**QUICK, prune=0.5, prune_epochs=2), name="sparse", **CPU)
    assert sparsity(run.model) == pytest.approx(0.5, abs=2e-3)
    logits = forward(run.model, parts.val, device="cpu", precision=None, batch_size=16)
    np.testing.assert_allclose(run.validation_logits, logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stop_at", [2, 6, 8])
def test_interrupted_and_taken_up_again_it_ends_with_the_same_bits(stop_at, parts, monkeypatch):
    config = TrainConfig(**QUICK, prune=0.5, prune_epochs=2, ema=0.9)
    straight = fit(model("lora", dropout=0.2), parts, config, name="straight", **CPU)
    update, count = loop.Loop._update, 0

    def interrupted(self, *args):
        nonlocal count
        count += 1
        if count == stop_at:
            signal.raise_signal(signal.SIGINT)
        return update(self, *args)

    monkeypatch.setattr(loop.Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model("lora", dropout=0.2), parts, config, name="again", **CPU)
    again = fit(model("lora", dropout=0.2), parts, config, name="again", resume=True, **CPU)
    for name in ("model.safetensors", "validation.csv"):
        assert (straight.folder / name).read_bytes() == (again.folder / name).read_bytes(), name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prune": 1.0}, "prune=1.0: expected 0 to"),
        ({"prune": -0.1}, "prune=-0.1: expected 0 to"),
        ({"prune": 0.1, "prune_epochs": 4}, "prune_epochs=4 of epochs=3: the share asked for is never reached"),
        ({"prune_epochs": 0}, "prune_epochs=0: expected 1"),
        ({"prune_scope": "layers"}, "Did you mean 'layer'"),
    ],
)
def test_a_pruning_that_cannot_be_is_said_at_once(settings, words):
    with pytest.raises(TrainingError, match=words):
        TrainConfig(**QUICK, **settings)
