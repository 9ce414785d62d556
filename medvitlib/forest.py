"""The figures of many runs with their intervals, a panel a test set, the published ones beneath."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from medvitlib.errors import EvaluationError, one_of
from medvitlib.evaluation import paired
from medvitlib.evaluation.inputs import percent
from medvitlib.finished import Finished
from medvitlib.leaderboard import METRICS, Leaderboard, estimate
from medvitlib.plotstyle import COLOURS, GREY, canvas, clean, headline, key
from medvitlib.published import PUBLISHED

ROW, HEAD = 0.27, 1.15  # inches


def plot_forest(
    board: Leaderboard, metric: str = "accuracy", *, on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """One row a run, its figure with the interval, best first; one panel for all that were scored on the same images.

    Hollow diamonds are published figures for that data set, which came without an interval, and often from another cut.

    Raises:
        EvaluationError: an unknown metric, or no run with a figure.
    """
    one_of("metric", metric, METRICS, EvaluationError)
    panels = [[run for run in runs if _known(run, metric)] for runs in board.test_sets(metric)]
    panels = [runs for runs in panels if runs]
    if not panels:
        raise EvaluationError(f"No run has a figure for {metric}: call `evaluate` with a run and its test part.")
    reported = [[row for row in PUBLISHED.get(Path(runs[0].data).name, ()) if metric in row] for runs in panels]
    rows = [len(runs) + len(others) for runs, others in zip(panels, reported, strict=True)]
    figure = canvas(on, (10.0, ROW * sum(rows) + HEAD * len(rows)))
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=[n + 1 for n in rows])[:, 0]
    ways = list(dict.fromkeys(run.adaptation for runs in panels for run in runs))
    colours = {way: COLOURS[k % len(COLOURS)] for k, way in enumerate(ways)}
    for ax, runs, others in zip(axes, panels, reported, strict=True):
        _panel(ax, runs, others, metric, colours)
    for way, colour in colours.items():  # one key for all panels
        axes[0].plot([], [], "o", color=colour, label=way)
    if any(reported):
        axes[0].plot([], [], "D", mfc="white", mec=GREY, label="published")
    axes[-1].set_xlabel(paired.METRICS.get(metric, metric) + (", lower is better" if metric in paired.SMALLER else ""))
    key(figure, axes[0], title="adaptation")
    return figure


def _panel(ax: Axes, runs: list[Finished], others: tuple | list, metric: str, colours: dict[str, str]) -> None:
    beside = ax.get_yaxis_transform()  # along x a share of the axes, along y the rows
    for y, run in enumerate(runs):
        found = estimate(run, metric)
        bars = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
        style = {"color": colours[run.adaptation], "ms": 5.5, "elinewidth": 1.6, "capsize": 2}
        ax.errorbar(found.value, y, xerr=None if np.isnan(found.low) else bars, fmt="o", **style)
        ax.text(1.02, y, str(found), transform=beside, va="center", fontsize=8.5)
    for y, row in enumerate(others, start=len(runs)):
        ax.plot(row[metric], y, "D", mfc="white", mec=GREY, ms=5.5)
        ax.text(1.02, y, f"{row[metric]:.3f}", transform=beside, va="center", fontsize=8.5, color=GREY)
    names = [run.name for run in runs] + [row["model"] for row in others]
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    groups = runs[0].report.groups
    patients = "patients unknown" if groups is None else f"{len(np.unique(groups))} patients"
    sure = " and ".join(sorted({percent(run.report.settings["confidence"]) for run in runs}))
    headline(ax, runs[0].data, f"{runs[0].split}, {len(runs[0].ids)} test images, {patients}; bars: {sure} intervals")
    ax.title.set_parse_math(False)
    clean(ax)


def _known(run: Finished, metric: str) -> bool:
    found = estimate(run, metric)
    return found is not None and not np.isnan(found.value)
