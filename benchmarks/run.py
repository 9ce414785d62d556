"""Every benchmark that this machine can run, each in a process of its own, and the README's table of what they found.

    python benchmarks/run.py [NAME ...] [--quick] [--results DIR]
    python benchmarks/run.py --table

What cannot run here is left out, by name and with the reason; one that fails does not stop the others, and makes the
exit status 1. Figures go into DIR/<machine>.json, beside those that are there of other benchmarks, as soon as each
benchmark ends. --quick takes the smallest sizes that mean anything, to see that all of it works: its figures are kept
only where --results names a folder. --table writes the README's table from the files in DIR.

The libraries compared with: pip install -r benchmarks/requirements.txt
A benchmark is a script beside this one that takes --json PATH (`turns.py`) and stands in the table below.
"""

import argparse
import difflib
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import turns
from medvitlib.jsonfile import write_json

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- made by: python benchmarks/run.py --table -->", "<!-- end of the benchmarks' table -->"


@dataclass(frozen=True)
class Benchmark:
    """What a script is called with, and what it needs.

    Attributes:
        arguments, quick: of a measurement, and of a trial of the script itself.
        cuda: needs a CUDA device.
        weights: needs the pretrained weights that `medvit weights fetch` fetches.
        data: name of the real data set that it needs.
        peers: packages that it compares with; it runs without them, and says less.
    """

    arguments: str = ""
    quick: str = ""
    cuda: bool = False
    weights: bool = False
    data: str = ""
    peers: tuple[str, ...] = ()


BENCHMARKS = {
    "loading": Benchmark(quick="--images 64 --sizes 32 --workers 0 --rounds 2 --memory"),
    "train_step": Benchmark(
        quick="--image-size 32 --batch-size 2 --rounds 2 --no-memory", peers=("transformers", "vit_pytorch")
    ),
    "grid": Benchmark("--epochs 2", quick="--epochs 1 --values 1 --images 24"),
    "adapters": Benchmark(quick="--image-size 28 --batch-size 2 --rounds 2", peers=("peft",)),
    "explain": Benchmark(quick="--image-size 32 --batch-size 2 --rounds 2", peers=("pytorch_grad_cam",)),
    "predict": Benchmark("--rounds 5 --start 3", quick="--batch-sizes 1 --rounds 1", weights=True),
    "growth": Benchmark(quick="--images 30 60 --sizes 32 48 --classes 2 3"),
    "chest_xray_minute": Benchmark(quick="--rounds 1 --checked 8", weights=True, data="chest_xray"),
    "vit_b16_gpu": Benchmark(quick="--tiny --rounds 1", cuda=True),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(BENCHMARKS)}; none: all of them")
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: to test the scripts, not to measure")
    parser.add_argument("--results", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--table", action="store_true", help="write the README's table, and run nothing")
    options = parser.parse_args(arguments)
    folder = options.results or HERE / "results"
    if options.table:
        README.write_text(with_table(README.read_text("utf-8"), read_results(folder)), "utf-8")
        return 0
    for name in options.names:
        if name not in BENCHMARKS:
            nearest = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
            parser.error(f"no benchmark is called {name!r}: the nearest is {nearest!r}.")
    ended = {}
    for name in options.names or BENCHMARKS:
        ended[name] = run(name, options.quick, None if options.quick and not options.results else folder)
        print(f"\n[benchmarks] {name}: {ended[name]}\n", flush=True)
    print("\n".join(f"[benchmarks] {name:18s} {how}" for name, how in ended.items()))
    return int(any(how.startswith("FAILED") for how in ended.values()))


def run(name: str, quick: bool, folder: Path | None) -> str:
    """Run one, merge its figures into a file of the folder, and say how it ended."""
    benchmark, script = BENCHMARKS[name], HERE / f"{name}.py"
    if why := why_not(benchmark, script):
        return f"skipped: {why}"
    if absent := [peer for peer in benchmark.peers if not find_spec(peer)]:
        print(f"[benchmarks] {name} without {', '.join(absent)} (pip install -r benchmarks/requirements.txt)")
    words = (benchmark.quick if quick else benchmark.arguments).split()
    print(f"[benchmarks] python benchmarks/{' '.join([script.name, *words])}\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        figures, begun = Path(scratch) / "figures.json", time.perf_counter()
        status = subprocess.run([sys.executable, str(script), *words, "--json", str(figures)]).returncode
        took = time.perf_counter() - begun
        if status:
            return f"FAILED with status {status} after {took:.0f} s"
        if not figures.is_file():
            return f"FAILED: it wrote no figures into the file that --json named, in {took:.0f} s"
        found = json.loads(figures.read_text("utf-8"))
    where = "" if folder is None else f", in {merge(folder, name, found)}"
    return f"done in {took:.0f} s{where}"


def why_not(benchmark: Benchmark, script: Path) -> str:
    """Why it cannot run here; empty if it can."""
    if not script.is_file():
        return f"there is no {script.name}"
    if benchmark.cuda and turns.device() != "cuda":
        return "no CUDA device"
    if benchmark.weights:
        from medvitlib.models.sources import SOURCES
        from medvitlib.models.weights import find_file
        from medvitlib.paths import cache_dir, weight_roots

        files = SOURCES["vit_small_patch14_dinov2"].files
        if not find_file(files, [*weight_roots(), cache_dir() / "weights"]):
            return "no pretrained weights (medvit weights fetch)"
    if benchmark.data:
        from medvitlib.data.sources.finding import find
        from medvitlib.errors import DataError

        try:
            find(benchmark.data)
        except DataError:
            return f"no {benchmark.data} in a data root (medvit fetch {benchmark.data}, or set MEDVIT_DATA)"
    return ""


def merge(folder: Path, name: str, found: dict) -> Path:
    """Put one benchmark's figures into its machine's file, in place of its earlier ones; returns the file."""
    machine = turns.machine(found["header"])
    path = folder / f"{slug(machine)}.json"
    held = json.loads(path.read_text("utf-8")) if path.is_file() else {"machine": machine, "benchmarks": {}}
    benchmarks = held["benchmarks"] | {name: found}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"machine": machine, "benchmarks": {key: benchmarks[key] for key in sorted(benchmarks)}})
    return path


