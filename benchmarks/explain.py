"""How fast is Grad-CAM, against pytorch-grad-cam's on the same model, layer and images, and against a forward pass?

    python benchmarks/explain.py [--model resnet18] [--image-size 224] [--batch-size 8] [--rounds 10] [--json PATH]

    ours          gradcam, a batch at a time
    batched       pytorch_grad_cam.GradCAM on the same batch
    looped        the same, one image after the other, as its documentation shows (pip install grad-cam)
    forward       the model alone, without a gradient: the least that any explanation costs

The maps are checked to be the same before anything is timed. All take turns in one process (`turns.py`). Peak memory is
that of a process that does nothing else. Prints Markdown.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

import turns
from medvitlib.explain.gradcam import gradcam
from medvitlib.explain.layers import default_layer
from medvitlib.models.zoo import build

DEVICE = turns.device()


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--one-memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    calls = ways(options)
    if options.one_memory:
        print(turns.peak_memory(calls[options.one_memory]))
        return
    page = turns.Page(options, "timm", "grad-cam")
    sizes = f"{options.model}, {options.image_size} px, batches of {options.batch_size}"
    page.say(f"\n{sizes}, {options.rounds} rounds")
    if "batched" in calls:
        apart = (calls["ours"]().cpu() - torch.from_numpy(calls["batched"]())).abs().max().item()
        assert apart < 1e-3, f"not the same maps: {apart}"
        page.say(f"largest difference of the maps: {apart:.1g}")
    seconds = turns.in_turns(calls, options.rounds)
    columns = {"": "", "img/s": ".1f", "ours over it, median (min to max)": ".2f", "peak memory, MB": ","}

    def row(name: str) -> tuple:
        memory = int(turns.own_process(__file__, *sys.argv[1:], "--one-memory", name))
        rate = options.batch_size / statistics.median(seconds[name])
        return name, rate, turns.ratio(seconds[name], seconds["ours"]), memory

    ours, *others = page.table(columns, map(row, calls))
    for name, _, speed, _ in others:
        peer = "a forward pass" if name == "forward" else f"pytorch-grad-cam's, {name}"
        page.claim(f"Grad-CAM, speed over {peer}: {sizes}", speed, images_per_second=ours[1], peak_mb=ours[3])
    page.save()


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


if __name__ == "__main__":
    main()
