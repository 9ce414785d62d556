"""How long does one training step of the scratch ViT take, and how much memory? Against three other libraries' ViTs.

    python benchmarks/train_step.py [--batch-size 16] [--image-size 224] [--rounds 15] [--steps 1] [--no-memory]

A step is forward, cross-entropy, backward and AdamW, on random images that are already on the device. All models have
the same shape (`vit_scratch`: 256 wide, 6 blocks of 8 heads, patches of 16):
    medvitlib     models.named.vit_scratch
    timm          VisionTransformer
    transformers  ViTForImageClassification (scaled-dot-product attention, its default)
    vit-pytorch   ViT
The last two are needed for this comparison only (pip install transformers vit-pytorch) and left out where absent. They
have no DropPath, and each library puts dropout in other places, so all four are compared without either; timm and
medvitlib, which agree on both, once more with dropout 0.1 and DropPath 0.05.

All models live in one process and take their steps in turns, in another order each round (a step is slower after one
that left the memory in disarray), and ratios are taken within a round, so that a busy machine slows all of them. Peak
memory is measured in a process of its own for each model. Prints Markdown.
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

from medvitlib.models.named import vit_scratch
from medvitlib.models.zoo import count_parameters
from medvitlib.precision import autocast_dtype

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 2
SIZES = {"dim": 256, "depth": 6, "heads": 8}


def ours(pixels: int, dropout: float, drop_path: float) -> nn.Module:
    return vit_scratch(pixels, num_classes=CLASSES, dropout=dropout, drop_path=drop_path)


def timms(pixels: int, dropout: float, drop_path: float) -> nn.Module:
    rates = {"pos_drop_rate": dropout, "proj_drop_rate": dropout, "drop_path_rate": drop_path}
    return TimmViT(pixels, 16, num_classes=CLASSES, embed_dim=256, depth=6, num_heads=8, **rates)


def hugging_faces(pixels: int, dropout: float, drop_path: float) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    class Logits(ViTForImageClassification):
        def forward(self, x):
            return super().forward(x).logits

    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-6}
    shape = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
    return Logits(ViTConfig(image_size=pixels, patch_size=16, num_labels=CLASSES, **shape, **rates))


def vit_pytorchs(pixels: int, dropout: float, drop_path: float) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=pixels, patch_size=16, num_classes=CLASSES, dim=256, depth=6, heads=8, dim_head=32, mlp_dim=1024
    )


MODELS = {"medvitlib": ours, "timm": timms, "transformers": hugging_faces, "vit-pytorch": vit_pytorchs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1, help="of one model in a round; more on a fast device")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one-memory", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--reduced", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dtype = autocast_dtype(DEVICE)
    if options.one_memory:
        print(peak_memory(options.one_memory, dtype if options.reduced else None, options))
        return
    names = [name for name in MODELS if find_spec(name.replace("-", "_"))]
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {DEVICE} ({where})", end="; ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}")
    print(f"\nBatches of {options.batch_size}, {options.image_size} px, {options.rounds} rounds", end="; ")
    absent = [name for name in MODELS if name not in names]
    print(f"not installed and left out: {', '.join(absent)}" if absent else "all four libraries")
    compare(names, dtype, 0.0, 0.0, options)
    compare(names[:2], dtype, 0.1, 0.05, options)


def step_of(model: nn.Module, dtype: torch.dtype | None, options: argparse.Namespace) -> Callable[[], None]:
    """One training step of a model as a function; float16 with the scaling it needs."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch_size, 3, *[options.image_size] * 2, generator=generator).to(DEVICE)
    y = torch.randint(CLASSES, (options.batch_size,), generator=generator).to(DEVICE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def compare(
    names: list[str], dtype: torch.dtype | None, dropout: float, drop_path: float, options: argparse.Namespace
) -> None:
    """One table: each model in float32 and in the precision that pays here, all of them in turns."""
    steps, counts = {}, {}
    for name in names:
        for precision in dict.fromkeys((None, dtype)):
            torch.manual_seed(0)
            model = MODELS[name](options.image_size, dropout, drop_path)
            counts[name] = count_parameters(model)
            steps[name, precision] = step_of(model, precision, options)
    # the same parameters, but that vit-pytorch has no bias on q, k, v and two norms more around its patches
    assert max(counts.values()) < 1.01 * min(counts.values()), f"not of one shape: {counts}"

    seconds: dict[tuple, list[float]] = {key: [] for key in steps}
    keys, order = list(steps), random.Random(0)
    for number in range(options.rounds + 2):
        for key in order.sample(keys, len(keys)):
            start = time.perf_counter()
            for _ in range(options.steps):
                steps[key]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if number >= 2:  # two warm-up rounds: the optimizer's state, the kernels' choice
                seconds[key].append(time.perf_counter() - start)

    print(f"\nDropout {dropout}, DropPath {drop_path}:\n")
    print("| model | parameters | precision | img/s | speed over timm float32, median (min to max) | ", end="")
    print("ours over it, same precision | peak memory, MB |\n|---|---:|---|---:|---:|---:|---:|")
    for name, precision in keys:
        times, base, mine = seconds[name, precision], seconds["timm", None], seconds["medvitlib", precision]
        rate = options.batch_size * options.steps / statistics.median(times)
        memory = "" if options.no_memory or dropout else f"{measured_memory(name, precision, options):,}"
        word = str(precision or torch.float32).removeprefix("torch.")
        row = f"| {name} | {counts[name]:,} | {word} | {rate:.1f} | {spread(base, times)} | {spread(times, mine)} |"
        print(f"{row} {memory} |", flush=True)


def spread(slow: list[float], fast: list[float]) -> str:
    """Ratio of the times of each round: median, smallest and largest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def measured_memory(name: str, precision: torch.dtype | None, options: argparse.Namespace) -> int:
    """`peak_memory` in a process of its own."""
    sizes = ["--batch-size", str(options.batch_size), "--image-size", str(options.image_size)]
    command = [sys.executable, __file__, "--one-memory", name, *sizes, *(["--reduced"] if precision else [])]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_memory(name: str, dtype: torch.dtype | None, options: argparse.Namespace) -> int:
    """Peak memory in MB of three steps; on a CPU, how far the process grows beyond the model and its imports."""
    torch.manual_seed(0)
    step = step_of(MODELS[name](options.image_size, 0.0, 0.0), dtype, options)
    before = resident_peak()
    for _ in range(3):
        step()
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    return (resident_peak() - before) // 1024


def resident_peak() -> int:
    """Kilobytes of memory that this process has held at most; `ru_maxrss` would start from its parent's."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
