"""How fast is the fine-tuning of ViT-B/16 on a large GPU, everything included? Against a plain timm loop in one run.

    python benchmarks/vit_b16_gpu.py [--images 4172] [--epochs 5] [--batch-size 128] [--rounds 3] [--weights FILE]
    python benchmarks/vit_b16_gpu.py --tiny        # the same code on a CPU in seconds; its figures mean nothing

    full, LoRA, RLRR   `fit`: recipe "xray", bfloat16, fused attention and
                       AdamW, blocks compiled; one validation an epoch, states written, the run folder completed
    timm loop          what a notebook would write: timm's ViT-B/16, torchvision's v2 steps a sample, a DataLoader with
                       workers, autocast, AdamW; one validation an epoch, the best weights written

Total: from a built model to the finished run, compiling included, which every training does anew. Sustained: images
trained on after the first epoch, over all the time until the last epoch's end. Start: how much longer the first epoch
took than the others' median: compiling, the first kernels, the peer's workers. They train in turns; ratios are taken
within a round. Images are random bytes and weights random numbers unless --weights names a file: the speed is the same.
Needs torch, torchvision, timm, accelerate, scikit-learn, pandas, matplotlib, safetensors, OpenCV and filelock alone.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # each training compiles anew
os.environ.setdefault("MEDVIT_PROGRESS", os.devnull)

import numpy as np
import timm
import torch
from torch import nn
from torchvision.transforms import v2

import turns
from medvitlib.costs import training_memory
from medvitlib.data import HALF, Dataset, Split
from medvitlib.data.cache import Stored
from medvitlib.data.loading import Images
from medvitlib.explain.attention import attention_maps
from medvitlib.explain.gradcam import gradcam
from medvitlib.explain.rollout import rollout
from medvitlib.models.adapt import adapt
from medvitlib.models.zoo import build
from medvitlib.precision import autocast_dtype
from medvitlib.training import blocks
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = autocast_dtype(DEVICE) if DEVICE == "cuda" else None
TINY = {"image_size": 32, "patch_size": 8, "dim": 64, "depth": 3, "heads": 2}
PASSES = {"full": 3, "LoRA": 2, "RLRR": 3, "timm loop": 3}
"""Matrix work over a forward pass: LoRA needs no gradient of the large weights, RLRR's scales do."""


@dataclass
class Took:
    """Seconds of one training."""

    total: float
    epochs: list[float]
    images: int
    peak: int

    @property
    def sustained(self) -> float:
        """Images a second after the first epoch."""
        return self.images * len(self.epochs[1:]) / sum(self.epochs[1:])

    @property
    def start(self) -> float:
        return self.epochs[0] - statistics.median(self.epochs[1:])


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    if DEVICE == "cpu" and not options.tiny:
        sys.exit("There is no CUDA device here: --tiny runs the same code on a CPU, to see that it works.")
    if options.tiny:
        blocks.BACKEND = "eager"  # traced as ever, and run as it was written: seconds instead of minutes
    page = turns.Page(options, "torch", "torchvision", "timm", "accelerate")
    tasks = {"full": ours, "LoRA": ours, "RLRR": ours, "timm loop": peer}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MEDVIT_RUNS"] = folder
        parts = random_parts(options, Path(folder))
        print(f"{len(parts.train)} images of {options.image_size} px, {options.epochs} epochs, batches of", end=" ")
        print(f"{options.batch_size}, {options.rounds} rounds; {options.weights or 'random'} weights")
        rate, bandwidth = ceilings(options)
        print(f"Ceilings measured here: {rate / 1e12:.3g} TFLOP/s in bfloat16, {bandwidth / 1e12:.3g} TB/s copied\n")
        took: dict[str, list[Took]] = {name: [] for name in tasks}
        order = random.Random(0)
        for _ in range(options.rounds):
            for name in order.sample(list(tasks), len(tasks)):
                took[name].append(tasks[name](name, parts, options))
        rows = trained_rows(took, options, rate, bandwidth) + explained_rows(options) + memory_rows(parts, options)
    page.content |= {"rate": rate, "bandwidth": bandwidth, "rows": rows}
    for row in rows[: len(tasks)]:
        what, speed = f"ViT-B/16 at {options.image_size} px, {row['name']}", row["images_per_second"]
        if row["name"] != "timm loop":
            over = turns.Spread(*row["over timm loop"])
            page.claim(f"{what}, over a timm loop's full", over, images_per_second=speed, peak_mb=row["peak_gb"] * 1e3)
        page.claim(f"{what}, {options.epochs} epochs, total", row["total"], "seconds")
    page.save()


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = turns.parser(__doc__)
    parser.add_argument("--images", type=int, default=4172, help="trained on; a quarter as many to validate")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(16, os.cpu_count() or 1), help="of the peer's DataLoader")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--weights", type=Path, help="a file of ViT-B/16 weights")
    parser.add_argument("--tiny", action="store_true", help="a small model, few small images: to test this script")
    options = parser.parse_args(arguments)
    if options.epochs < 2:
        parser.error("--epochs: 2 or more, as the first one is where things start")
    if options.tiny:
        options.images, options.epochs, options.batch_size, options.workers = 70, 2, 16, 0
        options.image_size = TINY["image_size"]
    return options


