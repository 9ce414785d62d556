"""Kaggle with the internet off, as docs/kaggle_offline.md says: the bundle, the first cell, and then no network.

Here the network is cut, the home folder cannot be written to, and the attached input must stay as it is.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from medvitlib.paths import cache_dir

ROOT = Path(__file__).parents[1]
_WEIGHTS = cache_dir() / "weights"  # read before the tests' own cache takes its place
WEIGHTS = _WEIGHTS if (_WEIGHTS / "vit_small_patch14_dinov2.safetensors").is_file() else None
CUT = """
import socket

def refuse(*_, **__):
    raise OSError("the network is cut")

socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
"""
PROGRAM = """
import json, socket, sys
import medvitlib
from medvitlib.data import open_dataset, split
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build
from medvitlib.predict import Predictor
from medvitlib.training.probe import fit_probe

try:
    socket.create_connection(("192.0.2.1", 80), 1)
except OSError:
    told = {"package": medvitlib.__file__}
variables = {"print": lambda sentence: told.setdefault("teaching", []).append(sentence)}
exec(sys.argv[1], variables)
if sys.argv[2] == "pretrained":
    parts = split(open_dataset("phantom/cxr", image_size=28, n_patients=24), seed=0)
    model = build("vit_small_patch14_dinov2", 2, image_size=28, pool="token_mean", quiet=True)
    run = fit_probe(model, parts, name="offline", device="cpu", precision=None)
    evaluate(run, parts, figures=False, n_boot=100, device="cpu", precision=None)
    images = parts.test.images.planes(slice(0, 3)).transpose(0, 2, 3, 1)
    told["run"] = str(run.folder)
    told["pretrained"] = [answer.label for answer in Predictor(run.folder, device="cpu").predict(images, quiet=True)]
print(json.dumps(told))
"""


def code(page: str, language: str) -> str:
    """The first block of a page."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    return re.search(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]


def alone(command: list, environment: dict, cwd: Path) -> subprocess.CompletedProcess:
    """Run without a network: in a namespace that has none, where there are such, and with Python's sockets refused."""
    private = ["unshare", "--map-root-user", "--net"]
    try:
        possible = subprocess.run([*private, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        possible = False
    return subprocess.run(
        [*(private if possible else []), *command], env=environment, cwd=cwd, capture_output=True, text=True
    )


def small_wheel(folder: Path, name: str) -> None:
    """In place of what `pip download` fetches, which a test does not."""
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", f"{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The page's commands, carried out in a copy of the project, with the weights where the user has them."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "medvitlib", project / "medvitlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):  # what a wheel is made of
        shutil.copy(ROOT / name, project)
    python = sys.executable
    environment = {**os.environ, "PIP_NO_BUILD_ISOLATION": "false", "PIP_NO_INDEX": "1", "PYTHONPATH": str(project)}
    (project / "bundle").mkdir()
    for command in code("kaggle_offline.md", "sh").splitlines():
        if "weights fetch" in command:
            if WEIGHTS is None:
                continue
            environment["MEDVIT_CACHE"] = str(WEIGHTS.parent)
        if "pip download" in command:
            for name in re.search(r"--dest bundle (.+)", command)[1].split():
                small_wheel(project / "bundle", name)
            continue
        command = command.replace(".venv/bin/python", python).replace(".venv/bin/medvit", f"{python} -m medvitlib.cli")
        done = subprocess.run(["bash", "-ec", command], cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return project / "bundle"


@pytest.fixture(scope="module")
def machine(bundle, tmp_path_factory) -> tuple[Path, dict]:
    """A machine without a network after the first cell has run there: its folder, and what the environment says."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("working", "site", "guard", "tmp"):
        (folder / name).mkdir()
    (folder / "guard" / "sitecustomize.py").write_text(CUT)
    attached = folder / "input" / "some-name"
    attached.parent.mkdir()
    bundle.rename(attached)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/dev/null/home",  # which not even root can write to
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": os.pathsep.join([str(folder / "guard"), str(folder / "site")]),
        "PIP_TARGET": str(folder / "site"),
        "MEDVIT_WEIGHTS": str(folder / "input"),
        "MEDVIT_CACHE": str(folder / "working" / "medvitlib-cache"),
        "MEDVIT_RUNS": str(folder / "working" / "runs"),
        "MEDVIT_PROGRESS": os.devnull,
    }
    cell = code("kaggle_and_colab.md", "python").replace("/kaggle/input", str(folder / "input"))
    done = alone([sys.executable, "-c", cell], environment, folder / "working")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, environment


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def told(machine) -> dict:
    """What became of the page's example and, where there are weights, of a run with a pretrained model."""
    folder, environment = machine
    before = contents(folder / "input")
    how = "teaching" if WEIGHTS is None else "pretrained"
    done = alone(
        [sys.executable, "-c", PROGRAM, code("kaggle_offline.md", "python"), how], environment, folder / "working"
    )
    assert done.returncode == 0, done.stderr
    assert contents(folder / "input") == before
    return json.loads(done.stdout.splitlines()[-1])


def test_the_teaching_model_answers_from_the_bundle_alone(told, machine):
    assert told["package"].startswith(str(machine[0] / "site"))
    assert len(told["teaching"]) == 3 and all("COVID" in sentence for sentence in told["teaching"])


@pytest.mark.pretrained
def test_pretrained_weights_come_from_the_attached_input_and_runs_go_where_one_may_write(told, machine):
    assert len(told["pretrained"]) == 3 and told["run"] == str(machine[0] / "working" / "runs" / "offline")
    assert (Path(told["run"]) / "model.safetensors").is_file()
    assert (machine[0] / "working" / "medvitlib-cache").is_dir()


def test_the_first_cell_names_only_packages_of_the_requirements():
    wanted = ast.literal_eval(re.search(r"wanted = (\[.*?\])", code("kaggle_and_colab.md", "python"), re.DOTALL)[1])
    required = [re.split(r"[>=\[]", line)[0] for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert set(wanted) <= set(required)
    assert not {"torch", "torchvision", "numpy"} & set(wanted)  # which stay as they are
