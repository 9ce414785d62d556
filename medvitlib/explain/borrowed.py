"""A model is borrowed for an explanation, and given back as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.hooks import RemovableHandle

from medvitlib.models.modes import in_mode


@contextmanager
def borrowed(model: nn.Module, frozen: bool = False) -> Iterator[list[RemovableHandle]]:
    """The model in evaluation mode and without fused attention, until the end of the block, however it ends.

    Fused attention never materialises its map, nor calls the dropout that one could be read from.

    Args:
        frozen: no parameter requires a gradient meanwhile, so that no graph is kept for them; attention stays fused.

    Yields:
        a list for the handles of hooks: those put into it are removed at the end.
    """
    modules = [] if frozen else model.modules()
    fused = [(module, module.fused_attn) for module in modules if hasattr(module, "fused_attn")]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad] if frozen else []
    handles: list[RemovableHandle] = []
    with in_mode(model, training=False):
        try:
            for module, _ in fused:
                module.fused_attn = False
            for parameter in trained:
                parameter.requires_grad_(False)
            yield handles
        finally:
            for handle in handles:
                handle.remove()
            for module, was in fused:
                module.fused_attn = was
            for parameter in trained:
                parameter.requires_grad_(True)
