"""Two processes that train one model come to what one process comes to, and end together whatever happens to one."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from medvitlib import launch
from medvitlib.errors import TrainingError
from medvitlib.paths import runs_dir
from medvitlib.training import parallel

SCRIPT = Path(__file__).with_name("parallel_training.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
YAML = """
name: NAME
data: {name: phantom/cxr, image_size: 32, rendered: {n_patients: 30}}
model: {name: vit_tiny_test, weights: null}
train: {epochs: EPOCHS, batch_size: 10, lr: 1e-3, ema: 0.9}
"""


@pytest.fixture(autouse=True)
def small_processes(monkeypatch):
    """On the CPU, one thread each, and of this package."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def written(tmp_path, name: str, epochs: int) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(YAML.replace("NAME", name).replace("EPOCHS", str(epochs)))
    return path


def test_two_processes_train_as_one_does(tmp_path, monkeypatch, capsys):
    """Class weights, clipping, EMA, parts, LP-FT, Mixup, CutMix, LoRA and pruning are on; the last batch is odd."""
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "two"))
    done = subprocess.run([*TORCHRUN, SCRIPT, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))

    specification = importlib.util.spec_from_file_location("parallel_training", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "one"))
    for name, config in script.CONFIGS.items():
        script.train(name, config)
        same_run(tmp_path / "one" / name, tmp_path / "two" / name)
    script.train("full", script.FULL)
    same_run(tmp_path / "one" / "full", tmp_path / "two" / "full")  # both went on in parts of two
    assert done.stdout.count("Out of memory with 4 images at a time: from here on 2; an update still sees 8") == 1

    epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 3 + 2 + 2 + 1 + 1  # the last training was quiet: one line an epoch, from one of the two
    assert set(first["runs"].values()) == {True} and set(second["runs"].values()) == {False}
    assert json.loads((tmp_path / "two" / "shares" / "config.json").read_text())["processes"] == 2
    assert first["sum"] == second["sum"]  # each drew its own dropout, and both have the same weights
    assert (tmp_path / "two" / "statistics" / "model.safetensors").is_file()
    assert first["few"] == second["few"] and first["few"].startswith("batch_size=1 for 2 processes")
    assert first["highest"] == second["highest"] == [1, 5]


def same_run(one: Path, two: Path) -> None:
    tables = [pd.read_csv(run / "metrics.csv").drop(columns=["seconds", "images_per_second"]) for run in (one, two)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4, atol=1e-6)
    weights, others = (load_file(run / "model.safetensors") for run in (one, two))
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=2e-5, msg=f"{name} of {one.name}")


def test_a_cluster_stops_them_and_a_notebook_goes_on(tmp_path, capsys):
    """SIGTERM to torchrun: one state, of both after the same update. `launch` prints the rest and returns the run."""
    path = written(tmp_path, "stopped", epochs=20)
    with started([*TORCHRUN, "-m", "medvitlib.cli", "train", str(path)]) as process:
        next(line for line in process.stdout if line.startswith("epoch 2/"))
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=120)[0]
    assert rest.count("To continue: medvit train") == 1
    folder = runs_dir() / "stopped.unfinished"
    state = torch.load(folder / "last" / "state.pt", weights_only=True)
    position = state["position"]
    assert position["epoch"] >= 2 and len(pd.read_csv(folder / "metrics.csv")) == position["epoch"]
    updates = position["epoch"] * 5 + position["step"]  # of 45 images in tens
    assert {int(of_one["step"]) for of_one in state["optimizer"]["state"].values()} == {updates}

    run = launch.launch(path, processes=2)
    assert run.folder == runs_dir() / "stopped" and run.metrics["epoch"].tolist() == list(range(1, 21))
    assert (run.folder / "report.json").is_file()
    said = capsys.readouterr().out
    assert said.count("epoch 20/20") == said.count("random numbers in") == said.count("Going on in epoch") == 1


def started(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_an_error_in_one_process_ends_both_and_is_told_once(tmp_path):
    code = (
        "import os, sys; from medvitlib.cli import main; from medvitlib.training.gradients import Gradients\n"
        "from medvitlib.errors import TrainingError\n"
        "def bad(*_): raise TrainingError('this one cannot')\n"
        "if os.environ['RANK'] == '1': Gradients._add = bad\n"
        f"sys.exit(main(['train', {str(written(tmp_path, 'bad', 3))!r}]))"
    )
    (tmp_path / "bad.py").write_text(code)
    begun = time.monotonic()
    with started([*TORCHRUN, str(tmp_path / "bad.py")]) as process:
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and time.monotonic() - begun < 100
    assert [line for line in said.splitlines() if line.startswith("medvit:")] == ["medvit: this one cannot"]


FAKE = """#!{python}
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
print("epoch 1/9", flush=True)
while not asked and {waits}:
    time.sleep(0.01)
print("W1121 16:02:34.794000 20425 torch/distributed/elastic/agent/server/api.py:752] Received 2 death signal")
print("medvit: stopped, and that is saved")
print("Traceback of torchrun itself")
sys.exit(1)
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_launch_passes_ctrl_c_on_and_says_why_it_ended(tmp_path, monkeypatch, interrupted):
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(python=sys.executable, waits=interrupted))
    fake.chmod(0o755)
    shown = []

    def show(line, **_):
        shown.append(line)
        if interrupted and line == "epoch 1/9":
            raise KeyboardInterrupt

    monkeypatch.setattr(launch.sys, "executable", str(fake))
    monkeypatch.setattr(launch, "print", show, raising=False)
    error, message = (KeyboardInterrupt, None) if interrupted else (TrainingError, "^stopped, and that is saved$")
    with pytest.raises(error, match=message):
        launch.launch(written(tmp_path, "fake", 9), processes=2)
    assert shown == ["epoch 1/9", "medvit: stopped, and that is saved"]


def test_launch_reads_the_file_before_it_starts_anything(tmp_path, monkeypatch):
    path = written(tmp_path, "typo", 1)
    path.write_text(path.read_text().replace("lr:", "lrr:"))
    monkeypatch.setattr(launch.subprocess, "Popen", lambda *args, **options: pytest.fail("it starts"))
    with pytest.raises(TrainingError, match="Did you mean 'lr'"):
        launch.launch(path, processes=2)


@pytest.mark.parametrize(
    "n, least, sizes", [(8, 2, [3, 3, 2]), (5, 2, [3, 2, 0]), (3, 2, [3, 0, 0]), (2, 1, [1, 1, 0])]
)
def test_shares_cover_a_batch_without_single_images(n, least, sizes, monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    rows = []
    for rank, size in enumerate(sizes):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        mine = list(range(n))[parallel.share(n, least)]
        assert len(mine) == size
        rows += mine
    assert rows == list(range(n))
