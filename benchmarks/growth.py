"""Do time and memory grow in a straight line: with the images of a set, their size, and the number of classes?

    python benchmarks/growth.py [--images 500 1000 2000 4000] [--sizes 64 112 224] [--classes 2 4 16]
                                [--tasks open audit epoch predict] [--rounds 1] [--plot growth.png] [--json PATH]

    open       a set of JPEGs on disk, opened for the first time: hashed, decoded, resized, kept
    audit      `audit` of it, without a pretrained network (on thumbnails)
    epoch      `fit` for one epoch of the teaching model, set up, trained, validated and saved
    predict    what `medvit predict` does: answers of a small model for all the files, a row each into a CSV

One of the three grows at a time; the others stay at their second value (sizes are multiples of 16). Each point is a
process of its own with an empty cache; imports, a warm-up on a few images and all that comes before a task are left out
of its time, though not out of its memory, which is the most that the process held. The images are rendered, no two
alike, and dealt out to the classes in turn (a class does not change a picture). The fastest of --rounds counts: what
else runs on a machine can only add.

For each a straight line is fitted: what each step costs, and how much of the variation it explains (R²; it is little
where nothing grows). The exponent is that of a log-log fit: below 1 where there is a constant part, 2 for time that
grows with the square. Prints Markdown. For 100,000 images, in 40 minutes on two cores:
--images 1000 10000 30000 100000 --sizes 32 64 112.
"""

import argparse
import csv
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

import turns

WORDS = {"images": "images", "size": "px a side", "classes": "classes"}
STEPS = {"images": (1000, "1,000 images"), "size": (10_000, "10,000 pixels an image"), "classes": (1, "one class")}
"""What the slopes of the lines are told for."""


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1000, 2000, 4000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 112, 224])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 16])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PATH")
    parser.add_argument("--point", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        task, *numbers, folder = options.point
        print(json.dumps(point(task, *map(int, numbers), Path(folder))))
        return
    given = {"images": options.images, "size": options.sizes, "classes": options.classes}
    if any(len(values) < 2 for values in given.values()):
        parser.error("a line needs two points: give --images, --sizes and --classes two values each, or more.")
    page = turns.Page(options, "numpy", "opencv-python", "scikit-learn")
    usual = {axis: values[1] for axis, values in given.items()}
    found: dict[str, dict[str, list[dict]]] = {axis: {} for axis in given}
    with tempfile.TemporaryDirectory() as scratch:
        measured = cache(partial(measure, Path(scratch), options.rounds))  # the lines cross in one point
        for axis, values in given.items():
            for task in options.tasks:
                found[axis][task] = [measured(task, tuple((usual | {axis: value}).values())) for value in values]
            show(page, axis, values, usual, found[axis])
    if options.plot:
        draw(given, found).savefig(options.plot)
    page.save()


def measure(scratch: Path, rounds: int, task: str, numbers: tuple[int, int, int]) -> dict:
    """Fewest seconds and most MB of one point (images, size, classes)."""
    found = [measure_once(scratch, task, numbers) for _ in range(rounds)]
    return {"seconds": min(one["seconds"] for one in found), "peak_mb": max(one["peak_mb"] for one in found)}


def measure_once(scratch: Path, task: str, numbers: tuple[int, int, int]) -> dict:
    """In a process of its own with an empty cache."""
    images, size, classes = numbers
    files = scratch / str(size)
    render(files, images, size)
    own = scratch / "own"
    own.mkdir()
    places = {"MEDVIT_CACHE": str(own / "cache"), "MEDVIT_RUNS": str(own / "runs"), "MEDVIT_PROGRESS": os.devnull}
    try:
        manifest(own / "set.csv", files, images, classes)
        manifest(own / "warm_up.csv", files, min(images, 10 * classes), classes)
        return json.loads(turns.own_process(__file__, "--point", task, size, classes, own, **places))
    finally:
        shutil.rmtree(own)


def render(folder: Path, n: int, size: int) -> None:
    """The first `n` JPEGs of a folder, those that are not there yet."""
    import cv2

    from medvitlib.data import PhantomOptions
    from medvitlib.data.phantoms import picture

    folder.mkdir(exist_ok=True)
    for i in range(len(os.listdir(folder)), n):
        image, _ = picture("phantom/cxr", f"patient{i:06d}/0", (size, size), PhantomOptions(n_patients=1_000_000))
        cv2.imwrite(str(folder / f"{i:06d}.jpg"), image)


def manifest(path: Path, files: Path, n: int, classes: int) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "class"])
        writer.writerows([files / f"{i:06d}.jpg", f"class{i % classes:03d}"] for i in range(n))


def point(task: str, size: int, classes: int, folder: Path) -> dict:
    """What one of the processes does."""
    TASKS[task](folder / "warm_up.csv", size, classes)()  # what is imported where it is first used is so by now
    ready = TASKS[task](folder / "set.csv", size, classes)
    start = time.perf_counter()
    ready()
    turns.finish()
    return {"seconds": time.perf_counter() - start, "peak_mb": turns.resident_peak()}


def opening(listed: Path, size: int, classes: int) -> Callable[[], object]:
    from medvitlib.data import open_dataset

    return lambda: open_dataset(listed, image_size=size)


def auditing(listed: Path, size: int, classes: int) -> Callable[[], object]:
    from medvitlib.audit import audit
    from medvitlib.data import open_dataset

    ds = open_dataset(listed, image_size=size)
    return lambda: audit(ds, weights=None)


