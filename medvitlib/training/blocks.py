"""What is done to the blocks of a model while it trains: compiled one for all, or computed twice to save memory."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medvitlib.models.zoo import count_parameters

BACKEND = "inductor"
_MOST = 0.8  # of the parameters: blocks that are alike and hold as much are worth compiling alone


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """A network's blocks: members of lists that hold several of a kind, which are made of modules themselves."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, nn.Sequential | nn.ModuleList) and module not in inside:
            kinds = [type(child) for child in module]
            plain = (nn.Sequential, nn.ModuleList)
            here = [m for m in module if kinds.count(type(m)) > 1 and any(m.children()) and type(m) not in plain]
            found += here
            inside.update(part for block in here for part in block.modules())
    return found


def alike(model: nn.Module) -> list[nn.Module]:
    """Blocks that one translation serves: of one kind, the same shapes and rates; none if they are a small part."""
    groups: dict[tuple, list[nn.Module]] = defaultdict(list)
    for block in blocks_of(model):
        shapes = tuple((name, tuple(p.shape)) for name, p in block.named_parameters())
        rates = tuple(m.drop_prob for m in block.modules() if hasattr(m, "drop_prob"))
        groups[type(block), shapes, rates].append(block)
    largest = max(groups.values(), key=len, default=[])
    held = sum(count_parameters(block) for block in largest)
    return largest if held >= _MOST * count_parameters(model) else []


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """For the time of a training, `torch.compile`: the blocks where they are alike, translated once, else the whole."""
    parts = (alike(model) or [model]) if wanted else []
    for part in parts:
        part.compile(backend=BACKEND)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None


def uncompiled(now: bool = True) -> AbstractContextManager:
    """What runs in this context runs as it was written: for a batch of another size, or another mode.

    Translating it anew would take longer than it saves.
    """
    return torch.compiler.set_stance("force_eager") if now else nullcontext()


def can_checkpoint(model: nn.Module) -> bool:
    """Whether the model has blocks that may be computed twice: batch normalisation would count a batch twice."""
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return bool(blocks_of(model)) and not normed


@contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """In training each block keeps its input alone, and is computed again on the way back (Chen et al. 2016).

    The gradients are the same: dropout and DropPath are drawn again from the same state.
    """
    blocks = blocks_of(model) if wanted else []
    for block in blocks:
        block.forward = partial(_twice, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _twice(block: nn.Module, forward, *args, **kwargs):
    if not (torch.is_grad_enabled() and block.training):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
