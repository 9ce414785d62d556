"""Curves of a training: loss, metric and learning rate by epoch, of one run or of several side by side."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import Estimate, paired
from medvitlib.plotstyle import BLUE, GREEN, GREY, VERMILION, canvas, clean, headline, key, line_style
from medvitlib.training.config import METRICS

if TYPE_CHECKING:
    import pandas as pd

NAMES = {
    "train_loss": "training loss",
    **{f"val_{name}": f"validation {words}" for name, words in paired.METRICS.items()},
    "lr": "learning rate",
}
LOSSES = ("train_loss", "val_nll")
FALLING = ("train_loss", *(name for name, best in METRICS.items() if best is min))  # better when smaller
INK = {"train_loss": VERMILION, "val_nll": BLUE, "val_auroc": BLUE, "val_accuracy": GREEN}


def plot_history(
    metrics: "pd.DataFrame", *, metric: str = "val_auroc", on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Loss, validation metrics and learning rate by epoch; the epoch whose weights were kept is marked.

    The epochs in which only the head was trained are shaded. Where a value is nan the curve has a gap.

    Args:
        metrics: a row an epoch, as `Run.metrics` of a trained run: epoch, phase, lr, train_loss, val_nll, best, and
            a column for each metric.
        metric: the column that decided which epoch was kept.

    Raises:
        EvaluationError: no epoch, or a column is missing.
    """
    _need(metrics, ["epoch", *LOSSES, metric, "lr"])
    shown = dict.fromkeys([metric, "val_auroc", "val_accuracy"])
    row, epochs = _kept(metrics, metric), int((metrics["epoch"] > 0).sum())
    panels = {
        "Loss": (LOSSES, f"{epochs} epoch{'s' if epochs > 1 else ''}"),
        "Validation": (
            [name for name in shown if name in metrics and name not in LOSSES],
            _decision(metrics, metric, row),
        ),
        "Learning rate": (("lr",), ""),
    }
    figure = canvas(on, (11.0, 3.4))
    for ax, (title, (columns, caption)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for column in columns:
            colour = INK.get(column, GREY)
            _curve(ax, metrics, column, NAMES.get(column, column), color=colour, lw=1.8)
            _mark(ax, metrics, row, column, colour)
        _head_phase(ax, metrics)
        _by_epoch(ax, metrics)
        ax.margins(y=0.14)
        if len(columns) > 1:
            ax.legend(frameon=False, fontsize=8.5, handlelength=1.4)
        headline(ax, title, caption)
        clean(ax)
    ax.set_ylim(0, 1.18 * (metrics["lr"].max() or 1))  # room for the name of the phase
    ax.yaxis.set_major_formatter("{x:g}")
    return figure


def plot_histories(
    histories: "Mapping[str, pd.DataFrame]",
    columns: Sequence[str] = ("train_loss", "val_nll", "val_auroc"),
    *,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Training curves of several runs: a panel a column, a colour a run, its kept epoch marked.

    Args:
        histories: name of the run -> its metrics, as for `plot_history`.

    Raises:
        EvaluationError: no run, no epoch, or a column that a run lacks.
    """
    if not histories or not columns:
        raise EvaluationError("Nothing to draw: expected one run and one column at least.")
    for metrics in histories.values():
        _need(metrics, ["epoch", *columns])
    figure = canvas(on, (3.4 * len(columns) + 1.4, 3.3))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, column in zip(axes, columns, strict=True):
        for number, (name, metrics) in enumerate(histories.items()):
            style = line_style(number, len(histories))
            _curve(ax, metrics, column, name, **style)
            _mark(ax, metrics, _kept(metrics), column, style["color"])
        _by_epoch(ax, *histories.values())
        ax.margins(y=0.08)
        title = NAMES.get(column, column)
        headline(ax, title[0].upper() + title[1:], f"{'lower' if column in FALLING else 'higher'} is better")
        clean(ax)
    axes[-1].plot([], [], "o", mfc="none", mec="black", ms=7, ls="", label="epoch kept")
    key(figure, axes[-1])
    return figure


def plot_cuts(
    accuracies: Mapping[str, np.ndarray], chosen: Mapping[str, Estimate], on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """What a reported accuracy owes to the way the test set was cut: one row a way, a dot each cut, and one of them.

    Args:
        accuracies: name of the way -> one figure a cut (`medvitlib.evaluation.choosing.accuracy_over_cuts`).
        chosen: the same names -> the cut that was reported, drawn as a diamond with its interval.
    """
    if set(chosen) - set(accuracies):
        raise EvaluationError(f"chosen {sorted(chosen)}: expected names among {sorted(accuracies)}.")
    figure = canvas(on, (7.0, 0.9 + 0.8 * len(accuracies)))
    ax = figure.subplots()
    rng = np.random.default_rng(0)
    for y, (name, values) in enumerate(accuracies.items()):
        ax.plot(values, y + rng.uniform(-0.22, 0.22, len(values)), ".", color=BLUE, ms=4, alpha=0.45)
        if name in chosen:
            one = chosen[name]
            ax.plot([one.low, one.high], [y + 0.36] * 2, color=VERMILION, lw=2)
            ax.plot(one.value, y + 0.36, "D", color=VERMILION, ms=5)
    ax.set_yticks(range(len(accuracies)), list(accuracies))
    ax.set(ylim=(len(accuracies) - 0.3, -0.6), xlabel="accuracy reported (diamond: one cut, with its interval)")
    clean(ax)
    return figure


def _need(metrics: "pd.DataFrame", columns: Sequence[str]) -> None:
    if not len(metrics):
        raise EvaluationError("The table of metrics has no row: no epoch was finished.")
    for column in columns:
        if column not in metrics:
            raise EvaluationError(
                f"The table of metrics has no column {column!r}; it has: {', '.join(map(str, metrics.columns))}."
            )


def _decision(metrics: "pd.DataFrame", metric: str, row: int | None) -> str:
    if row is None:
        return "no epoch was kept"
    return f"kept: epoch {metrics['epoch'].iloc[row]}, {NAMES.get(metric, metric)} {metrics[metric].iloc[row]:.3f}"


def _kept(metrics: "pd.DataFrame", metric: str = "") -> int | None:
    """Row of the epoch whose weights were kept: the last marked best, else the best of `metric`; None if neither."""
    if "best" in metrics and (metrics["best"] == 1).any():
        return int(np.flatnonzero(metrics["best"] == 1)[-1])
    if metric not in metrics or metrics[metric].isna().all():
        return None
    values = metrics[metric].to_numpy(float)
    return int(np.nanargmin(values) if metric in FALLING else np.nanargmax(values))


def _curve(ax: Axes, metrics: "pd.DataFrame", column: str, label: str, **style) -> None:
    """A line; points too where a value has no neighbour, and would leave no line."""
    values = metrics[column].to_numpy(float)
    known = np.r_[False, np.isfinite(values), False]
    alone = known[1:-1] & ~known[:-2] & ~known[2:]
    ax.plot(metrics["epoch"], values, label=label, **style)
    ax.plot(metrics["epoch"][alone], values[alone], "o", ms=4, color=style["color"])


def _mark(ax: Axes, metrics: "pd.DataFrame", row: int | None, column: str, colour: str) -> None:
    if row is not None:
        place = metrics["epoch"].iloc[row], metrics[column].iloc[row]
        ax.plot(*place, "o", mfc="white", mec=colour, ms=7, mew=1.8, zorder=4, clip_on=False)


def _head_phase(ax: Axes, metrics: "pd.DataFrame") -> None:
    """Shade the epochs before the backbone was trained too."""
    if "phase" not in metrics or not (metrics["phase"] == "head").any():
        return
    epochs = metrics.loc[metrics["phase"] == "head", "epoch"]
    ax.axvspan(epochs.min() - 0.5, epochs.max() + 0.5, color="0.94", lw=0, zorder=0)
    ax.text(
        epochs.mean(),
        0.985,
        "head",
        color=GREY,
        fontsize=8.5,
        ha="center",
        va="top",
        transform=ax.get_xaxis_transform(),
    )


def _by_epoch(ax: Axes, *tables: "pd.DataFrame") -> None:
    first, last = min(t["epoch"].min() for t in tables), max(t["epoch"].max() for t in tables)
    ax.set(xlabel="Epoch", xlim=(first - 0.5, last + 0.5))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
