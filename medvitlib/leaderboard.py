"""Every finished run in one table: what was trained on what, how good it is with its interval, and what it costs.

    board = leaderboard("runs")
    board.show()                                       # as text, to be read; board.table holds the numbers
    board.only(data="chest_xray", adaptation="LoRA")
    board.best("auroc")                                # of each test set, and how many runs cannot be told apart
    print(*board.compare("first", "second").sentences())

Whoever picks the best of a leaderboard has chosen by the test set: its figure is too good by what luck added.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.duel import Duel, aligned, compare_runs, unlike
from medvitlib.errors import EvaluationError, MedvitError, one_of
from medvitlib.evaluation import Estimate, compare_with_best, paired
from medvitlib.finished import Finished, find_runs, read_run
from medvitlib.paths import runs_dir
from medvitlib.progress import track
from medvitlib.published import beside_published

if TYPE_CHECKING:
    import pandas as pd

METRICS = (*paired.METRICS, "precision", "recall", "specificity")
"""For two classes decided at 0.5; for more, decided by the largest probability, and macro where they are means."""
FILTERS = ("run", "data", "split", "model", "adaptation", "weights", "seed")
DASH = "–"


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Finished runs, in the order of their data sets.

    Attributes:
        runs: name -> run.
        skipped: folder -> why it is not among them.
    """

    runs: dict[str, Finished]
    skipped: dict[str, str]

    @property
    def table(self) -> "pd.DataFrame":
        """A row a run, as numbers; what is not known, or was not evaluated, is nan.

        Columns: data, split, model, adaptation, weights, seed, evaluated, images and patients of the test set, each of
        `METRICS` with its ends as "auroc low" and "auroc high", parameters, MB of its file, minutes of training.
        """
        import pandas as pd

        rows = {}
        for name, run in self.runs.items():
            rows[name] = {
                **{key: value_of(run, key) for key in FILTERS[1:]},
                "evaluated": run.report is not None,
                "images": np.nan if run.report is None else len(run.report.y_true),
                "patients": _patients(run),
            }
            for metric in METRICS:
                found = estimate(run, metric)
                ends = (np.nan,) * 3 if found is None else (found.value, found.low, found.high)
                rows[name] |= dict(zip((metric, f"{metric} low", f"{metric} high"), ends, strict=True))
            rows[name] |= {"parameters": run.parameters, "MB": run.megabytes, "minutes": run.minutes}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run").astype({"seed": "Int64"})

    def show(self, metrics: Sequence[str] = ("accuracy", "auroc"), *, minutes: bool = True) -> "pd.DataFrame":
        """The table to be read: every cell is text, each metric with its interval, the best first in each data set.

        Args:
            metrics: some of `METRICS`; the first one gives the order.
            minutes: without them, the table is the same whenever the figures are.
        """
        import pandas as pd

        rows = {}
        for run in self.ordered(metrics):
            cells = {key: DASH if (value := value_of(run, key)) is None else str(value) for key in FILTERS[1:]}
            del cells["weights"]  # "none" says it, and the rest has pretrained ones as a rule
            for metric in metrics:
                found = estimate(run, metric)
                cells[metric] = "not evaluated" if run.report is None else DASH if found is None else str(found)
            cells["images"] = DASH if run.report is None else str(len(run.report.y_true))
            cells |= {"patients": _text(_patients(run), ".0f"), "parameters": f"{run.parameters:,}"}
            rows[run.name] = {**cells, "MB": f"{run.megabytes:.1f}"}
            rows[run.name] |= {"minutes": _text(run.minutes, ".1f")} if minutes else {}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")

    def ordered(self, metrics: Sequence[str] = ("accuracy",)) -> list[Finished]:
        """The runs by data set, then the best by the first of the metrics, those without it last."""
        if not metrics:
            raise EvaluationError(f"No metric was named: expected some of {', '.join(METRICS)}.")
        for metric in metrics:
            one_of("metric", metric, METRICS, EvaluationError)
        sign = 1 if metrics[0] in paired.SMALLER else -1

        def rank(run: Finished) -> tuple:
            found = estimate(run, metrics[0])
            known = found is not None and not np.isnan(found.value)
            return run.data, run.split, not known, sign * found.value if known else 0.0, run.name

        return sorted(self.runs.values(), key=rank)

    def only(self, **wanted: str | int | Iterable) -> "Leaderboard":
        """The runs for which everything named holds: run, data, split, model, adaptation, weights, seed.

        Args:
            wanted: a value, or several of which any will do: `only(data="chest_xray", adaptation=["LoRA", "RLRR"])`.

        Raises:
            EvaluationError: a filter or a value that no run has; names the nearest.
        """
        kept = self.runs
        for key, value in wanted.items():
            one_of("filter", key, FILTERS, EvaluationError)
            asked = {str(v) for v in ([value] if isinstance(value, str) or not isinstance(value, Iterable) else value)}
            known = sorted({str(value_of(run, key)) for run in self.runs.values()})
            for one in asked:
                one_of(key, one, known, EvaluationError)
            kept = {name: run for name, run in kept.items() if str(value_of(run, key)) in asked}
        return replace(self, runs=kept)

    def compare(self, first: str, second: str, **options) -> Duel:
        """Two of the runs on their test images (see `compare_runs`)."""
        for name in (first, second):
            one_of("run", name, self.runs, EvaluationError)
        return compare_runs(self.runs[first], self.runs[second], **options)

    def test_sets(self, metric: str = "accuracy") -> list[list[Finished]]:
        """The evaluated runs, those that were scored on the same images together, best first."""
        sets: list[list[Finished]] = []
        for run in self.ordered([metric]):
            if run.report is not None:
                same = next((one for one in sets if not unlike(one[0], run)), None)
                sets.append([run]) if same is None else same.append(run)
        return sets

    def best(self, metric: str = "accuracy", n_boot: int = 1000) -> "pd.DataFrame":
        """A row a test set: the best run, of how many, and how many of the others cannot be told apart from it.

        Those are counted by intervals that hold for all runs together (`compare_with_best`).

        Raises:
            EvaluationError: a metric that runs cannot be compared by.
        """
        import pandas as pd

        one_of("metric", metric, paired.METRICS, EvaluationError)
        rows = []
        for runs in self.test_sets(metric):
            run, found = runs[0], alike(runs, metric, n_boot)
            others = "unknown" if found is None else f"{int(found.sum()) - 1} of {len(runs) - 1}"
            row = {"data": run.data, "split": run.split, "images": len(run.ids), "best run": run.name}
            row |= {metric: str(estimate(run, metric) or DASH), "runs": len(runs)}
            rows.append({**row, "not told apart": others if len(runs) > 1 else "the only one"})
        columns = ["data", "split", "images", "best run", metric, "runs", "not told apart"]
        return pd.DataFrame(rows, columns=columns)

    def beside_published(
        self, metric: str = "accuracy", columns: Sequence[str] = ("accuracy", "precision", "recall", "mcc", "auroc")
    ) -> "pd.DataFrame":
        """The best run of each test set at each operating point, above what others have reported for that data set."""
        import pandas as pd

        found = {}
        for runs in self.test_sets(metric):
            run = runs[0]
            name = f"{run.data}, {run.split}, {len(run.ids)} images"
            if name in found:  # another test set of as many images
                name = f"{name}, with {run.name}"
            found[name] = beside_published({run.name: run.report}, Path(run.data).name, list(columns))
        return pd.concat(found, names=["data"]) if found else pd.DataFrame(columns=list(columns))


