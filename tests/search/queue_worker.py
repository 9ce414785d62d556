"""A worker of the tests: takes the trials of a study, writes down which, and dies where it is told to.

python queue_worker.py STORAGE FOLDER DIES_AT
"""

import os
import signal
import sys
import time
from pathlib import Path

import optuna

from medvitlib.search import queue

queue.BEAT, queue.GRACE = 0.2, 2.0
PLAN = [{"a": a, "b": b} for a in range(9) for b in range(3)]


def main(storage: str, folder: str, dies_at: str) -> None:
    def run(trial: optuna.trial.Trial) -> float:
        point = trial.suggest_categorical("a", list(range(9))), trial.suggest_categorical("b", list(range(3)))
        with (Path(folder) / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{point}\n")
        time.sleep(0.05)
        if str(trial.user_attrs["point"]) == dies_at and "deaths" not in trial.user_attrs:
            os.kill(os.getpid(), signal.SIGKILL)
        return point[0] - point[1] / 10

    study = queue.Queue("points", Path(folder), None if storage == "sqlite" else storage)
    study.join({"what": "points"}, PLAN)
    study.work(run, idle=0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
