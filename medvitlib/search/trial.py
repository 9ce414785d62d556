"""Trials of a search: the training of a point, or of several together, with every seed."""

import json
import math
import shutil
from collections.abc import Hashable
from functools import cached_property, partial
from typing import Any

import optuna
import torch

from medvitlib.data import Split
from medvitlib.errors import TrainingError
from medvitlib.jsonfile import csv_text
from medvitlib.models.zoo import without_values
from medvitlib.paths import runs_dir
from medvitlib.search.space import naming, probes, suggest
from medvitlib.search.study import Study, run_name
from medvitlib.train import build_model, open_parts
from medvitlib.training.config import METRICS
from medvitlib.training.features import hardware
from medvitlib.training.fit import fit
from medvitlib.training.run import OtherSettings, Run, need_every_class, need_positive
from medvitlib.training.stacked import SHARED, Training, fit_together, stackable


class Runner:
    """Trains the points of a study: what they share is opened once.

    Args:
        hardware: `device` and `precision`, as `fit` takes them.
        quiet: no word on the data.
    """

    def __init__(self, study: Study, hardware: dict[str, Any] | None = None, quiet: bool = False):
        self.study, self.hardware, self.quiet = study, hardware or {}, quiet
        self._parts: dict[str, Split] = {}

    @cached_property
    def _precision(self) -> torch.dtype | None:
        return hardware(self.hardware.get("device"), self.hardware.get("precision", "auto"))[1]

    @cached_property
    def parts(self) -> Split:
        """The data as the study file has them (the first image size, where that is searched)."""
        return self._open(self.study.at(next(probes(self.study.space)), 0)[0])

    def check(self) -> None:
        """Look at the classes, and build each point's model without weights, which costs next to nothing.

        Raises:
            DataError: no point could be trained on these data.
            TrainingError: names the first point that cannot be, before any is trained.
        """
        need_every_class(self.parts)
        need_positive(self.parts)
        seen = set()
        for point in self.study.points if self.study.points is not None else probes(self.study.space):
            asked, config = self.study.at(point, 0)
            asked["model"]["weights"] = None
            key = json.dumps([asked["model"], asked["data"].get("image_size")], default=str)
            if key in seen:
                continue
            seen.add(key)
            parts = self._open(asked)
            with naming(point):
                without_values(partial(build_model, asked, parts, config.seed, quiet=True))

    def kind(self, point: int) -> Hashable:
        """What points have in common that can be trained together; of one that is trained alone, its own number."""
        asked, config = self.study.at(self.study.plan[point], self.study.seeds[0])
        model = dict(asked["model"])
        alone = model["name"] != "transformer_classifier" or model.get("adapter") or not stackable(config)
        if alone or self._precision == torch.float16:
            return point
        model["options"] = {k: v for k, v in model.get("options", {}).items() if k not in ("heads", "dropout")}
        shared = [getattr(config, name) for name in SHARED]
        return json.dumps([model, asked["data"].get("image_size"), shared], sort_keys=True, default=str)

    def __call__(self, trials: list[optuna.trial.Trial]) -> list[float | Exception]:
        """Train points of one `kind` with every seed; their curves and validation logits go into the study.

        Returns:
            For each its value, or what ended it.
        """
        study, told, ended = self.study, {trial.number: [] for trial in trials}, {}
        for count, seed in enumerate(study.seeds):
            going = [trial for trial in trials if trial.number not in ended]
            for trial, run in zip(going, self._train(going, seed, count), strict=True):
                if isinstance(run, Exception):
                    ended[trial.number] = run
                else:
                    told[trial.number].append(_told(run, seed))
        for trial in trials:
            if trial.number in ended:
                continue
            runs = told[trial.number]
            trial.set_user_attr("runs", runs)
            value = sum(run["values"][study.metric] for run in runs) / len(runs)
            undefined = TrainingError(f"{study.metric} is undefined on this validation part.")
            ended[trial.number] = value if math.isfinite(value) else undefined
        return [ended[trial.number] for trial in trials]

    def _train(self, trials: list[optuna.trial.Trial], seed: int, count: int) -> list[Run | Exception]:
        """Their trainings with one seed, number `count` of the seeds."""
        asked = [self.study.at(suggest(trial, self.study.space), seed)[0] for trial in trials]
        parts = self._open(asked[0]) if asked else None
        trainings = [self._training(trial, parts, seed, count) for trial in trials]
        runs = self._fit(trainings, parts, resume=True)
        other = [number for number, run in enumerate(runs) if isinstance(run, OtherSettings)]
        for number, run in zip(other, self._fit([trainings[k] for k in other], parts, resume=False), strict=True):
            runs[number] = run  # begun on another device, for one
        for training, run in zip(trainings, runs, strict=True):
            if isinstance(run, optuna.TrialPruned):
                shutil.rmtree(runs_dir() / f"{training.name}.unfinished", ignore_errors=True)
        return runs

    def _training(self, trial: optuna.trial.Trial, parts: Split, seed: int, count: int) -> Training:
        study, point = self.study, suggest(trial, self.study.space)
        asked, config = study.at(point, seed)
        first = count * (config.epochs + config.head_epochs)

        def each_epoch(row: dict) -> None:
            if study.stop_poor and math.isfinite(row[study.metric]):
                trial.report(row[study.metric], first + row["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        return Training(
            build_model(asked, parts, config.seed, quiet=True),
            config,
            run_name(study, trial.user_attrs["point"], seed),
            {"asked": {"point": point, "study": study.name}},
            each_epoch,
        )

    def _fit(self, trainings: list[Training], parts: Split, resume: bool) -> list[Run | Exception]:
        """Each one's run, or what ended it."""
        options = {"resume": resume, "compared": len(self.study.plan) * len(self.study.seeds), **self.hardware}
        if len(trainings) > 1:
            return fit_together(trainings, parts, **options)
        runs = []
        for one in trainings:
            options |= {"name": one.name, "settings": one.settings, "each_epoch": one.each_epoch}
            try:  # no plot: half a second for each of many; `SearchResult.curves` has them all
                runs.append(fit(one.model, parts, one.config, quiet=True, plot=False, **options))
            except Exception as error:
                runs.append(error)
        return runs

    def _open(self, asked: dict[str, Any]) -> Split:
        key = json.dumps(asked["data"].get("image_size"))  # nothing else of the data can be searched
        if key not in self._parts:
            first = next(iter(self._parts.values()), None)  # every point is judged on the same images
            self._parts[key] = open_parts(asked, self.quiet, like=first)
        return self._parts[key]


def _told(run: Run, seed: int) -> dict[str, Any]:
    """What the study keeps of a run."""
    metrics = run.metrics
    kept = metrics[metrics["best"] == 1].iloc[-1]
    return {
        "seed": seed,
        "epoch": int(kept["epoch"]),
        "values": {name: float(kept[name]) for name in METRICS},
        "seconds": float(metrics["seconds"].sum()),
        "metrics": csv_text(metrics),
        # as short as tells every float32 from its neighbours: rounded further, images that tie would be put in order
        "logits": [[float(str(logit)) for logit in row] for row in run.validation_logits],
    }
