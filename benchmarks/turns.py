"""What the benchmarks share: taking turns, ratios within a round, peak memory, the header, tables, figures as JSON.

What is compared lives in one process and takes turns, in another order each round, after rounds to warm up; a ratio is
taken within a round, so that a busy machine slows both of its sides, and is told as the median with the smallest and
the largest. Peak memory is that of a process that does nothing else.

    options = turns.parser(__doc__).parse_args()
    page = turns.Page(options, "torch")                               # prints the header
    seconds = turns.in_turns({"ours": ours, "theirs": theirs}, rounds=15)
    speed = turns.ratio(seconds["theirs"], seconds["ours"])
    page.table({"": "", "img/s": ".1f", "speed": ".2f"}, [("ours", rate, speed)])
    page.claim("ours, speed over theirs", speed, images_per_second=rate)   # a row of the README's table
    page.save()                                                       # where --json says

PyTorch is imported by none of this before a header is made: a process that measures ONNX Runtime stays without.
"""

import argparse
import os
import platform
import random
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from medvitlib.jsonfile import write_json
from medvitlib.machine import cores

WARM_UP = 2
"""Rounds that are not counted: an optimizer makes its state, kernels are chosen."""


def parser(about: str) -> argparse.ArgumentParser:
    """One that has --json."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="PATH", help="write the figures into this file, too")
    return made


def device() -> str:
    """ "cuda" where there is one, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# taking turns


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of a figure."""

    median: float
    min: float
    max: float

    def __format__(self, spec: str) -> str:
        median, low, high = (format(value, spec or ".2f") for value in (self.median, self.min, self.max))
        return f"{median} ({low} to {high})"


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def ratio(slow: list[float], fast: list[float]) -> Spread:
    """How many times as fast the second is: seconds of the first over those of the second, in each round."""
    return spread(a / b for a, b in zip(slow, fast, strict=True))


def in_turns(
    calls: dict[Hashable, Callable[[], object]],
    rounds: int,
    *,
    warm_up: int = WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Hashable, list[float]]:
    """Seconds of each call in each round; another order each round, the same in every run."""
    seconds: dict[Hashable, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    for number in range(warm_up + rounds):
        for name in order.sample(names, len(names)):
            start = clock()
            calls[name]()
            finish()
            took = clock() - start
            if number >= warm_up:
                seconds[name].append(took)
    return seconds


def finish() -> None:
    """Wait for what was given to a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


# memory


def resident_peak() -> int:
    """MB that this process has held at most; `ru_maxrss` would start from its parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


def peak_memory(call: Callable[[], object], times: int = 3) -> int:
    """MB by which this process grows at most while it does this; on a GPU, all that is held there."""
    before = resident_peak()
    for _ in range(times):
        call()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    return resident_peak() - before


def own_process(script: str, *arguments: object, **environment: str) -> str:
    """The last line that this script prints in a process of its own."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


# what is told


class Page:
    """Prints Markdown as it comes, and keeps the figures for --json.

    Args:
        options: of `parser`.
        packages: whose versions the header tells, of those that are installed.
        on: the device that is measured; None: the best there is.
    """

    def __init__(self, options: argparse.Namespace, *packages: str, on: str | None = None):
        self.path, found = options.json, header(*packages, on=on)
        self.content: dict = {"header": found, "command": command(sys.argv), "claims": [], "tables": []}
        yes = {True: "yes", False: "no"}
        where = f"{found['gpu']}; " if found["device"] == "cuda" else ""
        chip = f"{found['processor']} (AVX-512: {yes[found['avx512']]}, bfloat16: {yes[found['bf16']]})"
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        self.say(f"{where}{chip}, {found['cores']} cores, {found['threads']} threads; {found['platform']}; {versions}")

    def say(self, text: str = "", end: str = "\n") -> None:
        print(text, end=end, flush=True)

    def table(self, columns: dict[str, str], rows: Iterable[Iterable], title: str = "") -> list[list]:
        """Print a table, a row as soon as it is there; None leaves a cell empty.

        Args:
            columns: name to how a cell is formatted; "" for words.
            title: of the table, printed above it.
        """
        self.say(f"\n{title}\n" if title else "")
        self.say(f"| {' | '.join(columns)} |\n|{'|'.join('---:' if spec else '---' for spec in columns.values())}|")
        told = []
        for row in map(list, rows):
            cells = zip(row, columns.values(), strict=True)
            self.say(f"| {' | '.join('' if value is None else format(value, spec) for value, spec in cells)} |")
            told.append(row)
        values = [dict(zip(columns, map(plain, row), strict=True)) for row in told]
        self.content["tables"].append({"title": title, "rows": values})
        return told

    def claim(
        self,
        what: str,
        figure: Spread | float,
        unit: str = "times",
        *,
        images_per_second: float | None = None,
        peak_mb: float | None = None,
    ) -> None:
        """A figure that the README shows.

        Args:
            what: is measured, with the model, sizes and the peer; the same words on every machine.
        """
        rest = {"images_per_second": images_per_second, "peak_mb": peak_mb}
        found = {"what": what, "figure": figure, "unit": unit, **rest}
        self.content["claims"].append({name: plain(value) for name, value in found.items() if value is not None})

    def save(self) -> None:
        if self.path:
            write_json(self.path, self.content)


def plain(value: object) -> object:
    """What JSON can hold; figures to four digits, so that a file can be read."""
    if isinstance(value, Spread):
        return {name: plain(number) for name, number in asdict(value).items()}
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def command(argv: list[str]) -> str:
    """How this script was called, without what does not change a figure."""
    words = iter(argv[1:])
    kept = []
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return shlex.join(["python", f"benchmarks/{Path(argv[0]).name}", *kept])


def header(*packages: str, on: str | None = None) -> dict:
    """The machine and the versions that figures depend on."""
    import torch

    from medvitlib.precision import autocast_dtype

    place = on or device()
    return {
        "device": place,
        **({"gpu": torch.cuda.get_device_name()} if place == "cuda" else {}),
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "avx512": "AVX512" in torch.backends.cpu.get_cpu_capability(),
        "bf16": autocast_dtype(place) == torch.bfloat16,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {"Python": platform.python_version(), "torch": torch.__version__} | versions(packages),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """Its name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)):
        return found[1].strip()
    return platform.processor() or platform.machine()


def machine(found: dict) -> str:
    """What a header's machine is called: its GPU, or its processor and how many cores there are."""
    return found["gpu"] if found["device"] == "cuda" else f"{found['processor']}, {found['cores']} cores"
