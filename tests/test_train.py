"""`medvit train`: what a YAML file says, done; and every file that cannot be, answered in one sentence."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from medvitlib.cli import main
from medvitlib.finished import read_run
from medvitlib.paths import runs_dir

DATA = "data: {name: phantom/cxr, image_size: 32, rendered: {n_patients: 40}}\n"
MODEL = "model: {name: vit_tiny_test, weights: null, options: {dropout: 0.1}}\n"
TRAIN = "train: {epochs: 2, batch_size: 8, lr: 1e-3}\n"


def written(tmp_path, *lines: str, name: str = "tiny") -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(f"name: {name}\n" + "".join(lines))
    return str(path)


def weights_of(name: str) -> bytes:
    return (runs_dir() / name / "model.safetensors").read_bytes()


def test_a_file_becomes_a_run_with_its_report(tmp_path, capsys):
    split = "split: {val: 0.25, seed: 3}\nevaluate: {target_recall: 0.9}\n"
    assert main(["train", written(tmp_path, DATA, MODEL, TRAIN, split)]) == 0
    said = capsys.readouterr().out
    for part in (
        "train ",
        "vit_tiny_test: random numbers in",
        "epoch 2/2:",
        "for 90 % recall",
        str(runs_dir() / "tiny"),
    ):
        assert part in said
    config = json.loads((runs_dir() / "tiny" / "config.json").read_text())
    assert config["train"]["lr"] == 1e-3 and config["asked"]["split"] == {"val": 0.25, "seed": 3}
    assert config["architecture"]["options"] == {"dropout": 0.1}
    assert (runs_dir() / "tiny" / "report.json").is_file()


def test_an_adapter_is_one_line_more(tmp_path, capsys):
    lora = "model: {name: vit_tiny_test, weights: null, adapter: {method: lora, rank: 2}}\n"
    assert main(["train", written(tmp_path, DATA, lora, TRAIN, name="lora")]) == 0
    assert re.search(r"LoRA: 418 of [\d,]+ parameters are trained", capsys.readouterr().out)
    assert "blocks.0.attn.qkv.lora_A" in load_file(runs_dir() / "lora" / "model.safetensors")
    last = lora.replace("method: lora, rank: 2", "method: partial, blocks: 1")
    assert main(["train", written(tmp_path, DATA, last, TRAIN, name="last")]) == 0
    assert "Last blocks: " in capsys.readouterr().out and read_run(runs_dir() / "last").adaptation == "last blocks"
    for wrong, words in (("rnak: 2", "Did you mean 'rank'"), ("targets: [fc]", "target 'fc' is unknown")):
        assert main(["train", written(tmp_path, DATA, lora.replace("rank: 2", wrong), TRAIN)]) == 1
        assert words in capsys.readouterr().err


def test_deterministic_runs_are_the_same(tmp_path):
    for name in ("once", "twice"):
        assert main(["train", written(tmp_path, DATA, MODEL, TRAIN, name=name), "--deterministic"]) == 0
        assert json.loads((runs_dir() / name / "config.json").read_text())["train"]["deterministic"]
    assert weights_of("once") == weights_of("twice")


@pytest.fixture
def without_report(monkeypatch):
    """What follows the training takes longer than so small a training."""
    monkeypatch.setattr("medvitlib.train.evaluate", lambda run, parts: run)
    monkeypatch.setattr("medvitlib.training.run.Run.sentences", lambda self: [], raising=False)
    monkeypatch.setattr("medvitlib.training.run.Run.headline", lambda self: "", raising=False)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_is_stopped_says_how_to_go_on(tmp_path, number, status, capsys, without_report):
    longer = TRAIN.replace("2,", "8,", 1)
    file = written(tmp_path, DATA, MODEL, longer, name=f"stopped-{number}")
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "medvitlib.cli", "train", file]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | environment, **pipes) as process:
        next(line for line in process.stdout if line.startswith("epoch 1/8"))
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == status and "Traceback" not in said
    assert f"To continue: medvit train {file}" in said
    assert main(["train", file]) == 0
    assert "Going on in epoch" in capsys.readouterr().out
    assert main(["train", written(tmp_path, DATA, MODEL, longer, name="straight")]) == 0
    assert weights_of(f"stopped-{number}") == weights_of("straight")


def test_a_finished_run_is_kept_and_replaced_only_where_that_is_forced(tmp_path, capsys, without_report):
    file = written(tmp_path, DATA, MODEL, TRAIN, name="kept")
    assert main(["train", file]) == 0
    before, made = weights_of("kept"), (runs_dir() / "kept" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", file]) == 0  # the same again trains nothing
    assert (runs_dir() / "kept" / "model.safetensors").stat().st_mtime_ns == made
    other = written(tmp_path, DATA, MODEL, TRAIN.replace("1e-3", "2e-3"), name="kept")
    assert main(["train", other]) == 1
    assert "is finished, and had other settings: train.lr was" in capsys.readouterr().err
    assert weights_of("kept") == before
    assert main(["train", other, "--force"]) == 0 and weights_of("kept") != before


def test_the_example_is_a_training_file_that_runs(tmp_path, monkeypatch, capsys):
    assert main(["train", "--example"]) == 0
    example = capsys.readouterr().out
    assert yaml.safe_load(example)["name"] == "my-training"
    shorter = (
        example.replace("epochs: 5", "epochs: 1")
        .replace("n_patients: 100", "n_patients: 40")
        .replace("depth: 4", "depth: 1")
    )
    (tmp_path / "example.yaml").write_text(shorter)
    assert main(["train", str(tmp_path / "example.yaml")]) == 0
    *_, result, following = capsys.readouterr().out.splitlines()
    assert re.match(r"AUROC 0\.\d+ \[.*\] on \d+ images \(\d+ patients\)\. The run", result)
    assert following == "Next: medvit predict my-training IMAGE ..."
    assert main(["train"]) == 1 and "medvit train --example" in capsys.readouterr().err


BAD = {
    "an unknown section": ("dada: {}\n", "Did you mean 'data'"),
    "an unknown key": (DATA.replace("image_size", "imagesize") + MODEL, "Did you mean 'image_size'"),
    "an unknown setting": (DATA + MODEL + "train: {batchsize: 3}\n", "Did you mean 'batch_size'"),
    "an unknown option of the data": (DATA.replace("n_patients", "patients") + MODEL, "it takes n_patients=150"),
    "an unknown option of the model": (DATA + MODEL.replace("dropout", "drop_out"), "Nearest: dropout"),
    "an unknown model": (DATA + MODEL.replace("vit_tiny_test", "vit_tinytest"), "Nearest: vit_tiny"),
    "no model": (DATA, "model has no name"),
    "no data": (MODEL, "data has no name"),
    "a word for a number": (DATA + MODEL + "train: {lr: fast}\n", "lr='fast': expected a number"),
    "a word for an option": (DATA + MODEL.replace("0.1", "much"), "cannot be made (TypeError"),
    "a word for a difficulty": (
        DATA.replace("n_patients: 40", "difficulty: hard") + MODEL,
        "cannot be made (TypeError",
    ),
    "a seed below 0": (DATA + MODEL + "split: {seed: -1}\n", "cannot be made (ValueError: Seed"),
    "yes for a class": (DATA.replace("image_size: 32", "positive: yes") + MODEL, "in quotes, anything is"),
    "a word for a section": ("data: phantom/cxr\n", "expected `key: value` pairs"),
    "percent for a share": (DATA + MODEL + "evaluate: {target_recall: 95}\n", "expected a share in (0, 1]"),
    "a size in an option": (DATA + MODEL.replace("dropout", "image_size"), "no options of a model"),
    "something else than YAML": ("data: {name: [\n", "is no YAML"),
    "code": ("data: !!python/object/apply:os.getcwd []\n", "is no YAML"),
    "a key given twice": (
        DATA + MODEL + "train: {lr: 0.1, epochs: 1, lr: 0.2}\n",
        "lr is given twice (first in line 4)",
    ),
    "a section given twice": (DATA + MODEL + DATA, "data is given twice (first in line 2)"),
}


def test_a_name_is_one_folder(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("name: a/b/c\n" + DATA + MODEL)
    assert main(["train", str(tmp_path / "a.yaml")]) == 1
    assert "A run's name is one folder name" in capsys.readouterr().err


@pytest.mark.parametrize("lines, expected", BAD.values(), ids=BAD)
def test_a_file_that_cannot_be_is_one_sentence(tmp_path, lines, expected, capsys):
    assert main(["train", written(tmp_path, lines)]) == 1
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, capsys):
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff")
    for file, expected in (("none.yaml", "cannot be read: No such file"), ("bytes.yaml", "is no YAML")):
        assert main(["train", str(tmp_path / file)]) == 1
        assert expected in capsys.readouterr().err
