"""A model is borrowed for an explanation, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def borrowed(model: nn.Module) -> Iterator[list[RemovableHandle]]:
    """The model in evaluation mode and without fused attention, until the end of the block, however it ends.

    Fused attention never materialises its map, nor calls the dropout that one could be read from.

    Yields:
        a list for the handles of hooks: those put into it are removed at the end.
    """
    modules = list(model.modules())
    training = [module.training for module in modules]  # one by one: a frozen norm may be in evaluation mode alone
    fused = [(module, module.fused_attn) for module in modules if hasattr(module, "fused_attn")]
    handles: list[RemovableHandle] = []
    try:
        model.eval()
        for module, _ in fused:
            module.fused_attn = False
        yield handles
    finally:
        for handle in handles:
            handle.remove()
        for module, was in fused:
            module.fused_attn = was
        model.train(training[0])  # for models that do more than set a flag
        for module, was in zip(modules, training, strict=True):
            module.training = was
