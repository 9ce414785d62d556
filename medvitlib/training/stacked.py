"""Several trainings of one shape at once: each has its run, its optimizer and its best epoch; the passes are shared.

What a training is stays where it is, in `Loop`. Here each is one of a group, whose gradients and validation logits come
from one pass for all (`Stacked`). Its folder is that of `fit`, before it is complete as after: what was begun in a
group can be ended alone, and the other way round.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from medvitlib.data import Split
from medvitlib.errors import TrainingError
from medvitlib.models.attention_classifier import TransformerClassifier
from medvitlib.models.stacked import Stacked
from medvitlib.training import parallel
from medvitlib.training.checkpoint import Stop, check_space
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import hardware
from medvitlib.training.fit import accelerate_anew, accelerator_for, determinism, settings_of
from medvitlib.training.group import Group, Member
from medvitlib.training.run import Run, finished_run, need_every_class, start_run

SHARED = (
    "batch_size",
    "recipe",
    "balance",
    "loss",
    "focal_gamma",
    "label_smoothing",
    "workers",
    "resident",
    "deterministic",
    "seed",
)
"""Settings that a group has in common, since its passes have; any other may differ."""

ALONE = ("mixup", "cutmix", "accumulate", "compile", "memory_gb", "trackers")
"""Settings that are for `fit` alone, where they are set."""


@dataclass(frozen=True)
class Training:
    """One of a group, as `fit` takes it."""

    model: TransformerClassifier
    config: TrainConfig
    name: str
    settings: dict | None = None
    each_epoch: Callable[[dict], None] | None = None


def stackable(config: TrainConfig) -> bool:
    """Whether a training with these settings can be one of a group; what is compiled, or cut to `memory_gb`, cannot."""
    return not any(getattr(config, name) not in (getattr(TrainConfig, name), False) for name in ALONE)


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
                    member = Member(one.model, parts, *arguments)
                    member.number, member.context = number, contexts.enter_context(context.pop_all())
                    members.append(member)
            except Exception as error:  # the others need not wait for it
                outcomes[number] = error
        Group(members, parts, compared, stop).run()
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
            raise TrainingError(f"{one.name}: {', '.join(ALONE[:-1])} and {ALONE[-1]} are for `fit` alone.")
        for name in SHARED:
            if (given := getattr(one.config, name)) != (other := getattr(first, name)):
                raise TrainingError(f"{one.name}: {name}={given!r} among {other!r}; a group has {name} in common.")
