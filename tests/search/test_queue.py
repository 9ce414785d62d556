"""Each trial of a study is taken once, whoever works on it and whoever dies."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from medvitlib.errors import TrainingError
from medvitlib.search import queue
from medvitlib.search.queue import Queue

WORKER = Path(__file__).with_name("queue_worker.py")
PLAN = [{"x": x} for x in range(3)]
ASKED = {"what": {"x": [0, 1, 2]}}


def squared(trial: optuna.trial.Trial) -> float:
    return trial.suggest_categorical("x", [0, 1, 2]) ** 2


def joined(folder: Path, storage: str | None = None, plan=PLAN, asked=ASKED, **options) -> Queue:
    study = Queue("study", folder, storage, **options)
    study.join(asked, plan)
    return study


@pytest.fixture(params=["sqlite", "journal"])
def storage(request, tmp_path) -> str:
    return "sqlite" if request.param == "sqlite" else str(tmp_path / "shared.journal")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a PostgreSQL server of our own, on loopback, as an ordinary user: it refuses to run as root."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(p) for p in os.get_exec_path())]
    programs = next((folder for folder in found if (folder / "initdb").is_file()), None)
    if programs is None or find_spec("psycopg") is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql; pip install 'psycopg[binary]'")
    folder = Path(tempfile.mkdtemp(prefix="medvit-postgresql-"))  # pytest's own folders are closed to other users
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")

    def run(*command, **options) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user, **options)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run(programs / "initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -F"
    run(programs / "pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql://tester:any@127.0.0.1:{port}/postgres"
    finally:
        run(programs / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.postgresql
def test_postgresql_gives_the_same(server, tmp_path):
    assert sorted(work(server, tmp_path, 4, dies_at="11")) == [-9, 0, 0, 0]
    assert_exact(server, tmp_path, taken=28)
    assert work(server, tmp_path, 1) == [0]
    assert_exact(server, tmp_path, taken=28)


def work(storage: str, folder: Path, count: int, dies_at: str = "never") -> list[int]:
    command = [sys.executable, str(WORKER), storage, str(folder), dies_at]
    workers = [subprocess.Popen(command) for _ in range(count)]
    try:
        return [worker.wait(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def assert_exact(storage: str, folder: Path, taken: int = 27) -> None:
    """27 points, each done once."""
    study = Queue("points", folder, None if storage == "sqlite" else storage)
    study.look()
    done = [t for t in study.trials() if t.state == TrialState.COMPLETE]
    assert len(study.trials()) == taken
    assert sorted(t.user_attrs["point"] for t in done) == list(range(27))
    assert {(t.params["a"], t.params["b"]): t.value for t in done} == {
        (a, b): a - b / 10 for a in range(9) for b in range(3)
    }
    lines = [line for file in folder.glob("*.txt") for line in file.read_text().splitlines()]
    assert len(lines) == taken and len(set(lines)) == 27


def test_four_workers_do_each_point_once_and_a_finished_study_nothing(storage, tmp_path):
    assert work(storage, tmp_path, 4) == [0] * 4
    assert_exact(storage, tmp_path)
    assert len(list(tmp_path.glob("*.txt"))) > 1  # they shared the work
    assert work(storage, tmp_path, 1) == [0]
    assert_exact(storage, tmp_path)


def test_a_killed_worker_loses_no_point(storage, tmp_path):
    assert sorted(work(storage, tmp_path, 4, dies_at="11")) == [-9, 0, 0, 0]
    assert_exact(storage, tmp_path, taken=28)  # the one that died, and again


def test_a_trial_that_kills_each_worker_is_given_up(tmp_path, monkeypatch):
    study = joined(tmp_path, plan=PLAN[:1])
    monkeypatch.setattr(queue, "_me", lambda pid=None: "here 1 gone" if pid else "here 1 now")
    for deaths in range(3):
        trial = study._take()
        assert trial.user_attrs.get("deaths", 0) == deaths
        study.again()
    assert study.trials()[-1].state == TrialState.FAIL
    assert study.trials()[-1].user_attrs["error"].startswith("Its worker died 3 times")
    assert study._take() is None
    assert study.again(failed=True) == 1 and study._take().user_attrs["deaths"] == 0


def test_a_worker_on_another_machine_is_given_up_after_a_while(tmp_path, monkeypatch):
    study = joined(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "_me", lambda pid=None: "elsewhere 1 now")
        trial = study._take()
    number = study.storage.get_trial_id_from_study_id_trial_number(study._id, trial.number)
    clock = [100.0]
    monkeypatch.setattr(queue.time, "monotonic", lambda: clock[0])

    def waiting() -> int:
        assert study.again() == 3  # it is not done, whoever has it
        return sum(t.state == TrialState.WAITING for t in study.trials())

    assert waiting() == 2
    clock[0] += queue.GRACE - 1
    study.storage.set_trial_user_attr(number, "beat", 1)
    assert waiting() == 2  # a sign of life
    clock[0] += queue.GRACE - 1
    assert waiting() == 2
    clock[0] += 2
    assert waiting() == 3
    study._tell(trial, 1.0)  # it was only slow: too late
    assert study.trials()[trial.number].state == TrialState.FAIL
    study.work(squared)
    assert sum(t.state == TrialState.COMPLETE for t in study.trials()) == 3


def test_signs_of_life_are_given_while_a_trial_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "BEAT", 0.02)
    study = joined(tmp_path, plan=PLAN[:1])
    study.work(lambda trial: time.sleep(0.5) or squared(trial))
    assert study.trials()[0].user_attrs["beat"] >= 2
    assert not any("beat" in thread.name for thread in threading.enumerate())


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_trial_waits_again_at_once(tmp_path, stop):
    study, seen = joined(tmp_path), []

    def run(trial):
        seen.append(squared(trial))
        if len(seen) == 2:
            raise stop
        return seen[-1]

    with pytest.raises(stop):
        study.work(run)
    again = joined(tmp_path)
    assert again.again() == 2
    again.work(run)
    assert seen == [0, 1, 4, 1]
    assert [t.value for t in again.trials() if t.state == TrialState.COMPLETE] == [0, 4, 1]


def test_a_trial_that_died_while_it_was_told_its_parameters_keeps_them_all(tmp_path):
    def run(trial):
        trial.suggest_categorical("x", [0, 1, 2])
        raise KeyboardInterrupt

    study = joined(tmp_path, plan=[{"x": 2, "y": 1}])
    with pytest.raises(KeyboardInterrupt):
        study.work(run)
    assert study.again() == 1
    trial = study._take()
    assert (trial.suggest_categorical("x", [0, 1, 2]), trial.suggest_categorical("y", [0, 1])) == (2, 1)


def test_a_trial_lost_between_two_writes_is_put_back_later(tmp_path, monkeypatch):
    study = joined(tmp_path)
    number = study._number(study.trials()[0])
    study.storage.set_trial_user_attr(number, "died", True)
    study.storage.set_trial_state_values(number, TrialState.FAIL)  # and whoever wrote this dies here
    assert joined(tmp_path).again() == 2
    monkeypatch.setattr(queue, "GRACE", 0)
    assert joined(tmp_path).again() == 3


def test_a_failing_trial_is_recorded_and_the_rest_go_on(tmp_path):
    def run(trial):
        if (x := trial.suggest_categorical("x", [0, 1, 2])) == 1:
            raise ZeroDivisionError("one")
        return x

    study, ended = joined(tmp_path), []
    study.work(run, after=lambda: ended.append(len(ended)))
    assert [t.state.name for t in study.trials()] == ["COMPLETE", "FAIL", "COMPLETE"] and len(ended) == 3
    assert study.trials()[1].user_attrs["error"] == "ZeroDivisionError: one"
    assert study.again() == 0
    assert study.again(failed=True) == 1
    study.work(squared)
    assert [t.state.name for t in study.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.again(failed=True) == 0


def test_a_pruned_trial_is_done(tmp_path):
    def run(trial):
        raise optuna.TrialPruned

    study = joined(tmp_path)
    study.work(run)
    assert {t.state for t in study.trials()} == {TrialState.PRUNED} and study.again() == 0


def test_a_study_of_something_else_is_not_joined(tmp_path):
    joined(tmp_path)
    with pytest.raises(
        TrainingError, match=r"study 'study' .* already, of something else: what.x was \[0, 1, 2\], now"
    ):
        joined(tmp_path, asked={"what": {"x": [0, 1]}}, plan=[*PLAN, {"x": 7}])
    assert len(joined(tmp_path).trials()) == 3  # nor is anything added to it


def test_more_trials_may_be_asked_of_a_study(tmp_path):
    study = joined(tmp_path)
    study.work(squared)
    more = joined(tmp_path, plan=[*PLAN, {"x": 2}])
    assert more.again() == 1


def test_whoever_joins_goes_on_where_the_creator_died(tmp_path, monkeypatch):
    path = str(tmp_path / "shared.journal")
    with monkeypatch.context() as patch:
        patch.setattr(Queue, "_fill", lambda self, plan: self.study.enqueue_trial({"x": 0}, user_attrs={"point": 0}))
        joined(tmp_path, path)
    monkeypatch.setattr(queue, "GRACE", 0.3)
    study = joined(tmp_path, path)
    study.work(squared)
    assert sorted(t.value for t in study.trials()) == [0, 1, 4]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("results.txt", "expected a path that ends in .journal, or a URL"),
        ("nowhere/s.journal", "there is no folder .*nowhere"),
        ("sqlite:////proc/none/study.db", "cannot be used .unable to open database file"),
        ("postgresql://me:secret@127.0.0.1:9/db", r"postgresql://me:\*\*\*@127.0.0.1:9/db cannot be used"),
        ("nosuch://here/db", "cannot be used|no driver"),
    ],
)
def test_a_storage_that_cannot_be_used_is_said_in_a_sentence(tmp_path, url, message):
    with pytest.raises(TrainingError, match=message) as said:
        joined(tmp_path, url)
    assert "secret" not in str(said.value) and "\n" not in str(said.value)


def test_a_storage_that_goes_away_is_said_in_a_sentence(tmp_path):
    study = joined(tmp_path)

    def run(trial):
        for file in tmp_path.glob("study.db*"):
            os.remove(file)
        (tmp_path / "study.db").mkdir()
        return 1.0

    with pytest.raises(TrainingError, match="cannot be used"):
        study.work(run)
