"""The command `medvit`: quick to start, and never a bare traceback for what the user can put right."""

import subprocess
import sys

import pytest

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
