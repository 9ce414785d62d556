"""A training that is killed and taken up again ends with the weights of one that was not, bit by bit."""

import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import build
from medvitlib.training import checkpoint, loop
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.run import UnfinishedRun

KILLS = ("update", "row", "half a state", "before its rename", "after its rename")
SCRIPT = Path(__file__).with_name("killed_training.py")
CPU = {"device": "cpu", "precision": None, "quiet": True}


def without_times(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "metrics.csv").drop(columns=["seconds", "images_per_second"])


def test_killed_at_random_and_taken_up_again(tmp_path):
    """Dropout, DropPath, Mixup, CutMix, EMA, accumulation, balanced sampling, LP-FT and two loader workers are on."""
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 10**6))
    print(f"KILL_SEED={seed}")  # shown where the test fails; set it to see the same kills again
    rng = random.Random(seed)
    kills = [f"{what}:{rng.randint(1, 5 if what == 'update' else 2)}" for what in rng.sample(KILLS, 5)]
    command = [sys.executable, SCRIPT, tmp_path / "straight", tmp_path / "killed", *kills]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"killed (\d) times", done.stdout)[1]) >= 3  # unless it was complete before the last kills
    straight, killed = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    for name in ("model.safetensors", "validation.csv"):
        assert (straight / name).read_bytes() == (killed / name).read_bytes(), f"{name} differs after {kills}"
    pd.testing.assert_frame_equal(without_times(straight), without_times(killed))
    assert [path.name for path in killed.parent.glob("[!.]*")] == ["run"] and not (killed / "last").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_between_two_updates_and_loses_nothing(tmp_path, number, parts, monkeypatch):
    straight = fit(tiny(), parts, CONFIG, name="straight", **CPU)
    update, count = loop.Loop._update, 0

    def interrupted(self, *args):
        nonlocal count
        count += 1
        if count == 6:  # in the second epoch
            signal.raise_signal(number)
        return update(self, *args)

    monkeypatch.setattr(loop.Loop, "_update", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)) as stopped:
        fit(tiny(), parts, CONFIG, name="stopped", **CPU)
    assert type(stopped.value) is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    run = fit(tiny(), parts, CONFIG, name="stopped", resume=True, **CPU)
    assert count == 8  # four updates an epoch: none was done twice, none left out
    assert (run.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("call", [1, 2])
def test_a_signal_while_the_start_is_validated_writes_its_row_once(call, parts, monkeypatch):
    config = replace(CONFIG, keep_start=True)
    straight = fit(tiny(), parts, config, name="straight", **CPU)
    forward, calls = loop.forward, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return forward(*args, **options)

    monkeypatch.setattr(loop, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), parts, config, name="stopped", **CPU)
    run = fit(tiny(), parts, config, name="stopped", resume=True, **CPU)
    pd.testing.assert_frame_equal(without_times(straight.folder), without_times(run.folder))


