"""Trainings of one shape, side by side: each is a `Loop`, whose gradients and validation logits are computed for it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.data import Split, normalise
from medvitlib.models.stacked import Stacked
from medvitlib.progress import track
from medvitlib.training.checkpoint import Stop
from medvitlib.training.features import forward
from medvitlib.training.fit import finish
from medvitlib.training.loop import Loop
from medvitlib.training.losses import loss_sums, weight_of
from medvitlib.training.order import order_of, seed_of
from medvitlib.training.resident import Resident, fits
from medvitlib.training.run import Run


class Member(Loop):
    """A training whose gradients and logits are computed for it.

    Attributes:
        number: its place among those that were asked for.
        context: what is left once it has ended.
        outcome: its run, or what ended it.
    """

    number: int
    context: ExitStack
    outcome: Run | Exception | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What goes wrong here ends this training, and no other."""
        try:
            yield
        except Exception as error:
            try:
                with self.context.pop_all():
                    raise error
            except Exception as said:  # in the run folder's words, where the disk is full
                self.outcome = said

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands: epoch and update."""
        return self.position.epoch, self.position.step

    @property
    def complete(self) -> bool:
        """Whether there is no epoch left for it."""
        return self.position.epoch >= self.epochs or self._out_of_patience()

    @property
    def kept(self) -> nn.Module:
        """What is validated: the model, or the average of its weights."""
        return self._copies()[-1]

    def begin(self) -> None:
        """From the start, or where it was interrupted."""
        self.context.callback(self._close)
        if self.folder.resumed:
            self._load()
        else:
            self._settle()
            self._enter_phase()

    def _settle(self) -> None:
        """Where the images are. How many models fit into the memory is found out by the passes of the group."""
        self.position.resident = fits(self.config, self.train, self.device)

    def begin_epoch(self) -> None:
        self._begin_epoch()

    def batches(self, order: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._batches(order)

    def update(self, loss: torch.Tensor, ids: np.ndarray, seconds: float) -> None:
        """One update, by the gradients that the parameters have; a loss that is not finite is found by the next."""
        self._step(loss, ids)
        self.position.step += 1
        self.position.seconds += seconds

    def end_updates(self, seconds: float) -> None:
        """Look at the epoch's last loss."""
        self._read()
        self.position.seconds += seconds

    def end_epoch(self, logits: torch.Tensor) -> None:
        self._end_epoch(logits)

    def save(self) -> None:
        self._save()

    def written(self) -> None:
        """Wait until what was saved is on the disk."""
        self.writer.wait()


