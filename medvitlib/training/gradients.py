"""The gradient of one batch: forward and backward, in smaller parts where the memory asks for them."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from medvitlib.data import mix, normalise
from medvitlib.errors import TrainingError
from medvitlib.training import parallel
from medvitlib.training.blocks import uncompiled
from medvitlib.training.config import TrainConfig
from medvitlib.training.losses import loss_sums, weight_of


class Gradients:
    """Adds the gradient of a batch's mean loss to the parameters' `grad`.

    Of several processes each computes its share; the loss being a sum over images, their gradients add up to the whole.

    Args:
        class_weights: (K,) on the device, or None: each class the same.
        classes: K.
        batch: images of the largest batch.
        compiles: whether the model is compiled: then it is for parts of the usual size, and runs as it is for others.

    Attributes:
        accumulate: parts that a batch (a process's share of it) goes through the model in; doubles whenever the device
            runs out of memory.
        mixes: whether images are mixed, with any of the batch: every process then needs all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        config: TrainConfig,
        accelerator: Accelerator,
        class_weights: torch.Tensor | None,
        classes: int,
        batch: int,
        compiles: bool = False,
    ):
        self.model, self.config, self.accelerator = model, config, accelerator
        self.class_weights, self.classes = class_weights, classes
        self.layout = layout_of(model)
        self.accumulate = config.accumulate
        self.mixes = bool(config.mixup or config.cutmix)
        self.batch = -(-batch // parallel.world())
        self.usual = -(-min(batch, config.batch_size) // parallel.world())
        self.compiles = compiles

    @property
    def part(self) -> int:
        """Images that go through the model at a time, at most."""
        return -(-self.batch // self.accumulate)

    def share(self, n: int) -> slice:
        """Rows of a batch of n images that go through this process's model; none in some for a small last batch.

        Never one image alone, where it can be helped: batch normalisation cannot train on it.
        """
        return parallel.share(n, least=max(1, min(2, self.config.batch_size // parallel.world())))

    def add(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
        """The mean loss of a batch, (), on the device; all randomness comes from the seed.

        Args:
            images: uint8 (B, C, H, W), or `share(B)` of them unless they are mixed.
            labels: int64 (B,), of the whole batch.

        Raises:
            TrainingError: not one image at a time fits into memory, or the model does not give logits (B, K).
        """
        while True:
            full, loss = False, None
            try:
                torch.manual_seed(seed)
                loss = self._add(images, labels, seed)
            except (RuntimeError, ValueError) as error:
                self._check(error, len(images))
                full = True
            trained = [p for p in self.model.parameters() if p.requires_grad]
            any_full, *has_gradient = parallel.highest(full, *(p.grad is not None for p in trained))
            if not any_full:
                break
            self._in_smaller_parts(len(labels))
        for parameter, has in zip(trained, has_gradient, strict=True):
            if has and parameter.grad is None:  # of this batch, nothing was left for this process
                parameter.grad = torch.zeros_like(parameter)
        parallel.add_up([loss, *(p.grad for p in trained if p.grad is not None)])
        return loss

    def _add(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
        """This process's part of the mean loss, ()."""
        config, device = self.config, self.accelerator.device
        x = normalise(images.to(device, non_blocking=True), self.model.preprocessing)  # (B, C, H, W)
        rows = self.share(len(labels))
        if self.mixes:
            x, target = mix(x, labels, num_classes=self.classes, mixup=config.mixup, cutmix=config.cutmix)
            x = x[rows]
        else:
            target = F.one_hot(labels, self.classes).float().to(device, non_blocking=True)  # (B, K)
        whole = weight_of(target, self.class_weights).sum()
        target, total = target[rows], torch.zeros((), device=device)
        if parallel.rank():  # mixing was the same for all; dropout is not
            torch.manual_seed(seed + parallel.rank())
        parts = min(self.accumulate, -(-len(x) // self.part))  # the last batch may need fewer
        usual = -(-self.usual // min(self.accumulate, -(-self.usual // self.part)))
        for part, share in zip(x.tensor_split(parts), target.tensor_split(parts), strict=True) if parts else ():
            with self.accelerator.autocast(), uncompiled(self.compiles and len(part) != usual):
                logits = self.model(part.contiguous(memory_format=self.layout))
            if getattr(logits, "shape", None) != share.shape:
                given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
                raise TrainingError(
                    f"The model gives {given} for {len(part)} images of {self.classes} classes: expected "
                    f"logits {tuple(share.shape)}. Build it with num_classes={self.classes}, without auxiliary heads."
                )
            losses = loss_sums(
                logits,
                share,
                class_weights=self.class_weights,
                label_smoothing=config.label_smoothing,
                focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
            )
            loss = losses.sum() / whole
            self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _check(self, error: RuntimeError | ValueError, images: int) -> None:
        """Raises the error again, unless it says that the memory is full and there is more than one image at a time."""
        from accelerate.utils.memory import should_reduce_batch_size

        if "more than 1 value per channel" in str(error):
            raise TrainingError(
                "Batch normalisation cannot train on one image at a time: take a larger batch_size, or fewer parts "
                f"(accumulate={self.accumulate})."
            ) from error
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainingError(
                f"torch.compile could not translate this model ({str(error).strip().splitlines()[0]}): set "
                "compile=False, or see to it that there is a C++ compiler."
            ) from error
        if not should_reduce_batch_size(error):
            raise error
        if min(images, self.part) <= 1:
            raise TrainingError(
                "The device runs out of memory with one image at a time. Take smaller images or a smaller model."
            ) from error
        error.__traceback__ = None  # its frames hold what did not fit

    def _in_smaller_parts(self, images: int) -> None:
        """Twice as many parts a batch from here on."""
        from accelerate.utils.memory import clear_device_cache

        before = min(images, self.part)
        self.accumulate *= 2
        self.model.zero_grad()
        clear_device_cache(garbage_collection=True)
        if parallel.rank() == 0:
            print(
                f"Out of memory with {before} images at a time: from here on {min(images, self.part)}; "
                f"an update still sees {images}."
            )


def layout_of(model: nn.Module) -> torch.memory_format:
    """channels_last for a convolutional network; a ViT's one convolution cuts patches and gains nothing from it."""
    convolutional = sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
    return torch.channels_last if convolutional else torch.contiguous_format
