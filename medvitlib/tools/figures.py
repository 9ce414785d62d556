"""Compare the figures of a notebook with its committed table, each within its own tolerance.

    numbers = Figures("04", globals())  # before any cell changes a parameter
    numbers.add("frozen", report)
    numbers.check()  # "31 figures within tolerance"

Processors differ in the last digits, so printed figures cannot be compared as text. `./run_all.sh --freeze --measure`
runs a notebook in every arithmetic of `medvitlib.tools.arithmetics` and writes `notebooks/expected/NN.json`.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path

import numpy as np

from medvitlib.evaluation.intervals import Estimate
from medvitlib.evaluation.report import Report
from medvitlib.jsonfile import write_text
from medvitlib.paths import project_root

RECORD = "MEDVIT_FIGURES"
"""Environment variable: a file to write the figures to, in place of comparing them."""
FACTOR = 4.0  # a tolerance is this many times the spread that was measured
SMALLEST = 0.002  # tolerance, where the spread is less: figures are shown with three decimals
LARGEST = 0.1  # in units of the figure where that is more than 1; what would need more is not compared: it says nothing
NEAR = 0.001  # an image this near to a threshold may be decided otherwise on another processor
DECISIONS = ", decisions"  # ends the name of the group of a report's figures that depend on a threshold
SCORES = ("auroc", "auprc", "brier", "nll", "ece", "auroc_macro", "auprc_macro")  # they depend on no threshold


class Figures:
    """The figures of one notebook.

    Args:
        number: of the notebook, as in its file's name: "04".
        scope: the notebook's `globals()`, in which its parameters still have the values that were asked for.
    """

    def __init__(self, number: str, scope: Mapping):
        self.path = expected_path(number)
        self.expected = json.loads(self.path.read_text("utf-8")) if self.path.is_file() else None
        parameters = self.expected["parameters"] if self.expected else {}
        self.differing = [name for name, value in parameters.items() if scope.get(name) != value]
        self.found: dict[str, dict[str, tuple[float, float]]] = {}

    def add(self, group: str, content: object) -> None:
        """Add what is computed together: figures of one group get one tolerance, the decisions of a report another.

        Args:
            group: a name, such as that of a model.
            content: a `Report`, or a number, an `Estimate`, a data frame with numbers, or a dictionary of these.
        """
        if isinstance(content, Report):
            rows = dict(_flat_report(content))
            scores = {name: row for name, row in rows.items() if name.split()[0] in SCORES}
            self.found |= {
                group: scores,
                f"{group}{DECISIONS}": {name: rows[name] for name in rows if name not in scores},
            }
        else:
            self.found.setdefault(group, {}).update(_flat(content))

    def check(self) -> None:
        """Print how many figures agree with the committed table.

        Raises:
            AssertionError: a figure is outside its tolerance or missing; all of them are named.
        """
        if path := os.environ.get(RECORD):
            Path(path).write_text(json.dumps(self.found), "utf-8")
            print("figures recorded")
        elif self.expected is None:
            print(f"nothing to compare with: there is no {self.path.name}")
        elif self.differing:
            print(f"not compared: {', '.join(self.differing)} differ from the committed notebook's")
        else:
            table = {name: row for rows in self.expected["figures"].values() for name, row in rows.items()}
            found = {_named(group, name): row[0] for group, rows in self.found.items() for name, row in rows.items()}
            wrong = [
                f"  {name}: {found.get(name, math.nan):.4g}, expected {value:.4g} ± {tolerance:.2g}"
                for name, (value, tolerance) in table.items()
                if not abs(found.get(name, math.nan) - value) <= tolerance
            ]
            listed = "\n".join(wrong)
            assert not wrong, f"{len(wrong)} of {len(table)} figures differ from {self.path.name}:\n{listed}"
            print(f"{len(table)} figures within tolerance")


def _flat(content: object, name: str = "", slack: float | None = None) -> Iterator[tuple[str, tuple[float, float]]]:
    """Each number with its name and by how much it changes if images near a threshold are decided otherwise."""
    if isinstance(content, Estimate):
        if slack is None:  # of a share without its probabilities, one image may be decided otherwise
            slack = 1 / content.n_images if content.method.startswith("Wilson") else 0.0
        ends = {"": (content.value, slack), "low": (content.low, 2 * slack), "high": (content.high, 2 * slack)}
        yield from ((f"{name} {end}".strip(), row) for end, row in ends.items() if math.isfinite(row[0]))
    elif isinstance(content, Mapping):
        for key, item in content.items():
            yield from _flat(item, f"{name} {key}".strip(), slack)
    elif hasattr(content, "itertuples"):
        numbers = content.select_dtypes("number").T.to_dict()
        yield from _flat(
            {f"{row}, {column}": value for row, cells in numbers.items() for column, value in cells.items()}
        )
    elif isinstance(content, Real) and math.isfinite(content):
        yield name, (float(content), slack or 0.0)


def _flat_report(report: Report) -> Iterator[tuple[str, tuple[float, float]]]:
    smallest = np.bincount(report.y_true, minlength=len(report.classes)).min()

    def slack(margins: np.ndarray) -> float:
        return float((np.abs(margins) < NEAR).sum() / max(1, smallest))

    if report.positive is None:
        ranked = np.sort(report.probabilities, axis=1)
        decided = slack(ranked[:, -1] - ranked[:, -2])
    else:
        positive = report.probabilities[:, report.classes.index(report.positive)]
        decided = slack(positive - 0.5)
    for name, estimate in report.metrics.items():
        yield from _flat(estimate, name, 0.0 if name in SCORES else decided)
    for name, point in report.operating_points.items():
        if name != "0.5":
            near = slack(positive - point["threshold"])
            for key in ("threshold", "accuracy", "precision", "recall", "specificity"):
                yield from _flat(point[key], f"@{name} {key}", near)


def tolerances(recorded: dict[str, dict], parameters: dict) -> dict:
    """The table to commit, from the figures of several arithmetics.

    The tolerance of a group is `FACTOR` times the largest difference that any of its figures showed, in units of the
    figure's size where that is more than 1, and never less than `SMALLEST`. The decisions of a report are compared only
    where its scores hardly differ: else an image may change sides on a processor that was not measured.

    Args:
        recorded: arithmetic -> what `check` recorded in it; the first one gives the values.
        parameters: of the notebook, by name.
    """
    first, *others = recorded.values()
    table = {"parameters": parameters, "measured in": list(recorded), "figures": {}, "not compared": {}}
    chosen: dict[str, float] = {}
    for group, rows in first.items():
        everywhere = {name: row for name, row in rows.items() if all(name in other.get(group, {}) for other in others)}
        spread = 0.0
        for name, (value, _) in everywhere.items():
            largest = max((abs(other[group][name][0] - value) for other in others), default=0.0)
            spread = max(spread, largest / max(1, abs(value)))
        tolerance = chosen[group] = max(FACTOR * spread, SMALLEST)
        scores = chosen.get(group.removesuffix(DECISIONS)) if group.endswith(DECISIONS) else None
        if scores is not None and scores > SMALLEST:
            table["not compared"][group] = "the scores differ between arithmetics"
        elif tolerance > LARGEST:
            table["not compared"][group] = f"differs by up to {spread:.2g} between arithmetics"
        else:
            table["figures"][group] = {
                _named(group, name): [_rounded(value), _rounded(tolerance * max(1, abs(value)) + slack)]
                for name, (value, slack) in everywhere.items()
                if tolerance * max(1, abs(value)) + slack <= LARGEST * max(1, abs(value))
            }
    return table


def _named(group: str, name: str) -> str:
    return f"{group}: {name}" if name else group


def expected_path(number: str) -> Path:
    """The committed table of a notebook."""
    return project_root() / "notebooks" / "expected" / f"{number}.json"


def write_table(path: Path, table: dict) -> None:
    """Write a table of `tolerances` as JSON, one figure per line."""
    text = json.dumps(table, indent=1, ensure_ascii=False)
    path.parent.mkdir(exist_ok=True)
    write_text(path, re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text) + "\n")


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
