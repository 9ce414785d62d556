"""Two finished runs on the same test images: McNemar's and DeLong's tests, and both differences by patient."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvitlib.compare import check_same_images
from medvitlib.errors import EvaluationError, MedvitError
from medvitlib.evaluation import DeLong, Pair, Report, compare_pair, delong
from medvitlib.finished import Finished, read_run
from medvitlib.paths import runs_dir

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Duel:
    """The first run against the second.

    Attributes:
        first, second: their names.
        pairs: accuracy and AUROC (macro for more than two classes), as `compare_pair` gives them; AUROC only where
            enough patients of each class are there.
        delong: of the AUROC; None for more than two classes.
        notes: what could not be compared, and why.
    """

    first: str
    second: str
    pairs: dict[str, Pair]
    delong: DeLong | None
    notes: list[str]

    def sentences(self) -> list[str]:
        """The result in words."""
        said = [self.pairs["accuracy"].sentence(self.first, self.second)]
        if area := self.pairs.get("auroc"):
            verdict = "there is no interval" if np.isnan(area.difference.low) else "its interval includes zero"
            verdict = "its interval excludes zero" if area.excludes_zero else verdict
            said.append(f"AUROC, the same way round: {area.difference:+.3f}; {verdict}{self._tested()}.")
        return [*said, *self.notes]

    def _tested(self) -> str:
        if self.delong is None:
            return ""
        units = "patients as units" if self.delong.clustered else "images as units"
        if np.isnan(self.delong.p_value):
            return f" (DeLong's test, {units}: both areas are without an error to judge by)"
        p = p_words(self.delong.p_value)
        return f" (DeLong's test, {units}: p {p if p.startswith('<') else f'= {p}'})"

    def row(self) -> dict[str, str]:
        """The same as text for a table: each difference with its interval, and the two p-values."""
        area = self.pairs.get("auroc")
        return {
            "accuracy": format(self.pairs["accuracy"].difference, "+.3f"),
            "McNemar p": p_words(self.pairs["accuracy"].p_value),
            "AUROC": "" if area is None else format(area.difference, "+.3f"),
            "DeLong p": "" if self.delong is None else p_words(self.delong.p_value),
        }

    def table(self) -> "pd.DataFrame":
        """One row, the first minus the second."""
        import pandas as pd

        return pd.DataFrame([self.row()], index=pd.Index([f"{self.first} − {self.second}"], name="difference"))


def p_words(p: float) -> str:
    """ "0.04", "< 0.001"; empty for nan."""
    return "" if np.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.2g}"


def compare_runs(
    first: Finished | str | Path,
    second: Finished | str | Path,
    *,
    n_boot: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Duel:
    """Compare two runs that were chosen before this test set was looked at.

    The images need not be in the same order. At different image sizes only their names, labels and patients can be
    compared, so that two rendered sets of other seeds pass for one; at the same size the files are compared, too.

    Args:
        first, second: from `Leaderboard.runs`, or the folder or name of a run.
        n_boot: draws of patients.

    Raises:
        EvaluationError: not evaluated, the same run twice, or scored on other images or classes.
        MedvitError: a folder that holds no finished run.
    """
    one, other = _opened(first), _opened(second)
    if one.folder.resolve() == other.folder.resolve():
        raise EvaluationError(f"{one.name!r} was given twice: name two different runs.")
    if why := unlike(one, other):
        raise EvaluationError(f"{one.name!r} and {other.name!r} cannot be compared: {why}")
    mine, theirs = aligned(one, other)
    groups = mine.groups if mine.groups is not None else theirs.groups
    given = {"classes": mine.classes, "positive": mine.positive, "groups": groups}
    drawing = {"n_boot": n_boot, "seed": seed, "confidence": confidence}
    pairs, notes, areas = {}, [], None
    for metric in ("accuracy", "auroc"):
        try:
            pairs[metric] = compare_pair(
                mine.y_true, mine.probabilities, theirs.probabilities, metric=metric, **given, **drawing
            )
        except EvaluationError as error:
            if metric == "accuracy":
                raise
            notes.append(f"AUROC cannot be compared: {error}")
    if mine.positive is not None and "auroc" in pairs:
        k = mine.classes.index(mine.positive)
        areas = delong(mine.y_true == k, mine.probabilities[:, k], theirs.probabilities[:, k], groups, confidence)
    names = (one.name, other.name) if one.name != other.name else (str(one.folder), str(other.folder))
    return Duel(*names, pairs, areas, notes)


def unlike(one: Finished, other: Finished) -> str:
    """Why two runs were not scored on the same images, as a sentence; empty if they were."""
    for run in (one, other):
        if run.report is None:
            return f"{run.name!r} was not evaluated. Call `evaluate` with the run and the test part first."
    if one.data != other.data:
        return f"they were scored on {one.data!r} and on {other.data!r}: compare runs on one data set."
    if set(one.ids) != set(other.ids) or len(one.ids) != len(other.ids):
        shared = len(set(one.ids) & set(other.ids))
        return (
            f"their test sets have {len(one.ids)} and {len(other.ids)} images, {shared} of them in both: evaluate both "
            "runs on one test set."
        )
    try:
        check_same_images({run.name: report for run, report in zip((one, other), aligned(one, other), strict=True)})
    except EvaluationError as error:
        return str(error)
    if _comparable_files(one, other) and one.test_files != other.test_files:
        return "their test images have the same names and are not the same files: evaluate both on one test set."
    return ""


def aligned(one: Finished, other: Finished) -> tuple[Report, Report]:
    """Their reports, the second's images in the first's order; the same ids are in both."""
    places = [np.argsort(run.ids, kind="stable") for run in (one, other)]
    order = np.empty(len(one.ids), int)
    order[places[0]] = places[1]
    report = other.report
    groups = None if report.groups is None else report.groups[order]
    moved = {"y_true": report.y_true[order], "probabilities": report.probabilities[order], "groups": groups}
    return one.report, replace(report, **moved)


def _comparable_files(one: Finished, other: Finished) -> bool:
    """Whether the fingerprints of their test parts are those of what was scored, and equal for equal files."""
    known = [run.report.groups is not None for run in (one, other)]
    sizes = [run.info["architecture"].get("image_size") for run in (one, other)]
    same = sizes[0] == sizes[1] and known[0] == known[1] and np.array_equal(one.ids, other.ids)
    return same and one.own_test and other.own_test


def _opened(run: Finished | str | Path) -> Finished:
    if isinstance(run, Finished):
        return run
    folder, name = (Path(run), "") if Path(run).is_dir() else (runs_dir() / run, str(run))
    try:
        return read_run(folder, name)
    except MedvitError as error:
        raise EvaluationError(f"{folder}: {error}") from error