def random_parts(options: argparse.Namespace, folder: Path) -> Split:
    """Random bytes with random labels, where the library's decoded images lie: in a file that is mapped."""

    def part(name: str, n: int, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        planes = rng.integers(0, 256, (n, 3, options.image_size, options.image_size), dtype=np.uint8)
        np.save(folder / f"{name}.npy", planes)
        ids = np.array([f"{name}/{k}" for k in range(n)])
        rows = {"ids": ids, "labels": np.arange(n) % 2, "groups": ids, "hashes": ids, "splits": np.full(n, name)}
        images = Images(Stored(folder / f"{name}.npy", planes.shape, {}), np.arange(n))
        return Dataset(name, ["no", "yes"], "yes", groups_known=False, images=images, **rows)

    return Split(part("train", options.images, 0), part("val", options.images // 4, 1), part("test", 4, 2))


def model_of(method: str, options: argparse.Namespace) -> nn.Module:
    """This library's model, with random numbers unless there is a file."""
    if options.tiny:
        model = build("vit_scratch", 2, weights=None, dropout=0.0, drop_path=0.0, **TINY)
    else:
        model = build("vit_b16", 2, weights=options.weights, image_size=options.image_size, quiet=True)
    return model if method == "full" else adapt(model, method.lower())


def ours(name: str, parts: Split, options: argparse.Namespace) -> Took:
    """One training with `fit`."""
    model, ends = model_of(name, options), []
    settings = {"epochs": options.epochs, "batch_size": options.batch_size, "recipe": "xray"}
    config = TrainConfig(lr=1e-5 if name == "full" else 1e-3, compile=not options.no_compile, **settings)
    torch.compiler.reset()
    start = begin()
    fit(
        model,
        parts,
        config,
        name=name,
        device=DEVICE,
        precision=DTYPE,
        quiet=True,
        each_epoch=lambda _: ends.append(now()),
    )
    return Took(now() - start, list(np.diff([start, *ends])), len(parts.train), peak())


def peer(name: str, parts: Split, options: argparse.Namespace) -> Took:
    """One training as a notebook would write it."""
    images = [np.load(part.images._stored.path) for part in (parts.train, parts.val)]
    size, mean, std = options.image_size, *HALF
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    crop = v2.RandomResizedCrop(size, (0.85, 1.0), (0.9, 1 / 0.9), antialias=False)
    steps = [crop, v2.RandomHorizontalFlip(0.5), v2.RandomRotation(7), v2.ColorJitter(0.2, 0.2), *end]
    loaders = []
    for planes, part, transform in zip(images, (parts.train, parts.val), (steps, end), strict=True):
        how = {"num_workers": options.workers, "pin_memory": DEVICE == "cuda", "shuffle": part is parts.train}
        how["persistent_workers"] = options.workers > 0
        data = Notebooks(planes, part.labels, v2.Compose(transform))
        loaders.append(torch.utils.data.DataLoader(data, options.batch_size, **how))
    sizes = {"embed_dim": TINY["dim"], "depth": TINY["depth"], "num_heads": TINY["heads"], "patch_size": 8}
    model = timm.models.VisionTransformer(img_size=size, num_classes=2, **(sizes if options.tiny else {})).to(DEVICE)
    start, ends, best = begin(), [], float("inf")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
    for _ in range(options.epochs):
        model.train()
        for x, y in loaders[0]:
            loss = loss_of(model, x, y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            value = sum(loss_of(model, x, y).item() * len(y) for x, y in loaders[1])
        if value < best:
            best = value
            torch.save(model.state_dict(), Path(os.environ["MEDVIT_RUNS"]) / "peer.pt")
        ends.append(now())
    return Took(now() - start, list(np.diff([start, *ends])), len(parts.train), peak())


class Notebooks(torch.utils.data.Dataset):
    """Images in memory, one transform a sample."""

    def __init__(self, planes: np.ndarray, labels: np.ndarray, transform: v2.Transform):
        self.planes, self.labels, self.transform = planes, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return self.transform(torch.from_numpy(self.planes[k])), int(self.labels[k])


def loss_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)
    with torch.autocast(DEVICE, dtype=DTYPE, enabled=DTYPE is not None):
        return nn.functional.cross_entropy(model(x), y)


def ceilings(options: argparse.Namespace) -> tuple[float, float]:
    """FLOP/s of a bfloat16 matrix product, and bytes a second read and written by a copy; medians, on random data."""
    n = 256 if options.tiny else 8192
    a, b = (torch.randn(n, n, device=DEVICE).bfloat16() for _ in range(2))
    source = torch.randn(2**18 if options.tiny else 2**30, device=DEVICE)
    target = torch.empty_like(source)
    times = [[elapsed(call) for _ in range(13)][3:] for call in (lambda: a @ b, lambda: target.copy_(source))]
    return 2 * n**3 / statistics.median(times[0]), 2 * source.nbytes / statistics.median(times[1])


def trained_rows(took: dict[str, list[Took]], options: argparse.Namespace, rate: float, bandwidth: float) -> list[dict]:
    """The table of the trainings."""
    print(
        "| | img/s, sustained | share of matrix rate | of copy rate | start, s | total, s (first) | peak, GB | over",
        end="",
    )
    print(" full | over timm loop |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    rows = []
    for name, runs in took.items():
        sustained = statistics.median(run.sustained for run in runs)
        flop, moved = work(name, options)
        row = {
            "name": name,
            "images_per_second": sustained,
            "matrix_share": flop * sustained / rate,
            "copy_share": moved * sustained / bandwidth,
            "start": statistics.median(run.start for run in runs),
            "total": statistics.median(run.total for run in runs),
            "first_total": runs[0].total,
            "peak_gb": max(run.peak for run in runs) / 1e9,
            **{f"over {other}": ratios(runs, took[other]) for other in ("full", "timm loop")},
        }
        rows.append(row)
        over = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*row[f"over {o}"]) for o in ("full", "timm loop"))
        print(
            f"| {name} | {sustained:.0f} | {row['matrix_share']:.1%} | {row['copy_share']:.1%} | {row['start']:.1f} | "
            f"{row['total']:.1f} ({row['first_total']:.1f}) | {row['peak_gb']:.2f} | {over} |"
        )
    return rows


def ratios(mine: list[Took], theirs: list[Took]) -> tuple[float, float, float]:
    """Sustained speed over the other's in each round: median, smallest, largest."""
    each = [a.sustained / b.sustained for a, b in zip(mine, theirs, strict=True)]
    return statistics.median(each), min(each), max(each)


def work(name: str, options: argparse.Namespace) -> tuple[float, float]:
    """FLOP of matrix products an image, and the fewest bytes: what is kept for the way back is written and read once,
    and of each number that is trained, weight, gradient and moments are read and written once an update."""
    model = model_of("full" if name == "timm loop" else name, options).to(DEVICE)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kept = []
    for n in (2, 4):
        x = torch.zeros(n, 3, options.image_size, options.image_size, device=DEVICE)
        with torch.autocast(DEVICE, dtype=DTYPE, enabled=DTYPE is not None):
            kept.append(training_memory(model, x, torch.zeros(n, dtype=torch.int64)))
    return flop(name, model), kept[1] - kept[0] + 4 * 9 * trained / options.batch_size


def flop(name: str, model: nn.Module) -> float:
    """Of the matrix products of a training step, an image."""
    tokens, dim = model.pos_embed.shape[1:]
    linear = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))
    attention = 4 * len(model.blocks) * tokens**2 * dim
    patches = 2 * (tokens - 1) * model.patch_embed.proj.weight.numel()
    return PASSES[name] * (2 * tokens * linear + attention + patches)


