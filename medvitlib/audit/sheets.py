"""The pictures of an audit: pairs, doubtful labels, and the baselines beside each other."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure, SubFigure

from medvitlib.errors import DataError
from medvitlib.evaluation import Estimate
from medvitlib.pictures import INK, bare, draw_image
from medvitlib.plotstyle import BLUE, GREY, VERMILION, canvas, clean

if TYPE_CHECKING:
    from medvitlib.audit import Audit


def show_pairs(
    audit: "Audit", most: int = 12, columns: int = 4, on: Figure | SubFigure | None = None
) -> Figure | SubFigure:
    """The most telling pairs side by side, with what is the same, what differs, and both ids."""
    dataset, shown = audit.dataset, audit.pairs.head(most)
    if not len(shown):
        raise DataError(f"{dataset.name!r} has no near-duplicates to show.")
    columns = min(columns, len(shown))
    rows = -(-len(shown) // columns)
    figure = on or Figure(figsize=(3.4 * columns, 2.15 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        bare(axis)
    for axis, pair in zip(axes, shown.itertuples(), strict=False):
        left, right = dataset.images[pair.a], dataset.images[pair.b]
        gap = np.full((left.shape[0], max(2, left.shape[1] // 40), left.shape[2]), 255, np.uint8)
        draw_image(axis, np.hstack([left, gap, right]))
        apart = [f"{pair.split_a} | {pair.split_b}"] if "splits" in pair.across else []
        apart += [f"{pair.class_a} | {pair.class_b}"] if "classes" in pair.across else []
        apart += ["two groups"] if "groups" in pair.across else []
        names = f"{_tail(pair.image_a)}  |  {_tail(pair.image_b)}"
        _write(axis, "\n".join([pair.how, ", ".join(apart)]).strip(), 9, names)
    return figure


def show_suspects(audit: "Audit", most: int = 12) -> Figure:
    """The images whose label is most in doubt: the label, and what they look like to a classifier."""
    dataset, shown = audit.dataset, audit.suspects.head(most)
    if not len(shown):
        raise DataError(f"no label of {dataset.name!r} is in doubt.")
    columns = min(6, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.0 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        bare(axis)
    for axis, row in zip(axes, shown.itertuples(), strict=False):
        draw_image(axis, dataset.images[row.i])
        _write(axis, f"{row.label} {row.p_label:.2f}\nor {row.looks_like} {row.p_other:.2f}?", 8, _tail(row.image))
    return figure


def plot_shortcuts(audit: "Audit", on: Figure | SubFigure | None = None) -> Figure | SubFigure:
    """What can be told without looking at the disease, and what a split by image adds: AUROCs with their intervals."""
    measured = {name: value for name, value in audit.baselines.items() if isinstance(value, Estimate)}
    rows = [(f"{name} alone", value, VERMILION) for name, value in measured.items()]
    rows += [(f"features, split {name}", value["auroc"], BLUE) for name, value in (audit.gap or {}).items()]
    figure = canvas(on, (6.0, 0.9 + 0.42 * len(rows)))
    ax = figure.subplots()
    for y, (_, value, colour) in enumerate(rows):
        ax.plot([value.low, value.high], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
        ax.plot(value.value, y, "o", color=colour, ms=6)
        ax.annotate(f"{value.value:.2f}", (value.value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
    ax.axvline(0.5, color=GREY, lw=1, ls="--")
    lowest = min([0.3, *(value.value - 0.02 for _, value, _ in rows)])
    ax.set(xlim=(lowest, 1.02), ylim=(len(rows) - 0.4, -0.8), xlabel="AUROC, out of fold (dashed: a guess)")
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    clean(ax)
    return figure


def _write(axis, title: str, size: float, below: str) -> None:
    """As it is: names of files and classes may hold a dollar sign, which is no formula."""
    axis.set_title(title, fontsize=size, color=INK, parse_math=False)
    axis.set_xlabel(below, fontsize=6.5, color="0.35", parse_math=False)


def _tail(name: str, most: int = 24) -> str:
    return name if len(name) <= most else "..." + name[3 - most :]
