"""Nothing is lost: a training's state on disk, and signals that wait for a moment when it can be written."""

import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medvitlib.errors import TrainingError
from medvitlib.training import parallel
from medvitlib.training.run import BEST, STATE


@dataclass
class Position:
    """Where a training stands; the update it goes on with is number `step` of `epoch`.

    Attributes:
        epoch, step: both counted from 0; `step` is the number of updates done in this epoch.
        loss, weight, seconds: sums over those updates; the loss is weighted by images.
        accumulate: parts of a batch, as it stands after running out of memory: rounding differs between them.
        best, best_nll, best_epoch: the best value of the metric, with its validation NLL and its epoch as metrics.csv
            numbers it: from 1, 0 for the start; -1 before there is one.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    weight: float = 0.0
    seconds: float = 0.0
    accumulate: int = 1
    best: float = float("nan")
    best_nll: float = float("nan")
    best_epoch: int = -1


def save_state(folder: Path, content: dict[str, Any]) -> None:
    """Write everything a training needs to go on to `last/state.pt`, aside first, then renamed.

    Args:
        content: from `state_of`.

    Raises:
        TrainingError: it cannot be written; what was saved before stands.
    """
    with _written(folder / STATE) as part:
        torch.save(content, part)


def state_of(position: Position, parts: dict[str, Any], logits: torch.Tensor | None) -> dict[str, Any]:
    """What is saved: tensors and plain values.

    Args:
        parts: objects with a `state_dict`, by name; None where there is none.
        logits: those of the best epoch on the validation part.
    """
    content = {name: part.state_dict() for name, part in parts.items() if part is not None}
    return content | {"position": asdict(position), "logits": logits}


def load_state(folder: Path) -> dict[str, Any]:
    """What `save_state` wrote, by name; tensors and plain values only (`weights_only`), so the file cannot run code.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        content = torch.load(folder / STATE, map_location="cpu", weights_only=True)
        return content | {"position": Position(**content["position"])}
    except Exception as error:  # a damaged file can raise anything
        raise TrainingError(
            f"{folder / STATE} cannot be read ({type(error).__name__}: {error}). "
            "Train anew with resume=False; the folder is then replaced."
        ) from error


def save_best(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write the weights that are best so far to `last/best.safetensors`, aside first, then renamed."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with _written(folder / BEST) as part:
        part.write(save(state, metadata={"format": "pt"}))


def load_best(folder: Path, model: nn.Module) -> None:
    """Put the best weights into the model."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(folder / BEST))


def check_space(folder: Path, model: nn.Module, with_ema: bool) -> None:
    """Say before the training, not after an epoch, that its files would not fit on the disk.

    Raises:
        TrainingError: names what is free and what is needed.
    """
    copies = 3 + with_ema  # weights and at most two moments of each
    size = sum(p.numel() * p.element_size() for p in model.state_dict().values())
    needed, free = (2 * copies + 3) * size, shutil.disk_usage(folder).free  # both states while one replaces the other
    if free < needed:
        raise TrainingError(
            f"{folder} has {free / 1e6:,.0f} MB free; saving this training takes up to {needed / 1e6:,.0f} MB. "
            "Free some space, or set MEDVIT_RUNS to a folder on another disk."
        )


@contextmanager
def _written(path: Path) -> Iterator:
    """A file to write to, which takes its name when it is complete and on the disk."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # RuntimeError: PyTorch's writer on a full disk
        part.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written ({error}). What was saved before it stands: free some space, then train on "
            "with resume=True."
        ) from error


class Stop:
    """While this context is open, Ctrl-C and SIGTERM are a request, which the training answers between two updates.

    A second one does not wait. Signals that were ignored stay so, and outside the main thread nothing changes.
    """

    def __init__(self):
        self.signal: int | None = None
        self._immediate = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: not Python's to give back
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame) -> None:
        again, self.signal = self.signal is not None, number
        if self._immediate or again:
            self.leave("Stopped at once. What was saved before stands: fit(..., resume=True) goes on.")
        if parallel.rank() == 0:
            print("Stopping after this update ...", file=sys.stderr)

    def agreed(self) -> bool:
        """Whether a signal came, to any of the processes: all leave after the same update."""
        (number,) = parallel.highest(self.signal or 0)
        if number:  # else one may have come just now, to be answered next time
            self.signal = number
        return number > 0

    @contextmanager
    def immediately(self) -> Iterator[None]:
        """Here nothing is changed, so there is nothing to wait for."""
        if self.signal is not None:
            self.leave("Stopped.")
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def leave(self, message: str) -> None:
        """Raise what Python would have raised: KeyboardInterrupt, or SystemExit with status 143."""
        if self.signal == signal.SIGTERM:
            if parallel.rank() == 0:
                print(message, file=sys.stderr)
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt(message)


def ignore_signals(worker: int) -> None:
    """For processes that load data: what is sent to the whole group reaches them too, and it is not they who answer.

    They end when the training tells them to, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