def slug(machine: str) -> str:
    """A file's name: "Intel(R) Xeon(R) CPU @ 2.90GHz, 2 cores" is intel-xeon-cpu-2-90ghz-2-cores."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", machine.lower())).strip("-")


def read_results(folder: Path) -> dict[str, dict]:
    """machine -> benchmark -> figures, of every file in the folder."""
    files = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    return {held["machine"]: held["benchmarks"] for held in files}


def table(results: dict[str, dict]) -> str:
    """One row a claim, one column a machine."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for machine, benchmarks in results.items():
        for name, found in benchmarks.items():
            for claim in found["claims"]:
                rows.setdefault((name, claim["what"]), {})[machine] = cell(claim)
    if not rows:
        return "Nothing has been measured yet."
    lines = [f"| `benchmarks/` | | {' | '.join(results)} |", f"|---|---|{'---|' * len(results)}"]
    for (name, what), cells in sorted(rows.items(), key=lambda row: row[0][0]):
        lines.append(f"| {name} | {what} | {' | '.join(cells.get(machine, '') for machine in results)} |")
    return "\n".join(lines)


def cell(claim: dict) -> str:
    """The figure, then img/s and memory, as far as they are known."""
    figure, unit = claim["figure"], {"times": "×"}.get(claim["unit"], claim["unit"])
    if isinstance(figure, dict):
        median, low, high = (short(figure[name]) for name in ("median", "min", "max"))
        said = [f"{median} {unit} ({low} to {high})"]
    else:
        said = [f"{short(figure)} {unit}".rstrip()]
    more = {"images_per_second": "img/s", "peak_mb": "MB"}
    said += [f"{short(claim[name])} {of}" for name, of in more.items() if name in claim]
    return "; ".join(said)


def short(value: float) -> str:
    """0.98, 17.5, 1,234; whole numbers as they are."""
    digits = 0 if isinstance(value, int) else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:,.{digits}f}"


def with_table(page: str, results: dict[str, dict]) -> str:
    """The page with the table between the two markers."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md has lost a marker; the table stands between {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
