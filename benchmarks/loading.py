"""How fast do batches come, and does memory stay flat? Measured against torchvision's ImageFolder in the same run.

    python benchmarks/loading.py [--data chest_xray] [--sizes 112 224] [--workers 0 2] [--batch-size 32]

Both sides yield the same images, at the same size, as normalised float32 batches on the same device:
    torchvision   ImageFolder, PIL, Resize, ToTensor, Normalize in a DataLoader (its workers kept alive between epochs)
    medvitlib     batches() of a decoded set, normalise() once a batch: no worker processes, one thread
First epochs (which decode our cache and start their workers) are not counted. Rounds alternate, and the ratio is taken
within each round, so that a busy machine slows both. Prints Markdown.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
import torchvision
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from medvitlib.data import IMAGENET, PhantomOptions, Preprocessing, batches, normalise, open_dataset
from medvitlib.data.folder import scan
from medvitlib.data.phantoms import picture
from medvitlib.data.sources.finding import find
from medvitlib.errors import DataError

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set's name or folder; default: chest_xray if found, else rendered JPEGs")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--images", type=int, default=2000, help="images an epoch, at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs="*", default=[1000, 10_000], help="numbers of images; none: skip")
    parser.add_argument("--one-memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_memory:
        print(peak_memory(options.one_memory))
        return
    print(f"{platform.platform()}, {os.cpu_count()} cores, {DEVICE}; Python {platform.python_version()}", end=", ")
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}", end=", ")
    print(f"OpenCV {cv2.__version__}, NumPy {np.__version__}\n")
    with tempfile.TemporaryDirectory() as scratch:
        source, what = choose(options.data, Path(scratch), options.images)
        print(f"{what}; batches of {options.batch_size}, {options.rounds} rounds\n")
        print("| size | workers | torchvision img/s | medvitlib img/s | ratio, median (min to max) |")
        print("|---:|---:|---:|---:|---:|")
        for size in options.sizes:
            for workers in options.workers:
                print(compare(source, size, workers, options), flush=True)
    if options.memory:
        memory_table(options.memory)


def choose(data: str | None, scratch: Path, images: int) -> tuple[Path, str]:
    """A folder that both sides can read, and what it is."""
    try:
        path, name = find(data or "chest_xray")
        return scan(path).folder, f"{name}, {min(images, len(scan(path).samples))} images an epoch"
    except DataError:
        if data:
            raise
    for patient in range(min(images, 1000)):
        image, mask = picture("phantom/cxr", f"patient{patient:04d}/0", (224, 224), PhantomOptions(n_patients=images))
        path = scratch / ("pneumonia" if mask.any() else "normal") / f"{patient:04d}.jpeg"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    return scratch, f"{min(images, 1000)} rendered 224 px JPEGs"


def compare(source: Path, size: int, workers: int, options: argparse.Namespace) -> str:
    """One line of the table."""
    torch.set_num_threads(1)
    preprocessing = Preprocessing((size, size), *IMAGENET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = open_dataset(source, image_size=size)
    steps = [transforms.Resize((size, size)), transforms.ToTensor(), transforms.Normalize(*IMAGENET)]
    theirs = torchvision.datasets.ImageFolder(source, transforms.Compose(steps))
    place = {Path(path).relative_to(source).as_posix(): i for i, (path, _) in enumerate(theirs.samples)}
    chosen = np.random.default_rng(0).permutation(len(ours))[: options.images]
    ours = ours.subset(chosen)
    theirs = Subset(theirs, [place[ident] for ident in ours.ids])
    loader = DataLoader(theirs, options.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def our_epoch():
        for x, _ in batches(ours, options.batch_size, shuffle=True, generator=generator):
            yield normalise(x.to(DEVICE), preprocessing)

    def their_epoch():
        for x, _ in loader:
            yield x.to(DEVICE)

    same = normalise(next(iter(batches(ours, 32)))[0], preprocessing) - torch.stack([theirs[i][0] for i in range(32)])
    assert same.abs().mean() < 0.1, "the two sides do not load the same pictures"
    generator = torch.Generator().manual_seed(0)
    times = {our_epoch: [], their_epoch: []}
    for number in range(options.rounds + 1):
        for epoch, seconds in times.items():
            start, count = time.perf_counter(), 0
            for x in epoch():
                assert x.shape[1:] == (3, size, size) and x.dtype == torch.float32
                count += len(x)
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            assert count == len(chosen)
            if number:  # the first is the warm-up
                seconds.append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(times[our_epoch], times[their_epoch], strict=True)]
    fast, slow = (len(chosen) / statistics.median(times[epoch]) for epoch in (our_epoch, their_epoch))
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    return f"| {size} | {workers} | {slow:,.0f} | {fast:,.0f} | {spread} |"


def memory_table(counts: list[int]) -> None:
    """Peak memory of rendering, opening and reading sets of different sizes twice, each in its own process."""
    print("\n| images at 112 px | decoded, MB | peak memory of the process, MB |\n|---:|---:|---:|")
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, __file__, "--one-memory", str(count)]
            output = subprocess.run(
                command, env=os.environ | {"MEDVIT_CACHE": cache}, check=True, stdout=subprocess.PIPE, text=True
            )
        peaks.append(int(output.stdout))
        print(f"| {count:,} | {count * 112 * 112 / 2**20:,.0f} | {peaks[-1]:,} |", flush=True)
    print(f"\nFrom {counts[0]:,} to {counts[-1]:,} images: {peaks[-1] - peaks[0]:+,} MB.")


def peak_memory(count: int) -> int:
    """Peak resident memory in MB after two epochs over `count` rendered images."""
    ds = open_dataset("phantom/cxr", image_size=112, n_patients=max(2, count // 2))
    ds = ds.subset(np.arange(count))
    for _ in range(2):
        for x, _ in batches(ds, 32, shuffle=True, generator=torch.Generator().manual_seed(0)):
            normalise(x, Preprocessing((112, 112), *IMAGENET))
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


if __name__ == "__main__":
    main()
