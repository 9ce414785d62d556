"""What a search found: a table of its points, their curves, and which of them can be told apart."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from scipy.special import softmax

from medvitlib.data import Split
from medvitlib.errors import TrainingError
from medvitlib.evaluation import Comparison, compare_with_best
from medvitlib.paths import runs_dir
from medvitlib.progress import with_time
from medvitlib.search.queue import Queue
from medvitlib.search.space import Value
from medvitlib.search.study import Study, run_name, short_names

if TYPE_CHECKING:
    import pandas as pd

WORDS = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class SearchResult:
    """A study as it stands.

    Attributes:
        table: a row a point, by its number: its parameters under short names; `value`, the metric (mean over seeds, nan
            where there is none) and `sd` over seeds; every other metric of validation; `epoch` kept (mean) and
            `seconds` of training; `state` and, where it failed, `error`.
        curves: point -> for each seed, its metrics.csv.
        logits: point -> float64 (seeds, N, K), of the validation part at the kept epoch.
        parts: the data, as the points saw them.
    """

    study: Study
    table: "pd.DataFrame" = field(repr=False)
    curves: dict[int, list["pd.DataFrame"]] = field(repr=False)
    logits: dict[int, np.ndarray] = field(repr=False)
    parts: Split = field(repr=False)

    @classmethod
    def read(cls, study: Study, queue: Queue, parts: Split) -> "SearchResult":
        """From the study's storage; nothing else is needed."""
        import pandas as pd

        rows, curves, logits = {}, {}, {}
        for number, trial in sorted(_last_of_each(queue.trials()).items()):
            told = trial.user_attrs.get("runs", []) if trial.state == TrialState.COMPLETE else []
            row = dict(zip(short_names(study.space).values(), _point(study, trial).values(), strict=False))
            values = [run["values"] for run in told]
            row["value"] = trial.value if told else np.nan
            row["sd"] = np.std([v[study.metric] for v in values], ddof=1) if len(told) > 1 else np.nan
            row |= {name: np.mean([v[name] for v in values]) for name in (values[0] if values else ())}
            row |= {name: np.mean([run[name] for run in told]) if told else np.nan for name in ("epoch", "seconds")}
            rows[number] = row | {"state": WORDS[trial.state], "error": trial.user_attrs.get("error", "")}
            if told:
                curves[number] = [pd.read_csv(io.StringIO(run["metrics"])) for run in told]
                logits[number] = np.array([run["logits"] for run in told], np.float32).astype(np.float64)
        table = pd.DataFrame.from_dict(rows, orient="index")
        table.index.name = "point"
        return cls(study, table, curves, logits, parts)

    @property
    def parameters(self) -> list[str]:
        """Short names of what was varied."""
        return list(short_names(self.study.space).values())

    @property
    def points(self) -> "pd.DataFrame":
        """The table's parameters, `value` and `sd` alone, as the pictures of a search take them."""
        return self.table[[*self.parameters, "value", "sd"]]

    @property
    def best(self) -> int:
        """Number of the point with the best value; of several, the first.

        Raises:
            TrainingError: no point was trained to its end.
        """
        self._need_a_value()
        values = self.table["value"]
        return int(values.idxmax() if self.study.larger_is_better else values.idxmin())

    def _need_a_value(self) -> None:
        if not self.logits:
            errors = [e for e in self.table.get("error", []) if e]
            why = f" The first that failed: {errors[0]}" if errors else ""
            raise TrainingError(f"No point of {self.study.name!r} was trained to its end.{why}")

    def name_of(self, point: int) -> str:
        """Its parameters in words: "patch_size 16, heads 4, dropout 0.3"."""
        return ", ".join(f"{name} {short(self.table.loc[point, name])}" for name in self.parameters)

    def compare(self, n_boot: int = 2000) -> Comparison:
        """Which points can be told apart from the best one, on the same validation images (see `compare_with_best`).

        Its numbers count the points that were trained to their end, in the order of `logits`.

        Raises:
            TrainingError: as `best`.
        """
        self._need_a_value()
        val = self.parts.val
        return compare_with_best(
            val.labels,
            [softmax(logits, axis=-1) for logits in self.logits.values()],
            classes=val.classes,
            positive=val.positive,
            groups=val.groups if val.groups_known else None,
            metric=self.study.metric.removeprefix("val_"),
            n_boot=n_boot,
        )

    def sentence(self) -> str:
        """The best point with its interval, and how many of the others cannot be told apart from it."""
        return self.compare().sentence([self.name_of(point) for point in self.logits])

    def training(self, point: int) -> dict[str, Any]:
        """The training file of a point, as a mapping: what to vary further, or to train once more."""
        row = self.table.loc[point]
        values = {key: _plain(row[name]) for key, name in short_names(self.study.space).items()}
        return self.study.content_at(values, self.study.seeds[0])

    def folder_of(self, point: int, seed: int | None = None) -> Path:
        """Where the run of a point lies, on the machine that trained it."""
        return runs_dir() / run_name(self.study, point, self.study.seeds[0] if seed is None else seed)

    def __str__(self) -> str:
        """The points, the best first, and what can be said of it."""
        table = self.table.sort_values("value", ascending=not self.study.larger_is_better)
        columns = [*self.parameters, "value", "sd", "epoch", "seconds", "state"]
        shown = table[[c for c in columns if not table[c].isna().all()]].copy()
        shown[self.parameters] = shown[self.parameters].map(short)
        text = shown.rename(columns={"value": self.study.metric}).to_string(float_format="{:.3f}".format)
        return f"{text}\n\n{self.sentence()}" if self.logits else text

    @staticmethod
    def line(study: Study, trial: FrozenTrial) -> str:
        """A trial in one line, for whoever waits for it."""
        point = ", ".join(
            f"{short_names(study.space)[key]} {short(value)}" for key, value in _point(study, trial).items()
        )
        number = f"{trial.user_attrs.get('point', trial.number) + 1}/{len(study.plan)}"
        if trial.state == TrialState.COMPLETE:
            seconds = sum(run["seconds"] for run in trial.user_attrs["runs"])
            return with_time(f"{number} {point}: {study.metric} {trial.value:.3f}", f"{seconds:.0f} s")
        if trial.user_attrs.get("died"):
            return f"{number} {point}: its worker is gone; it will be run again"
        return f"{number} {point}: {trial.user_attrs.get('error') or WORDS[trial.state]}"


def _last_of_each(trials: list[FrozenTrial]) -> dict[int, FrozenTrial]:
    """Point -> its newest trial; one that was run again has several."""
    return {trial.user_attrs["point"]: trial for trial in trials}


def _point(study: Study, trial: FrozenTrial) -> dict[str, Value]:
    known = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return {key: known[key] for key in study.space if key in known}


def short(value: Any) -> str:
    """Four digits of a number, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Value:
    return value.item() if isinstance(value, np.generic) else value
