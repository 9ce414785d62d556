"""One trial of a search: the training of a point, with every seed."""

import json
import math
import shutil
from functools import cached_property, partial
from typing import Any

import optuna

from medvitlib.data import Split
from medvitlib.errors import TrainingError
from medvitlib.models.zoo import without_values
from medvitlib.paths import runs_dir
from medvitlib.search.space import naming, probes, suggest
from medvitlib.search.study import Study, run_name
from medvitlib.train import build_model, open_parts
from medvitlib.training.config import METRICS
from medvitlib.training.fit import fit
from medvitlib.training.run import OtherSettings, need_every_class, need_positive


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
        """Train one point with every seed; its curves and validation logits go into the study."""
        study, point = self.study, suggest(trial, self.study.space)
        values, told = [], []
        for count, seed in enumerate(study.seeds):
            asked, config = study.at(point, seed)
            parts = self._open(asked)
            name = run_name(study, trial.user_attrs["point"], seed)
            model = build_model(asked, parts, config.seed, quiet=True)

            def each_epoch(row: dict, first: int = count * (config.epochs + config.head_epochs)) -> None:
                if study.stop_poor and math.isfinite(row[study.metric]):
                    trial.report(row[study.metric], first + row["epoch"])
                    if trial.should_prune():
                        raise optuna.TrialPruned

            options = {
                "name": name,
                "compared": len(study.plan) * len(study.seeds),
                "settings": {"asked": {"point": point, "study": study.name}},
                "quiet": True,
                "plot": False,  # half a second for each of many; `SearchResult.curves` has them all
                "each_epoch": each_epoch,
                **self.hardware,
            }
            try:
                run = fit(model, parts, config, resume=True, **options)
            except OtherSettings:  # begun on another device, for one
                run = fit(model, parts, config, resume=False, **options)
            except optuna.TrialPruned:
                shutil.rmtree(runs_dir() / f"{name}.unfinished", ignore_errors=True)
                raise
            metrics = run.metrics
            kept = metrics[metrics["best"] == 1].iloc[-1]
            values.append(float(kept[study.metric]))
            told.append(
                {
                    "seed": seed,
                    "epoch": int(kept["epoch"]),
                    "values": {name: float(kept[name]) for name in METRICS},
                    "seconds": float(metrics["seconds"].sum()),
                    "metrics": metrics.to_csv(index=False),
                    "logits": run.validation_logits.round(6).tolist(),
                }
            )
        trial.set_user_attr("runs", told)
        value = sum(values) / len(values)
        if not math.isfinite(value):
            raise TrainingError(f"{study.metric} is undefined on this validation part.")
        return value

    def _open(self, asked: dict[str, Any]) -> Split:
        key = json.dumps(asked["data"].get("image_size"))  # nothing else of the data can be searched
        if key not in self._parts:
            first = next(iter(self._parts.values()), None)  # every point is judged on the same images
            self._parts[key] = open_parts(asked, self.quiet, like=first)
        return self._parts[key]
