"""One recipe over many sets: a pretrained model adapted in several ways, chosen on validation, scored on the test part.

ds, parts = open_set("medmnist/breastmnist", 112)
runs = adapted(ds, parts, Recipe(folds=5), name="breast")
result = scored(runs, parts)          # the only look at the test part
result.reports[result.chosen]
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medvitlib.data import Dataset, Split, open_dataset, split
from medvitlib.data.folds import folds
from medvitlib.errors import MedvitError, one_of
from medvitlib.evaluate import evaluate
from medvitlib.evaluation.calibration import apply_temperature, log_probabilities
from medvitlib.evaluation.metrics import nll
from medvitlib.evaluation.report import Predictions, Report, build_report
from medvitlib.models.zoo import build
from medvitlib.paths import runs_dir
from medvitlib.training.config import TrainConfig
from medvitlib.training.features import forward
from medvitlib.training.run import Run
from medvitlib.variants import make_variant

MEAN = "mean of all"
RATES = {"head": 1e-3, "bitfit": 1e-3, "lora": 1e-3, "rlrr": 1e-3, "lp_ft": 5e-5, "full": 5e-5}
"""Ways to train beside "probe", with their learning rates. All but "full" and "head" start from the probe's head;
"lp_ft" then trains everything (Kumar et al. 2022)."""

AUGMENTATIONS = {"bloodmnist": "cells", "breastmnist": "xray", "pathmnist": "cells"}
"""Recipes of `medvitlib.data.RECIPES` that leave a set's images what they are: smears and tissue have no way up, a
breast in ultrasound has. Of other sets nothing is assumed: "light"."""


@dataclass(frozen=True)
class Recipe:
    """What is done with every set.

    Attributes:
        model, weights: as `build` takes them.
        methods: "probe", which is fitted in any case, and keys of `RATES`.
        epochs, batch_size: of a training.
        augmentation: one of `medvitlib.data.RECIPES`; "" for what `AUGMENTATIONS` says of the set.
        smoothing: share of a label that is spread over all classes.
        blocks: how many of the last blocks "lp_ft" trains; 0: everything.
        folds: 0 trains once and chooses on the validation part; k trains k times on train and val joined, each time
            without one fold, chooses on what is said of the folds left out, and lets the k models answer together.
        seed: of folds, training and bootstrap.
    """

    model: str = "vit_small_patch14_dinov2"
    weights: str | None = "auto"
    methods: tuple[str, ...] = ("probe", "lora", "lp_ft")
    epochs: int = 4
    batch_size: int = 16
    augmentation: str = ""
    smoothing: float = 0.0
    blocks: int = 0
    folds: int = 0
    seed: int = 0

    def __post_init__(self):
        for method in self.methods:
            one_of("method", method, ("probe", *RATES), MedvitError)

    def config(self, method: str, set_name: str) -> TrainConfig:
        """How a method trains on a set."""
        flag = set_name.rpartition("/")[2].partition("@")[0]
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=RATES[method],
            layer_decay=0.75 if method in ("lp_ft", "full") else 1.0,
            warmup_epochs=min(0.5, self.epochs / 4),
            label_smoothing=self.smoothing,
            recipe=self.augmentation or AUGMENTATIONS.get(flag, "light"),
            metric="val_nll",
            seed=self.seed,
        )

    def build(self, parts: Split) -> nn.Module:
        """The pretrained model with a new head."""
        pool = "token_mean" if self.model.startswith("vit_small_patch14") else None
        options = {"image_size": parts.train.image_size, "pool": pool, "seed": self.seed, "quiet": True}
        return build(self.model, len(parts.train.classes), weights=self.weights, **options)


@dataclass(frozen=True, eq=False)
class Result:
    """What came of one set.

    Attributes:
        runs: method -> its run, or one a fold.
        validation: method, and `MEAN` of several, -> negative log-likelihood of what was said of validation images.
        chosen: the one with the lowest.
        reports: of each on the test part.
    """

    runs: dict[str, list[Run]]
    validation: dict[str, float]
    chosen: str
    reports: dict[str, Report]


def open_set(source: str | Path, image_size: int, *, most: int = 0, seed: int = 0) -> tuple[Dataset, Split]:
    """A data set and its parts, the official ones where there are any.

    Args:
        most: training images; of a set that has more, so many are drawn, every class in its share. 0: all.

    Raises:
        DataError: the set is absent (the first line of the message says so), or cannot be used.
    """
    ds = open_dataset(source, image_size=image_size, quiet=True)
    parts = split(ds, quiet=True, seed=seed)
    if most and len(parts.train) > most:
        rng, labels = np.random.default_rng(seed), parts.train.labels
        drawn = [
            rng.choice(np.flatnonzero(labels == k), max(1, round(most * (labels == k).mean())), replace=False)
            for k in np.unique(labels)
        ]
        note = f"{most} of {len(parts.train)} training images were drawn, to save time."
        parts = replace(parts, train=parts.train.subset(np.sort(np.concatenate(drawn))), notes=[*parts.notes, note])
    return ds, parts


def adapted(ds: Dataset, parts: Split, recipe: Recipe, *, name: str, **hardware) -> dict[str, list[Run]]:
    """Train by every method of a recipe; the test part is not touched.

    Args:
        name: start of the runs' names; a training of that name with these settings that is complete is taken as it is.
        hardware: device and precision.

    Returns:
        method -> its run, or one a fold.
    """
    cuts = folds(ds, parts, recipe.folds, seed=recipe.seed) if recipe.folds else [parts]
    runs: dict[str, list[Run]] = {method: [] for method in dict.fromkeys(("probe", *recipe.methods))}
    for number, cut in enumerate(cuts, 1):
        end = f"-fold{number}" if recipe.folds else ""
        start = recipe.build(cut)
        fresh = copy.deepcopy(start)
        runs["probe"].append(make_variant(start, cut, "probe", name=f"{name}-probe{end}", **hardware))
        for method in recipe.methods:
            if method == "probe":
                continue
            model = copy.deepcopy(fresh if method in ("full", "head") else start)
            more = {"name": f"{name}-{method}{end}", "resume": True, "quiet": True, "plot": False, **hardware}
            way = {"lp_ft": "partial" if recipe.blocks else "full"}.get(method, method)
            options = {"blocks": recipe.blocks} if way == "partial" else {}
            runs[method].append(make_variant(model, cut, way, recipe.config(method, ds.name), options=options, **more))
    return {method: found for method, found in runs.items() if method in recipe.methods}


def choose_size(
    source: str | Path, sizes: tuple[int, ...], recipe: Recipe, *, name: str, most: int = 0, **hardware
) -> tuple[int, dict[int, float]]:
    """The image size at which a probe is best on validation images, and each one's negative log-likelihood there."""
    found = {}
    for size in sizes:
        ds, parts = open_set(source, size, most=most, seed=recipe.seed)
        probes = adapted(ds, parts, replace(recipe, methods=("probe",)), name=f"{name}-{size}", **hardware)
        found[size] = validated(probes)["probe"]
    return min(found, key=found.get), found


