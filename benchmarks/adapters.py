"""How fast are adapters, against PEFT's and against training everything? What do merging, cutting and int8 give?

    python benchmarks/adapters.py [--model vit_small_patch14_dinov2] [--image-size 112] [--batch-size 16] [--rounds 15]

Training: one step is forward, cross-entropy, backward and AdamW over what is trained, float32, on random images that
are already on the device; rank 8, alpha 16, on qkv and proj. PEFT's LoRA has the same places, rank and head (pip
install peft; left out where absent), and before timing its logits and gradients are checked to be ours.
Inference: the model as it is, with LoRA merged (checked to be the same function), with 30 % of heads and MLP neurons
cut out, and in int8 (on a CPU).

All live in one process and take turns, in another order each round, two of them to warm up; ratios are taken within a
round, so that a busy machine slows all of them. Prints Markdown.
"""

import argparse
import copy
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from medvitlib.costs import training_memory
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import adapters_of, merge_and_unload
from medvitlib.models.int8 import quantise
from medvitlib.models.shrinking import shrink
from medvitlib.models.zoo import build, count_parameters

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES = 3
WARM_UP = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{platform.platform()}, {os.cpu_count()} cores, {DEVICE} ({where})", end="; ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"\n{options.model}, batches of {options.batch_size}, {options.image_size} px, {options.rounds} rounds")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch_size, 3, *[options.image_size] * 2, generator=generator).to(DEVICE)
    y = torch.randint(CLASSES, (options.batch_size,), generator=generator).to(DEVICE)
    base = build(options.model, CLASSES, weights=None, image_size=options.image_size).to(DEVICE)

    models = {name: adapt(copy.deepcopy(base), name) for name in ("full", "lora", "rlrr", "bitfit", "head")}
    if find_spec("peft"):
        models["lora, PEFT"] = pefts(models["lora"], base, x)
    seconds = timed({name: step_of(model, x, y) for name, model in models.items()}, options.rounds)
    print("\n| training | parameters trained | held in a step, MB | img/s | speed over full | over PEFT's LoRA |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, model in models.items():
        peft = spread(seconds["lora, PEFT"], seconds[name]) if "lora, PEFT" in seconds else ""
        held = training_memory(model, x, y) / 1e6
        rate = options.batch_size / statistics.median(seconds[name])
        trained = f"{count_parameters(model, trainable=True):,}"
        print(f"| {name} | {trained} | {held:.0f} | {rate:.1f} | {spread(seconds['full'], seconds[name])} | {peft} |")

    models = {"as it is": base.eval(), "LoRA merged": merged(base, x).eval()}
    models["30 % of heads and neurons cut out"] = shrink(copy.deepcopy(base), heads=0.3, neurons=0.3).eval()
    if DEVICE == "cpu":
        models["int8"] = quantise(copy.deepcopy(base)).eval()
    with torch.inference_mode():
        batch = timed({name: lambda m=model: m(x) for name, model in models.items()}, options.rounds)
        alone = timed({name: lambda m=model: m(x[:1]) for name, model in models.items()}, options.rounds)
    print("\n| inference | parameters | img/s | speed over the model as it is | one image, ms | speed |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, model in models.items():
        rate, latency = options.batch_size / statistics.median(batch[name]), 1000 * statistics.median(alone[name])
        ratios = [spread(times["as it is"], times[name]) for times in (batch, alone)]
        print(f"| {name} | {count_parameters(model):,} | {rate:.1f} | {ratios[0]} | {latency:.1f} | {ratios[1]} |")


def step_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """One training step of what requires a gradient."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def pefts(ours: nn.Module, base: nn.Module, x: torch.Tensor) -> nn.Module:
    """PEFT's LoRA with our A and non-zero B: the same logits and gradients, then B zero again in both."""
    import peft

    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=r".*attn\.(qkv|proj)", modules_to_save=["head"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config)
    pairs = []
    for name, adapter in adapters_of(ours).items():
        other = theirs.base_model.model.get_submodule(name)
        nn.init.normal_(adapter.lora_B, std=0.02)
        for mine, matrix in ((adapter.lora_A, other.lora_A), (adapter.lora_B, other.lora_B)):
            matrix["default"].weight.data.copy_(mine.data)
            pairs.append((mine, matrix["default"].weight))
    logits, reference = ours(x), theirs(x)
    assert logits.isclose(reference, atol=1e-4).all(), "not the same function"
    for model in (ours, theirs):
        model(x).square().sum().backward()
    for mine, other in pairs:
        assert mine.grad.isclose(other.grad, rtol=1e-2, atol=1e-3).all(), "not the same gradients"
        mine.grad = other.grad = None
    for mine, other in pairs[1::2]:
        mine.data.zero_(), other.data.zero_()
    ours_trains, theirs_train = (count_parameters(model, trainable=True) for model in (ours, theirs))
    assert ours_trains == theirs_train, f"{ours_trains} and {theirs_train} parameters are trained"
    return theirs


def merged(base: nn.Module, x: torch.Tensor) -> nn.Module:
    """The base with LoRA that has learned something, merged: the same function, checked."""
    model = adapt(copy.deepcopy(base), "lora").eval()
    for adapter in adapters_of(model).values():
        nn.init.normal_(adapter.lora_B, std=0.02)
    with torch.no_grad():
        apart = model(x)
        merge_and_unload(model)
        assert model(x).isclose(apart, atol=1e-4).all(), "not the same function"
        assert not base.eval()(x).isclose(apart, atol=1e-4).all(), "nothing was added"
    return model


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, all of them in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    for number in range(rounds + WARM_UP):
        for name in order.sample(names, len(names)):
            start = time.perf_counter()
            calls[name]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(slow: list[float], fast: list[float]) -> str:
    """Ratio of the times of each round: median, smallest and largest."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


if __name__ == "__main__":
    main()
