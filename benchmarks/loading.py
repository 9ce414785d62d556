"""How fast do batches come, and does memory stay flat? Measured against torchvision's ImageFolder in the same run.

    python benchmarks/loading.py [--data chest_xray] [--sizes 112 224] [--workers 0 2] [--batch-size 32]
                                 [--json PATH]

Both sides yield the same images, at the same size, as normalised float32 batches on the same device:
    torchvision   ImageFolder, PIL, Resize, ToTensor, Normalize in a DataLoader (its workers kept alive between epochs)
    medvitlib     batches() of a decoded set, normalise() once a batch: no worker processes, one thread
First epochs (which decode our cache and start their workers) are not counted; the others take turns (`turns.py`).
Prints Markdown.
"""

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

import turns
from medvitlib.data import IMAGENET, PhantomOptions, Preprocessing, batches, normalise, open_dataset
from medvitlib.data.folder import scan
from medvitlib.data.phantoms import picture
from medvitlib.data.sources.finding import find
from medvitlib.errors import DataError

DEVICE = turns.device()


def main() -> None:
    parser = turns.parser(__doc__)
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
    page = turns.Page(options, "torchvision", "Pillow", "opencv-python", "numpy")
    with tempfile.TemporaryDirectory() as scratch:
        source, what = choose(options.data, Path(scratch), options.images)
        page.say(f"\n{what}; batches of {options.batch_size}, {options.rounds} rounds")
        columns = {"size": "d", "workers": "d", "torchvision img/s": ",.0f", "medvitlib img/s": ",.0f"}
        columns |= {"ratio, median (min to max)": ".1f"}
        pairs = ((size, workers) for size in options.sizes for workers in options.workers)
        for size, workers, _, fast, speed in page.table(columns, (compare(source, *pair, options) for pair in pairs)):
            peer = f"ImageFolder's with {workers} workers"
            page.claim(f"loading, speed over {peer}: {size} px", speed, images_per_second=fast)
    if options.memory:
        memory_table(page, options.memory)
    page.save()


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


def compare(source: Path, size: int, workers: int, options: argparse.Namespace) -> tuple:
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

    def read(epoch: Callable[[], Iterable[torch.Tensor]]) -> None:
        count = 0
        for x in epoch():
            assert x.shape[1:] == (3, size, size) and x.dtype == torch.float32
            count += len(x)
        assert count == len(chosen)

    calls = {"ours": lambda: read(our_epoch), "theirs": lambda: read(their_epoch)}
    seconds = turns.in_turns(calls, options.rounds, warm_up=1)
    fast, slow = (len(chosen) / statistics.median(seconds[name]) for name in calls)
    return size, workers, slow, fast, turns.ratio(seconds["theirs"], seconds["ours"])


def memory_table(page: turns.Page, counts: list[int]) -> None:
    """Peak memory of rendering, opening and reading sets of different sizes twice, each in its own process."""

    def row(count: int) -> tuple:
        with tempfile.TemporaryDirectory() as cache:
            peak = int(turns.own_process(__file__, "--one-memory", count, MEDVIT_CACHE=cache))
        return count, count * 112 * 112 / 2**20, peak

    columns = {"images at 112 px": ",", "decoded, MB": ",.0f", "peak memory of the process, MB": ","}
    rows = page.table(columns, map(row, counts))
    grown = rows[-1][2] - rows[0][2]
    page.say(f"\nFrom {counts[0]:,} to {counts[-1]:,} images: {grown:+,} MB.")
    if len(counts) > 1:
        page.claim(f"loading, more memory for {counts[-1]:,} images than for {counts[0]:,}: 112 px", grown, "MB")


def peak_memory(count: int) -> int:
    """Peak resident memory in MB after two epochs over `count` rendered images."""
    ds = open_dataset("phantom/cxr", image_size=112, n_patients=max(2, count // 2))
    ds = ds.subset(np.arange(count))
    for _ in range(2):
        for x, _ in batches(ds, 32, shuffle=True, generator=torch.Generator().manual_seed(0)):
            normalise(x, Preprocessing((112, 112), *IMAGENET))
    return turns.resident_peak()


if __name__ == "__main__":
    main()
