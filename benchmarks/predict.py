"""How fast does a trained model answer: PyTorch in float32, as `Predictor` runs it, in int8; ONNX Runtime in both?

    python benchmarks/predict.py [--batch-sizes 1 32] [--rounds 10] [--accuracy 600] [--start 3]

    eager         PyTorch, float32
    auto          PyTorch in the precision that `Predictor` chooses here, where that is another
    torch int8    models/int8.py
    onnx          the file of `medvit export`
    onnx int8     that of `medvit export --int8`, and with `--calibrate` on rendered or training images

The model is DINOv2's ViT-S/14 at 224 px with a head for two classes. From uint8 images to logits; outputs are compared
before anything is timed. All take turns in one process, in another order each round, two of them to warm up; ratios
are taken within a round. Peak memory is that of a process that does nothing else. With --accuracy N the head is a probe
on N images of the chest X-ray training set, and each way answers for the 624 of its test set. With --start N, `medvit
predict` is started N times on one image. Prints Markdown.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIZE, WARM_UP = 224, 2
Way = Callable[[np.ndarray], np.ndarray]
"""uint8 (B, 3, H, W) to logits (B, 2)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        print(resident_peak() // 1024)
        return
    import onnxruntime
    import torch

    print(f"{platform.platform()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads", end="; ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MEDVIT_RUNS"] = scratch
        folder, test = prepare(options.accuracy)
        loaded = {name: load() for name, load in ways(folder).items()}
        compare(loaded)
        for batch_size in options.batch_sizes:
            measure(loaded, folder, batch_size, options.rounds)
        if test is not None:
            accuracy(loaded, test)
        if options.start:
            start(folder, Path(scratch), options.start)


def prepare(training: int) -> tuple[Path, object]:
    """A run's folder with its files of ONNX, and the test set, if there is to be one."""
    from medvitlib.data import open_dataset, split
    from medvitlib.export import export
    from medvitlib.models.zoo import build
    from medvitlib.training.probe import fit_probe

    model = build("vit_small_patch14_dinov2", 2, image_size=SIZE, pool="token_mean", quiet=True)
    if training:
        everything = open_dataset("chest_xray", image_size=SIZE)
        chosen = np.random.default_rng(0).permutation(np.flatnonzero(everything.splits == "train"))[:training]
        some, test = everything.subset(np.sort(chosen)), everything.subset(np.flatnonzero(everything.splits == "test"))
    else:
        some, test = open_dataset("phantom/cxr", image_size=SIZE, n_patients=20), None
    run = fit_probe(model, split(some, val=0.2, test=0.1, seed=0), name="probe", device="cpu", precision=None)
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


def compare(loaded: dict[str, Way]) -> None:
    """Stop unless all give the same, as far as they can."""
    images = some_images(4)
    expected = loaded["eager"](images)
    print("\nlogits, largest difference from eager: ", end="")
    for name, way in loaded.items():
        apart = np.abs(way(images) - expected).max()
        limit = 1e-4 if name == "onnx" else 0.2 * max(1.0, np.abs(expected).max())
        assert apart <= limit, f"{name} gives something else: {apart}"
        print(f"{name} {apart:.1g}", end="; ")
    print()


def measure(loaded: dict[str, Way], folder: Path, batch_size: int, rounds: int) -> None:
    images = some_images(batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    order = random.Random(0)
    for number in range(rounds + WARM_UP):
        for name in order.sample(list(loaded), len(loaded)):
            begun = time.perf_counter()
            loaded[name](images)
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - begun)
    print(f"\nbatches of {batch_size}, {rounds} rounds\n")
    print("| | img/s | times as fast as eager, median (min to max) | peak memory, MB |\n|---|---:|---:|---:|")
    for name, took in seconds.items():
        ratios = [eager / this for eager, this in zip(seconds["eager"], took, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        command = [sys.executable, __file__, "--one-memory", name, str(folder), str(batch_size)]
        memory = subprocess.check_output(command, text=True).split()[-1]
        print(f"| {name} | {batch_size / statistics.median(took):.1f} | {spread} | {memory} |", flush=True)


def accuracy(loaded: dict[str, Way], test) -> None:
    """Each way's accuracy on the test set, and how many decisions differ from eager's."""
    print(
        f"\n{len(test)} test images\n\n| | accuracy | less than eager, points | other decisions |\n|---|---:|---:|---:|"
    )
    decided = {}
    for name, way in loaded.items():
        logits = []
        for begin in range(0, len(test), 16):
            images = np.asarray(test.images[begin : begin + 16]).transpose(0, 3, 1, 2)
            logits.append(way(np.ascontiguousarray(np.broadcast_to(images, (len(images), 3, SIZE, SIZE)))))
        decided[name] = np.concatenate(logits).argmax(1)
        right = {key: (decided[key] == test.labels).mean() for key in ("eager", name)}
        others = (decided[name] != decided["eager"]).sum()
        print(f"| {name} | {right[name]:.4f} | {100 * (right['eager'] - right[name]):+.2f} | {others} |", flush=True)


def start(folder: Path, scratch: Path, times: int) -> None:
    """Seconds of `medvit predict` on one image, from the shell to the end."""
    import cv2

    image = scratch / "image.png"
    cv2.imwrite(str(image), some_images(1)[0].transpose(1, 2, 0))
    print("\n| medvit predict, one image | seconds, median (min to max) |\n|---|---:|")
    for what in (folder, folder / "onnx.onnx"):
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            command = [sys.executable, "-m", "medvitlib.cli", "predict", str(what), str(image), "--device", "cpu"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            took.append(time.perf_counter() - begun)
        name = "a run's folder" if what == folder else "an .onnx file"
        print(f"| {name} | {statistics.median(took):.1f} ({min(took):.1f} to {max(took):.1f}) |")


def resident_peak() -> int:
    """Kilobytes of memory that this process has held at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
