"""How fast does a trained model answer: PyTorch in float32, as `Predictor` runs it, in int8; ONNX Runtime in both?

    python benchmarks/predict.py [--batch-sizes 1 32] [--rounds 10] [--accuracy 600] [--start 3] [--json PATH]

    eager         PyTorch, float32
    auto          PyTorch in the precision that `Predictor` chooses here, where that is another
    torch int8    models/int8.py
    onnx          the file of `medvit export`
    onnx int8     that of `medvit export --int8`, and with `--calibrate` on rendered or training images

The model is DINOv2's ViT-S/14 at 224 px with a head for two classes. From uint8 images to logits; outputs are compared
before anything is timed. All take turns in one process (`turns.py`). Peak memory is that of a process that does nothing
else. With --accuracy N the head is a probe on N images of the chest X-ray training set, and each way answers for the
624 of its test set. With --start N, `medvit predict` is started N times on one image. Prints Markdown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import turns

MODEL, SIZE = "vit_small_patch14_dinov2", 224
CLAIMED = ("auto", "onnx", "onnx int8, calibrated")  # of the README's table, which would be long with all
Way = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, 3, H, W) to logits (B, 2)."""


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--accuracy", type=int, default=0, metavar="N")
    parser.add_argument("--start", type=int, default=0, metavar="N")
    parser.add_argument("--one-memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_memory:
        name, folder, batch_size = options.one_memory
        way = ways(Path(folder))[name]()
        way(some_images(int(batch_size)))
        print(turns.resident_peak())
        return
    page = turns.Page(options, "onnxruntime", on="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDVIT_RUNS"] = scratch
        folder, test = prepare(options.accuracy)
        loaded = {name: load() for name, load in ways(folder).items()}
        compare(page, loaded)
        for batch_size in options.batch_sizes:
            measure(page, loaded, folder, batch_size, options.rounds)
        if test is not None:
            accuracy(page, loaded, test)
        if options.start:
            start(page, folder, Path(scratch), options.start)
    page.save()


def prepare(training: int) -> tuple[Path, object]:
    """A run's folder with its files of ONNX, and the test set, if there is to be one."""
    from medvitlib.data import open_dataset, split
    from medvitlib.evaluate import evaluate
    from medvitlib.export import export
    from medvitlib.models.zoo import build
    from medvitlib.training.probe import fit_probe

    model = build(MODEL, 2, image_size=SIZE, pool="token_mean", quiet=True)
    if training:
        everything = open_dataset("chest_xray", image_size=SIZE)
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(everything.splits == "train"))[:training]
        some, test = everything.subset(np.sort(chosen)), everything.subset(np.flatnonzero(everything.splits == "test"))
    else:
        some, test = open_dataset("phantom/cxr", image_size=SIZE, n_patients=20), None
    parts, hardware = split(some, val=0.2, test=0.1, seed=0), {"device": "cpu", "precision": None}
    run = fit_probe(model, parts, name="probe", **hardware)
    evaluate(run, parts, figures=False, n_boot=100, **hardware)
    usual = np.asarray(some.images[:: max(1, len(some) // 64)])
    for name, more in (("onnx", {}), ("onnx int8", {"int8": True}), ("static", {"int8": True, "calibration": usual})):
        print(f"\n{export(run.folder, run.folder / f'{name}.onnx', check=usual, **more)}", flush=True)
    return run.folder, test


def ways(folder: Path) -> dict[str, Callable[[], Way]]:
    """What loads each; a process that runs one of ONNX imports no PyTorch."""

    def eager(change: Callable = lambda model: model, precision: str | None = None) -> Way:
        import torch

        from medvitlib.data import normalise
        from medvitlib.models.saved import load_model
        from medvitlib.training.features import hardware

        model = change(load_model(folder)[0])
        dtype = hardware("cpu", precision)[1]

        @torch.inference_mode()
        def run(images: np.ndarray) -> np.ndarray:
            x = normalise(torch.from_numpy(images), model.preprocessing)
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                return model(x).float().numpy()

        return run

    def int8() -> Way:
        from medvitlib.models.int8 import quantise

        return eager(quantise)

    def onnx(name: str) -> Way:
        from medvitlib.models.onnx_model import OnnxModel

        model = OnnxModel(folder / name)
        return lambda images: model(images).logits

    found = {"eager": eager, "auto": lambda: eager(precision="auto"), "torch int8": int8}
    if not reduced():
        del found["auto"]
    return found | {
        "onnx": lambda: onnx("onnx.onnx"),
        "onnx int8": lambda: onnx("onnx int8.onnx"),
        "onnx int8, calibrated": lambda: onnx("static.onnx"),
    }


def reduced() -> bool:
    """Whether `Predictor` takes another precision than float32 on this CPU; another process says, for memory's sake."""
    code = "from medvitlib.precision import autocast_dtype; print(autocast_dtype('cpu'))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip() != "None"


def some_images(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, SIZE, SIZE), dtype=np.uint8)


def compare(page: turns.Page, loaded: dict[str, Way]) -> None:
    """Stop unless all give the same, as far as they can."""
    images = some_images(4)
    expected = loaded["eager"](images)
    page.say("\nlogits, largest difference from eager: ", end="")
    for name, way in loaded.items():
        apart = np.abs(way(images) - expected).max()
        limit = 1e-4 if name == "onnx" else 0.2 * max(1.0, np.abs(expected).max())
        assert apart <= limit, f"{name} gives something else: {apart}"
        page.say(f"{name} {apart:.1g}", end="; ")
    page.say()


def measure(page: turns.Page, loaded: dict[str, Way], folder: Path, batch_size: int, rounds: int) -> None:
    images = some_images(batch_size)
    seconds = turns.in_turns({name: lambda w=way: w(images) for name, way in loaded.items()}, rounds)
    columns = {"": "", "img/s": ".1f", "times as fast as eager, median (min to max)": ".2f", "peak memory, MB": ","}

    def row(name: str) -> tuple:
        memory = int(turns.own_process(__file__, "--one-memory", name, folder, batch_size))
        rate, speed = batch_size / statistics.median(seconds[name]), turns.ratio(seconds["eager"], seconds[name])
        if name in CLAIMED:
            what = f"answers, {name}, speed over PyTorch's float32: {MODEL}, {SIZE} px, batches of {batch_size}"
            page.claim(what, speed, images_per_second=rate, peak_mb=memory)
        return name, rate, speed, memory

    page.table(columns, map(row, loaded), f"batches of {batch_size}, {rounds} rounds")


def accuracy(page: turns.Page, loaded: dict[str, Way], test) -> None:
    """Each way's accuracy on the test set, and how many decisions differ from eager's."""
    decided = {}

    def row(name: str) -> tuple:
        logits = []
        for begin in range(0, len(test), 16):
            images = np.asarray(test.images[begin : begin + 16]).transpose(0, 3, 1, 2)
            logits.append(loaded[name](np.ascontiguousarray(np.broadcast_to(images, (len(images), 3, SIZE, SIZE)))))
        decided[name] = np.concatenate(logits).argmax(1)
        right = {key: float((decided[key] == test.labels).mean()) for key in ("eager", name)}
        others = int((decided[name] != decided["eager"]).sum())
        return name, right[name], 100 * (right["eager"] - right[name]), others

    columns = {"": "", "accuracy": ".4f", "less than eager, points": "+.2f", "other decisions": ","}
    page.table(columns, map(row, loaded), f"{len(test)} test images")


def start(page: turns.Page, folder: Path, scratch: Path, times: int) -> None:
    """Seconds of `medvit predict` on one image, from the shell to the end."""
    import cv2

    image = scratch / "image.png"
    cv2.imwrite(str(image), some_images(1)[0].transpose(1, 2, 0))
    said = {"a run's folder": folder, "an .onnx file": folder / "onnx.onnx"}

    def answer(what: Path) -> None:
        command = [sys.executable, "-m", "medvitlib.cli", "predict", str(what), str(image), "--device", "cpu"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    seconds = turns.in_turns({name: lambda w=what: answer(w) for name, what in said.items()}, times, warm_up=0)
    rows = [(name, turns.spread(took)) for name, took in seconds.items()]
    for name, took in rows:
        page.claim(f"`medvit predict` on one image, start to end, {name}: {MODEL}", took, "s")
    page.table({"medvit predict, one image": "", "seconds, median (min to max)": ".1f"}, rows)


if __name__ == "__main__":
    main()
