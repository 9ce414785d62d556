"""How fast is Grad-CAM, against pytorch-grad-cam's on the same model, layer and images, and against a forward pass?

    python benchmarks/explain.py [--model resnet18] [--image-size 224] [--batch-size 8] [--rounds 10]

    ours          gradcam, a batch at a time
    batched       pytorch_grad_cam.GradCAM on the same batch
    looped        the same, one image after the other, as its documentation shows (pip install grad-cam)
    forward       the model alone, without a gradient: the least that any explanation costs

The maps are checked to be the same before anything is timed. All take turns in one process, in another order each
round, two of them to warm up; ratios are taken within a round. Peak memory is that of a process that does nothing else.
Prints Markdown.
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

import torch
from torch import nn

from medvitlib.explain.gradcam import gradcam
from medvitlib.explain.layers import default_layer
from medvitlib.models.zoo import build

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--one-memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    calls = ways(options)
    if options.one_memory:
        print(peak_memory(calls[options.one_memory]))
        return
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {DEVICE} ({where})", end="; ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"\n{options.model}, batches of {options.batch_size}, {options.image_size} px, {options.rounds} rounds")
    if "batched" in calls:
        apart = (calls["ours"]().cpu() - torch.from_numpy(calls["batched"]())).abs().max().item()
        assert apart < 1e-3, f"not the same maps: {apart}"
        print(f"largest difference of the maps: {apart:.1g}")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for number in range(options.rounds + WARM_UP):
        for name in order.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    print("\n| | img/s | ours over it, median (min to max) | peak memory, MB |\n|---|---:|---:|---:|")
    for name, took in seconds.items():
        ratios = [theirs / ours for theirs, ours in zip(took, seconds["ours"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rate = options.batch_size / statistics.median(took)
        print(f"| {name} | {rate:.1f} | {spread} | {measured_memory(name)} |", flush=True)


def ways(options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Each way to explain the same batch, as a function."""
    torch.manual_seed(0)
    model = build(options.model, 4, weights=None, image_size=options.image_size).to(DEVICE).eval()
    x = torch.randn(options.batch_size, 3, *[options.image_size] * 2).to(DEVICE)

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(x)

    calls: dict[str, Callable[[], object]] = {"ours": lambda: gradcam(model, x), "forward": forward}
    if find_spec("pytorch_grad_cam"):
        from pytorch_grad_cam import GradCAM

        cam = GradCAM(model=model, target_layers=[model.get_submodule(default_layer(model))], **tokens(model, options))
        calls["batched"] = lambda: cam(input_tensor=x, targets=None)
        calls["looped"] = lambda: [cam(input_tensor=image[None], targets=None) for image in x]
    return calls


def tokens(model: nn.Module, options: argparse.Namespace) -> dict:
    """How pytorch-grad-cam is told of a Vision Transformer's tokens."""
    if not hasattr(model, "cls_token"):
        return {}
    grid = model.patch_embed.grid_size
    return {"reshape_transform": lambda t: t[:, 1:].transpose(1, 2).unflatten(2, tuple(grid))}


def measured_memory(name: str) -> int:
    """`peak_memory` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--one-memory", name]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def peak_memory(call: Callable[[], object]) -> int:
    """Megabytes by which the process, or the GPU, grows at most."""
    before = resident_peak()
    for _ in range(3):
        call()
    return torch.cuda.max_memory_allocated() // 2**20 if DEVICE == "cuda" else (resident_peak() - before) // 1024


def resident_peak() -> int:
    """Kilobytes of memory that this process has held at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
