"""A training is cut so that it fits: counted before the first step, and the same update."""

from contextlib import nullcontext
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
from medvitlib.training.memory import ROOM, SMALL, plan

SIZES = {"patch_size": 8, "dim": 32, "depth": 4, "heads": 2}
BATCH = 32


def small(**rates):
    rates = {"dropout": 0.0, "drop_path": 0.0} | rates
    return build("vit_scratch", 2, weights=None, image_size=32, **SIZES, **rates)


def counted(model, images, checkpointing):
    with checkpointed(model, checkpointing):
        return training_memory(model, torch.zeros(images, 3, 32, 32), torch.zeros(images, dtype=torch.int64))


def test_parts_come_first_then_what_is_computed_twice_then_an_error():
    model, found = small(), []
    whole = plan(model, BATCH, 1e12, precision=nullcontext)
    assert (whole.accumulate, whole.checkpointing) == (1, False)
    for share in (1.2, 0.6, 0.4, 0.33, 0.28, 0.24, 0.2):
        limit = share * whole.bytes / ROOM
        try:
            found.append(plan(model, BATCH, limit, precision=nullcontext))
        except TrainingError as error:
            assert "with one image at a time" in str(error) and "memory_gb" in str(error)
            break
        part = -(-BATCH // found[-1].accumulate)
        assert found[-1].bytes <= ROOM * limit
        assert counted(model, part, found[-1].checkpointing) <= ROOM * limit
        assert found[-1].checkpointing or part >= SMALL
    kinds = [(p.accumulate > 1, p.checkpointing) for p in found]
    assert kinds[0] == (False, False) and (True, False) in kinds and kinds[-1][1]
    with pytest.raises(TrainingError, match="Take a smaller model, smaller images"):
        plan(model, BATCH, 1000, precision=nullcontext)


def test_the_count_is_a_straight_line():
    model = small()
    for n in (1, 7, 20):
        planned = plan(model, n, 1e12, precision=nullcontext).bytes - 9 * n * 3 * 32 * 32
        assert planned == pytest.approx(counted(model, n, False), rel=0.01)


def test_accumulation_that_was_asked_for_is_the_least():
    assert plan(small(), BATCH, 1e12, accumulate=5, precision=nullcontext).accumulate == 5


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


def test_a_training_under_a_limit_gives_the_weights_of_one_without(capsys):
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    config = TrainConfig(epochs=1, batch_size=BATCH, optimizer="sgd", lr=0.05, recipe="xray")
    whole = plan(small(), BATCH, 1e12, precision=nullcontext).bytes
    runs = []
    for gb in (0.0, 0.33 * whole / ROOM / 1e9):
        config = replace(config, memory_gb=gb)
        runs.append(fit(small(), parts, config, name=f"gb-{gb > 0}", device="cpu", precision=None, plot=False))
    said = capsys.readouterr().out
    assert (
        said.count("To fit into memory") == 1
        and "activations computed twice; an update still sees all of them." in said
    )
    for one, other in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_cannot_fit_is_said_before_the_training():
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    with pytest.raises(TrainingError, match="GB with one image at a time"):
        fit(small(), parts, TrainConfig(epochs=1, memory_gb=1e-4), name="tight", device="cpu", precision=None)
