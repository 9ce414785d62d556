"""Pictures of a search: heat maps of its grid, and every point as a line; its table is described in `gridtable`."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from medvitlib.errors import EvaluationError
from medvitlib.plotstyle import GREY, VERMILION, canvas
from medvitlib.search.points import MOST_LEVELS, NOT_PARAMETERS, axis_places, counted, levels_of, point_values

if TYPE_CHECKING:
    import pandas as pd

FAILED = -0.16  # where a line without a metric ends
SHADES = ListedColormap(colormaps["Blues"](np.linspace(0.2, 1, 256)), "better is darker")


def plot_grid(
    table: "pd.DataFrame",
    row: str,
    column: str,
    panel: str | None = None,
    *,
    metric: str = "validation accuracy",
    larger_is_better: bool = True,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Heat maps of the metric, one for each value of `panel`, in shared colours; the best cell is outlined.

    A cell is the mean over all points in it, whose other parameters differ; failed ones are left out. Where no
    point has a value the cell is hatched.

    Args:
        row, column, panel: parameters, columns of `table`.
        metric: what "value" is, for the title.
        larger_is_better: else the smallest is outlined, and darkest.

    Raises:
        EvaluationError: no point with a value, a column that is missing, or a parameter of too many values.
    """
    shown = [name for name in (row, column, panel) if name is not None]
    values = point_values(table, shown)
    levels = {name: levels_of(table, name) for name in shown}
    for name in shown:
        if len(levels[name].values) > MOST_LEVELS:
            raise EvaluationError(
                f"{name} has {len(levels[name].values)} values; a heat map has room for {MOST_LEVELS}: plot_parallel "
                "shows a search that is no grid."
            )
    shape = [len(levels[name].values) for name in shown] + [1] * (3 - len(shown))
    codes = [levels[name].codes for name in shown] + [np.zeros(len(table), int)] * (3 - len(shown))
    known = np.isfinite(values)
    count, total, spread = np.zeros(shape, int), np.zeros(shape), np.full(shape, np.nan)
    np.add.at(count, tuple(code[known] for code in codes), 1)
    np.add.at(total, tuple(code[known] for code in codes), values[known])
    cells = np.divide(total, count, out=np.full(shape, np.nan), where=count > 0)
    if "sd" in table and count.max() == 1:
        spread[tuple(code[known] for code in codes)] = table["sd"].to_numpy(float)[known]

    scale = ScalarMappable(Normalize(np.nanmin(cells), np.nanmax(cells)), _shades(larger_is_better))
    best = np.nanmax(cells) if larger_is_better else np.nanmin(cells)
    across = min(shape[2], 4)
    down = -(-shape[2] // across)
    width, height = max(0.72 * shape[1], 1.5), max(0.52 * shape[0], 1.0)  # of a panel, in inches
    size = max(across * (width + 0.25) + 1.9, 5.2), down * (height + 0.55) + 1.0
    figure = canvas(on, size)
    axes = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for number, ax in enumerate(axes.flat):
        if number >= shape[2]:
            ax.set_visible(False)
            continue
        _draw_cells(ax, cells[:, :, number], spread[:, :, number], scale, best)
        ax.set_xticks(range(shape[1]), levels[column].names)
        ax.set_yticks(range(shape[0]), levels[row].names)
        ax.tick_params(length=0, labelsize=9)
        ax.tick_params(labelbottom=number + across >= shape[2])
        ax.spines[:].set_visible(False)
        if number + across >= shape[2]:
            ax.set_xlabel(column)
        if panel is not None:
            ax.set_title(f"{panel} {levels[panel].names[number]}", fontsize=10, loc="left")
    for ax in axes[:, 0]:
        ax.set_ylabel(row)
    bar = figure.colorbar(scale, ax=axes, fraction=min(0.05, 0.5 / size[0]), shrink=0.9, aspect=14)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5)
    _heading(figure, axes[0, 0], metric, _grid_caption(table, shown, cells, best, known, count.max() > 1))
    return figure


