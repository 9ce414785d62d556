"""A report as it is read, shown, saved and loaded again; `report.py` makes it."""

import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.as_text import as_html, as_text
from medvitlib.evaluation.findings import findings, headline
from medvitlib.evaluation.inputs import check_classes, check_positive, percent
from medvitlib.evaluation.intervals import Estimate
from medvitlib.evaluation.report_json import ENDS, FIELDS, FORMAT, METRICS
from medvitlib.evaluation.thresholds import ThresholdChoice
from medvitlib.jsonfile import BadJson, csv_text, read_json

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What a model does on images that had no part in making it. Every probability in here is calibrated.

    `print(report)` shows it whole at 80 columns; a notebook shows it as tables.

    Attributes:
        classes: K names in label order.
        positive: the positive class; None for more than two.
        y_true: (N,) int64.
        probabilities: (N, K) float64, after temperature scaling.
        groups: (N,) patient ids; None where unknown.
        temperature: fitted on validation; 1 where there was none.
        metrics: every metric; for two classes decided at 0.5.
        per_class: recall of each class, decided as `metrics`.
        calibration: "before" and "after" scaling: brier, nll, ece; "change": nll after minus before, with its interval.
        choices: "recall" (`choose_recall_threshold`), "published" (`choose_threshold_by_min_recall`) and "certified"
            (`choose_certified_threshold`), as far as they exist.
        operating_points: at "0.5" and at each choice, as `summarize_at_threshold` gives it; two classes only.
        notes: what could not be done and why.
        settings: target_recall, confidence, candidates, n_boot, seed, validation_images.
        refused: for a threshold that does not exist ("certified"), the reason.
        alerts: what makes every figure too good or doubtful; shown before anything else.
    """

    classes: tuple[str, ...]
    positive: str | None
    y_true: np.ndarray
    probabilities: np.ndarray
    groups: np.ndarray | None
    temperature: float
    metrics: dict[str, Estimate]
    per_class: dict[str, Estimate]
    calibration: dict[str, dict[str, Estimate]]
    choices: dict[str, ThresholdChoice]
    operating_points: dict[str, dict[str, Estimate | float | int]]
    notes: list[str]
    settings: dict[str, float | int]
    refused: dict[str, str] = field(default_factory=dict)
    alerts: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)

    @property
    def thresholds(self) -> dict[str, float]:
        """Each operating point's threshold on the calibrated probability."""
        return {name: point["threshold"] for name, point in self.operating_points.items()}

    def headline(self) -> str:
        """The result in one sentence: AUROC, or the accuracy of more than two classes, with its interval and n."""
        return headline(self)

    def sentences(self) -> list[str]:
        """The findings in plain words, what is doubtful about them included."""
        return findings(self)

    def table(self, methods: bool = False) -> "pd.DataFrame":
        """Return a row for each metric: value, interval, images, patients; `methods` adds how intervals were made."""
        import pandas as pd

        rows = {name: _row(estimate) for name, estimate in self.metrics.items()}
        columns = ["value", f"{percent(self.settings['confidence'])} interval", "images", "patients", "method"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("metric")
        return table if methods else table.drop(columns="method")

    def operating_table(self) -> "pd.DataFrame":
        """A row for each operating point: threshold, metrics as "value [low, high]", counts. Empty for many classes."""
        import pandas as pd

        rows = {
            name: {key: str(v) if isinstance(v, Estimate) else v for key, v in point.items()}
            for name, point in self.operating_points.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("operating point")

    def figures(self) -> "dict[str, Figure]":
        """The plots by name: reliability, confusion (of two classes at 0.5, and `confusion_recall` and `_certified` at
        those thresholds), and the curves if images of several classes were scored."""
        from medvitlib import plots

        arrays = (self.y_true, self.probabilities)
        given = {"classes": self.classes, "positive": self.positive, "groups": self.groups}
        found = {"reliability": plots.plot_reliability(*arrays, **given, temperature=self.temperature)}
        names = {
            "0.5": "default",
            "recall": f"{percent(self.settings['target_recall'])} recall",
            "published": "published rule",
            "certified": "certified",
        }
        marks = {names[name]: threshold for name, threshold in self.thresholds.items()}
        if len(np.unique(self.y_true)) > 1:
            marked = {**given, "thresholds": marks}
            found["roc"] = plots.plot_roc(*arrays, **marked, seed=self.settings["seed"])
            found["pr"] = plots.plot_pr(*arrays, **marked, seed=self.settings["seed"])
            if self.positive is not None:
                found["threshold"] = plots.plot_threshold(*arrays, **marked)
        if self.positive is None:
            called = self.probabilities.argmax(axis=1)
            found["confusion"] = plots.plot_confusion(self.y_true, called, classes=self.classes)
            return found
        positive = self.classes.index(self.positive)
        for name, threshold in self.thresholds.items():
            if name == "published":  # its counts are in the table; the matrix would be drawn for comparison only
                continue
            called = np.where(self.probabilities[:, positive] >= threshold, positive, 1 - positive)
            title = f"Confusion at threshold {threshold:.3g} ({names[name]})"
            key = "confusion" if name == "0.5" else f"confusion_{name}"
            found[key] = plots.plot_confusion(self.y_true, called, classes=self.classes, title=title)
        return found

    def to_dict(self) -> dict:
        """All but the arrays, as report.json holds it: plain types, None for what is undefined."""
        groups = self.groups
        counts = {}
        for k, name in enumerate(self.classes):
            own = self.y_true == k
            patients = None if groups is None else len(np.unique(groups[own]))
            counts[name] = {"images": int(own.sum()), "patients": patients}
        return jsonable(
            {
                "format": FORMAT,
                "classes": list(self.classes),
                "positive": self.positive,
                "images": len(self.y_true),
                "patients": None if groups is None else len(np.unique(groups)),
                "per_class_counts": counts,
                "settings": self.settings,
                "temperature": self.temperature,
                "metrics": self.metrics,
                "per_class_recall": self.per_class,
                "calibration": self.calibration,
                "choices": self.choices,
                "refused": self.refused,
                "operating_points": self.operating_points,
                "notes": self.notes,
                "alerts": self.alerts,
                "sentences": self.sentences(),
            }
        )

    def to_json(self) -> str:
        """Strict JSON (no NaN)."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def save(
        self,
        folder: str | Path,
        ids: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        figures: bool = True,
    ) -> Path:
        """Write report.json, predictions.csv and plots/*.png into `folder`, each aside first and then renamed.

        Args:
            ids: (N,) names of the images; their position by default.
            splits: (N,) official split of each image, where there is one.
            figures: without them, plots/ is left out; that of an earlier report goes in any case.

        Returns:
            the folder.
        """
        import pandas as pd

        n = len(self.y_true)
        for name, column in (("ids", ids), ("splits", splits)):
            if column is not None and len(column) != n:
                raise EvaluationError(f"{name} has {len(column)} entries; expected {n}, one for each scored image.")
        table = {
            "id": np.arange(n).astype(str) if ids is None else ids,
            "group": np.full(n, "") if self.groups is None else self.groups,
            "split": np.full(n, "") if splits is None else splits,
            "y_true": np.array(self.classes)[self.y_true],
        } | {f"p_{name}": self.probabilities[:, k] for k, name in enumerate(self.classes)}
        folder = Path(folder)
        _write(folder / "predictions.csv", csv_text(pd.DataFrame(table)).encode())
        figures = self.figures() if figures else {}
        for old in (folder / "plots").glob("*.png"):  # of an earlier report that had other operating points
            if old.stem not in figures:
                old.unlink()
        for name, figure in figures.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png")
            _write(folder / "plots" / f"{name}.png", buffer.getvalue())
        _write(folder / "report.json", self.to_json().encode())  # last: where it is, the others are
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Report":
        """Read back what `save` wrote, arrays included.

        Raises:
            EvaluationError: a file is missing or damaged, of a format that this version does not know, or of another
                report than the other.
        """
        import pandas as pd

        folder = Path(folder)
        try:
            found = read_json(folder / "report.json", FIELDS)
            classes, positive = tuple(found["classes"]), found["positive"]
            needed = METRICS[2 if positive else 3]
            if missing := [name for name in needed if name not in found["metrics"]]:
                raise BadJson(f"report.json: metrics has no field {missing[0]!r}")
            check_positive(check_classes(classes), positive)
            table = pd.read_csv(folder / "predictions.csv", dtype=str, keep_default_na=False)
            y_true = table["y_true"].map(classes.index).to_numpy(np.int64)
            probabilities = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
            if len(table) != found["images"]:
                raise ValueError(f"report.json is about {found['images']} images, predictions.csv has {len(table)}")
            if not (np.isfinite(probabilities) & (probabilities >= 0) & (probabilities <= 1)).all():
                raise ValueError("predictions.csv has a probability that is not from 0 to 1")
            groups = None if found["patients"] is None else table["group"].to_numpy(str)
        except FileNotFoundError as error:
            raise EvaluationError(f"No report in {folder}: no {error.filename}. Report.save writes it.") from None
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise EvaluationError(
                f"The report in {folder} cannot be read ({reason}): evaluate the run again."
            ) from error
        return cls(
            classes=classes,
            positive=positive,
            y_true=y_true,
            probabilities=probabilities,
            groups=groups,
            temperature=found["temperature"],
            metrics=_estimates(found["metrics"]),
            per_class=_estimates(found["per_class_recall"]),
            calibration={when: _estimates(values) for when, values in found["calibration"].items()},
            choices={name: ThresholdChoice(**choice) for name, choice in found["choices"].items()},
            operating_points={name: _estimates(point) for name, point in found["operating_points"].items()},
            notes=found["notes"],
            alerts=found["alerts"],
            settings=found["settings"],
            refused=found["refused"],
        )


def _row(estimate: Estimate) -> list:
    patients = "unknown" if estimate.n_groups is None else estimate.n_groups
    method = f"{estimate.method} ({estimate.reason})" if estimate.reason else estimate.method
    return [estimate.value, estimate.interval(), estimate.n_images, patients, method]


def jsonable(value):
    """Dictionaries, lists, strings, numbers and None, as JSON has them."""
    if isinstance(value, Estimate | ThresholdChoice):
        return jsonable(value.to_dict())
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _estimates(values: dict) -> dict:
    """The reverse of `jsonable` for a dictionary of estimates, thresholds and counts."""

    def back(value):
        if not isinstance(value, dict):
            return value
        return Estimate(**{key: math.nan if value[key] is None and key in ENDS else value[key] for key in value})

    return {name: back(value) for name, value in values.items()}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    aside.write_bytes(content)
    aside.replace(path)
