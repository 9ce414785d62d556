"""A hyper-parameter search written down in a YAML file: a training file (see `medvitlib.train`) and what to vary in it.

    name: ct-grid                     # of the study and of its folder
    data: {name: phantom/ct, image_size: 224}
    model: {name: transformer_classifier, weights: null, options: {depth: 3}}
    train: {epochs: 10, lr: 1e-3, metric: val_accuracy}
    search:
      space:                          # keys of this file, with dots
        model.options.patch_size: [8, 16, 32]
        model.options.heads: [1, 2, 4]
        model.options.dropout: [0.1, 0.3, 0.5]
      method: grid                    # every combination, once; or random, or tpe (Bergstra et al. 2011)
      trials: 20                      # of random and tpe, which take ranges too: train.lr: {low: 1e-5, high: 1e-3}
      seeds: [0, 1, 2]                # each point is trained with each; the value is their mean
      stop_poor: false                # random and tpe: stop what is worse than the median (Golovin et al. 2017)

The value of a point is `train: metric` of the epoch that was kept. The test part is not touched.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from medvitlib.errors import TrainingError, one_of
from medvitlib.paths import runs_dir
from medvitlib.search.queue import Plan, Queue
from medvitlib.search.space import Space, Value, grid_points, naming, probes, random_points, read_space
from medvitlib.train import load, mapping, understand
from medvitlib.training.config import METRICS, TrainConfig, of_kind

METHODS = ("grid", "random", "tpe")
KEYS = ("space", "method", "trials", "seeds", "stop_poor")
FIXED = ("train.seed", "train.metric")  # `seeds` says the one, and values of two metrics cannot be compared


@dataclass(frozen=True)
class Study:
    """A search that was checked as far as it can be without data.

    Attributes:
        content: the training file that every point varies.
        points: those of a grid or of a random search, in order; None where the sampler proposes them.
    """

    name: str
    content: dict[str, Any]
    method: str
    space: Space
    trials: int
    seeds: list[int]
    stop_poor: bool
    metric: str
    points: list[dict[str, Value]] | None

    @property
    def folder(self) -> Path:
        """Where the study, its workers' output and the runs of its points lie."""
        return runs_dir() / self.name

    @property
    def asked(self) -> dict[str, Any]:
        """What another process must be asked to join; the number of trials may grow."""
        search = {"method": self.method, "seeds": self.seeds}
        if self.method != "grid":
            search["stop_poor"] = self.stop_poor
        space = {key: v if isinstance(v, list) else v.written() for key, v in self.space.items()}
        return {**self.content, "search": search | {"space": space}}

    @property
    def file(self) -> dict[str, Any]:
        """The study file, as `read_study` takes it."""
        asked = self.asked
        return asked if self.method == "grid" else asked | {"search": asked["search"] | {"trials": self.trials}}

    @property
    def plan(self) -> Plan:
        """The trials to be."""
        return self.points if self.points is not None else [{}] * self.trials

    @property
    def larger_is_better(self) -> bool:
        """Of the metric."""
        return METRICS[self.metric] is max

    def at(self, point: dict[str, Value], seed: int) -> tuple[dict[str, Any], TrainConfig]:
        """The training of one point and seed, as `medvitlib.train.understand` returns it."""
        return understand(self.content_at(point, seed))

    def content_at(self, point: dict[str, Value], seed: int) -> dict[str, Any]:
        """The same, as a training file has it."""
        content = copy.deepcopy(self.content)
        for key, value in {**point, "train.seed": seed}.items():
            *path, last = key.split(".")
            section = content
            for name in path:
                section[name] = section.get(name) or {}
                section = section[name]
            section[last] = value
        return content

    def queue(self, storage: str | None = None) -> Queue:
        """The study in its storage (see `Queue`)."""
        direction = "maximize" if self.larger_is_better else "minimize"
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2) if self.stop_poor else None
        sampler = optuna.samplers.TPESampler(constant_liar=True) if self.method == "tpe" else None
        return Queue(self.name, self.folder, storage, direction=direction, sampler=sampler, pruner=pruner)


def read_study(source: str | Path | dict) -> Study:
    """A study from a YAML file, or from a mapping of the same shape.

    Raises:
        TrainingError: what in it cannot be; every value of a grid is tried against the settings' own rules.
    """
    where = "" if isinstance(source, dict) else f"{source}: "
    try:
        content = dict(mapping("the file", copy.deepcopy(source) if isinstance(source, dict) else load(source), None))
        search = mapping("search", content.pop("search", None) or {}, KEYS)
        content.pop("evaluate", None)  # of the training of the best point; a search sees no test part
        method = of_kind("search: method", search.get("method", "grid"), str)
        one_of("search: method", method, METHODS, TrainingError)
        space = read_space(search.get("space"), method)
        for key in space:
            if key in FIXED or not (key.startswith(("model.", "train.")) or key == "data.image_size"):
                raise TrainingError(
                    f"{key} cannot be searched: points could not be compared. Possible are keys of model and train, "
                    f"such as train.lr or model.options.heads (but for {' and '.join(FIXED)}), and data.image_size."
                )
        trials = of_kind("search: trials", search.get("trials", 20), int)
        stop_poor = of_kind("search: stop_poor", search.get("stop_poor", False), bool)
        if trials < 1:
            raise TrainingError(f"search: trials={trials}: expected 1 or more.")
        if method == "grid" and (stop_poor or "trials" in search):
            raise TrainingError("a grid tries every point to the end: trials and stop_poor are for random and tpe.")
        seeds = _seeds(search.get("seeds", [0]))
        _, config = understand(content)
        points = None
        if method != "tpe":
            points = grid_points(space) if method == "grid" else random_points(space, trials, seed=config.seed)
        study = Study(content["name"], content, method, space, trials, seeds, stop_poor, config.metric, points)
        if "/" in study.name:
            raise TrainingError(f"name {study.name!r}: a study is a folder of runs, and has no '/' in its name.")
        for point in points if points is not None else probes(space):
            with naming(point):
                study.at(point, 0)
        return study
    except TrainingError as error:
        raise TrainingError(f"{where}{error}") from error


def _seeds(given: Any) -> list[int]:
    if isinstance(given, int) and not isinstance(given, bool):
        given = list(range(given))
    if not isinstance(given, list | tuple) or not given or len(set(given)) < len(given):
        raise TrainingError(f"search: seeds={given!r}: expected how many, or a list of different numbers.")
    return [of_kind("search: seeds", seed, int) for seed in given]


def run_name(study: Study, point: int, seed: int) -> str:
    """Of the run of a point: the same for whoever trains it, so that another worker goes on where one was killed."""
    return f"{study.name}/{point:03d}-seed{seed}"


def short_names(space: Space) -> dict[str, str]:
    """Each key of a space with a short name for it: its last word, where that is one key's only."""
    last = [key.rpartition(".")[2] for key in space]
    return {key: word if last.count(word) == 1 else key for key, word in zip(space, last, strict=True)}
