"""Train in several processes from a notebook: torchrun as a subprocess, since a notebook's kernel cannot be forked."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from medvitlib.errors import TrainingError
from medvitlib.machine import cores
from medvitlib.train import read
from medvitlib.training.run import Run, load_run


def launch(path: str | Path, *, processes: int, force: bool = False) -> Run:
    """Train what a YAML file says in several processes of this machine: what a notebook calls.

    It starts torchrun (see `train`) and prints what comes as it comes. Ctrl-C is passed on: the training is saved.

    Args:
        processes: one a CUDA device; on a machine without, as many as share the cores.
        force: start again, see `train`.

    Returns:
        the finished run, evaluated.

    Raises:
        TrainingError: the training failed, with the last it said.
        KeyboardInterrupt: after Ctrl-C, once the state is on disk.
    """
    asked, _ = read(path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "medvitlib.cli", "train", str(path), *(["--force"] if force else [])]
    environment = {
        "OMP_NUM_THREADS": str(max(1, cores() // processes)),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600",  # seconds for the update that is under way, and to save
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONUNBUFFERED": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    said: list[str] = []
    # a session of its own: Ctrl-C reaches this process alone, which passes it on once
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            _show(process, said)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            _show(process, said)
            raise
    if process.returncode:
        reason = [line.removeprefix("medvit: ") for line in said if line.startswith("medvit: ")] or said[-20:]
        raise TrainingError("\n".join(reason) or f"The training ended with status {process.returncode}.")
    return load_run(asked["name"])


def _show(process: subprocess.Popen, said: list[str]) -> None:
    """Print a training's lines as they come and keep them, but for what torchrun has to say of an end."""
    ended = False
    for line in map(str.rstrip, process.stdout):
        ended = ended or re.match(r"[WE]\d{4} .*torch/distributed/elastic", line)
        if line and (not ended or line.startswith(("medvit: ", "Stopp"))):
            said.append(line)
            print(line, flush=True)
