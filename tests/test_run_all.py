"""run_all.sh with a stand-in for Python: what it installs and when, what it passes on, and how it ends."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# notes how it was called; `-m venv DIR` leaves a copy of itself there; a call that $FAIL matches fails
STAND_IN = """#!/usr/bin/env bash
echo "$* | THREADS=${OMP_NUM_THREADS:-} DATA=${MEDVIT_DATA:-}" >>"$CALLS"
[[ -n ${FAIL:-} && "$*" == *$FAIL* ]] && exit 3
[[ "$*" == *arithmetics\\ --names ]] && printf 'native\\nsse\\n'
[[ "$1 $2" == "-m venv" ]] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
exit 0
"""


@pytest.fixture
def project(tmp_path):
    """A copy of run_all.sh and what it reads, beside a `bin` whose python3 is the stand-in."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("run_all.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(STAND_IN)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return folder


def run(project, *arguments, **variables):
    """(exit status, output, how Python was called) of one start from the folder above the project."""
    calls = project.parent / "calls"
    calls.write_text("")
    path = f"{project.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MEDVIT_", "OMP_"))}
    done = subprocess.run(
        [project / "run_all.sh", *arguments],
        cwd=project.parent,
        env={**kept, "PATH": path, "CALLS": str(calls), **variables},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, calls.read_text().splitlines()


def installs(calls):
    return [call for call in calls if "pip install" in call]


def test_the_first_start_installs_and_the_second_does_not(project):
    status, _, calls = run(project)
    assert status == 0 and len(installs(calls)) == 1 and "-r requirements.txt -e ." in installs(calls)[0]
    status, _, calls = run(project)
    assert status == 0 and not installs(calls)
    assert [call.split()[1] for call in calls] == ["medvitlib.runner", "medvitlib.cli", "medvitlib.runner"]


def test_a_wrong_option_installs_nothing(project):
    status, _, calls = run(project, "--only", "99", FAIL="medvitlib.runner --check --only 99")
    assert status == 3 and "runner --check" in calls[-1] and not installs(calls)


def test_changed_requirements_are_installed(project):
    run(project)
    with (project / "requirements.txt").open("a") as file:
        file.write("another-package\n")
    assert len(installs(run(project)[2])) == 1
    assert not installs(run(project)[2])


def test_a_failed_installation_is_taken_up_by_the_next_start(project):
    status, printed, calls = run(project, FAIL="pip install")
    assert status == 1 and "installation failed" in printed and "medvitlib.runner" not in calls[-1]
    status, _, calls = run(project)
    assert status == 0 and len(installs(calls)) == 1


def test_neither_torch_nor_an_index_is_chosen(project):
    (install,) = installs(run(project)[2])
    assert "torch" not in install and "index" not in install
    assert not [line for line in (project / "requirements.txt").read_text().splitlines() if "==" in line]


def test_weights_that_cannot_be_fetched_stop_nothing(project):
    status, printed, calls = run(project, FAIL="weights fetch")
    assert status == 0 and "WARNING" in printed and "medvitlib.runner" in calls[-1]


def test_options_pass_through_and_relative_folders_are_the_callers(project):
    _, _, calls = run(project, "--only", "04", "--out", "mine", MEDVIT_DATA="one:/two", MEDVIT_VENV="env")
    caller = project.parent
    command, _, variables = calls[-1].partition(" | ")
    assert command == f"-m medvitlib.runner --relative-to {caller} --only 04 --out mine"
    assert variables == f"THREADS= DATA={caller}/one:/two"
    assert (caller / "env").is_dir() and not (project / ".venv").exists()


def test_help_makes_nothing(project):
    _, _, calls = run(project, "--help")
    assert calls[-1].startswith("-m medvitlib.runner --help") and not (project / ".venv").exists()


def test_an_unknown_command_makes_nothing(project):
    status, printed, _ = run(project, "tests")
    assert status == 1 and "there are: install, test, lab" in printed and not (project / ".venv").exists()


def test_every_stage_of_the_tests_runs_and_one_failure_fails_them(project):
    status, printed, calls = run(project, "test", "-k", "x", MEDVIT_DATA="/data")
    assert status == 0 and "all passed" in printed.splitlines()[-1]
    stages = [call for call in calls if " ruff " in call or " pytest" in call]
    nbval = f"{project}/.venv/bin/python -m pytest --nbval --nbval-current-env notebooks"
    assert [call.split(" | ")[0] for call in stages] == [
        "-m ruff check .",
        "-m ruff format --check .",
        "-m pytest -n auto --maxprocesses 4 --dist loadfile -k x",
        f"-m medvitlib.tools.arithmetics native {nbval}",
        f"-m medvitlib.tools.arithmetics sse {nbval}/0[189]_*.ipynb",  # no notebook is here that this could name
    ]
    assert [call.split("DATA=")[1] for call in stages[2:]] == ["/data", "", ""]  # notebooks see no data of the user's
    status, printed, again = run(project, "test", "-k", "x", MEDVIT_DATA="/data", FAIL="ruff check")
    assert status == 1 and "FAILED" in printed.splitlines()[-1]
    assert stages == [call for call in again if " ruff " in call or " pytest" in call] and not installs(again)


def test_the_portable_tests_run_the_notebooks_in_every_arithmetic_and_nothing_else(project):
    status, printed, calls = run(project, "test", "--portable", FAIL="arithmetics sse")
    assert status == 1 and "FAILED" in printed.splitlines()[-1]
    assert [call.split()[2] for call in calls if " pytest " in call] == ["-q", "native", "sse"]
    assert not [call for call in calls if " ruff " in call]


def test_the_tests_workers_have_a_thread_each_unless_told_otherwise(project):
    for chosen, threads in (({}, ["1", "", ""]), ({"OMP_NUM_THREADS": "2"}, ["2", "2", "2"])):
        calls = run(project, "test", **chosen)[2]
        found = [call.split("THREADS=")[1].split(" ")[0] for call in calls if "-m pytest" in call]
        assert found == threads  # pytest's, then those of the notebooks, which run one after the other


def test_install_installs_and_runs_nothing(project):
    status, shown, calls = run(project, "install")
    assert status == 0 and len(installs(calls)) == 1 and "train --example" in shown
    assert [call.split()[1] for call in calls if " -m " in f" {call}"][-1] == "medvitlib.cli"
    assert not any(f"-m {module}" in call for call in calls for module in ("medvitlib.runner", "pytest"))


def test_only_the_tests_install_the_development_packages(project):
    assert "requirements-dev.txt" not in "".join(run(project)[2])
    (install,) = installs(run(project, "test")[2])
    assert "-r requirements-dev.txt" in install


def test_the_lab_uses_this_environments_kernel(project):
    status, _, calls = run(project, "lab", "--no-browser")
    assert status == 0 and calls[-1].startswith("-m jupyterlab ") and "--no-browser" in calls[-1]
    assert f"root_dir={project}" in calls[-1]