def explained_rows(options: argparse.Namespace) -> list[dict]:
    """Images a second of two explanations, in turns with the forward pass."""
    model = model_of("full", options).to(DEVICE).eval()
    x = torch.randn(8 if options.tiny else 32, 3, options.image_size, options.image_size, device=DEVICE)
    calls = {
        "forward": lambda: model(x),
        "Grad-CAM": lambda: gradcam(model, x, 1),
        "rollout": lambda: rollout(attention_maps(model, x)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(3 if options.tiny else 12):
        for name, call in calls.items():
            context = torch.no_grad() if name == "forward" else torch.enable_grad()
            with context, torch.autocast(DEVICE, dtype=DTYPE, enabled=DTYPE is not None):
                seconds[name].append(elapsed(call))
    print("\n| explaining | img/s | times a forward pass |\n|---|---:|---:|")
    rows = []
    for name, times in seconds.items():
        slower = statistics.median(a / b for a, b in zip(times[2:], seconds["forward"][2:], strict=True))
        rows.append({"name": name, "images_per_second": len(x) / statistics.median(times[2:]), "times_forward": slower})
        print(f"| {name} | {rows[-1]['images_per_second']:.0f} | {slower:.1f} |")
    return rows


def memory_rows(parts: Split, options: argparse.Namespace) -> list[dict]:
    """Full fine-tuning in batches of 32, with activations kept or computed twice: what the device held at most."""
    few = Split(parts.train.subset(range(min(64, len(parts.train)))), parts.val.subset(range(8)), parts.test)
    rows = []
    print("\n| activations, batches of 32 | peak, GB |\n|---|---:|")
    for twice in (False, True):
        begin()
        config = TrainConfig(epochs=1, batch_size=32, checkpointing=twice, compile=False)
        how = {"name": "memory", "device": DEVICE, "precision": DTYPE, "quiet": True, "plot": False}
        fit(model_of("full", options), few, config, **how)
        rows.append({"name": "computed twice" if twice else "kept", "peak_gb": peak() / 1e9})
        print(f"| {rows[-1]['name']} | {rows[-1]['peak_gb']:.2f} |")
    return rows


def begin() -> float:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return now()


def now() -> float:
    """Seconds, once everything that was begun is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def elapsed(call) -> float:
    start = now()
    call()
    return now() - start


def peak() -> int:
    """Bytes of device memory held at most since `begin`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


if __name__ == "__main__":
    main()
