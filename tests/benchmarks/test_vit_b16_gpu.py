"""The benchmark for a large GPU, in small, on a CPU: every path of it runs."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from medvitlib.training import blocks

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "vit_b16_gpu.py"


@pytest.fixture
def script(monkeypatch):
    for name in ("MEDVIT_RUNS", "TORCHINDUCTOR_FORCE_DISABLE_CACHES"):
        monkeypatch.setenv(name, "1")  # what the script sets is put back
    monkeypatch.setattr(blocks, "BACKEND", blocks.BACKEND)
    spec = importlib.util.spec_from_file_location("vit_b16_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "DTYPE", None)
    return module


def test_every_part_of_it_runs_in_small(script, tmp_path, capsys):
    script.main(["--tiny", "--rounds", "1", "--json", str(tmp_path / "figures.json")])
    rows = {row["name"]: row for row in json.loads((tmp_path / "figures.json").read_text())["rows"]}
    assert {"full", "LoRA", "RLRR", "timm loop", "forward", "Grad-CAM", "rollout"} < rows.keys()
    assert rows["full"]["over full"] == [1, 1, 1] and rows["LoRA"]["over timm loop"][0] > 0
    assert rows["LoRA"]["matrix_share"] > 0 and rows["full"]["total"] >= rows["full"]["start"]
    assert capsys.readouterr().out.count("|---|") == 3


def test_the_work_of_vit_b16_is_what_is_published(script):
    """17.6 G multiply-adds a forward pass at 224 px (Dosovitskiy et al.; 35 GFLOP), three passes a step."""
    options = script.parsed([])
    with torch.device("meta"):
        model = script.model_of("full", options)
    assert script.flop("full", model) == pytest.approx(105e9, rel=0.01)
    assert script.flop("LoRA", model) == pytest.approx(70e9, rel=0.01)


def test_without_a_gpu_it_says_so(script):
    with pytest.raises(SystemExit, match="no CUDA device here: --tiny"):
        script.main([])
