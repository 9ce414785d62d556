"""What a model says after every epoch: all of it, whatever happened to the training."""

import numpy as np
import pytest

from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import build
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit
from medvitlib.training.watched import Watched

CPU = {"device": "cpu", "precision": None}


@pytest.fixture(scope="module")
def parts():
    return split(open_dataset("phantom/cxr", image_size=32, n_patients=30, difficulty=0.0))


def train(parts, file, after: int = 0, resume: bool = False, watched: bool = True):
    """Three epochs; with `after`, interrupted at the end of that one."""
    model = build("vit_tiny_test", 2, weights=None)
    watch = Watched(model, parts.test, file, **CPU)

    def each_epoch(row):
        if watched:
            watch(row)
        if row["epoch"] == after:
            raise KeyboardInterrupt

    config = TrainConfig(epochs=3, batch_size=16, lr=1e-3, schedule="constant")
    options = {"quiet": True, "plot": False, "resume": resume, "each_epoch": each_epoch, **CPU}
    fit(model, parts, config, name=f"watched-{file.stem}", **options)
    return watch


def test_every_epoch_is_there_and_the_best_is_the_run_that_was_kept(parts, tmp_path):
    watch = train(parts, tmp_path / "plain.npy")
    assert watch.logits.shape == (3, len(parts.test), 2)
    kept = forward(watch.model, parts.test, **CPU)
    assert any(np.array_equal(kept, logits) for logits in watch.logits)
    assert not np.array_equal(watch.logits[0], watch.logits[2])


def test_an_interrupted_training_has_them_all_too(parts, tmp_path):
    whole = train(parts, tmp_path / "whole.npy").logits
    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path / "torn.npy", after=1)
    assert np.array_equal(train(parts, tmp_path / "torn.npy", resume=True).logits, whole)
    train(parts, tmp_path / "torn.npy")  # once more from the start
    assert np.array_equal(train(parts, tmp_path / "torn.npy").logits, whole)


def test_a_training_that_began_without_it_is_refused(parts, tmp_path):
    with pytest.raises(TrainingError, match="holds no epochs"):
        _ = Watched(None, parts.test, tmp_path / "none.npy").logits
    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path / "late.npy", after=2, watched=False)
    with pytest.raises(TrainingError, match="holds no epochs"):
        train(parts, tmp_path / "late.npy", resume=True)
