"""`medvit doctor` finds what is broken, names the cure, and says so in its exit status."""

import os
import subprocess
import sys

import pytest

from medvitlib import doctor
from medvitlib.doctor import (
    Check,
    check_data,
    check_folders,
    check_imports,
    check_python,
    check_weights,
    holdings,
    render,
)

NMS = "RuntimeError: operator torchvision::nms does not exist"
HEALTHY = {
    "torch": {"version": "2.10", "devices": ["cpu (2 CPU cores)"], "threads": 2, "precision": {"cpu": "float32"}},
    "torchvision": {"version": "0.25"},
    "numpy": {"version": "2.0"},
    "timm": {"version": "1.0"},
    "cv2": {"version": "5.0"},
}


def broken(**errors):
    return {**HEALTHY, **{name: {"error": error} for name, error in errors.items()}}


def doctor_with(tmp_path, package, source) -> str:
    """What `medvit doctor` prints where a package is as broken as `source` makes it; it must say so and exit with 1."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(source)
    answer = subprocess.run(
        [sys.executable, "-m", "medvitlib.cli", "doctor"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1 and "Traceback" not in answer.stdout + answer.stderr
    return answer.stdout


def test_torch_and_torchvision_of_different_builds_are_recognised(tmp_path):
    """The real import of a torchvision that was built for another torch, from a process of its own."""
    answer = doctor_with(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    assert "torchvision was built for another torch" in answer
    assert "pip install --upgrade --force-reinstall torch torchvision" in answer
    assert answer.rstrip().splitlines()[-1].startswith("Broken: ") and "torch" in answer.splitlines()[-1]


@pytest.mark.parametrize(
    ("errors", "name", "cure"),
    [
        ({"torch": "ModuleNotFoundError: No module named 'torch'"}, "torch", "torch torchvision"),
        ({"torchvision": NMS, "timm": NMS}, "timm", "as for torch"),
        ({"cv2": "ImportError: libGL.so.1: cannot open shared object file"}, "cv2", "libgl1"),
        ({"cv2": "ModuleNotFoundError: No module named 'cv2'"}, "cv2", "--force-reinstall opencv-python"),
    ],
)
def test_what_is_broken_has_a_cure(errors, name, cure):
    rows = {row.name: row for row in check_imports(broken(**errors))}
    assert rows[name].status == "fail" and cure in rows[name].cure


def test_a_healthy_machine_is_ready():
    rows = [check_python(), *check_imports(HEALTHY), *check_folders()]
    assert {row.status for row in rows} <= {"ok", "warn"}
    assert render(rows).endswith("Ready.")


def test_an_old_python_is_broken():
    assert check_python((3, 10, 4)).status == "fail"


def test_a_crash_during_import_is_a_row_and_stops_nothing(monkeypatch):
    monkeypatch.setattr(doctor, "IMPORTS", ("torch", "timm"))
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, -11, "", ""))
    found = doctor.probe()
    assert "status -11" in found["torch"]["error"] and "not tried" in found["timm"]["error"]


def test_half_precision_is_explained_by_the_hardware():
    machine = {**HEALTHY["torch"], "precision": {"cpu": "bfloat16", "cuda:0": "float16"}}
    (row,) = (r for r in check_imports({**HEALTHY, "torch": machine}) if r.name == "precision")
    assert row.detail == "cpu: bfloat16, in hardware; cuda:0: float16, since bfloat16 would be emulated"


def test_a_broken_numpy_is_a_row_too(tmp_path):
    answer = doctor_with(tmp_path, "numpy", "raise ImportError('numpy.core.multiarray failed to import')")
    assert "FAIL  numpy" in answer and "--force-reinstall numpy" in answer


def test_data_roots_and_their_sets_are_listed(tmp_path, monkeypatch):
    for name in ("a/1.png", "a/b/2.JPG", "a/notes.txt", "set.npz", ".hidden/3.png", "empty/readme.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert holdings(tmp_path) == ["a (2 images)", "set.npz"]
    monkeypatch.setenv("MEDVIT_DATA", os.pathsep.join([str(tmp_path), str(tmp_path / "absent")]))
    here, absent = check_data()
    assert "a (2 images)" in here.detail
    assert absent.status == "warn" and "does not exist" in absent.detail


def test_a_cache_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(doctor, "cache_dir", lambda: tmp_path / "locked" / "cache")

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    assert all(row.status == "fail" and "MEDVIT_" in row.cure for row in check_folders())


def test_what_the_cache_and_the_runs_hold_is_said_by_kind(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDVIT_RUNS", str(tmp_path / "runs"))
    assert all("holds nothing" in row.detail for row in check_folders())
    for name, megabytes in {
        "cache/images/a.npy": 30, "cache/features/f.npz": 2, "cache/weights/w.npz": 8, "cache/data/x.png": 1,
        "runs/a/model.json": 0, "runs/a/model.safetensors": 5, "runs/a/model.onnx": 6, "runs/a/plots/roc.png": 4,
        "runs/s/b/model.json": 0, "runs/s/b.unfinished/last/state.pt": 7,
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1_000_000 * megabytes))
    cache, runs = check_folders()
    assert cache.detail.endswith("holds decoded images 30 MB, features 2 MB, weights 8 MB, data sets 1 MB")
    assert runs.detail.endswith("holds models of 2 runs 11 MB, interrupted runs 7 MB, other files 4 MB")


def test_little_room_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "ENOUGH_DISK", 1e30)
    assert {row.status for row in check_folders()} == {"warn"}


def test_weights_that_are_nowhere_are_a_warning():
    row = {"name": "vit", "on_disk": "", "reachable_from": "", "licence": "", "bytes": 0}
    assert check_weights([row]) == [
        Check("weights", "warn", "vit: not on disk, and no source answers from here", "medvit weights fetch")
    ]
    assert check_weights([{**row, "on_disk": "/x", "bytes": 88e6}])[0].detail == "vit: on disk, 88 MB"