def training(listed: Path, size: int, classes: int) -> Callable[[], object]:
    from medvitlib.data import open_dataset, split
    from medvitlib.models.zoo import build
    from medvitlib.training.config import TrainConfig
    from medvitlib.training.fit import fit

    ds = open_dataset(listed, image_size=size, positive=positive(classes))
    parts = split(ds, val=0.1, test=0.1, by="images", seed=0)
    model = build("transformer_classifier", classes, weights=None, image_size=size, patch_size=16)
    return lambda: fit(model, parts, TrainConfig(epochs=1), name="growth", quiet=True, plot=False)


def predicting(listed: Path, size: int, classes: int) -> Callable[[], object]:
    from medvitlib.predict import Predictor, written

    predictor = Predictor(saved(size, classes, listed.parent))
    with listed.open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    return lambda: written(predictor.predict(paths, quiet=True), predictor, listed.with_name("answers.csv"))


def positive(classes: int) -> str | None:
    return "class001" if classes == 2 else None


def saved(size: int, classes: int, folder: Path) -> Path:
    """A model that has learned nothing, as a run's folder has it."""
    from medvitlib.models.saved import save_model
    from medvitlib.models.zoo import build

    model = build("transformer_classifier", classes, weights=None, image_size=size, patch_size=16)
    names = [f"class{k:03d}" for k in range(classes)]
    about = {"classes": names, "positive": positive(classes), "thresholds": {"recall": 0.5}}
    save_model(model, folder, about)
    return folder


TASKS = {"open": opening, "audit": auditing, "epoch": training, "predict": predicting}


def show(page: turns.Page, axis: str, values: list[int], usual: dict, found: dict[str, list[dict]]) -> None:
    """The points and the fits along one axis."""
    fixed = ", ".join(f"{usual[name]:,} {what}" for name, what in WORDS.items() if name != axis)
    columns = {"": "", **{f"{value:,}": ".1f" for value in values}}
    columns |= {f"for {STEPS[axis][1]} more": ".3g", "R²": ".3f", "exponent": ".2f"}
    x = np.array(values, float) ** (2 if axis == "size" else 1)
    for figure, of in (("seconds", "seconds"), ("peak_mb", "peak memory, MB")):
        rows = []
        for task, points in found.items():
            y = np.array([one[figure] for one in points], float)
            slope, r2, exponent = fit_line(x, y)
            rows.append((task, *y.tolist(), slope * STEPS[axis][0], r2, exponent))
            if axis == "images" and figure == "seconds":
                page.claim(f"{task}, {of} against images, exponent of a log-log fit", exponent, "")
        page.table(columns, rows, f"{of}, {WORDS[axis]} growing ({fixed}):")


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope and R² of a straight line through points (N,), and the exponent of y = a x^b through their logarithms."""
    if (y == y[0]).all():
        return 0.0, 1.0, 0.0
    slope, start = np.polyfit(x, y, 1)
    off, all_of_it = ((y - slope * x - start) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    exponent = np.polyfit(np.log(x), np.log(y), 1)[0]
    return float(slope), float(1 - off / all_of_it), float(exponent)


def draw(given: dict[str, list[int]], found: dict[str, dict[str, list[dict]]]):
    """Points and their lines, one column for each of what grows: time above, on logarithmic axes; memory below."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    from medvitlib.plotstyle import GREY, canvas, clean, headline, key, line_style

    figure = canvas(None, (11, 6))
    axes = figure.subplots(2, 3, squeeze=False)
    titles = {"images": "number of images", "size": "pixels an image", "classes": "number of classes"}
    for (axis, values), (above, below) in zip(given.items(), axes.T, strict=True):
        x = np.array(values, float) ** (2 if axis == "size" else 1)
        for number, (task, points) in enumerate(found[axis].items()):
            seconds, memory = (np.array([one[what] for one in points], float) for what in ("seconds", "peak_mb"))
            style = line_style(number, 4)
            above.loglog(x, np.exp(np.polyval(np.polyfit(np.log(x), np.log(seconds), 1), np.log(x))), **style)
            below.plot(x, np.polyval(np.polyfit(x, memory, 1), x), **style)
            for ax, y in ((above, seconds), (below, memory)):
                ax.plot(x, y, "o", ms=4, color=style["color"], label=task)
        least = min(one["seconds"] for points in found[axis].values() for one in points)
        above.loglog(x, least / 2 * x / x[0], color=GREY, ls=":", label="in proportion")
        below.set_ylim(0, 1.1 * max(one["peak_mb"] for points in found[axis].values() for one in points))
        below.set_xlim(left=0)
        above.set_xticks(x, [f"{value:,}²" if axis == "size" else f"{value:,}" for value in values])
        above.xaxis.set_minor_locator(NullLocator())
        below.xaxis.set_major_locator(MaxNLocator(4))
        for ax in (below.xaxis, below.yaxis):
            ax.set_major_formatter("{x:,.0f}")
        for ax, of in ((above, "seconds"), (below, "peak MB")):
            ax.set_xlabel(titles[axis], fontsize=9)
            ax.set_ylabel(of, fontsize=9)
            clean(ax)
    headline(axes[0, 0], "Rendered images", "points: a process each; lines: fitted")
    key(figure, axes[0, 0])
    return figure


if __name__ == "__main__":
    main()
