"""What a training takes of a device's memory, counted before its first step, and what is done to make it fit."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from medvitlib.costs import training_memory
from medvitlib.errors import TrainingError
from medvitlib.training.blocks import can_checkpoint, checkpointed
from medvitlib.training.config import TrainConfig

ROOM = 0.85  # of the limit may be counted: workspaces and what an allocator wastes are not
SMALL = 8  # images: before parts get smaller than this, activations are computed twice


@dataclass(frozen=True)
class Plan:
    """How a batch goes through a model.

    Attributes:
        accumulate: parts of the batch.
        checkpointing: whether the blocks' activations are computed twice.
        bytes: of a step, counted (see `costs.training_memory`), images included.
    """

    accumulate: int
    checkpointing: bool
    bytes: int


def settled(
    config: TrainConfig,
    model: nn.Module,
    batch: int,
    *,
    extra: int = 0,
    precision: Callable[[], AbstractContextManager],
) -> tuple[int, bool]:
    """Parts of a batch, and whether activations are computed twice, under `memory_gb` or what is free.

    Args:
        extra, precision: as for `plan`.

    Raises:
        TrainingError: it does not fit into `memory_gb`.
    """
    limit = _limit(config.memory_gb, model)
    if limit == float("inf"):
        return config.accumulate, False
    try:
        found = plan(model, batch, limit, accumulate=config.accumulate, extra=extra, precision=precision)
    except (RuntimeError, ValueError, TypeError):
        if config.memory_gb:
            raise
        return config.accumulate, False  # nobody asked: running out of memory has an answer of its own
    return found.accumulate, found.checkpointing


def _limit(memory_gb: float, model: nn.Module) -> float:
    """Bytes that weights, images and a step may take; infinite where nobody said and nothing can be asked."""
    device = next(model.parameters()).device
    if memory_gb or device.type != "cuda":
        return memory_gb * 1e9 or float("inf")
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    here = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return torch.cuda.mem_get_info(device)[0] + cached + here


def plan(
    model: nn.Module,
    batch: int,
    limit: float,
    *,
    accumulate: int = 1,
    extra: int = 0,
    precision: Callable[[], AbstractContextManager],
) -> Plan:
    """The least parts of a batch for which a step fits; computed twice only where the parts would become small.

    Bytes grow by the image, in a straight line: they are counted for two images and for four.

    Args:
        model: on its device, as it is trained.
        batch: images of the largest batch.
        limit: bytes.
        accumulate: parts at least.
        extra: bytes that the count leaves out, of averaged weights for example.
        precision: makes a context, `torch.autocast` or none.

    Raises:
        TrainingError: one image at a time does not fit, computed twice.
    """
    pixels = model.preprocessing.channels * model.preprocessing.image_size[0] * model.preprocessing.image_size[1]
    extra += 9 * batch * pixels  # as bytes, and as floats twice, while they are normalised
    lines = {}
    for checkpointing, least in ((False, SMALL), (True, 1), (False, 1)):
        if checkpointing and not can_checkpoint(model):
            continue
        if checkpointing not in lines:
            lines[checkpointing] = _line(model, checkpointing, precision)
        fixed, each = lines[checkpointing]
        most = min(batch, int((ROOM * limit - fixed - extra) // each)) if limit < float("inf") else batch
        if most >= min(least, -(-batch // accumulate)):
            parts = max(accumulate, -(-batch // most))
            return Plan(parts, checkpointing, fixed + extra + each * -(-batch // parts))
    fixed, each = min(lines.values(), key=sum)
    raise TrainingError(
        f"Training this model takes {(fixed + extra + each) / 1e9:.3g} GB with one image at a time; "
        f"{ROOM * limit / 1e9:.3g} GB of {limit / 1e9:.3g} can be planned with. Take a smaller model, smaller images, "
        "train fewer parameters (`adapt`), or allow more (memory_gb)."
    )


def _line(model: nn.Module, checkpointing: bool, precision: Callable[[], AbstractContextManager]) -> tuple[int, int]:
    """Bytes of a step without images, and of each image."""
    device = next(model.parameters()).device
    counted = []
    for n in (2, 4):
        images = torch.zeros(n, model.preprocessing.channels, *model.preprocessing.image_size, device=device)
        with precision(), checkpointed(model, checkpointing):
            counted.append(training_memory(model, images, torch.zeros(n, dtype=torch.int64)))
    each = max(1, (counted[1] - counted[0]) // 2)
    return counted[0] - 2 * each, each
