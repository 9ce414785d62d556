"""Run by test_resume.py: trainings in forked processes that kill themselves, each going on where the last one died.

Arguments: the runs folder of a training that is left alone, that of the one that is killed, and for each kill
"what:count", the process being killed (SIGKILL) at that many of these events.
"""

import io
import os
import signal
import sys
import traceback

import torch

from medvitlib.data import open_dataset, split
from medvitlib.models.zoo import build
from medvitlib.training import checkpoint, loop
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit
from medvitlib.training.run import UnfinishedRun

CONFIG = TrainConfig(
    epochs=4,
    head_epochs=1,
    batch_size=16,
    accumulate=2,
    lr=1e-3,
    recipe="xray",
    mixup=0.2,
    cutmix=1.0,
    ema=0.95,
    balance="sampling",
    label_smoothing=0.1,
    workers=2,
)


def train() -> None:
    torch.set_num_threads(1)
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=30))
    model = build("vit_tiny_test", 2, weights=None, dropout=0.2, drop_path=0.3)
    fit(model, parts, CONFIG, name="run", resume=True, device="cpu", precision=None)


def arm(kill: str) -> None:
    """Make one event deadly."""
    what, _, count = kill.partition(":")
    left = int(count)

    def happens(event: str) -> None:
        nonlocal left
        left -= event == what
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    update, log, save, rename = loop.Loop._update, UnfinishedRun.log, torch.save, os.replace

    def dying_update(self, *args):
        loss = update(self, *args)
        happens("update")
        return loss

    def dying_log(self, row):
        log(self, row)
        happens("row")

    def dying_save(content, file):
        memory = io.BytesIO()
        save(content, memory)
        file.write(memory.getvalue()[: memory.tell() // 2])
        file.flush()
        happens("half a state")
        file.write(memory.getvalue()[memory.tell() // 2 :])

    def dying_rename(source, target):
        ours = str(target).endswith(checkpoint.STATE)
        if ours:
            happens("before its rename")
        rename(source, target)
        if ours:
            happens("after its rename")

    loop.Loop._update, UnfinishedRun.log = dying_update, dying_log
    checkpoint.torch.save, checkpoint.os.replace = dying_save, dying_rename


def in_a_process(kill: str) -> int:
    """The signal that ended it, or 0."""
    child = os.fork()  # nothing has been computed yet, so there are no threads that a fork would lose
    if child == 0:
        if kill:
            arm(kill)
        try:
            train()
            status = 0
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


if __name__ == "__main__":
    os.environ["MEDVIT_RUNS"] = sys.argv[1]
    failed = in_a_process("")
    os.environ["MEDVIT_RUNS"] = sys.argv[2]
    ends = [in_a_process(kill) for kill in sys.argv[3:]]
    print(f"killed {ends.count(signal.SIGKILL)} times")
    sys.exit(in_a_process("") or failed)
