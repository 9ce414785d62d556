"""Images that lie on the device and are augmented there train the same model; here the device is the CPU."""

import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from medvitlib.data import augmented, open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import build
from medvitlib.training import loop, order, resident
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit

CPU = {"device": "cpu", "precision": None, "quiet": True}
CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-3, recipe="xray", balance="sampling", mixup=0.2, resident=True)


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/cxr", image_size=32, n_patients=40))


def tiny():
    return build("vit_tiny_test", 2, weights=None, dropout=0.1, drop_path=0.2)


def trained(parts, config, name, **options):
    return fit(tiny(), parts, config, name=name, **options, **CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_images_come_in_the_same_batches(parts, workers):
    train = augmented(parts.train, "reticulocyte", seed=1)
    train.set_epoch(1)
    rows, bounds = np.array([3, 8, 3, 3, 0, 5, 8, 1]), [(2, 5), (5, 8)]  # repeated ones are drawn for anew
    expected = list(order.load(train, rows, bounds, share=lambda n: slice(1, n), workers=0, pinned=False))
    held = resident.Resident(train, torch.device("cpu"))
    found = list(held.load(rows, bounds, share=lambda n: slice(1, n), workers=workers))
    assert [len(images) for images, _ in found] == [2, 2]
    for (images, labels), (others, same) in zip(found, expected, strict=True):
        assert torch.equal(labels, same) and (images.float() - others.float()).abs().mean() < 0.5
    assert not torch.equal(found[0][0][0], found[0][0][1])


def test_without_augmentation_the_weights_are_those_of_images_read_from_disk(parts):
    config = replace(CONFIG, recipe="none")
    runs = [trained(parts, replace(config, resident=on), f"none-{on}") for on in (True, False)]
    assert all(map(torch.equal, *(run.model.state_dict().values() for run in runs)))


def test_with_augmentation_they_are_so_to_rounding(parts):
    config = replace(CONFIG, optimizer="sgd", lr=0.05)  # Adam's first steps have the size of the rate in any direction
    runs = [trained(parts, replace(config, resident=on, seed=seed), f"x-{on}-{seed}") for on, seed in PAIRS]
    same, other = (
        max((a - b).abs().max().item() for a, b in zip(*(weights(runs[0]), weights(run)), strict=True))
        for run in runs[1:]
    )
    assert same < 0.1 * other


PAIRS = ((True, 0), (False, 0), (True, 1))


def weights(run):
    return run.model.state_dict().values()


def test_a_training_that_was_stopped_ends_with_the_same_weights(parts, monkeypatch):
    straight = trained(parts, CONFIG, "straight")
    update, count = loop.Loop._update, 0

    def interrupted(self, *args):
        nonlocal count
        count += 1
        if count == 6:
            signal.raise_signal(signal.SIGINT)
        return update(self, *args)

    monkeypatch.setattr(loop.Loop, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(parts, CONFIG, "stopped")
    monkeypatch.setattr(resident, "fits", lambda *_: pytest.fail("settled anew"))
    monkeypatch.setattr(loop, "fits", lambda *_: pytest.fail("settled anew"))
    run = trained(parts, CONFIG, "stopped", resume=True)
    assert (run.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


def test_a_recipe_that_only_a_cpu_computes_is_said(parts):
    with pytest.raises(TrainingError, match="image by image, on the CPU: take one of none, light"):
        trained(parts, replace(CONFIG, recipe="randaugment"), "randaugment")


@pytest.mark.parametrize(
    "free, recipe, memory_gb, expected",
    [(5, "xray", 0, True), (3, "xray", 0, False), (5, "randaugment", 0, False), (5, "xray", 1e-9, False)],
)
def test_a_cuda_device_holds_what_takes_a_quarter_of_it(parts, monkeypatch, free, recipe, memory_gb, expected):
    size = resident.size_of(parts.train)
    assert size == len(parts.train) * 32 * 32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * size, 10 * size))
    config = replace(CONFIG, resident=None, recipe=recipe, memory_gb=memory_gb)
    assert resident.fits(config, parts.train, torch.device("cuda")) is expected
    assert resident.fits(config, parts.train, torch.device("cpu")) is False
