"""Progress of anything that takes over two seconds, shown where the user is looking.

In a terminal it is a tqdm bar. In a notebook it is one line that is rewritten. Where `$MEDVIT_PROGRESS`
names a file (batch runs and tests do that), the line goes to the file instead, so that a notebook's
outputs are the same however long a step took; the batch runner reads the file and shows it live.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DELAY = 2.0  # seconds before anything is shown
INTERVAL = 0.5  # seconds between two lines


def track(
    items: Iterable[T], description: str, total: int | None = None, unit: str = "img", step: int = 1
) -> Iterator[T]:
    """Yield `items`, showing how far along they are, at what rate, and the time left.

    Args:
        total: number of units altogether; taken from `len(items) * step` where that exists.
        unit: what is counted.
        step: units per item (the batch size, when items are batches).
    """
    if os.environ.get("RANK", "0") != "0":  # of several processes (torchrun's), the first shows it
        yield from items
        return
    if total is None and hasattr(items, "__len__"):
        total = len(items) * step
    target = os.environ.get("MEDVIT_PROGRESS")
    if not target and not _in_notebook():
        yield from _terminal(items, description, total, unit, step)
        return
    show = _to_file(Path(target)) if target else _to_notebook()
    start = shown = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - start > DELAY and now - shown > INTERVAL:
            show(_line(description, min(count * step, total or count * step), total, now - start, unit))
            shown = now
    show("")  # an interruption leaves the last line standing, which is where it stopped


def with_time(line: str, timing: str) -> str:
    """A line of output with how long something took; without, where outputs are to be the same every time."""
    return line if os.environ.get("MEDVIT_PROGRESS") else f"{line} ({timing})"


def megabytes(process: subprocess.Popen, folder: Path, pattern: str) -> Iterator[int]:
    """Wait for a process; yield each megabyte that the largest file of this name in `folder` grows by, for `track`."""
    seen = 0
    while process.poll() is None:
        time.sleep(0.2)
        size = max((f.stat().st_size for f in folder.rglob(pattern) if f.exists()), default=0) >> 20
        yield from range(seen, size)
        seen = max(seen, size)


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _line(description: str, done: int, total: int | None, seconds: float, unit: str) -> str:
    rate = done / seconds
    speed = f"{rate:.0f} {unit}/s" if rate >= 1 else f"{1 / rate:.0f} s/{unit}"
    if not total:
        return f"{description}: {done} {unit}, {speed}"
    return f"{description}: {done}/{total} {unit}, {speed}, {(total - done) / rate:.0f} s left"


def _terminal(items, description, total, unit, step):
    from tqdm import tqdm

    every = 0.1 if sys.stderr.isatty() else 30.0  # seconds; a log file is no place for a bar that moves
    with tqdm(total=total, desc=description, unit=unit, delay=DELAY, leave=False, mininterval=every) as bar:
        for item in items:
            yield item
            bar.update(step if total is None else min(step, total - bar.n))


def _to_file(path: Path):
    def show(text: str) -> None:
        with suppress(OSError):  # no progress is better than no result
            path.write_text(text)

    return show


def _to_notebook():
    from IPython.display import HTML, display

    handle = None

    def show(text: str) -> None:
        nonlocal handle
        if handle is not None:
            handle.update(HTML(text))
        elif text:
            handle = display(HTML(text), display_id=True)

    return show
