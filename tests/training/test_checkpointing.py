"""Activations are computed twice instead of kept: the same update from less memory."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medvitlib.costs import training_memory
from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import build
from medvitlib.training.blocks import can_checkpoint, checkpointed
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit

SIZES = {"patch_size": 8, "dim": 32, "depth": 4, "heads": 2}
BATCH = 32


def small(**rates):
    rates = {"dropout": 0.0, "drop_path": 0.0} | rates
    return build("vit_scratch", 2, weights=None, image_size=32, **SIZES, **rates)


def counted(model, images, checkpointing):
    with checkpointed(model, checkpointing):
        return training_memory(model, torch.zeros(images, 3, 32, 32), torch.zeros(images, dtype=torch.int64))


def test_computed_twice_the_gradients_are_the_same_and_less_is_held():
    model, x, y = small(dropout=0.2, drop_path=0.3).train(), torch.randn(6, 3, 32, 32), torch.arange(6) % 2
    gradients = []
    for twice in (False, True):
        with checkpointed(model, twice):
            torch.manual_seed(1)
            nn.functional.cross_entropy(model(x), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.zero_grad()
    assert all(map(torch.equal, *gradients))
    assert counted(model, 6, True) < counted(model, 6, False)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_batch_normalisation_is_not_counted_twice():
    assert can_checkpoint(small()) and not can_checkpoint(build("resnet18", 2, weights=None))
    assert can_checkpoint(build("vit_tiny_patch16_224", 2, weights=None))


def test_a_training_that_computes_twice_gives_the_weights_of_one_that_does_not():
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    config = TrainConfig(epochs=1, batch_size=BATCH, optimizer="sgd", lr=0.05, recipe="xray")
    runs = [
        fit(
            small(),
            parts,
            replace(config, checkpointing=twice),
            name=f"twice-{twice}",
            device="cpu",
            precision=None,
            plot=False,
        )
        for twice in (False, True)
    ]
    for one, other in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_model_that_cannot_compute_twice_is_refused():
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    with pytest.raises(TrainingError, match=r"without batch normalisation.* leave it out"):
        fit(
            build("resnet18", 2, weights=None, image_size=32),
            parts,
            TrainConfig(epochs=1, checkpointing=True),
            name="no",
        )
