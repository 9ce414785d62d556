"""Run a study: in this process, or in several on this machine; on other machines the same command joins it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import yaml

from medvitlib.errors import TrainingError
from medvitlib.machine import cores
from medvitlib.progress import track
from medvitlib.search.queue import Queue
from medvitlib.search.result import SearchResult
from medvitlib.search.study import Study, read_study
from medvitlib.search.trial import Runner
from medvitlib.training.features import hardware

PARENT = "MEDVIT_SEARCH_PARENT"  # a worker whose parent is gone stops
STORAGE = "MEDVIT_STORAGE"  # where the study is, unless it is said; a password in it is seen by nobody else's `ps`


def run_search(
    source: str | Path | dict,
    *,
    storage: str | None = None,
    workers: int | None = None,
    retry: bool = False,
    quiet: bool = False,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> SearchResult:
    """Train every point of a study that is not trained yet; one that is finished runs nothing.

    Args:
        source: a YAML file (see `medvitlib.search.study`), or a mapping of the same shape.
        storage: see `Queue`; None for $MEDVIT_STORAGE, else SQLite in the study's folder.
        workers: processes on this machine, the cores (or GPUs) shared between them; None for one a GPU, else this
            process alone.
        retry: train points again that failed.
        quiet: no line a point, and no word on the data.
        device, precision: of every training, as `fit` takes them; not part of what the study asks.

    Raises:
        TrainingError: before anything is trained, if the file, a point of it or the storage cannot be used; later,
            if every worker has died.
        KeyboardInterrupt: once every worker has saved its state; the same call goes on.
    """
    workers = max(1, torch.cuda.device_count()) if workers is None else workers
    if workers < 1:
        raise TrainingError(f"workers={workers}: expected 1 or more.")
    hardware(device or "cpu", precision)  # what cannot be is said now; no GPU is touched that the workers need
    study = read_study(source)
    queue = study.queue(storage or os.environ.get(STORAGE))
    runner = Runner(study, {"device": device, "precision": precision}, quiet)
    runner.check()
    prints = {name: getattr(runner.parts, name).fingerprint for name in ("train", "val")}
    queue.join(study.asked | {"fingerprints": prints}, study.plan)
    lines = _Lines(study, queue, quiet)
    if queue.again(failed=retry):
        if workers == 1:
            _leave_with_parent()
            queue.work(runner, after=lines.show)
        else:
            path = study.folder / "study.yaml"
            path.write_text(yaml.safe_dump(json.loads(json.dumps(study.file)), sort_keys=False))  # tuples become lists
            _in_processes(study, queue, path, workers, lines, _asked(device, precision))
    lines.show()
    return SearchResult.read(study, queue, runner.parts)


def show_search(source: str | Path | dict, *, storage: str | None = None) -> SearchResult:
    """A study as it stands, whoever works on it; nothing is trained.

    Raises:
        TrainingError: there is no such study.
    """
    study = read_study(source)
    queue = study.queue(storage or os.environ.get(STORAGE))
    queue.look()
    return SearchResult.read(study, queue, Runner(study).parts)


def _asked(device: str | torch.device | None, precision: torch.dtype | str | None) -> list[str]:
    """Options of the command that say the same."""
    words = ["--precision", str(precision or "float32").removeprefix("torch.")]
    return words if device is None else [*words, "--device", str(device)]


class _Lines:
    """A line for each point, from whichever worker, once it is done."""

    def __init__(self, study: Study, queue: Queue, quiet: bool):
        self.study, self.queue, self.quiet = study, queue, quiet
        self.done = {t.number for t in queue.trials() if t.state.is_finished()}

    def show(self) -> int:
        """Print what is new; returns how many points are done."""
        trials = self.queue.trials()
        for trial in trials:
            if not trial.state.is_finished() or trial.number in self.done:
                continue
            self.done.add(trial.number)
            if not self.quiet:
                print(SearchResult.line(self.study, trial), flush=True)
        return sum(t.state.is_finished() and not t.user_attrs.get("died") for t in trials)


def _in_processes(study: Study, queue: Queue, path: Path, count: int, lines: _Lines, options: list[str]) -> None:
    """So many workers, each the same command on one core's or GPU's share; their words go to worker-N.log."""
    threads = max(1, cores() // count)
    devices = torch.cuda.device_count()
    command = [sys.executable, "-m", "medvitlib.cli", "search", "run", str(path), "--workers", "1", *options]
    processes = {}
    try:
        for number in range(count):
            log = study.folder / f"worker-{number}.log"
            variables = {"OMP_NUM_THREADS": str(threads), PARENT: str(os.getpid()), STORAGE: queue.url}
            if devices > 1 and "--device" not in options:
                variables["CUDA_VISIBLE_DEVICES"] = _device(number % devices)
            with log.open("wb") as out:
                processes[log] = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    env={k: v for k, v in os.environ.items() if k != "MEDVIT_PROGRESS"} | variables,
                    start_new_session=True,  # Ctrl-C is for this process, which passes it on
                )
        for _ in track(_done(processes, lines), study.name, total=len(study.plan), unit="point"):
            pass
    except BaseException as stopped:
        _stop(list(processes.values()))
        if isinstance(stopped, KeyboardInterrupt):
            raise KeyboardInterrupt("Stopped. Everything is saved: the same call goes on.") from None
        raise
    if any(not trial.state.is_finished() for trial in queue.trials()):
        words = "\n".join(f"{log}: {_last(log)}" for log in processes)
        raise TrainingError(f"Every worker has stopped before the search was done:\n{words}")


def _done(processes: dict[Path, subprocess.Popen], lines: _Lines) -> Iterator[int]:
    """One item for each point that is done, until no process is left."""
    seen = lines.show()
    yield from range(seen)
    while any(process.poll() is None for process in processes.values()):
        time.sleep(1)
        now = lines.show()
        yield from range(seen, now)
        seen = max(seen, now)


def _stop(processes: list[subprocess.Popen]) -> None:
    """Each worker saves where its training stands."""
    for process in processes:
        with suppress(OSError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(timeout=120)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C does not wait
            process.kill()


def _device(number: int) -> str:
    """The name of a GPU, among those that this process was given."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",")[number] if given else str(number)


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "(nothing)"


def _leave_with_parent() -> None:
    """Where a parent started this worker: SIGTERM to ourselves, as soon as it is gone."""
    if not (parent := os.environ.get(PARENT)):
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
