"""Executes the project's notebooks, each in a process of its own: `./run_all.sh` ends here.

The parent imports the standard library alone, so the first notebook starts at once; it checks every option
before anything runs, shows how far each notebook is, and says at the end what lies where.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from medvitlib.errors import MedvitError
from medvitlib.machine import cores
from medvitlib.notebooks import choose_parameters, code_cells, discover, failure, measure, started
from medvitlib.paths import project_root, runs_dir
from medvitlib.profiles import PROFILES

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
GRACE = 15.0  # seconds a stopped notebook has to save what it has


@dataclass
class Job:
    """One notebook, its parameters, and its state.

    Attributes:
        output: written as `unfinished` while it runs; takes its own name when it has passed, so that a failure leaves
            the output of an earlier run as it was.
    """

    notebook: Path
    output: Path
    parameters: dict
    process: subprocess.Popen | None = None
    begun: float = 0.0
    seconds: float = 0.0
    result: str = "not started"

    @property
    def unfinished(self) -> Path:
        return self.output.with_suffix(".unfinished.ipynb")

    @property
    def log(self) -> Path:
        return self.output.with_suffix(".log")

    @property
    def progress(self) -> Path:
        return self.output.with_suffix(".progress")

    @property
    def html(self) -> Path:
        return self.output.with_suffix(".html")

    def start(self, threads: int | None) -> None:
        for leftover in (self.unfinished, self.unfinished.with_suffix(".html"), self.log, self.progress):
            leftover.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **(dict.fromkeys(THREADS, str(threads)) if threads else {}),
            "MEDVIT_PROGRESS": str(self.progress),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's warning, which would be the first line of every log
        }
        command = [
            sys.executable,
            "-m",
            "medvitlib.notebooks",
            self.notebook,
            self.unfinished,
            json.dumps(self.parameters),
        ]
        self.begun = time.monotonic()
        with self.log.open("wb") as log:
            # a session of its own: Ctrl-C reaches the parent alone, which then ends the children in order
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def finish(self, result: str | None = None) -> None:
        self.seconds = time.monotonic() - self.begun
        self.result = result or failure(self.unfinished, self.process.returncode, self.log) or "ok"
        self.progress.unlink(missing_ok=True)
        if self.result == "ok":
            self.log.unlink(missing_ok=True)
            os.replace(self.unfinished.with_suffix(".html"), self.html)
            os.replace(self.unfinished, self.output)

    def status(self) -> str:
        cells = code_cells(self.unfinished)
        where = f"cell {started(cells)}/{len(cells)}" if cells else "starting"
        detail = self.progress.read_text(errors="replace").strip() if self.progress.is_file() else ""
        line = f"{self.notebook.stem}: {where}, {time.monotonic() - self.begun:.0f} s"
        return f"{line} | {detail}" if detail else line


class Screen:
    """Prints lines and, below them, the state of what runs: rewritten in a terminal, repeated rarely elsewhere."""

    def __init__(self):
        self.terminal = sys.stdout.isatty()
        self.every = 1.0 if self.terminal else 30.0  # seconds
        self.due = time.monotonic() + self.every
        self.drawn = 0

    def say(self, *lines: str) -> None:
        up = f"\x1b[{self.drawn}A\x1b[J" if self.drawn else ""
        print(up + "\n".join(lines), flush=True)
        self.drawn = 0

    def show(self, running: list[Job]) -> None:
        if time.monotonic() < self.due or not running:
            return
        self.due = time.monotonic() + self.every
        width = shutil.get_terminal_size().columns - 1 if self.terminal else None
        self.say(*(job.status()[:width] for job in running))
        self.drawn = len(running) if self.terminal else 0


def run(jobs: list[Job], at_once: int) -> bool:
    """Execute all jobs, at most `at_once` at a time; whatever one of them does, the others run.

    Returns:
        True if it ran to the end, False if it was interrupted (the children are then gone, too).
    """
    screen, waiting, running = Screen(), list(jobs), []
    threads = max(1, cores() // at_once) if at_once > 1 else None
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                job.start(threads)
                running.append(job)
                screen.say(f"{job.notebook.stem}: started")
            for job in [j for j in running if j.process.poll() is not None]:
                running.remove(job)
                job.finish()
                screen.say(*report(job))
            screen.show(running)
            time.sleep(0.2)
        return True
    except KeyboardInterrupt:
        screen.say("Interrupted: ending the notebooks that are running.")
        stop(running)
        return False


def stop(running: list[Job]) -> None:
    """End processes, leaving each the time to save its partial output."""
    for job in running:
        job.process.terminate()
    deadline = time.monotonic() + GRACE
    for job in running:
        try:
            job.process.wait(max(0.1, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            job.process.kill()
            job.process.wait()
        job.finish("interrupted")


def report(job: Job) -> list[str]:
    """The lines that say how a finished notebook ended."""
    if job.result == "ok":
        return [f"{job.notebook.stem}: ok, {job.seconds:.0f} s"]
    return [
        f"{job.notebook.stem}: FAILED after {job.seconds:.0f} s",
        textwrap.indent(job.result, "  "),
        f"  partial output: {job.unfinished}",
        f"  log: {job.log}",
    ]


def table(jobs: list[Job]) -> str:
    """Notebook, seconds, result, and where the output and the HTML lie."""
    rows = [("notebook", "seconds", "result", "output", "html")]
    for job in jobs:
        result = job.result if job.result in ("ok", "not started", "interrupted") else "FAILED"
        output = job.output if result == "ok" else job.unfinished
        files = [str(path) if path.is_file() else "-" for path in (output, output.with_suffix(".html"))]
        rows.append((job.notebook.stem, f"{job.seconds:.1f}", result, *files))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def prepare_output(folder: Path) -> Path:
    """Make the folder and check that it can be written to.

    Raises:
        MedvitError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise MedvitError(f"--out {folder}: cannot be written to ({error.strerror}); name another folder.") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="./run_all.sh",
        description="Execute the notebooks in order and keep each one's output and HTML.",
        epilog="""./run_all.sh lab [JUPYTERLAB OPTIONS]   opens JupyterLab on the notebooks
./run_all.sh test [PYTEST OPTIONS]      runs ruff, the tests, and the notebooks against their committed outputs""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--profile", choices=PROFILES, default="quick", help="how much to compute (default: quick)")
    parser.add_argument("--only", metavar="NN,NN", help="numbers of the notebooks to execute (default: all)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
                        help="set a parameter in the selected notebooks that declare it; may be repeated")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where outputs go (default: runs/notebooks/PROFILE)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="notebooks to execute at once (default: 1)")
    parser.add_argument("--freeze", action="store_true", help="execute in place, with defaults, for committing")
    parser.add_argument("--measure", action="store_true",
                        help="with --freeze: measure the tolerances of the figures first")  # fmt: skip
    parser.add_argument("--relative-to", type=Path, default=Path(), help=argparse.SUPPRESS)  # the caller's folder
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)  # the options, before an installation
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: expected 1 or more")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, 1 if a notebook failed, 2 for a wrong option, 130 if interrupted.
    """
    options = parse(argv)
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:  # nohup says that hanging up should not end this
            signal.signal(name, signal.default_int_handler)
    try:
        notebooks = discover(project_root() / "notebooks", options.only)
        chosen = choose_parameters(notebooks, options.profile, options.parameters, options.relative_to)
        if options.check:
            return 0
        if options.freeze:
            return freeze_all(notebooks, options.measure)
        default = runs_dir() / "notebooks" / options.profile
        out = prepare_output((options.relative_to / options.out).absolute() if options.out else default)
    except MedvitError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Python: {sys.executable}\nProfile: {options.profile}; outputs: {out}", flush=True)
    jobs = [Job(path, out / path.name, values) for path, values in zip(notebooks, chosen, strict=True)]
    complete = run(jobs, options.jobs)
    failed = [job.notebook.stem for job in jobs if job.result != "ok"]
    print(f"\n{table(jobs)}\n")
    print(f"FAILED: {', '.join(failed)}" if failed else "All notebooks passed.", flush=True)
    return 130 if not complete else 1 if failed else 0


def freeze_all(notebooks: list[Path], measured: bool) -> int:
    """Execute notebooks in place, as a clone without data, runs and cache of its own would.

    Args:
        measured: measure the tolerances of their figures first, which takes about eight times as long.
    """
    os.environ["MEDVIT_PROGRESS"] = os.devnull
    os.environ.pop("MEDVIT_DATA", None)
    for notebook in notebooks:
        begun = time.monotonic()
        if measured:
            measure(notebook)
        command = [sys.executable, "-m", "medvitlib.notebooks", "--freeze", str(notebook)]
        if subprocess.run([sys.executable, "-m", "medvitlib.tools.arithmetics", "native", *command]).returncode:
            print(f"{notebook.name}: FAILED, and left as it was", file=sys.stderr)
            return 1
        print(f"{notebook.name}: frozen, {time.monotonic() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
