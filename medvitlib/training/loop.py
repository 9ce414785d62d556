"""The loop of a training: epochs of updates, a look at the validation part after each, the state saved after that."""

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from medvitlib.data import Augmented, Split, augmented
from medvitlib.errors import TrainingError
from medvitlib.jsonfile import write_json
from medvitlib.models.adapters import adapters_of, merged
from medvitlib.models.zoo import head_of
from medvitlib.progress import track, with_time
from medvitlib.training import parallel
from medvitlib.training.blocks import can_checkpoint, checkpointed, compiled, uncompiled
from medvitlib.training.checkpoint import Position, Stop, load_state, save_best, save_state, state_of
from medvitlib.training.config import METRICS, TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.gradients import Gradients, layout_of
from medvitlib.training.losses import balancing_weights
from medvitlib.training.optim import make_optimizer, rate_at
from medvitlib.training.order import bounds_of, load, order_of, seed_of
from medvitlib.training.pruned import Pruning
from medvitlib.training.run import UnfinishedRun
from medvitlib.training.validation import validation_metrics

LEAST_GAIN = 1e-4
"""Validation NLL by which an epoch must be lower to be kept among equals: less differs between processors."""


class Loop:
    """One training: what it works with, and the loop over it.

    Of several processes each has one, and all do the same updates; `folder` is the first one's, None in the others.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Split,
        config: TrainConfig,
        folder: UnfinishedRun | None,
        accelerator: Accelerator,
        dtype: torch.dtype | None,
        stop: Stop,
        quiet: bool,
        each_epoch: Callable[[dict], None] | None,
    ):
        self.config, self.parts, self.folder, self.stop = config, parts, folder, stop
        self.quiet, self.each_epoch = quiet or folder is None, each_epoch
        self.accelerator, self.device, self.dtype = accelerator, accelerator.device, dtype
        self.model = model.to(self.device, memory_format=layout_of(model))
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        if not self.trainable:
            raise TrainingError("No parameter of this model requires a gradient: there is nothing to train.")
        if {p.dtype for p in self.trainable} != {torch.float32}:
            raise TrainingError("The weights of this model are not float32: pass model.float(), and say precision=.")
        if any(adapter.merged for adapter in adapters_of(model).values()):
            raise TrainingError("The adapters of this model are merged: `unmerge` it to train them further.")
        if config.checkpointing and not can_checkpoint(model):
            raise TrainingError(
                "checkpointing=True is for models with blocks and without batch normalisation, whose statistics would "
                "count a batch twice: leave it out, and raise accumulate instead."
            )
        if config.head_epochs and not any(p.requires_grad for p in head_of(model).parameters()):
            raise TrainingError("head_epochs trains the head, which is frozen: set head_epochs=0, or unfreeze it.")
        parallel.align(self.model)
        self.ema = ModelEmaV3(model, decay=config.ema, use_warmup=True) if config.ema else None
        self.train = parts.train if config.recipe == "none" else augmented(parts.train, config.recipe, config.seed)
        self.bounds = bounds_of(len(self.train), config.batch_size)
        largest, classes = max(last - first for first, last in self.bounds), len(parts.train.classes)
        labels = torch.from_numpy(np.asarray(parts.train.labels))
        balance = balancing_weights(labels, classes)
        self.image_weights = balance[labels].double() if config.balance == "sampling" else None
        class_weights = balance.to(self.device) if config.balance == "weights" else None
        self.epochs = config.head_epochs + config.epochs
        self.compiles = config.compile
        self.gradients = Gradients(model, config, accelerator, class_weights, classes, largest, self.compiles)
        self.position, self.logits, self.optimizer = Position(), None, None
        self.pruning = Pruning(model, config)

    def run(self) -> tuple[Position, torch.Tensor]:
        """Every epoch that is left; returns where it ended and the validation logits (N, K) of the best epoch."""
        try:
            if parallel.from_first(lambda: self.folder.resumed):
                self._load()
            else:
                if not self.quiet and self.folder.replaces:
                    print("An interrupted training of this name was thrown away: resume=True would have gone on.")
                self.gradients.accumulate = self.position.accumulate = self.config.accumulate
                self._enter_phase()
            if self.config.keep_start and self.position.best_epoch < 0:
                self._log(0, "start", self._validate())
            with compiled(self.model, self.compiles), checkpointed(self.model, self.config.checkpointing):
                while self.position.epoch < self.epochs and not self._out_of_patience():
                    self._train_epoch()
                    self._end_epoch(self._validate())
                    if self.stop.agreed():
                        self._save()
                        self.stop.leave(f"Stopped after epoch {self.position.epoch}. {_GO_ON}")
        finally:
            self._close()
        return self.position, self.logits

    def _close(self) -> None:
        """However it ended: nothing stays frozen."""
        for parameter in self.trainable:
            parameter.requires_grad_(True)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    @property
    def head_only(self) -> bool:
        """Whether this epoch trains the head over a frozen backbone."""
        return self.position.epoch < self.config.head_epochs

    def _enter_phase(self) -> None:
        """A fresh optimizer, for the head or for everything."""
        head = set(head_of(self.model).parameters()) if self.head_only else set()
        for parameter in self.trainable:
            parameter.requires_grad_(not self.head_only or parameter in head)
        self.optimizer = self.accelerator.prepare_optimizer(make_optimizer(self.model, self.config, self.head_only))

    def _copies(self) -> list[nn.Module]:
        """The model, and the average of its weights where there is one."""
        return [self.model, self.ema.module] if self.ema else [self.model]

    def _train_epoch(self) -> None:
        """The updates that are left of this epoch."""
        position, start = self.position, time.perf_counter()
        self._begin_epoch()
        order = order_of(len(self.train), self.config.seed, position.epoch, self.image_weights)
        left = len(order) - self.bounds[position.step][0] if position.step < len(self.bounds) else 0
        description = f"Epoch {position.epoch + 1}/{self.epochs}"
        for images, labels in track(self._batches(order), description, total=left, step=self.config.batch_size):
            first, last = self.bounds[position.step]
            self._update(images, labels, self.parts.train.ids[order[first:last]])
            position.step += 1
            now = time.perf_counter()
            position.seconds, start = position.seconds + now - start, now
            if self.stop.agreed():
                self._save()
                self.stop.leave(f"Stopped in epoch {position.epoch + 1}, after update {position.step}. {_GO_ON}")
        position.seconds += time.perf_counter() - start

    def _begin_epoch(self) -> None:
        """What is pruned, and what is in training mode."""
        self.pruning.begin(self.position.epoch, self.position.step, self._copies())
        self.model.train()
        if self.head_only:  # features as they will be in use: no dropout, batch statistics untouched
            self.model.eval()
            head_of(self.model).train()

    def _batches(self, order: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """As `load`, of this epoch from the current step on."""
        if isinstance(self.train, Augmented):
            self.train.set_epoch(self.position.epoch)
        share = None if self.gradients.mixes else self.gradients.share  # what is mixed must be seen whole
        how = {"share": share, "workers": self.config.workers, "pinned": self.device.type == "cuda"}
        return load(self.train, order, self.bounds[self.position.step :], **how)

    def _update(self, images: torch.Tensor, labels: torch.Tensor, ids: np.ndarray) -> None:
        """One update; in smaller parts, the same update, if the device runs out of memory."""
        seed = seed_of(self.config.seed, self.position.epoch, self.position.step)
        self._step(self.gradients.add(images, labels, seed=seed), ids)

    def _step(self, loss: torch.Tensor, ids: np.ndarray) -> None:
        """Change the weights by the gradients that they have, those of these images' mean loss, (), on the device."""
        position, config = self.position, self.config
        rate = 1.0 if self.head_only else self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate
        self.accelerator.unscale_gradients(self.optimizer)
        self.pruning.hold_gradients()
        norm = nn.utils.clip_grad_norm_(self.trainable, config.clip_norm or math.inf)
        self._add(*torch.stack([loss, norm.to(loss.device)]).tolist(), ids)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema:
            self.ema.update(self.model, step=position.epoch * len(self.bounds) + position.step + 1)
        self.pruning.hold(self._copies())

    def _add(self, loss: float, norm: float, ids: np.ndarray) -> None:
        """Add the loss of these images to the epoch's, and stop if it is not a number."""
        # with scaled gradients an infinite norm is in order: the scaler skips the update and halves its factor
        if not math.isfinite(loss) or not (math.isfinite(norm) or self.accelerator.scaler):
            self._not_finite(loss, norm, ids)
        self.position.loss += loss * len(ids)
        self.position.weight += len(ids)

    def _rate(self) -> float:
        step = (self.position.epoch - self.config.head_epochs) * len(self.bounds) + self.position.step
        return rate_at(step, len(self.bounds), self.config)

    def _not_finite(self, loss: float, norm: float, ids: np.ndarray) -> None:
        """Write down what a search for the cause needs, and stop."""
        position = self.position
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        where = {"epoch": position.epoch + 1, "update": position.step + 1, "learning_rate": rate}
        values = {"loss": str(loss), "gradient_norm": str(norm), "ids": ids.tolist()}
        if self.folder:
            write_json(self.folder.folder / "nonfinite.json", where | values)
        folder = parallel.from_first(lambda: self.folder.folder)
        raise TrainingError(
            f"The loss is {loss}, the gradient's norm {norm}, at update {position.step + 1} of epoch "
            f"{position.epoch + 1} (learning rate {rate:.2g}). The batch's ids are in "
            f"{folder}/nonfinite.json. Look at these images, lower lr, lengthen warmup_epochs or set "
            "clip_norm=1."
        )

    def _validate(self) -> torch.Tensor:
        """Logits (N, K) of the validation part, from the averaged weights where there are any, adapters merged: of the
        very model that would be kept."""
        kept = self._copies()[-1]
        options = {"batch_size": self.gradients.part, "device": self.device, "precision": self.dtype}
        if parallel.world() > 1:
            return self._validate_together(kept, options)
        try:
            with self.stop.immediately(), merged(kept, keep_zeros=self.config.prune > 0), uncompiled(self.compiles):
                return torch.from_numpy(forward(kept, self.parts.val, description="Validating", **options))
        except (KeyboardInterrupt, SystemExit):
            self._save()
            if self.stop.signal is None:
                raise
            self.stop.leave(f"Stopped while epoch {self.position.epoch + 1} was validated. {_GO_ON}")

    def _validate_together(self, kept: nn.Module, options: dict) -> torch.Tensor:
        """Each process sees its share; a signal waits, as one that left would be waited for in vain."""
        parallel.align(self.model, kept)  # the batch statistics are each process's own until here
        val = self.parts.val
        rows = np.arange(len(val))[parallel.share(len(val))]
        logits = np.empty((0, len(val.classes)), np.float32)  # of a part with fewer images than processes
        if len(rows):
            with merged(kept, keep_zeros=self.config.prune > 0), uncompiled(self.compiles):
                logits = forward(kept, val.subset(rows), description="Validating", **options)
        return torch.from_numpy(np.concatenate(parallel.gather(logits)))

    def _end_epoch(self, logits: torch.Tensor) -> None:
        """Write the epoch's row, keep its weights if they are the best, and save the state that a resumed run needs."""
        position, was_head = self.position, self.head_only
        row = self._log(position.epoch + 1, "head" if was_head else "all", logits)
        position.epoch, position.step = position.epoch + 1, 0
        position.loss = position.weight = position.seconds = 0.0
        if was_head and not self.head_only:
            self._enter_phase()
        self._save()
        if self.each_epoch and self.folder:
            self.each_epoch(row)

    def _log(self, epoch: int, phase: str, logits: torch.Tensor) -> dict:
        """Judge the weights by their validation logits (N, K); write and return their row of metrics.csv."""
        position = self.position
        values = validation_metrics(self.parts.val, logits)
        better = position.epoch >= self.pruning.complete and self._better(values)
        if better:
            position.best, position.best_nll = values[self.config.metric], values["val_nll"]
            position.best_epoch, self.logits = epoch, logits
            if self.folder:
                save_best(self.folder.folder, self._copies()[-1].state_dict())
        row = {
            "epoch": epoch,
            "phase": phase,
            "lr": max(group["lr"] for group in self.optimizer.param_groups) if epoch else 0.0,
            "train_loss": position.loss / position.weight if position.weight else math.nan,
            **values,
            "images_per_second": round(position.weight / position.seconds, 1) if position.seconds else math.nan,
            "seconds": round(position.seconds, 2),
            "best": int(better),
        }
        if self.folder:
            self.folder.log(row)
        self.accelerator.log({k: v for k, v in row.items() if k != "phase"}, step=epoch)
        self._report(row, values)
        return row

    def _better(self, values: dict[str, float]) -> bool:
        """Whether these validation metrics are better than the best so far.

        Of equal values of the metric the lower validation NLL decides: on few images an AUROC of 1 is soon reached.
        """
        value, best = values[self.config.metric], self.position.best
        if self.position.best_epoch < 0:
            return True  # something must be kept
        if math.isnan(best) or value == best:
            return math.isfinite(value) and not values["val_nll"] > self.position.best_nll - LEAST_GAIN
        return math.isfinite(value) and METRICS[self.config.metric](value, best) == value

    def _report(self, row: dict, values: dict[str, float]) -> None:
        if self.quiet:
            return
        shown = dict.fromkeys(("val_nll", self.config.metric))
        figures = ", ".join(f"{name.replace('_', ' ')} {values[name]:.3f}" for name in shown)
        phase = {"head": " (head)", "start": " (the start)"}.get(row["phase"], "")
        best = ", best so far" if row["best"] else ""
        loss = f"train loss {row['train_loss']:.3f}, " if row["epoch"] else ""
        line = f"epoch {row['epoch']}/{self.epochs}{phase}: {loss}{figures}{best}"
        left = (self.epochs - row["epoch"]) * row["seconds"] / 60
        if row["epoch"]:
            line = with_time(line, f"{row['images_per_second']:.0f} img/s, about {left:.1f} min left")
        print(line, flush=True)  # whoever looks at a log file wants to see it now

    def _out_of_patience(self) -> bool:
        since = max(self.position.best_epoch - 1, self.config.head_epochs - 1, self.pruning.complete)
        return 0 < self.config.patience <= self.position.epoch - 1 - since

    def _parts(self) -> dict:
        ema = self.ema.module if self.ema else None
        return {"model": self.model, "ema": ema, "optimizer": self.optimizer, "scaler": self.accelerator.scaler}

    def _save(self) -> None:
        self.position.accumulate = self.gradients.accumulate
        # the others wait: were one to leave before, torchrun would end this one in the middle of it
        parallel.from_first(lambda: save_state(self.folder.folder, state_of(self.position, self._parts(), self.logits)))

    def _load(self) -> None:
        content = parallel.from_first(lambda: load_state(self.folder.folder))
        self.position, self.logits = content["position"], content["logits"]
        self.gradients.accumulate = self.position.accumulate
        self._enter_phase()
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(content[name])
        if self.folder:
            started = self.config.keep_start and self.position.best_epoch >= 0
            self.folder.forget_after(self.position.epoch + started)
        if not self.quiet:
            print(f"Going on in epoch {self.position.epoch + 1}/{self.epochs}, after update {self.position.step}.")


_GO_ON = "Everything is saved: fit(..., resume=True) goes on."
