"""Train a model, and lose nothing: what a notebook calls."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from medvitlib.curves import plot_history
from medvitlib.data import Split
from medvitlib.errors import MedvitError, TrainingError
from medvitlib.models.adapters import adapters_of, merge_and_unload
from medvitlib.models.zoo import count_parameters
from medvitlib.training import parallel
from medvitlib.training.checkpoint import Position, Stop, check_space, load_best
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import fingerprint, hardware
from medvitlib.training.loop import Loop
from medvitlib.training.run import (
    Run,
    UnfinishedRun,
    choices,
    finished_run,
    need_every_class,
    refuse_to_replace,
    start_run,
)

FULL = {"method": "full"}  # of a model that did not go through `adapt`


def fit(
    model: nn.Module,
    parts: Split,
    config: TrainConfig | None = None,
    *,
    name: str,
    resume: bool = False,
    replace: bool = True,
    compared: int = 1,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
    settings: dict | None = None,
    quiet: bool = False,
    plot: bool = True,
    each_epoch: Callable[[dict], None] | None = None,
) -> Run | None:
    """Train a model on `parts.train`, keep the epoch that is best on `parts.val`; the test part is not touched.

    Each update draws its randomness from (seed, epoch, update) alone, so a training that was stopped, by Ctrl-C,
    SIGTERM or kill -9, and is taken up again on the same machine with as many threads ends with the same weights, bit
    by bit. On a CUDA device, images lie and are augmented there, and a batch is cut to fit into its memory, unless
    `config` says otherwise.

    In processes that torchrun has started, all train this one model: each computes its share of every batch, so the
    result is that of one process but for rounding, dropout and batch statistics (each process's own, as of a part of a
    batch). The first one alone prints and writes; it returns the run, the others None.

    Args:
        model: from `build`, or `adapt`; trained in place. What does not require a gradient stays frozen. The run keeps
            what was trained (see `medvitlib.models.base`); adapters are then merged: what is left is a plain model.
        config: every setting; `TrainConfig()` if None.
        name: of the run folder, under `runs_dir()`; an earlier run of this name is replaced once this one is complete.
        resume: go on with an interrupted training of this name, which must have had the same settings, data and
            initial weights; if there is none, start; if it is complete already, return it.
        replace: whether a finished run of this name that had other settings may be replaced.
        compared: how many settings, this one included, were tried on this validation part; times the epochs that were
            compared, it is what a certificate corrects for.
        device: None takes the best there is; each of several processes takes a CUDA device of its own.
        precision: "auto" takes reduced precision where the hardware gains from it (see `medvitlib.precision`); None
            means float32. On float16, gradients are scaled.
        settings: whatever else `config.json` should remember.
        quiet: no line an epoch.
        plot: draw the curves into training.png.
        each_epoch: given an epoch's row of metrics.csv once its state is on disk (on a CUDA device: on its way there);
            what it raises ends the training.

    Raises:
        DataError: a class is absent from the training or the validation part, or nobody said which is positive.
        TrainingError: settings that cannot be, fewer images a batch than processes, a loss that is not finite (see
            nonfinite.json in the run's folder), a disk that is full, or a state that does not belong to these settings.
        KeyboardInterrupt: after Ctrl-C, once the state is on disk.
    """
    config = config or TrainConfig()
    parallel.join()
    first = parallel.rank() == 0
    if config.batch_size < parallel.world():
        raise TrainingError(
            f"batch_size={config.batch_size} for {parallel.world()} processes, which share each batch: take more."
        )
    if compared < 1:
        raise MedvitError(f"compared={compared}: expected 1 or more, the model that is being trained included.")
    need_every_class(parts)
    device, dtype = hardware(device, precision)
    device = parallel.own_device(device)
    settings = settings_of(model, config, compared, device, dtype) | (settings or {})
    run = finished_run(name, model, parts, settings) if resume and first else None
    if parallel.from_first(lambda: run is not None):
        return run
    if first and not replace:
        refuse_to_replace(name, model, parts, settings)
    with (
        torch.random.fork_rng(devices=[]),
        determinism(config.deterministic),
        start_run(name, model, parts, settings, resume=resume) if first else nullcontext() as run,
        accelerate_anew(),
        Stop() as stop,
    ):
        if first:
            check_space(run.folder, model, config.ema > 0)
        accelerator = accelerator_for(device, dtype, config, run)
        position, logits = Loop(model, parts, config, run, accelerator, dtype, stop, quiet, each_epoch).run()
        if not first:
            return None
        run = finish(run, model, parts, config, position, logits, compared)
        if plot:
            plot_history(run.metrics, metric=config.metric).savefig(run.folder / "training.png")
        if stop.signal is not None:
            stop.leave(f"Stopped; the run is complete, in {run.folder}.")
        return run


def settings_of(
    model: nn.Module, config: TrainConfig, compared: int, device: torch.device, dtype: torch.dtype | None
) -> dict:
    """What config.json says of a training, and another one of that name must be asked to go on with it."""
    return {
        "method": "fit",
        "train": {key: value for key, value in asdict(config).items() if key != "trackers"},
        "compared": compared,
        "device": device.type,
        "processes": parallel.world(),
        "precision": str(dtype).removeprefix("torch.") if dtype else "float32",
        "adaptation": getattr(model, "adaptation", FULL),
        "parameters": {"total": count_parameters(model), "trained": count_parameters(model, trainable=True)},
        "initial_weights": fingerprint(model),
    }


def finish(
    run: UnfinishedRun,
    model: nn.Module,
    parts: Split,
    config: TrainConfig,
    position: Position,
    logits: torch.Tensor,
    compared: int,
) -> Run:
    """Save the best epoch's weights, name the folder, and merge the adapters of the model in memory."""
    load_best(run.folder, model)
    keep_zeros = config.prune > 0
    best = position.best if math.isfinite(position.best) else None  # undefined in every epoch
    chosen = {"epoch": position.best_epoch, config.metric: best}
    tried = choices(compared, position.epoch + config.keep_start, "epochs")
    about = {"chosen": chosen, "keep_zeros": keep_zeros, **tried}
    finished = run.finish(model, parts.val, logits.numpy(), **about)
    if adapters_of(model):
        merge_and_unload(model, keep_zeros)
    return finished


def accelerator_for(
    device: torch.device, dtype: torch.dtype | None, config: TrainConfig, run: UnfinishedRun | None
) -> Accelerator:
    """accelerate's view of this device and precision; experiment trackers only where the user has set them up."""
    trackers = list(config.trackers) if run else []
    if run and os.environ.get("MLFLOW_TRACKING_URI") and find_spec("mlflow") and "mlflow" not in trackers:
        trackers.append("mlflow")
    precision = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            cpu=device.type == "cpu",
            log_with=trackers or None,
            project_dir=run.folder if run else None,
        )
        if absent := set(trackers) - {str(getattr(found, "value", found)) for found in accelerator.log_with}:
            raise ValueError(f"{', '.join(sorted(absent))} is not installed")  # accelerate would leave it out silently
        if trackers:
            flat = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in asdict(config).items()}
            accelerator.init_trackers("medvitlib", config=flat)
    except (ValueError, ImportError) as error:
        raise TrainingError(f"device {device}, precision {precision}, trackers {trackers}: {error}") from error
    if parallel.world() > 1:
        accelerator.state.device = device  # accelerate's own is cpu:0, and what is moved from cpu to there is a copy
    if dtype == torch.float16 and accelerator.scaler is None:
        raise TrainingError(f"float16 on {device.type} would lose small gradients: use precision='auto' or None.")
    return accelerator


@contextmanager
def accelerate_anew() -> Iterator[None]:
    """accelerate keeps device and precision for the whole process: each training has its own, the user's come back."""
    kinds = PartialState, AcceleratorState, GradientState
    before = [dict(kind._shared_state) for kind in kinds]
    for kind in kinds:
        kind._shared_state.clear()
    try:
        yield
    finally:
        for kind, state in zip(kinds, before, strict=True):
            kind._shared_state.clear()
            kind._shared_state.update(state)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Refuse operations that do not give the same result twice, for the time of a training."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS demands it, before its first product
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
