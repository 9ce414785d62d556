"""Run by test_parallel.py under torchrun: several trainings by these processes, then what each process has to tell.

Argument: a folder. Each process writes `rank-N.json` into it; the runs lie where $MEDVIT_RUNS says.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from medvitlib.data import open_dataset, split
from medvitlib.errors import TrainingError
from medvitlib.models.adapt import adapt
from medvitlib.models.zoo import build
from medvitlib.training import parallel
from medvitlib.training.config import TrainConfig
from medvitlib.training.fit import fit

PLAIN = TrainConfig(epochs=2, batch_size=8, lr=1e-3, balance="weights", clip_norm=0.5, ema=0.9, recipe="xray")
CONFIGS = {
    "shares": replace(PLAIN, accumulate=2, head_epochs=1, label_smoothing=0.1),
    "mixed": replace(PLAIN, mixup=0.3, cutmix=1.0, balance="sampling", optimizer="sgd", lr=0.05, workers=1),
    "adapted": replace(PLAIN, prune=0.5, prune_epochs=2),
}
"""What is the same for any number of processes, but for rounding."""
FULL = replace(PLAIN, epochs=1, ema=0.0)


def small_parts():
    """43 images to train on: five batches of 8, the last of 3, which is one process's."""
    parts = split(open_dataset("phantom/cxr", image_size=32, n_patients=30))
    return replace(parts, train=parts.train.subset(range(43)), val=parts.val.subset(range(13)))


def tiny(**options):
    return build("vit_tiny_test", 2, weights=None, **options)


def train(name: str, config: TrainConfig, model=None, **options):
    if model is None:
        model = adapt(tiny(), "lora") if name == "adapted" else tiny()
    return fit(model, small_parts(), config, name=name, device="cpu", precision=None, **options)


def out_of_memory_in(number: int):
    """A model that does not fit in one of the processes."""
    model = tiny()
    plain = model.forward

    def narrow(x):
        if len(x) > 2 and torch.is_grad_enabled() and parallel.rank() == number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return plain(x)

    model.forward = narrow
    return model


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    told = {"runs": {}}
    for name, config in CONFIGS.items():
        told["runs"][name] = train(name, config) is not None
    train("full", FULL, out_of_memory_in(1))
    model = tiny(dropout=0.3)
    train("dropout", FULL, model)
    told["sum"] = sum(p.double().sum().item() for p in model.parameters())
    train("statistics", FULL, build("resnet18", 2, weights=None, image_size=32), quiet=True)
    try:
        train("few", replace(FULL, batch_size=1))
    except TrainingError as error:
        told["few"] = str(error)
    told["highest"] = parallel.highest(parallel.rank(), 5 - parallel.rank())
    (folder / f"rank-{parallel.rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
