"""Training or evaluation, for the time of a measurement."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or evaluation mode until the end of the block, however it ends.

    Every module gets its own flag back: a frozen norm may be in evaluation mode alone.
    """
    modules = list(model.modules())
    before = [module.training for module in modules]
    try:
        model.train(training)
        yield
    finally:
        model.train(before[0])  # for models that do more than set a flag
        for module, was in zip(modules, before, strict=True):
            module.training = was
