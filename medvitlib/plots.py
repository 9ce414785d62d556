"""Curves of a classifier's scores: ROC, precision-recall, reliability, confusion, threshold.

Each function takes arrays and returns a figure of its own (no pyplot, so that a notebook shows it once and nothing
stays open), or draws into `on`, a figure or subfigure, so that several can stand side by side.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import Checked, check, check_labels
from medvitlib.evaluation.intervals import proportion, resampled_weights
from medvitlib.evaluation.metrics import ECE_BINS, auroc, average_precision, bin_members, ece, ranked_counts
from medvitlib.plotstyle import (
    BLUE,
    BROKEN,
    COLOURS,
    GREEN,
    GREY,
    MARKERS,
    PALE,
    SIZE,
    VERMILION,
    canvas,
    clean,
    headline,
    key,
    line_style,
)

if TYPE_CHECKING:
    import pandas as pd

GRID = np.linspace(0, 1, 201)  # where the bands are evaluated
LONGEST = 32  # letters of a class name beside a matrix; the rest of a longer one is left out


def plot_roc(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    thresholds: dict[str, float] | None = None,
    n_boot: int = 500,
    seed: int = 0,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """ROC curve with a pointwise 95 % bootstrap band; for more than two classes a curve of each against the rest.

    Args:
        y_true: (N,) integers, indices into `classes`.
        probabilities: (N, K), or (N,) for the positive class of two.
        positive: name of the positive class; must be given for two classes.
        groups: (N,) patients to resample; None resamples images.
        thresholds: label -> threshold, marked on the curve; two classes only.
    """
    data = _need_two(check(y_true, probabilities, classes, positive, groups))
    figure = canvas(on)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls=BROKEN, zorder=1)
    for name, y, p, style in _against_rest(data):
        cuts, (tp,), (fp,) = ranked_counts(y, p)
        ax.plot(*_roc(tp, fp), label=f"{name} {auroc(y, p):.3f}", **style)
        if data.positive is not None:
            _band(ax, data, lambda tp, fp: np.interp(GRID, *_roc(tp, fp)), n_boot, seed)
        _mark(ax, thresholds, cuts, fp / fp[-1], tp / tp[-1])
    ax.set(xlabel="1 − specificity", ylabel="Recall (sensitivity)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    headline(ax, "ROC", _caption(data))
    key(figure, ax, title="AUROC" if data.positive is not None else "AUROC against the rest")
    clean(ax)
    return figure


def plot_pr(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    thresholds: dict[str, float] | None = None,
    n_boot: int = 500,
    seed: int = 0,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Precision against recall, with band, and prevalence (what random calls give); arguments as for `plot_roc`."""
    data = _need_two(check(y_true, probabilities, classes, positive, groups))
    figure = canvas(on)
    ax = figure.subplots()
    if data.positive is not None:
        prevalence = data.is_positive.mean()
        ax.axhline(prevalence, color=GREY, lw=0.9, ls=BROKEN)
        ax.text(0.01, prevalence - 0.015, f"prevalence {prevalence:.2f}", color=GREY, va="top", fontsize=8.5)
    for name, y, p, style in _against_rest(data):
        cuts, (tp,), (fp,) = ranked_counts(y, p)
        recall, precision = tp / tp[-1], tp / (tp + fp)
        # Steps whose area is the average precision: between two recalls, the precision of the higher.
        steps = np.r_[0, recall], np.r_[precision[0], precision]
        ax.step(*steps, where="pre", label=f"{name} {average_precision(y, p):.3f}", **style)
        if data.positive is not None:
            _band(ax, data, _precision_at_recall, n_boot, seed)
        _mark(ax, thresholds, cuts, recall, precision)
    ax.set(xlabel="Recall (sensitivity)", ylabel="Precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    headline(ax, "Precision against recall", _caption(data))
    key(figure, ax, title="AUPRC" if data.positive is not None else "AUPRC against the rest")
    clean(ax)
    return figure


def plot_reliability(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str | None = None,
    groups: np.ndarray | None = None,
    temperature: float | None = None,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Share against probability in 15 bins, with Wilson's 95 % intervals, and beneath it the images in each bin.

    Two classes: the share of positive images against their probability. More: how often the class with the largest
    probability is right, against that probability.

    Args:
        temperature: what the logits were divided by to give these probabilities, for the title.
    """
    data = check(y_true, probabilities, classes, positive, groups)
    confidence, correct = data.calibration
    figure = canvas(on)
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    right, wrong = ("right", "wrong")
    if data.positive is not None:
        right, wrong = data.classes[data.positive], data.classes[1 - data.positive]
    ax.plot([0, 1], [0, 1], color=GREY, lw=0.9, ls=BROKEN, label="calibrated")
    members = bin_members(confidence).T.astype(bool)  # (M, N)
    for number, inside in enumerate(members[members.any(axis=1)]):
        share = proportion(correct[inside], data.groups[inside], data.groups_known)
        x, ends = confidence[inside].mean(), [[share.value - share.low], [share.high - share.value]]
        label = "" if number else "observed,\nWilson 95 %"
        ax.errorbar(x, share.value, ends, fmt="o", color=BLUE, ms=5, elinewidth=1.4, label=label)
    parts = [confidence[correct], confidence[~correct]]
    edges = np.linspace(0, 1, ECE_BINS + 1)
    below.hist(parts, edges, stacked=True, color=[BLUE, "0.75"], label=[right, wrong], edgecolor="white", lw=0.5)
    ax.set(ylabel=f"Share {right}", ylim=(-0.02, 1.02))
    what = "Largest probability" if data.positive is None else f"Probability of {right}"
    below.set(xlabel=what, ylabel="Images", xlim=(-0.01, 1.01))
    title = "Reliability" if temperature is None else f"Reliability at temperature {temperature:.2f}"
    headline(ax, title, f"{_caption(data)}; ECE {ece(confidence, correct):.3f} in {ECE_BINS} bins")
    key(figure, ax, below)
    clean(ax)
    clean(below)
    return figure


def plot_confusion(
    y_true: np.ndarray,
    predicted: np.ndarray,
    *,
    classes: Sequence[str],
    title: str = "Confusion",
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Images of each true class by the class they were called, and beside that as shares of the true class.

    Args:
        y_true, predicted: (N,) integers, indices into `classes`.
    """
    k = len(classes)
    table = np.zeros((k, k), int)
    np.add.at(table, (check_labels(y_true, classes), check_labels(predicted, classes)), 1)
    rates = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in classes]
    name = 0.075 * max(map(len, names))  # inches of the longest
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if k > 2 or name > 1 else {}
    side = SIZE[0] / 2 - 0.6 if k < 5 else 3.6  # inches of one matrix
    figure = canvas(on, (2 * side + name + 0.8, side + (0.65 * name if turned else 0.2) + 1.1))
    pair = figure.subplots(1, 2, sharey=True)
    for ax, values, form in zip(pair, (table, rates), ("d", ".2f"), strict=True):
        ax.imshow(rates, cmap="Blues", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(values):
            ink = "white" if rates[row, column] > 0.55 else "black"
            ax.text(column, row, f"{value:{form}}", ha="center", va="center", color=ink, fontsize=12 if k < 5 else 7)
        ax.set_xticks(range(k), names, fontsize=9, **turned)
        ax.set_yticks(range(k), names, fontsize=9)
        ax.set_xlabel("Called")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    pair[0].set_ylabel("True class")
    headline(pair[0], title, f"{table.sum()} images")
    headline(pair[1], "", "share of the true class")
    return figure


def plot_threshold(
    y_true: np.ndarray,
    probabilities: np.ndarray,
    *,
    classes: Sequence[str],
    positive: str,
    groups: np.ndarray | None = None,
    thresholds: dict[str, float] | None = None,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Recall, precision and specificity against the threshold, with `thresholds` marked; two classes only."""
    data = _need_two(check(y_true, probabilities, classes, positive, groups))
    figure = canvas(on)
    ax = figure.subplots()
    cuts, (tp,), (fp,) = ranked_counts(data.is_positive, data.p_positive)
    curves = {"recall": tp / tp[-1], "precision": tp / (tp + fp), "specificity": 1 - fp / fp[-1]}
    for (name, values), colour in zip(curves.items(), (BLUE, VERMILION, GREEN), strict=True):
        # A threshold between two scores decides as the higher of them does.
        ax.step(cuts, values, where="post", color=colour, lw=1.8, label=name)
    for (name, threshold), marker in zip((thresholds or {}).items(), MARKERS, strict=False):
        ax.axvline(threshold, color="black", lw=0.9, ls=BROKEN, zorder=1)
        ax.plot(threshold, 1.05, marker, color="black", ms=6.5, label=f"{name}: {threshold:.3g}", ls="")
    ax.set(xlabel=f"Threshold on the probability of {positive}", ylabel="Value", xlim=(-0.01, 1.01), ylim=(-0.01, 1.09))
    headline(ax, "What a threshold does", _caption(data))
    key(figure, ax)
    clean(ax)
    return figure


def plot_choice(
    table: "pd.DataFrame", x: str, curves: Sequence[str], on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """Losses against the setting that was varied, the kept one marked: the lowest of the last curve.

    Args:
        table: a row a setting, as `Run.metrics`; column `x` is above zero and drawn on a logarithmic axis.
        curves: columns to draw; the last is the one that decided.
    """
    figure = canvas(on, (SIZE[0], 3.2))
    ax = figure.subplots()
    for name, colour in zip(curves, COLOURS, strict=False):
        ax.plot(table[x], table[name], "o-", color=colour, lw=1.8, ms=4, label=name)
    kept = table.loc[table[curves[-1]].idxmin()]
    ax.plot(kept[x], kept[curves[-1]], "o", mfc="none", mec="black", ms=11, mew=1.4, label="kept", ls="")
    ax.set(xscale="log", xlabel=x, ylabel="Loss")
    headline(ax, "The setting that was chosen", f"{x} = {kept[x]:g}, of {len(table)} compared by {curves[-1]}")
    key(figure, ax)
    clean(ax)
    return figure


def _need_two(data: Checked) -> Checked:
    if len(np.unique(data.y)) < 2:
        raise EvaluationError(f"A curve needs images of two classes; every one is {data.classes[data.y[0]]}.")
    return data


def _against_rest(data: Checked) -> list[tuple[str, np.ndarray, np.ndarray, dict]]:
    """(name, is it (N,) bool, its probability (N,), style) of the positive class, or of every class that occurs."""
    shown = [data.positive] if data.positive is not None else np.unique(data.y)
    return [(data.classes[k], data.y == k, data.p[:, k], line_style(i, len(shown))) for i, k in enumerate(shown)]


def _roc(tp: np.ndarray, fp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.r_[0, fp / fp[-1]], np.r_[0, tp / tp[-1]]


def _precision_at_recall(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    first = np.searchsorted(tp / tp[-1], np.maximum(GRID, GRID[1]) - 1e-12)
    return tp[first] / (tp[first] + fp[first])


def _band(ax: Axes, data: Checked, curve: Callable, n_boot: int, seed: int) -> None:
    """Shade between the 2.5th and 97.5th percentile of `curve` at each point of GRID."""
    curves = []
    for weights in resampled_weights(data.groups, n_boot, seed):
        _, tp, fp = ranked_counts(data.is_positive, data.p_positive, weights)
        curves += [curve(*row) for row in zip(tp, fp, strict=True) if row[0][-1] and row[1][-1]]
    unit = "patients" if data.groups_known else "images"
    low, high = np.quantile(curves, (0.025, 0.975), axis=0)
    ax.fill_between(GRID, low, high, color=PALE, lw=0, zorder=1.5, label=f"95 % band\n({unit} resampled)")


def _mark(ax: Axes, thresholds: dict[str, float] | None, cuts: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
    """Put a marker where the curve (x, y) passes each threshold; `cuts` fall along it."""
    for (name, threshold), marker in zip((thresholds or {}).items(), MARKERS, strict=False):
        at = int((cuts >= threshold).sum()) - 1
        if at >= 0:
            style = {"color": "black", "ms": 6.5, "ls": "", "zorder": 5, "clip_on": False}
            ax.plot(x[at], y[at], marker, label=f"{name}: {threshold:.3g}", **style)


def _caption(data: Checked) -> str:
    patients = f"{data.groups.max() + 1} patients" if data.groups_known else "patients unknown"
    if data.positive is None:
        return f"{len(data.y)} images, {patients}"
    return f"{len(data.y)} images ({data.is_positive.sum()} {data.classes[data.positive]}), {patients}"
