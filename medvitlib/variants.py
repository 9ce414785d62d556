"""One model, adapted in several ways to the same images: made by one call, put into one table, with what each costs.

full = make_variant(build(name, 3), parts, "full", config, name="full")
lora = make_variant(build(name, 3), parts, "lora", config, name="lora", options={"rank": 8})
half = make_variant(lora, parts, "prune", name="lora-pruned", options={"amount": 0.5})
reports = {run.folder.name: (run, evaluate(run, parts)) for run in (full, lora, half)}
worth_table(reports, reference="full"), cost_table(reports)
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import nn

from medvitlib.compare import check_comparable
from medvitlib.costs import model_sizes, speed, training_memory
from medvitlib.data import Split, normalise
from medvitlib.errors import AdaptationError, EvaluationError, one_of
from medvitlib.evaluation.pairs import Pair, compare_pair
from medvitlib.evaluation.report import Report
from medvitlib.machine import cores
from medvitlib.models.adapt import METHODS, adapt, options_of
from medvitlib.models.int8 import quantise
from medvitlib.models.model_json import read_info
from medvitlib.models.pruning import count_nonzero, prune, prune_2_of_4
from medvitlib.models.saved import load_model
from medvitlib.models.shrinking import shrink
from medvitlib.models.zoo import count_parameters
from medvitlib.progress import track
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.fit import fit
from medvitlib.training.probe import fit_probe
from medvitlib.training.run import Run, start_run
from medvitlib.training.settings import read_settings
from medvitlib.training.validation import validation_metrics

if TYPE_CHECKING:
    import pandas as pd

TRAINED = (*METHODS, "probe")
REWORKED: dict[str, Callable[..., object]] = {
    "prune": prune,
    "prune_2_of_4": prune_2_of_4,
    "shrink": shrink,
    "int8": quantise,
}
REDUCED = {
    "swin_tiny_patch4_window7_224": {"embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6), "window_size": 7},
    "deit_small_patch16_224": {"embed_dim": 96, "depth": 4, "num_heads": 3, "patch_size": 8},
}
"""Options with which `build` makes these small enough to be trained from random numbers on a CPU."""
RANDOM = "random initialisation"
WORTH = ("accuracy", "precision", "recall", "f1")
AVERAGES = ("macro", "weighted")


def make_variant(
    source: nn.Module | Run,
    parts: Split,
    method: str,
    config: TrainConfig | None = None,
    *,
    name: str,
    options: Mapping | None = None,
    **common,
) -> Run:
    """Train a model in one of `TRAINED` ways, or change a trained one in one of `REWORKED` ways.

    Args:
        source: a model from `build`, to be trained by one of `adapt`'s methods ("full", "lora", ...) or "probe"
            (`fit_probe`); or a run, whose model is changed by "prune", "prune_2_of_4", "shrink" or "int8" and not
            trained again. Its thresholds and temperature are then chosen anew, as its logits are others.
        config: of the training; its `prune` prunes while training.
        name: of the new run.
        options: of the method: those of `add_lora`, `prune`, `shrink` ...
        common: device and precision, and for a training whatever else `fit` takes.

    Returns:
        the run, whose config.json holds the numbers of parameters and, of a training, the bytes that a step holds.

    Raises:
        AdaptationError: an unknown method or option, or one that this source does not go with.
    """
    one_of("method", method, (*TRAINED, *REWORKED), AdaptationError)
    options = dict(options or {})
    if isinstance(source, Run) != (method in REWORKED):
        takes = "a run, whose model it changes" if method in REWORKED else "a model from `build`, which it trains"
        raise AdaptationError(f"{method!r} takes {takes}; a {type(source).__name__} was given.")
    if method in REWORKED:
        return _rework(source, parts, method, name, options, **common)
    if method == "probe":
        return fit_probe(source, parts, name=name, **options, **common)
    config = config or TrainConfig()
    adapt(source, method, **{"seed": config.seed, **options})
    images = torch.from_numpy(parts.train.images.planes(slice(0, config.batch_size)))
    labels = torch.from_numpy(parts.train.labels[: config.batch_size])
    held = training_memory(source, normalise(images, source.preprocessing), labels)
    settings = {**common.pop("settings", {}), "step_bytes": held}
    return fit(source, parts, config, name=name, settings=settings, **common)


def _rework(
    run: Run,
    parts: Split,
    method: str,
    name: str,
    options: dict,
    *,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
    settings: dict | None = None,
) -> Run:
    """A run like the given one, whose model was changed after the training."""
    if list(parts.train.classes) != list(run.classes):
        raise AdaptationError(f"{run.folder} tells apart {run.classes}, these images are of {parts.train.classes}.")
    options = options_of(method, REWORKED[method], options)
    model, _ = load_model(run.folder)
    model.weights_info = model.weights_info or read_settings(run.folder)["weights"]
    REWORKED[method](model, **options)
    logits = forward(model, parts.val, device=device, precision=precision, description="Validating")
    asked = {"method": method, "of": run.folder.name, "options": options}
    numbers = {"total": count_parameters(model), "trained": 0}
    with start_run(name, model, parts, {**(settings or {}), **asked, "parameters": numbers}) as new:
        new.log({"method": method, **validation_metrics(parts.val, torch.from_numpy(logits))})
        return new.finish(model, parts.val, logits, candidates=run.candidates, compared=run.compared, chosen=asked)


def worth_table(runs: Mapping[str, tuple[Run, Report]], reference: str | None = None) -> "pd.DataFrame":
    """A row a variant, as text: where its weights came from, each metric with its interval, and the difference to one.

    Args:
        runs: name -> its run and what `evaluate` said of it, all on the same images.
        reference: the variant that the others are compared with, on the same images (see `compare_pair`).

    Returns:
        columns weights, accuracy, then precision, recall and F1 (of more than two classes as macro and weighted
        averages; weighted recall is accuracy), AUROC; with a reference, "accuracy - REFERENCE" and "McNemar p".

    Raises:
        EvaluationError: nothing given, reports on other images, or a reference that is not among them.
    """
    import pandas as pd

    check_comparable({name: report for name, (_, report) in runs.items()})
    rows = {}
    for name, (run, report) in runs.items():
        found = report.metrics
        names = [key for key in (*WORTH, *(f"{m}_{a}" for a in AVERAGES for m in WORTH[1:])) if key in found]
        names += [key for key in ("auroc", "auroc_macro") if key in found]
        random = read_settings(run.folder)["weights"] == RANDOM
        rows[name] = {
            "weights": RANDOM if random else "pretrained",
            **{key.replace("_", " "): str(found[key]) for key in names},
        }
        if reference is not None:
            pair = compare_variants(runs, name, reference)
            same = name == reference
            rows[name][f"accuracy - {reference}"] = "" if same else format(pair.difference, "+.3f")
            rows[name]["McNemar p"] = "" if same else f"{pair.p_value:.2g}"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")


def compare_variants(runs: Mapping[str, tuple[Run, Report]], first: str, second: str, metric: str = "accuracy") -> Pair:
    """Two of these variants on their test images, patients drawn together; arguments as `worth_table`."""
    for name in (first, second):
        one_of("variant", name, runs, EvaluationError)
    (one, other) = (runs[name][1] for name in (first, second))
    given = {"classes": one.classes, "positive": one.positive, "groups": one.groups, "metric": metric}
    return compare_pair(one.y_true, one.probabilities, other.probabilities, **given)


def cost_table(runs: Mapping[str, tuple[Run, Report]], *, timing: bool = True) -> "pd.DataFrame":
    """A row a variant, as numbers: what training and keeping it costs. Everything is measured or counted here and now.

    Columns: "trained", "parameters" and "non-zero" numbers; megabytes (10^6 bytes) of the whole model as one "file", of
    that file "gzipped", of what the run keeps beside its pretrained weights ("adapter"; nan where it keeps everything),
    and of what a training "step" holds (see `training_memory`); with timing, "s/epoch" of its training, "img/s" in
    batches of 32 and "ms" for one image alone, on the device that `evaluate` left it on. What does not exist is nan.

    Args:
        timing: without, the table is the same whenever the models are.
    """
    import pandas as pd

    rows, models = {}, [run.model for run, _ in runs.values()]
    with ThreadPoolExecutor(cores()) as pool:  # zlib lets go of the interpreter
        sizes = list(track(pool.map(model_sizes, models), "Weighing", total=len(models), unit="model"))
    for (name, (run, _)), size in zip(runs.items(), sizes, strict=True):
        config = read_settings(run.folder)
        kept = (run.folder / "model.safetensors").stat().st_size
        rows[name] = {
            "trained": config["parameters"]["trained"],
            "parameters": count_parameters(run.model),
            "non-zero": count_nonzero(run.model),
            "file MB": size["dense"] / 1e6,
            "gzipped MB": size["compressed"] / 1e6,
            "adapter MB": kept / 1e6 if read_info(run.folder)["weights"]["base"] else math.nan,
            "step MB": config.get("step_bytes", math.nan) / 1e6,
        }
        if timing:
            epochs = run.metrics.get("seconds") if "epoch" in run.metrics else None
            found = speed(run.model, run.model.preprocessing.image_size, run.model.preprocessing.channels)
            rows[name]["s/epoch"] = math.nan if epochs is None else epochs.median()
            rows[name] |= {"img/s": found["images_per_second"], "ms": found["latency_ms"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
