"""Every notebook that takes `data`, on a stranger's folder of two or three classes, through the runner.

Of a pair of folders each notebook has one here; `./run_all.sh test --portable` runs all of them on both.
"""

import os
import subprocess
import sys

import cv2
import pytest

from medvitlib.data import open_dataset
from medvitlib.notebooks import discover, read_parameters
from medvitlib.paths import project_root

BOTH = bool(os.environ.get("MEDVIT_BOTH_FOLDERS"))
TWO, THREE = ("01", "05", "06", "09"), ("02", "03", "04", "06", "08")
TAKE_DATA = [path for path in discover(project_root() / "notebooks") if "data" in read_parameters(path)]
SMALL = {
    "image_size": 56,
    "epochs": 1,
    "vit_epochs": 1,
    "vit_size": 64,
    "tune_epochs": 1,
    "scratch_epochs": 1,
    "cnn_epochs": 1,
    "cnn_size": 56,
    "scored_images": 2,
    "augmented": "LoRA",
    "from_scratch": "none",
    "patch_sizes": [32],
    "num_heads": [1, 4],
    "dropout_probs": [0.1],
}


def own_images(folder, kind):
    """Rendered images as somebody would have them: classes as folders, patients in the names, one broken file, and a
    table beside the folder."""
    lines = ["file;scanner"]
    ds = open_dataset(kind, image_size=72, n_patients=20, seed=3, difficulty=0.2)
    for i, name in enumerate(ds.groups):
        path = folder / ds.classes[ds.labels[i]] / f"{name}_{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), ds.images[i][..., ::-1])
        lines.append(f"{path.relative_to(folder).as_posix()};{'AB'[i % 2]}")
    folder.with_name("about.csv").write_text("\n".join(lines))
    path.with_name(f"{name}_999.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def test_all_but_the_benchmark_take_data():
    assert [path.name[:2] for path in TAKE_DATA] == sorted({*TWO, *THREE})


@pytest.mark.parametrize(
    ("kind", "positive", "numbers"), [("phantom/cxr", "pneumonia", TWO), ("phantom/blood3", None, THREE)]
)
def test_every_notebook_runs_on_a_folder(kind, positive, numbers, tmp_path, pretrained_weights, monkeypatch):
    numbers = [path.name[:2] for path in TAKE_DATA] if BOTH else numbers
    own_images(tmp_path / "my images", kind)
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MEDVIT_WEIGHTS", str(pretrained_weights))
    asked = {"data": "my images", "groups": r"(patient\d+)_", "metadata": "about.csv", "max_bad": 0.1, **SMALL}
    asked |= {"model": "04-my-images-vit_small_patch14_dinov2"} | ({"positive": positive} if positive else {})
    for some in ([number for number in numbers if number != "08"], ["08"] if "08" in numbers else []):  # 08 needs 04
        known = {name for path in TAKE_DATA if path.name[:2] in some for name in read_parameters(path)}
        options = [word for name, value in asked.items() if name in known for word in ("-p", name, str(value))]
        command = [sys.executable, "-m", "medvitlib.runner", "--relative-to", str(tmp_path), *options]
        command += ["--only", ",".join(some), "--out", "out", "--jobs", "2"]
        done = some and subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
        assert not some or done.returncode == 0, done.stdout[-6000:]
    assert len(list((tmp_path / "out").glob("*.ipynb"))) == len(numbers)