class Group:
    """Trainings that go on together while they stand at the same update."""

    def __init__(self, members: list[Member], parts: Split, compared: int, stop: Stop):
        # with equal heads side by side, see `Stacked`
        self.members = sorted(members, key=lambda member: [layer.heads for layer in member.model.layers])
        self.parts, self.compared, self.stop = parts, compared, stop
        self.at_once = len(members)  # models in one pass; fewer from where the memory was full
        self._stacks: dict[tuple[int, ...], Stacked] = {}

    def run(self) -> None:
        """Every epoch that is left of each; its run is finished as soon as it is complete."""
        for member in self.members:
            with member.alone():
                member.begin()
        self._share_images()
        while True:
            for member in self._going(self.members):
                if member.complete:
                    with member.alone():
                        self._finish(member)
            if not (going := self._going(self.members)):
                return
            if self.stop.agreed():  # asked while an epoch was written down
                self._leave()
            least = min(member.place for member in going)  # after a kill some are behind, and catch up first
            now = self._train_epoch([member for member in going if member.place == least])
            for member, logits in zip(now, self._validate(now), strict=True):
                with member.alone():
                    member.end_epoch(logits)

    def _going(self, members: list[Member]) -> list[Member]:
        return [member for member in members if member.outcome is None]

    def _share_images(self) -> None:
        """One data set for all, and one copy of it on the device."""
        if not (going := self._going(self.members)):
            return
        first = going[0]
        resident = Resident(first.train, first.device) if first.position.resident else None
        for member in going:
            member.train, member.resident, member.position.resident = first.train, resident, resident is not None

    def _finish(self, member: Member) -> None:
        member.written()
        arguments = member.parts, member.config, member.position, member.logits, self.compared
        member.outcome = finish(member.folder, member.model, *arguments)
        member.context.close()

    def _train_epoch(self, now: list[Member]) -> list[Member]:
        """The updates that are left of this epoch; returns those that are still there at its end."""
        for member in now:
            with member.alone():
                member.begin_epoch()
        first, start = now[0], time.perf_counter()
        epoch, step = first.place
        order = order_of(len(first.train), first.config.seed, epoch, first.image_weights)
        left = len(order) - first.bounds[step][0] if step < len(first.bounds) else 0
        words = f"Epoch {epoch + 1}/{first.epochs}, {len(now)} models"
        for images, labels in track(first.batches(order), words, total=left, step=first.config.batch_size):
            if not (now := self._going(now)):
                break
            ids = first.parts.train.ids[order[slice(*first.bounds[step])]]
            losses = self._add_gradients(now, images, labels, seed_of(first.config.seed, epoch, step))
            seconds, start = time.perf_counter() - start, time.perf_counter()
            for member, loss in zip(now, losses, strict=True):
                with member.alone():
                    member.update(loss, ids, seconds / len(now))
            step += 1
            if self.stop.agreed():
                self._leave()
        for member in (now := self._going(now)):
            with member.alone():
                member.end_updates((time.perf_counter() - start) / len(now))
        return self._going(now)

    def _add_gradients(
        self, now: list[Member], images: torch.Tensor, labels: torch.Tensor, seed: int
    ) -> list[torch.Tensor]:
        """Each model's mean loss of a batch, (), on the device; its parameters have its gradient then."""
        first = now[0]
        config, device, weights = first.config, first.device, first.gradients.class_weights
        x = normalise(images.to(device, non_blocking=True), first.model.preprocessing)  # (B, C, H, W)
        target = F.one_hot(labels, first.gradients.classes).float().to(device, non_blocking=True)  # (B, K)
        whole = weight_of(target, weights).sum()

        def add(members: list[Member]) -> list[torch.Tensor]:
            with first.accelerator.autocast():
                logits = self._stack([member.model for member in members])(x, seed)  # (B, M, K)
            losses = loss_sums(
                logits.flatten(0, 1),
                target.repeat_interleave(len(members), dim=0),
                class_weights=weights,
                label_smoothing=config.label_smoothing,
                focal_gamma=config.focal_gamma if config.loss == "focal" else 0.0,
            )
            losses = losses.view(logits.shape[:2]).sum(dim=0) / whole  # (M,)
            losses.sum().backward()  # one that is not finite changes no other's gradient
            return list(losses.detach())

        return self._in_passes(now, add)

    def _validate(self, now: list[Member]) -> list[torch.Tensor]:
        """Each model's logits (N, K) of the validation part."""
        if not now:
            return []
        options = {"batch_size": now[0].gradients.part, "device": now[0].device, "precision": now[0].dtype}

        def look(members: list[Member]) -> list[torch.Tensor]:
            stack = Stacked([member.kept for member in members])
            logits = torch.from_numpy(forward(stack, self.parts.val, description="Validating", **options))
            return list(logits.transpose(0, 1).contiguous())  # (N, M, K)

        try:
            with self.stop.immediately():
                return self._in_passes(now, look)
        except (KeyboardInterrupt, SystemExit):
            self._leave()
            raise

    def _in_passes(self, members: list[Member], work: Callable[[list[Member]], list]) -> list:
        """What `work` returns for all members; for half as many at a time whenever the memory is full."""
        from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

        while True:
            try:
                parts = (members[k : k + self.at_once] for k in range(0, len(members), self.at_once))
                return [result for part in parts for result in work(part)]
            except RuntimeError as error:
                if min(self.at_once, len(members)) == 1 or not should_reduce_batch_size(error):
                    raise
                error.__traceback__ = None  # its frames hold what did not fit
            for member in members:
                member.model.zero_grad()
            self.at_once = -(-min(self.at_once, len(members)) // 2)
            clear_device_cache(garbage_collection=True)

    def _stack(self, models: list[nn.Module]) -> Stacked:
        key = tuple(map(id, models))
        if key not in self._stacks:
            self._stacks[key] = Stacked(models)
        return self._stacks[key]

    def _leave(self) -> None:
        """Save where each stands; then end, if that was asked for."""
        for member in self._going(self.members):
            with member.alone():
                member.save()
        if self.stop.signal is None:
            return
        for member in self._going(self.members):
            with member.alone():
                member.written()
        self.stop.leave(_GO_ON)


_GO_ON = "Stopped. Every training of the group is saved: the same call goes on."