def plot_parallel(
    table: "pd.DataFrame",
    parameters: Sequence[str],
    *,
    metric: str = "validation accuracy",
    larger_is_better: bool = True,
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """Every point as a line through its parameters to its metric, the darker the better, and the best in red.

    Lines that share a value pass it side by side, in the order of their metric. Points without a value are grey.

    Args:
        parameters: columns of `table`, an axis each, from left to right.

    Raises:
        EvaluationError: no parameter, no point with a value, or a column that is missing.
    """
    if isinstance(parameters, str) or not len(parameters):
        raise EvaluationError(f"parameters is {parameters!r}; expected a list of columns, one at least.")
    values = point_values(table, parameters)
    known = np.isfinite(values)
    low, high = values[known].min(), values[known].max()
    order = np.argsort(np.where(known, values if larger_is_better else -values, -np.inf), kind="stable")
    best = order[-1]
    figure = canvas(on, (1.75 * len(parameters) + 2.6, 3.9))
    ax = figure.subplots()
    places, point = [], []
    for at, name in enumerate(parameters):
        levels = levels_of(table, name)
        positions, ticks = axis_places(levels)
        places.append(_side_by_side(positions[levels.codes], np.where(known, values, -np.inf)))
        point.append(f"{name}\N{NO-BREAK SPACE}{levels.names[levels.codes[best]]}")
        _draw_axis(ax, at, ticks)
    to_unit = Normalize(low, high) if high > low else (lambda value: np.full(np.shape(value), 0.5))
    ends = [end for end in MaxNLocator(5).tick_values(low, high) if low <= end <= high]
    digits = max((len(f"{end:.6g}".partition(".")[2]) for end in ends), default=3)
    ticks = {f"{end:.{digits}f}": float(to_unit(end)) for end in ends} if high > low else {_number(low): 0.5}
    places.append(np.where(known, to_unit(np.where(known, values, low)), FAILED))
    _draw_axis(ax, len(parameters), ticks, right=True)
    if not known.all():
        ax.text(len(parameters) + 0.05, FAILED, "no value", va="center", fontsize=9, color=GREY)
    curves = _curves(np.stack(places, axis=1))
    inks = _shades(larger_is_better)(to_unit(np.where(known, values, low)))
    inks[~known] = 0.78, 0.78, 0.78, 1
    ax.add_collection(LineCollection(curves[order[:-1]], colors=inks[order[:-1]], lw=1.3, zorder=2))
    ax.add_collection(LineCollection(curves[[best]], colors=VERMILION, lw=3, zorder=3))
    ax.set(xlim=(-0.35, len(parameters) + 0.3), ylim=(-0.07 if known.all() else FAILED - 0.05, 1.07), yticks=[])
    ax.set_xticks(range(len(parameters) + 1), [*parameters, metric], fontsize=10)
    ax.tick_params(length=0, pad=5)
    ax.xaxis.tick_top()
    ax.spines[:].set_visible(False)
    caption = f"{counted(known)}, the darker the better; in red the best, {_number(values[best])}: {', '.join(point)}"
    _heading(figure, ax, metric, caption)
    return figure


def _side_by_side(positions: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) positions on an axis, those that are the same spread a little, in the order of the metric."""
    places = positions.copy()
    for position in np.unique(positions):
        there = np.flatnonzero(positions == position)
        reach = min(0.025, 0.006 * (len(there) - 1))
        places[there[np.argsort(values[there], kind="stable")]] += np.linspace(-reach, reach, len(there))
    return places


def _curves(places: np.ndarray, steps: int = 24) -> np.ndarray:
    """(N, points, 2): from axis to axis along a smooth step, which leaves and arrives level; places (N, axes)."""
    t = np.linspace(0, 1, steps)
    ease = t * t * (3 - 2 * t)
    parts = places[:, :-1, None] * (1 - ease) + places[:, 1:, None] * ease  # (N, axes - 1, steps)
    x = np.broadcast_to(np.arange(parts.shape[1])[:, None] + t, parts.shape)
    return np.stack([x, parts], axis=-1).reshape(len(places), -1, 2)


def _draw_axis(ax: Axes, at: int, ticks: dict[str, float], right: bool = False) -> None:
    ax.plot([at, at], [-0.04, 1.04], color="0.35", lw=1, zorder=4)
    for name, place in ticks.items():
        ax.plot([at - 0.015, at + 0.015], [place, place], color="0.35", lw=1, zorder=4)
        box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1}
        style = {"va": "center", "ha": "left" if right else "right", "fontsize": 9, "bbox": box, "zorder": 5}
        ax.text(at + (0.05 if right else -0.045), place, name, **style)


def _draw_cells(ax: Axes, cells: np.ndarray, spread: np.ndarray, scale: ScalarMappable, best: float) -> None:
    ax.imshow(cells, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="nearest")
    for (row, column), value in np.ndenumerate(cells):
        corner = column - 0.5, row - 0.5
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", lw=1.2, zorder=2))
        if np.isnan(value):
            ax.add_patch(Rectangle(corner, 1, 1, facecolor="0.94", edgecolor="0.75", hatch="////", lw=0))
            continue
        red, green, blue, _ = scale.to_rgba(value)
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "black"
        text = _number(value) + ("" if np.isnan(spread[row, column]) else f"\n± {_number(spread[row, column])}")
        ax.text(column, row, text, ha="center", va="center", color=ink, fontsize=9, linespacing=1.1)
        if value == best:
            ax.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=VERMILION, lw=2.6, zorder=3, clip_on=False))


def _grid_caption(
    table: "pd.DataFrame", shown: Sequence[str], cells: np.ndarray, best: float, known: np.ndarray, averaged: bool
) -> str:
    caption = f"{counted(known)}; outlined: the best{' mean' if averaged else ''}, {_number(best)}"
    if averaged:
        others = [str(name) for name in table.columns if name not in (*NOT_PARAMETERS, *shown)]
        others = [name for name in others if len(levels_of(table, name).values) > 1]
        caption += f"; each cell is the mean over {', '.join(others) or 'its points'}"
    return caption + ("; hatched: no value" if np.isnan(cells).any() else "")


def _heading(figure: Figure | SubFigure, ax: Axes, metric: str, caption: str) -> None:
    """Title and caption over the whole figure, as `headline` puts them over one pair of axes."""
    lines = wrap(caption, int(15 * figure.bbox.width / figure.dpi))
    title = figure.suptitle(_capital(metric) + "\n" * len(lines), x=0.01, ha="left", fontsize=11, fontweight="bold")
    style = {"xycoords": title, "textcoords": "offset points", "fontsize": 8.5, "color": GREY, "va": "bottom"}
    ax.annotate("\n".join(lines), (0, 0), (0, 1), **style, annotation_clip=False).set_in_layout(False)


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _shades(larger_is_better: bool) -> ListedColormap:
    return SHADES if larger_is_better else SHADES.reversed()
