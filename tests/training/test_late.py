"""What is written while a training goes on is what it was then, and what fails is said."""

import threading

import pytest
import torch

from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import build
from medvitlib.training import loop
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.late import Late, Writer, mapped


def test_a_copy_is_written_and_the_original_may_change():
    go, seen, tensor = threading.Event(), [], torch.zeros(3)
    writer = Writer(behind=True)
    writer(lambda content: (go.wait(10), seen.append(content)), {"a": [tensor, 1], "b": None})
    tensor += 5
    assert not seen
    go.set()
    writer.wait()
    assert seen[0]["a"][0].tolist() == [0, 0, 0] and seen[0]["a"][1] == 1 and seen[0]["b"] is None
    writer.close()


def test_a_state_is_left_out_while_the_one_before_is_being_written():
    go, seen, writer = threading.Event(), [], Writer(behind=True)
    writer(lambda content: (go.wait(10), seen.append(content)), 1, unless_busy=True)
    writer(seen.append, 2, unless_busy=True)
    writer(seen.append, 3)
    go.set()
    writer.wait()
    writer(seen.append, 4, unless_busy=True)
    writer.wait()
    assert seen == [1, 3, 4]
    writer.close()


def test_what_could_not_be_written_is_raised_in_the_end():
    def fail(content):
        raise TrainingError("full")

    writer = Writer(behind=True)
    writer(fail, {})
    with pytest.raises(TrainingError, match="full"):
        writer.wait()
    writer.close()
    with pytest.raises(TrainingError, match="full"):
        Writer(behind=False)(fail, {})


def test_every_tensor_is_found():
    found = mapped({"a": (torch.ones(1), 2), "b": [{"c": torch.ones(1)}]}, lambda tensor: tensor + 1)
    assert found["a"][0].item() == found["b"][0]["c"].item() == 2 and found["a"][1] == 2
    assert Late(torch.tensor([1.5, 2.0])).read() == [1.5, 2.0]


def test_a_training_that_is_written_behind_can_be_taken_up_again(monkeypatch):
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    config = TrainConfig(epochs=3, batch_size=16, lr=1e-3, ema=0.9)

    def train(name, **options):
        model = build("vit_tiny_test", 2, weights=None, dropout=0.1)
        return fit(model, parts, config, name=name, device="cpu", precision=None, quiet=True, **options)

    def enough(row):
        if row["epoch"] == 2:
            raise EOFError

    straight = train("straight")
    monkeypatch.setattr(loop, "writes_behind", lambda device: True)
    with pytest.raises(EOFError):
        train("behind", each_epoch=enough)
    run = train("behind", resume=True)
    assert (run.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()
    assert run.metrics.epoch.tolist() == [1, 2, 3]

    def full(*args):
        raise TrainingError("the disk is full")

    monkeypatch.setattr(loop, "save_state", full)
    with pytest.raises(TrainingError, match="the disk is full"):
        train("behind", resume=False)
