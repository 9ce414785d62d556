"""Several trainings of one shape at once: each has its run, its optimizer and its best epoch; the passes are shared.

What a training is stays where it is, in `Loop`. Here each is one of a group, whose gradients and validation logits come
from one pass for all (`Stacked`). Its folder is that of `fit`, before it is complete as after: what was begun in a
group can be ended alone, and the other way round.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.data import Split, normalise
from medvitlib.errors import TrainingError
from medvitlib.models.attention_classifier import TransformerClassifier
from medvitlib.models.stacked import Stacked
from medvitlib.progress import track
from medvitlib.training import parallel
from medvitlib.training.checkpoint import Stop, check_space
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward, hardware
from medvitlib.training.fit import accelerate_anew, accelerator_for, determinism, finish, settings_of
from medvitlib.training.loop import Loop
from medvitlib.training.losses import loss_sums, weight_of
from medvitlib.training.order import order_of, seed_of
from medvitlib.training.run import Run, finished_run, need_every_class, start_run

SHARED = (
    "batch_size",
    "recipe",
    "balance",
    "loss",
    "focal_gamma",
    "label_smoothing",
    "workers",
    "deterministic",
    "seed",
)
"""Settings that a group has in common, since its passes have; any other may differ."""


@dataclass(frozen=True)
class Training:
    """One of a group, as `fit` takes it."""

    model: TransformerClassifier
    config: TrainConfig
    name: str
    settings: dict | None = None
    each_epoch: Callable[[dict], None] | None = None


def stackable(config: TrainConfig) -> bool:
    """Whether a training with these settings can be one of a group."""
    return config.accumulate == 1 and not (config.mixup or config.cutmix or config.compile or config.trackers)


def fit_together(
    trainings: Sequence[Training],
    parts: Split,
    *,
    resume: bool = False,
    compared: int = 1,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> list[Run | Exception]:
    """Train teaching models of one shape as `fit` would train each, and say nothing meanwhile.

    Each ends with the weights that `fit` gives it, to rounding: order of the images, augmentation and dropout are drawn
    as there. One that stops early, fails or diverges leaves the others as they are. Seconds and images a second in
    metrics.csv are its share: those of the group add up to the time it took. Arguments as `fit`.

    Returns:
        For each, in order, its run, or what ended it.

    Raises:
        TrainingError: trainings that cannot share their passes.
        KeyboardInterrupt: after Ctrl-C, once the state of each is on disk.
    """
    need_every_class(parts)
    device, dtype = hardware(device, precision)
    _check(trainings, dtype)
    outcomes: list[Run | Exception | None] = [None] * len(trainings)
    with (
        torch.random.fork_rng(devices=[]),
        determinism(trainings[0].config.deterministic),
        accelerate_anew(),
        Stop() as stop,
        ExitStack() as contexts,
    ):
        accelerator = accelerator_for(device, dtype, trainings[0].config, None)
        members = []
        for number, one in enumerate(trainings):
            settings = settings_of(one.model, one.config, compared, device, dtype) | (one.settings or {})
            try:
                if resume and (run := finished_run(one.name, one.model, parts, settings)):
                    outcomes[number] = run
                    continue
                with ExitStack() as context:
                    folder = context.enter_context(start_run(one.name, one.model, parts, settings, resume=resume))
                    check_space(folder.folder, one.model, one.config.ema > 0)
                    arguments = one.config, folder, accelerator, dtype, stop, True, one.each_epoch
                    member = _Member(one.model, parts, *arguments)
                    member.number, member.context = number, contexts.enter_context(context.pop_all())
                    members.append(member)
            except Exception as error:  # the others need not wait for it
                outcomes[number] = error
        _Group(members, parts, compared, stop).run()
        for member in members:
            outcomes[member.number] = member.outcome
        if stop.signal is not None:
            stop.leave("Stopped; every run of the group is complete.")
    return outcomes


def _check(trainings: Sequence[Training], dtype: torch.dtype | None) -> None:
    if not trainings:
        raise TrainingError("fit_together was given no training.")
    if parallel.world() > 1:
        raise TrainingError(f"{parallel.world()} processes train one model together; a group is one process's.")
    if dtype == torch.float16:
        raise TrainingError("A group has no gradient scaler, which float16 needs: use precision=None.")
    Stacked([one.model for one in trainings])  # its own words on what cannot be
    first = trainings[0].config
    for one in trainings:
        if not stackable(one.config):
            raise TrainingError(f"{one.name}: mixup, cutmix, accumulate, compile and trackers are for `fit` alone.")
        for name in SHARED:
            if (given := getattr(one.config, name)) != (other := getattr(first, name)):
                raise TrainingError(f"{one.name}: {name}={given!r} among {other!r}; a group has {name} in common.")


class _Member(Loop):
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
        if self.folder.resumed:
            self._load()
        else:
            self._enter_phase()

    def begin_epoch(self) -> None:
        self._begin_epoch()

    def batches(self, order: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self._batches(order)

    def update(self, loss: float, ids: np.ndarray, seconds: float) -> None:
        """One update, by the gradients that the parameters have."""
        self._step(loss, ids)
        position = self.position
        position.loss += loss * len(ids)
        position.weight += len(ids)
        position.seconds += seconds
        position.step += 1

    def end_epoch(self, logits: torch.Tensor) -> None:
        self._end_epoch(logits)

    def save(self) -> None:
        self._save()


class _Group:
    """Trainings that go on together while they stand at the same update."""

    def __init__(self, members: list[_Member], parts: Split, compared: int, stop: Stop):
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
        while True:
            for member in self._going(self.members):
                if member.complete:
                    with member.alone():
                        self._finish(member)
            if not (going := self._going(self.members)):
                return
            if self.stop.agreed():  # asked while an epoch was written down
                self.stop.leave(_GO_ON)
            least = min(member.place for member in going)  # after a kill some are behind, and catch up first
            now = self._train_epoch([member for member in going if member.place == least])
            for member, logits in zip(now, self._validate(now), strict=True):
                with member.alone():
                    member.end_epoch(logits)

    def _going(self, members: list[_Member]) -> list[_Member]:
        return [member for member in members if member.outcome is None]

    def _finish(self, member: _Member) -> None:
        arguments = member.parts, member.config, member.position, member.logits, self.compared
        member.outcome = finish(member.folder, member.model, *arguments)
        member.context.close()

    def _train_epoch(self, now: list[_Member]) -> list[_Member]:
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
            now_seconds, start = time.perf_counter() - start, time.perf_counter()
            for member, loss in zip(now, losses, strict=True):
                with member.alone():
                    member.update(loss, ids, now_seconds / len(now))
            step += 1
            if self.stop.agreed():
                self._leave(now)
        return self._going(now)

    def _add_gradients(self, now: list[_Member], images: torch.Tensor, labels: torch.Tensor, seed: int) -> list[float]:
        """Each model's mean loss of a batch, whose gradient its parameters have then."""
        first = now[0]
        config, device, weights = first.config, first.device, first.gradients.class_weights
        x = normalise(images.to(device, non_blocking=True), first.model.preprocessing)  # (B, C, H, W)
        target = F.one_hot(labels.to(device), first.gradients.classes).float()  # (B, K)
        whole = weight_of(target, weights).sum()

        def add(members: list[_Member]) -> list[float]:
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
            return losses.tolist()

        return self._in_passes(now, add)

    def _validate(self, now: list[_Member]) -> list[torch.Tensor]:
        """Each model's logits (N, K) of the validation part."""
        if not now:
            return []
        options = {"batch_size": now[0].gradients.part, "device": now[0].device, "precision": now[0].dtype}

        def look(members: list[_Member]) -> list[torch.Tensor]:
            stack = Stacked([member.kept for member in members])
            logits = torch.from_numpy(forward(stack, self.parts.val, description="Validating", **options))
            return list(logits.transpose(0, 1).contiguous())  # (N, M, K)

        try:
            with self.stop.immediately():
                return self._in_passes(now, look)
        except (KeyboardInterrupt, SystemExit):
            self._leave(now)
            raise

    def _in_passes(self, members: list[_Member], work: Callable[[list[_Member]], list]) -> list:
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

    def _leave(self, now: list[_Member]) -> None:
        """Save where these stand, the others being saved; then end, if that was asked for."""
        for member in now:
            with member.alone():
                member.save()
        if self.stop.signal is not None:
            self.stop.leave(_GO_ON)


_GO_ON = "Stopped. Every training of the group is saved: the same call goes on."
