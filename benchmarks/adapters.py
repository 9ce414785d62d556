"""How fast are adapters, against PEFT's and against training everything? What do merging, cutting and int8 give?

    python benchmarks/adapters.py [--model vit_small_patch14_dinov2] [--image-size 112] [--batch-size 16] [--rounds 15]
                                  [--json PATH]

Training: one step is forward, cross-entropy, backward and AdamW over what is trained, float32, on random images that
are already on the device; rank 8, alpha 16, on qkv and proj. PEFT's LoRA has the same places, rank and head (pip
install peft; left out where absent), and before timing its logits and gradients are checked to be ours.
Inference: the model as it is, with LoRA merged (checked to be the same function), with 30 % of heads and MLP neurons
cut out, and in int8 (on a CPU).

All live in one process and take turns (`turns.py`). Prints Markdown.
"""

import copy
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

import turns
from medvitlib.costs import training_memory
from medvitlib.models.adapt import adapt
from medvitlib.models.adapters import adapters_of, merge_and_unload
from medvitlib.models.int8 import quantise
from medvitlib.models.shrinking import shrink
from medvitlib.models.zoo import build, count_parameters

DEVICE = turns.device()
CLASSES = 3


def main() -> None:
    parser = turns.parser(__doc__)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    page = turns.Page(options, "timm", "peft")
    sizes = f"{options.model}, {options.image_size} px"
    page.say(f"\n{sizes}, batches of {options.batch_size}, {options.rounds} rounds")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(options.batch_size, 3, *[options.image_size] * 2, generator=generator).to(DEVICE)
    y = torch.randint(CLASSES, (options.batch_size,), generator=generator).to(DEVICE)
    base = build(options.model, CLASSES, weights=None, image_size=options.image_size).to(DEVICE)

    models = {name: adapt(copy.deepcopy(base), name) for name in ("full", "lora", "rlrr", "bitfit", "head")}
    if find_spec("peft"):
        models["lora, PEFT"] = pefts(models["lora"], base, x)
    train(page, models, x, y, options.rounds, sizes)
    models = {"as it is": base.eval(), "LoRA merged": merged(base, x).eval()}
    models["30 % of heads and neurons cut out"] = shrink(copy.deepcopy(base), heads=0.3, neurons=0.3).eval()
    if DEVICE == "cpu":
        models["int8"] = quantise(copy.deepcopy(base)).eval()
    infer(page, models, x, options.rounds, sizes)
    page.save()


def train(
    page: turns.Page, models: dict[str, nn.Module], x: torch.Tensor, y: torch.Tensor, rounds: int, sizes: str
) -> None:
    """The table of training steps."""
    seconds = turns.in_turns({name: step_of(model, x, y) for name, model in models.items()}, rounds)
    columns = {"training": "", "parameters trained": ",", "held in a step, MB": ".0f", "img/s": ".1f"}
    columns |= {"speed over full": ".2f", "over PEFT's LoRA": ".2f"}
    peers = {"full": "full fine-tuning's", "lora, PEFT": "PEFT's"}

    def row(name: str) -> tuple:
        held, rate = training_memory(models[name], x, y) / 1e6, len(x) / statistics.median(seconds[name])
        speed = {peer: turns.ratio(seconds[peer], seconds[name]) for peer in peers if peer in seconds}
        for peer in speed if name == "lora" else ():
            what = f"LoRA, a training step, speed over {peers[peer]}: {sizes}"
            page.claim(what, speed[peer], images_per_second=rate, peak_mb=held)
        return name, count_parameters(models[name], trainable=True), held, rate, speed["full"], speed.get("lora, PEFT")

    page.table(columns, map(row, models))


@torch.inference_mode()
def infer(page: turns.Page, models: dict[str, nn.Module], x: torch.Tensor, rounds: int, sizes: str) -> None:
    """The table of answers, a batch and one image at a time."""
    batch = turns.in_turns({name: lambda m=model: m(x) for name, model in models.items()}, rounds)
    alone = turns.in_turns({name: lambda m=model: m(x[:1]) for name, model in models.items()}, rounds)
    columns = {"inference": "", "parameters": ",", "img/s": ".1f", "speed over the model as it is": ".2f"}
    columns |= {"one image, ms": ".1f", "speed": ".2f"}

    def row(name: str) -> tuple:
        rate, latency = len(x) / statistics.median(batch[name]), 1000 * statistics.median(alone[name])
        speed, of_one = (turns.ratio(seconds["as it is"], seconds[name]) for seconds in (batch, alone))
        if name == "int8":
            page.claim(f"int8, inference, speed over float32's: {sizes}", speed, images_per_second=rate)
        return name, count_parameters(models[name]), rate, speed, latency, of_one

    page.table(columns, map(row, models))


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


if __name__ == "__main__":
    main()