def validated(runs: Mapping[str, list[Run]]) -> dict[str, float]:
    """Method, and `MEAN` where there are several, -> negative log-likelihood of the validation images."""
    return {method: float(nll(said.y_true, said.probabilities)) for method, said in _validation(runs).items()}


def scored(
    runs: Mapping[str, list[Run]],
    parts: Split,
    *,
    name: str,
    ordered: bool = False,
    n_boot: int = 1000,
    seed: int = 0,
    **hardware,
) -> Result:
    """Choose on validation, then score every method, and the mean of all, on the test part.

    A single run's report is written into its folder, that of several together into `runs_dir() / NAME-METHOD`.

    Args:
        runs: of `adapted`.
        ordered: the classes are grades: adds "kappa".
        hardware: device and precision.
    """
    validation, losses, test = _validation(runs), validated(runs), parts.test
    given = {"ordered": ordered, "n_boot": n_boot, "seed": seed}
    reports, said = {}, {}
    for method, members in runs.items():
        if len(members) == 1:
            reports[method] = found = evaluate(members[0], parts, figures=False, **given, **hardware)
            said[method] = apply_temperature(log_probabilities(found.probabilities), 1 / found.temperature)
            continue  # what it said before it was calibrated
        outputs = [forward(run.model, test, description="Evaluating", **hardware) for run in members]
        said[method] = np.mean([_softmax(logits) for logits in outputs], axis=0)
    if len(runs) > 1:
        said[MEAN] = np.mean(list(said.values()), axis=0)
    for method in said.keys() - reports.keys():
        members = runs.get(method) or [run for found in runs.values() for run in found]
        reports[method] = build_report(
            test.labels,
            said[method],
            classes=test.classes,
            positive=test.positive,
            groups=test.groups if test.groups_known else None,
            validation=validation[method],
            candidates=sum(run.candidates for run in members),
            compared="penalties and epochs",
            **given,
        )
        folder = runs_dir() / f"{name}-{method.replace(' ', '-')}"
        reports[method].save(folder, ids=test.ids, splits=test.splits, figures=False)
    chosen = min(losses, key=losses.get)
    return Result(dict(runs), losses, chosen, {method: reports[method] for method in losses})


def _validation(runs: Mapping[str, list[Run]]) -> dict[str, Predictions]:
    """What each method, and the mean of all, said of the validation images, over all folds."""
    found = {}
    for method, members in runs.items():
        labels = [run.validation["y_true"].map(run.classes.index).to_numpy(np.int64) for run in members]
        groups = [run.validation["group"].to_numpy(str) for run in members]
        p = np.concatenate([_softmax(run.validation_logits) for run in members])
        known = all(run.groups_known for run in members)
        found[method] = Predictions(np.concatenate(labels), p, np.concatenate(groups) if known else None)
    if len(found) > 1:
        first = next(iter(found.values()))
        found[MEAN] = replace(first, probabilities=np.mean([said.probabilities for said in found.values()], axis=0))
    return found


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.asarray(logits, np.float64)).softmax(1).numpy()
