"""Which parameters decay, at which rate each layer learns, and how the rate moves."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.optim import param_groups_layer_decay

from medvitlib.models.zoo import build
from medvitlib.training.config import TrainConfig
from medvitlib.training.optim import make_optimizer, parameter_groups, rate_at


def by_name(groups, key):
    return {name: group[key] for group in groups for name in group["names"]}


@pytest.mark.parametrize(
    "model",
    [
        build("vit_tiny_test", 2, weights=None),
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2),
        timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=2),
        torchvision.models.vit_b_16(image_size=32),
    ],
    ids=lambda model: type(model).__module__,
)
def test_norms_biases_positions_and_tokens_do_not_decay(model):
    decay = by_name(parameter_groups(model, 1e-3, 0.1), "weight_decay")
    assert set(decay) == {name for name, _ in model.named_parameters()}
    for name, value in decay.items():
        exempt = name.endswith("bias") or "norm" in name or ".ln" in name or "pos_emb" in name or "token" in name
        assert value == (0.0 if exempt else 0.1), name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_layer_decay_gives_timms_rates(name):
    model = timm.create_model(name, num_classes=2)
    ours = by_name(parameter_groups(model, 1.0, 0.1, 0.7), "lr")
    theirs = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, 0.1, layer_decay=0.7) for p in g["params"]}
    assert ours == pytest.approx({name: theirs[id(p)] for name, p in model.named_parameters()})
    assert max(ours.values()) == 1 and len(set(ours.values())) > 2


def test_torchvisions_models_learn_slower_at_the_bottom():
    rates = by_name(parameter_groups(torchvision.models.resnet18(), 1.0, 0.1, 0.5), "lr")
    assert rates["conv1.weight"] < rates["layer1.0.conv1.weight"] < rates["layer4.0.conv1.weight"] < rates["fc.weight"]
    assert rates["fc.weight"] == 1


def test_what_is_frozen_is_in_no_group():
    model = build("vit_tiny_test", 2, weights=None)
    model.patch_embed.requires_grad_(False)
    names = by_name(parameter_groups(model, 1.0, 0.1), "lr")
    assert not any(name.startswith("patch_embed") for name in names)


def test_the_head_alone_learns_at_its_own_rate():
    model = build("vit_tiny_test", 2, weights=None)
    optimizer = make_optimizer(model, TrainConfig(head_epochs=1, head_lr=0.5), head_only=True)
    found = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.head.parameters()}
    assert {group["base_lr"] for group in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize(
    "name, kind", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_every_optimizer_by_name(name, kind):
    assert type(make_optimizer(build("vit_tiny_test", 2, weights=None), TrainConfig(optimizer=name))) is kind


def test_cosine_rises_in_a_line_and_falls_to_its_minimum():
    config = TrainConfig(epochs=10, warmup_epochs=2, min_lr=0.1)
    rates = np.array([rate_at(step, 5, config) for step in range(51)])
    assert np.allclose(np.diff(rates[:10]), 1 / 11) and rates[10] == 1
    assert (np.diff(rates[10:]) < 0).all() and rates[50] == pytest.approx(0.1)
    assert rates[30] == pytest.approx(0.55)  # half-way down


def test_step_is_pytorchs_step_lr():
    config = TrainConfig(epochs=10, schedule="step", step_size=3, gamma=0.5, warmup_epochs=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
    for epoch in range(10):
        assert {rate_at(epoch * 4 + k, 4, config) for k in range(4)} == {optimizer.param_groups[0]["lr"]}
        optimizer.step()
        scheduler.step()


def test_constant_stays():
    config = TrainConfig(epochs=3, schedule="constant", warmup_epochs=0)
    assert {rate_at(step, 7, config) for step in range(21)} == {1.0}
