"""Pruning while a model is trained: which weights are zero in which epoch, and that they stay so."""

from torch import nn

from medvitlib.models.pruning import Masks, cubic, prune
from medvitlib.training.config import TrainConfig


class Pruning:
    """What `prune`, `prune_epochs` and `prune_scope` ask for; with `prune=0` nothing here does anything.

    Attributes:
        complete: the first epoch, counted from 0, at whose end as much is zero as was asked for.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        self.model, self.config = model, config
        self.complete = config.head_epochs + config.prune_epochs - 1 if config.prune else 0
        self._masks: Masks | None = None

    def begin(self, epoch: int, step: int, copies: list[nn.Module]) -> None:
        """Make the zeros of an epoch, which are a function of its number; one that is taken up again has them already.

        Args:
            copies: the model, and others whose weights are to be zero where its are.
        """
        config, trained = self.config, epoch - self.config.head_epochs
        if not config.prune or trained < 0:
            return
        if step == 0 and trained < config.prune_epochs:
            prune(self.model, cubic((trained + 1) / config.prune_epochs, config.prune), config.prune_scope)
        self._masks = Masks(self.model)
        self.hold(copies)

    def hold_gradients(self) -> None:
        """What is zero has no gradient: it takes no part in its norm."""
        if self._masks:
            self._masks.hold_gradients()

    def hold(self, copies: list[nn.Module]) -> None:
        """After an update: a momentum moves what has no gradient, too, and an average remembers."""
        if self._masks:
            self._masks.hold(*copies)