def leaderboard(*roots: str | Path) -> Leaderboard:
    """Read every finished run in folders of runs, or run folders; without any, in `runs_dir()`.

    Runs lie in a root as NAME or STUDY/NAME. One that was not finished, or is damaged, is left out and named in
    `skipped`. Where two roots have a run of one name, the later one's is called ROOT/NAME.

    Raises:
        MedvitError: a root that is no folder, or no finished run in any.
    """
    runs: dict[str, Finished] = {}
    skipped: dict[str, str] = {}
    seen = set()
    roots = roots or (runs_dir(),)
    found = [(root, *pair) for root in roots for pair in find_runs(root)]
    for root, name, folder in track(found, "Reading runs", unit="run"):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        name = next(n for n in (name, f"{Path(root).resolve().name}/{name}", str(folder.resolve())) if n not in runs)
        try:
            runs[name] = read_run(folder, name)
        except MedvitError as error:
            skipped[str(folder)] = str(error)
    if not runs:
        where = ", ".join(map(str, roots))
        why = "".join(f"\n  {folder}: {reason}" for folder, reason in skipped.items())
        raise MedvitError(
            f"There is no finished run in {where}: `medvit train CONFIG.yaml` or a notebook makes one.{why}"
        )
    board = Leaderboard(runs, skipped)
    return replace(board, runs={run.name: run for run in board.ordered()})


def alike(runs: Sequence[Finished], metric: str, n_boot: int = 1000) -> np.ndarray | None:
    """(runs,) bool, which runs on the same images cannot be told apart from the best of them; None where unknown."""
    scores = [aligned(runs[0], run)[1].probabilities for run in runs]
    report = runs[0].report
    given = {"classes": report.classes, "positive": report.positive, "groups": report.groups}
    try:
        return compare_with_best(report.y_true, scores, **given, metric=metric, n_boot=n_boot).indistinguishable
    except EvaluationError:  # undefined on these images, or in most draws
        return None


def estimate(run: Finished, metric: str) -> Estimate | None:
    """A run's figure on its test set, macro where there are more than two classes; None where it has none."""
    metrics = {} if run.report is None else run.report.metrics
    return metrics.get(metric, metrics.get(f"{metric}_macro"))


def value_of(run: Finished, key: str) -> str | int | None:
    """One of `FILTERS` of a run."""
    return getattr(run, "name" if key == "run" else key)


def _patients(run: Finished) -> float:
    known = run.report is not None and run.report.groups is not None
    return len(np.unique(run.report.groups)) if known else np.nan


def _text(value: float, spec: str) -> str:
    return DASH if np.isnan(value) else f"{value:{spec}}"