def test_a_signal_during_validation_keeps_the_epoch(parts, monkeypatch):
    straight = fit(tiny(), parts, CONFIG, name="straight", **CPU)
    forward, calls = loop.forward, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return forward(*args, **options)

    monkeypatch.setattr(loop, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"epoch 2 was validated.*resume=True"):
        fit(tiny(), parts, CONFIG, name="validating", **CPU)
    monkeypatch.setattr(loop.Loop, "_update", lambda *args: pytest.fail("an update is done twice"))
    run = fit(tiny(), parts, CONFIG, name="validating", resume=True, **CPU)
    assert (run.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()


def test_each_epoch_is_told_once_it_is_on_disk(parts):
    told = []

    def tell(row):
        told.append(row)
        if len(told) == 1:
            raise EOFError("enough")

    with pytest.raises(EOFError, match="enough"):
        fit(tiny(), parts, CONFIG, name="study/told", each_epoch=tell, **CPU)
    run = fit(tiny(), parts, CONFIG, name="study/told", resume=True, each_epoch=tell, **CPU)
    assert run.folder.parts[-2:] == ("study", "told")
    assert [row["epoch"] for row in told] == [1, 2]
    assert [row["val_nll"] for row in told] == pytest.approx(run.metrics["val_nll"].tolist())


def test_what_an_interrupted_training_had_is_thrown_away_aloud(parts, monkeypatch, capsys):
    interrupt(parts, "anew", monkeypatch)
    run = fit(tiny(), parts, CONFIG, name="anew", device="cpu")
    assert capsys.readouterr().out.startswith("An interrupted training of this name was thrown away: resume=True")
    assert run.metrics["epoch"].tolist() == [1, 2]


def test_a_finished_run_is_not_trained_again(parts, monkeypatch):
    first = fit(tiny(), parts, CONFIG, name="finished", **CPU)
    monkeypatch.setattr(loop.Loop, "run", lambda self: pytest.fail("it trains again"))
    assert fit(tiny(), parts, CONFIG, name="finished", resume=True, **CPU).folder == first.folder


def test_the_model_that_was_interrupted_can_be_passed_again(parts, monkeypatch):
    straight, model = fit(tiny(), parts, CONFIG, name="straight", **CPU), tiny()
    interrupt(parts, "cell", monkeypatch, model)
    run = fit(model, parts, replace(CONFIG, workers=1), name="cell", resume=True, **CPU)  # workers change nothing
    assert (run.folder / "model.safetensors").read_bytes() == (straight.folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(loop.Loop, "run", lambda self: pytest.fail("it trains again"))
    assert fit(model, parts, CONFIG, name="cell", resume=True, **CPU).folder == run.folder


def test_killed_while_it_takes_its_name_it_only_takes_its_name(parts, monkeypatch):
    def killed(source, target):
        if str(source).endswith("naming.unfinished"):
            raise SystemError
        rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr("medvitlib.training.run.os.replace", killed)
        fit(tiny(), parts, CONFIG, name="naming", **CPU)
    monkeypatch.setattr(loop.Loop, "_update", lambda *args: pytest.fail("an update is done twice"))
    assert len(fit(tiny(), parts, CONFIG, name="naming", resume=True, **CPU).metrics) == 2


def test_a_signal_to_the_whole_group_leaves_the_loader_to_the_training(parts, monkeypatch):
    update = loop.Loop._update

    def terminated(self, *args):
        for worker in multiprocessing.active_children() if self.position.step > 1 else ():  # each has begun by then
            os.kill(worker.pid, signal.SIGTERM)
        return update(self, *args)

    monkeypatch.setattr(loop.Loop, "_update", terminated)
    config = replace(CONFIG, workers=2, batch_size=4)
    assert len(fit(tiny(), parts, config, name="group", **CPU).metrics) == 2


def test_a_signal_at_the_very_end_is_not_swallowed(parts, monkeypatch):
    finish = UnfinishedRun.finish

    def signalled(self, *args, **options):
        signal.raise_signal(signal.SIGINT)
        return finish(self, *args, **options)

    monkeypatch.setattr(UnfinishedRun, "finish", signalled)
    with pytest.raises(KeyboardInterrupt, match="the run is complete"):
        fit(tiny(), parts, CONFIG, name="at-the-end", **CPU)


def test_other_settings_data_or_weights_are_not_taken_up(parts, monkeypatch):
    interrupt(parts, "other", monkeypatch)
    with pytest.raises(TrainingError, match=r"train.lr was 0.001, is 0.5.*resume=False"):
        fit(tiny(), parts, replace(CONFIG, lr=0.5), name="other", resume=True, **CPU)
    with pytest.raises(TrainingError, match="initial_weights was"):
        fit(build("vit_tiny_test", 2, weights=None, seed=9), parts, CONFIG, name="other", resume=True, **CPU)
    with pytest.raises(TrainingError, match=r"data\.parts\.train was"):
        other = replace(parts, train=parts.train.subset(range(1, len(parts.train))))
        fit(tiny(), other, CONFIG, name="other", resume=True, **CPU)


def test_a_damaged_state_is_said(parts, monkeypatch):
    folder = interrupt(parts, "damaged", monkeypatch)
    state = folder / checkpoint.STATE
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(TrainingError, match=r"state.pt cannot be read.*resume=False"):
        fit(tiny(), parts, CONFIG, name="damaged", resume=True, **CPU)


def test_without_resume_it_begins_again(parts, monkeypatch):
    interrupt(parts, "anew", monkeypatch)
    run = fit(tiny(), parts, replace(CONFIG, lr=0.01), name="anew", **CPU)
    assert json.loads((run.folder / "config.json").read_text())["train"]["lr"] == 0.01


def test_a_saved_state_holds_nothing_that_could_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, ("touch /tmp/evil",))

    import torch

    (tmp_path / "last").mkdir()
    torch.save({"position": Evil()}, tmp_path / checkpoint.STATE)
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoint.load_state(tmp_path)


CONFIG = TrainConfig(epochs=2, batch_size=16, lr=1e-3, ema=0.9)


def tiny():
    return build("vit_tiny_test", 2, weights=None)


@pytest.fixture(scope="module")
def parts():
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=40))
    return replace(parts, train=parts.train.subset(range(56)))


def interrupt(parts, name, monkeypatch, model=None) -> Path:
    """A training of this name that was stopped after its first epoch; returns the folder it left."""
    end = loop.Loop._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_end_epoch", lambda *args: end(*args) or signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match="Stopped after epoch 1"):
            fit(model or tiny(), parts, CONFIG, name=name, **CPU)
    from medvitlib.paths import runs_dir

    return runs_dir() / f"{name}.unfinished"
