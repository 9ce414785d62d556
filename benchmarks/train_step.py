"""How long does one training step of the scratch ViT take, and how much memory? Against three other libraries' ViTs.

    python benchmarks/train_step.py [--batch-size 16] [--image-size 224] [--rounds 15] [--steps 1] [--no-memory]
                                    [--json PATH]

A step is forward, cross-entropy, backward and AdamW, on random images that are already on the device. All models have
the same shape (`vit_scratch`: 256 wide, 6 blocks of 8 heads, patches of 16):
    medvitlib     models.named.vit_scratch
    timm          VisionTransformer
    transformers  ViTForImageClassification (scaled-dot-product attention, its default)
    vit-pytorch   ViT
The last two are needed for this comparison only (pip install transformers vit-pytorch) and left out where absent. They
have no DropPath, and each library puts dropout in other places, so all four are compared without either; timm and
medvitlib, which agree on both, once more with dropout 0.1 and DropPath 0.05.

All models live in one process and take their steps in turns (`turns.py`; a step is slower after one that left the
memory in disarray). Peak memory is measured in a process of its own for each model. Prints Markdown.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn

import turns
from medvitlib.models.named import vit_scratch
from medvitlib.models.zoo import count_parameters
from medvitlib.precision import autocast_dtype

DEVICE = turns.device()
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
    parser = turns.parser(__doc__)
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
    page = turns.Page(options, *list(MODELS)[1:])
    page.say(f"\nBatches of {options.batch_size}, {options.image_size} px, {options.rounds} rounds", end="; ")
    absent = [name for name in MODELS if name not in names]
    page.say(f"not installed and left out: {', '.join(absent)}" if absent else "all four libraries")
    compare(page, names, dtype, 0.0, 0.0, options)
    compare(page, names[:2], dtype, 0.1, 0.05, options)
    page.save()


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
    page: turns.Page,
    names: list[str],
    dtype: torch.dtype | None,
    dropout: float,
    drop_path: float,
    options: argparse.Namespace,
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

    def several(step: Callable[[], None]) -> None:
        for _ in range(options.steps):
            step()

    seconds = turns.in_turns({key: lambda s=step: several(s) for key, step in steps.items()}, options.rounds)
    columns = {"model": "", "parameters": ",", "precision": "", "img/s": ".1f"}
    columns |= {"speed over timm float32, median (min to max)": ".2f", "ours over it, same precision": ".2f"}
    columns |= {"peak memory, MB": ","}

    def row(key: tuple) -> tuple:
        name, precision = key
        speed = turns.ratio(seconds["timm", None], seconds[key])
        ours = turns.ratio(seconds[key], seconds["medvitlib", precision])
        rate = options.batch_size * options.steps / statistics.median(seconds[key])
        reduced = ["--reduced"] if precision else []
        memory = None
        if not (options.no_memory or dropout):
            memory = int(turns.own_process(__file__, *sys.argv[1:], "--one-memory", name, *reduced))
        word = str(precision or torch.float32).removeprefix("torch.")
        if name == "medvitlib" and not dropout:
            what = f"vit_scratch, a training step in {word}, speed over timm's in float32"
            page.claim(f"{what}: {options.image_size} px", speed, images_per_second=rate, peak_mb=memory)
        return name, counts[name], word, rate, speed, ours, memory

    page.table(columns, map(row, steps), f"Dropout {dropout}, DropPath {drop_path}:")


def peak_memory(name: str, dtype: torch.dtype | None, options: argparse.Namespace) -> int:
    """Peak memory in MB of three steps; on a CPU, how far the process grows beyond the model and its imports."""
    torch.manual_seed(0)
    return turns.peak_memory(step_of(MODELS[name](options.image_size, 0.0, 0.0), dtype, options))


if __name__ == "__main__":
    main()
