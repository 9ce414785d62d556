"""The command `medvit`: quick to start, and never a bare traceback for what the user can put right."""

import subprocess
import sys

import pytest
from filelock import FileLock

import medvitlib.models.weights as weights
from medvitlib.cli import main


def test_help_starts_without_the_heavy_packages():
    code = "import sys, medvitlib.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("'torch'", "'timm'", "'sklearn'", "'pandas'", "'onnx'", "'cv2'"):
        assert name not in shown
    assert "doctor" in shown and "weights" in shown


def test_a_typo_is_answered_with_the_nearest_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["docter"])
    assert end.value.code == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err


def test_what_the_user_can_put_right_is_one_message(capsys):
    assert main(["weights", "fetch", "vit_huge"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("medvit: no weights are known for 'vit_huge'") and "Traceback" not in shown.err


@pytest.mark.pretrained
def test_weights_on_disk_are_not_fetched_again_and_import_no_torch(pretrained_weights):
    code = (
        "import sys; from medvitlib.cli import main; status = main(['weights', 'fetch']);"
        "sys.exit(status or ('torch' in sys.modules or 'onnx' in sys.modules))"
    )
    environment = {"MEDVIT_CACHE": str(pretrained_weights.parent), "PATH": "", "PIP_NO_INDEX": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith(".safetensors")


def test_the_list_says_what_is_there_and_what_can_be_had(monkeypatch, capsys):
    rows = [
        {"name": "here", "on_disk": "/w/here.npz", "reachable_from": "", "licence": "MIT", "bytes": 88_000_000},
        {"name": "there", "on_disk": "", "reachable_from": "hub", "licence": "Apache-2.0", "bytes": 0},
    ]
    monkeypatch.setattr(weights, "list_weights", lambda probe: rows)
    assert main(["weights"]) == main(["weights", "list"]) == 0
    shown = capsys.readouterr().out
    assert "/w/here.npz (88 MB)" in shown and "can be fetched from: hub" in shown


def test_ctrl_c_ends_without_a_traceback(monkeypatch):
    def interrupted(probe):
        raise KeyboardInterrupt

    monkeypatch.setattr(weights, "list_weights", interrupted)
    assert main(["weights"]) == 130


def test_data_roots_are_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").touch()
    monkeypatch.setenv("MEDVIT_DATA", str(tmp_path))
    assert main(["data"]) == 0
    assert "set (1 images)" in capsys.readouterr().out


def test_one_image_is_answered_for_without_packages_that_take_seconds_to_import(write_image, tmp_path):
    image = write_image(tmp_path / "image.png", size=(224, 224))
    code = (
        "import sys; from medvitlib.cli import main; status = main(sys.argv[1:]);"
        "print(status, sys.modules.keys() & {'timm', 'torchvision', 'pandas', 'sklearn', 'matplotlib'})"
    )
    command = [sys.executable, "-c", code, "predict", "teaching", str(image), "--device", "cpu"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.endswith("\n0 set()\n")


# ---------------------------------------------------------------- medvit clean

FINISHED = ("model.json", "model.safetensors", "plots/roc.png")


@pytest.fixture
def used(tmp_path, monkeypatch):
    """A cache and runs as after some work: (cache, runs)."""
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    monkeypatch.setenv("MEDVIT_CACHE", str(cache))
    monkeypatch.setenv("MEDVIT_RUNS", str(runs))
    sizes = {
        "images/a.npy": 3_000_000, "images/a.lock": 0, "images/b.building": 500, "features/f.npz": 2_000_000,
        "near/n.npz": 1000, "weights/vit.safetensors": 9_000_000, "data/set/1.png": 700,
    }  # fmt: skip
    sizes |= {f"../runs/{run}/{file}": 1000 for run in ("done", "study/000", "lost.old") for file in FINISHED}
    sizes |= {
        f"../runs/{run}/last/state.pt": 4_000_000 for run in ("done", "stopped.unfinished", "study/001.unfinished")
    }
    sizes |= {"../runs/done.old/model.json": 50, "../runs/notes.txt": 10}
    for name, size in sizes.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_bytes(bytes(size))
    return cache, runs


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_clean_removes_caches_and_interrupted_runs_and_no_finished_run(used, capsys):
    cache, runs = used
    before = names(runs)
    assert main(["clean", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for words in ("3.0 MB  decoded images", "4.0 MB  interrupted run", "replaced run", "state of a complete run"):
        assert words in shown
    assert "lost.old" not in shown and "weights" not in shown and names(runs) == before  # lost.old is the only copy
    assert main(["clean", "--yes"]) == 0
    assert "17.0 MB removed" in capsys.readouterr().out
    finished = {f"{run}/{file}" for run in ("done", "study/000", "lost.old") for file in FINISHED}
    assert names(runs) == finished | {"notes.txt"}
    assert names(cache) == {"images/b.building", "weights/vit.safetensors", "data/set/1.png"}  # one is being written
    assert main(["clean", "--yes", "--weights"]) == 0
    assert names(cache) == {"images/b.building", "data/set/1.png"}


def test_clean_asks_at_a_terminal_and_removes_nothing_without_one(used, capsys, monkeypatch):
    cache, runs = used
    before = names(cache) | names(runs)
    assert main(["clean"]) == 1
    assert "no terminal to ask for confirmation. Pass --yes" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "n", "what"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(["clean"]) == 0
        assert names(cache) | names(runs) == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(["clean"]) == 0
    assert "features/f.npz" not in names(cache)
    for empty in ("MEDVIT_CACHE", "MEDVIT_RUNS"):
        monkeypatch.setenv(empty, str(cache / "nothing"))
    capsys.readouterr()
    assert main(["clean"]) == 0 and capsys.readouterr().out == "There is nothing to remove.\n"


def test_clean_leaves_what_another_process_is_using(used, capsys):
    cache, runs = used
    with FileLock(runs / ".stopped.lock"), FileLock(runs / ".done.lock"), FileLock(cache / "images" / "a.lock"):
        assert main(["clean", "--yes"]) == 0
        shown = capsys.readouterr().out
        assert shown.count("another process is training it") == 3 and "what is being written was left" in shown
    assert {"stopped.unfinished/last/state.pt", "done/last/state.pt", "done.old/model.json"} <= names(runs)
    assert "study/001.unfinished/last/state.pt" not in names(runs)
    assert "images/a.npy" in names(cache) and "features/f.npz" not in names(cache)
