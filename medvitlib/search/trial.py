"""Trials of a search: the training of a point with every seed."""

import json
import math
import shutil
from functools import cached_property, partial
from typing import Any

import optuna

from medvitlib.data import Split
from medvitlib.errors import TrainingError
from medvitlib.jsonfile import csv_text
from medvitlib.models.zoo import without_values
from medvitlib.paths import runs_dir
from medvitlib.search.space import naming, probes, suggest
from medvitlib.search.study import Study, run_name
from medvitlib.train import build_model, open_parts
from medvitlib.training.config import METRICS
from medvitlib.training.fit import fit
from medvitlib.training.run import OtherSettings, Run, need_every_class, need_positive


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

    def __call__(self, trial: optuna.trial.Trial) -> float:
        """Train a point with every seed; its curves and validation logits go into the study.

        Returns:
            its value, the mean over the seeds.
        """
        study = self.study
        told = [_told(self._train(trial, seed, count), seed) for count, seed in enumerate(study.seeds)]
        trial.set_user_attr("runs", told)
        value = sum(run["values"][study.metric] for run in told) / len(told)
        if not math.isfinite(value):
            raise TrainingError(f"{study.metric} is undefined on this validation part.")
        return value

    def _train(self, trial: optuna.trial.Trial, seed: int, count: int) -> Run:
        """Its training with one seed, number `count` of the seeds."""
        study, point = self.study, suggest(trial, self.study.space)
        asked, config = study.at(point, seed)
        parts, name = self._open(asked), run_name(study, trial.user_attrs["point"], seed)
        first = count * (config.epochs + config.head_epochs)

        def each_epoch(row: dict) -> None:
            if study.stop_poor and math.isfinite(row[study.metric]):
                trial.report(row[study.metric], first + row["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned

        def trained(resume: bool) -> Run:
            model = build_model(asked, parts, config.seed, quiet=True)
            options = {"name": name, "settings": {"asked": {"point": point, "study": study.name}}, "resume": resume}
            options |= {"compared": len(study.plan) * len(study.seeds), "each_epoch": each_epoch, **self.hardware}
            # no plot: half a second for each of many; `SearchResult.curves` has them all
            return fit(model, parts, config, quiet=True, plot=False, **options)

        try:
            try:
                return trained(resume=True)
            except OtherSettings:  # begun on another device, for one
                return trained(resume=False)
        except optuna.TrialPruned:
            shutil.rmtree(runs_dir() / f"{name}.unfinished", ignore_errors=True)
            raise

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
