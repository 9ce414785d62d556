"""What an adaptation is worth against what it costs, and which variants no other one beats on both."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from medvitlib.errors import EvaluationError, one_of
from medvitlib.evaluation.intervals import Estimate
from medvitlib.plotstyle import COLOURS, GREY, MARKERS, canvas, clean, headline, key

if TYPE_CHECKING:
    import pandas as pd

FASTER = ("img/s",)  # columns of which more is better


def plot_pareto(
    worth: Mapping[str, Estimate],
    costs: "pd.DataFrame",
    columns: Sequence[str] = ("trained", "gzipped MB"),
    *,
    metric: str = "accuracy",
    unlike: Sequence[str] = (),
    on: Figure | SubFigure | None = None,
) -> Figure | SubFigure:
    """A panel for each cost: the metric with its interval, and a line through what nothing else beats on both.

    Args:
        worth: variant -> its metric on the test images, of which more is better.
        costs: of `cost_table`, indexed by variant; a variant whose cost is nan or 0 is left out of that panel.
        columns: of `costs`; a logarithmic axis each.
        unlike: variants that do not compete, such as those from random numbers; drawn hollow, and not on the line.

    Raises:
        EvaluationError: a column or variant that the costs do not have.
    """
    for column in columns:
        one_of("column", column, costs.columns, EvaluationError)
    for name in (*worth, *unlike):
        one_of("variant", name, costs.index, EvaluationError)
    figure = canvas(on, (4.2 * len(columns) + 2.6, 4.2))
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axis, column in zip(panels, columns, strict=True):
        shown = {name: costs.loc[name, column] for name in worth if costs.loc[name, column] > 0}
        for number, name in enumerate(worth):
            if name not in shown:
                continue
            found, colour = worth[name], COLOURS[number % len(COLOURS)]
            bars = [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]]
            style = {"marker": MARKERS[number // len(COLOURS) % len(MARKERS)], "ms": 8, "ls": ""}
            style |= {"mfc": "white" if name in unlike else colour, "color": colour, "elinewidth": 1, "capsize": 2}
            axis.errorbar(shown[name], found.value, np.nan_to_num(bars), **style, label=name)
        best = frontier({n: (x, worth[n].value) for n, x in shown.items() if n not in unlike}, column in FASTER)
        axis.plot([shown[n] for n in best], [worth[n].value for n in best], color=GREY, lw=1, ls="--", zorder=0)
        axis.set_xscale("log")
        narrow = max(shown.values(), default=1) < 30 * min(shown.values(), default=1)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 1k, 1M
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(column)
        clean(axis)
    panels[0].set_ylabel(metric)
    headline(panels[0], "Worth against cost", "dashed: no other is better and cheaper; bars: 95 % intervals")
    key(figure, panels[int(np.argmax([(costs.loc[list(worth), c] > 0).sum() for c in columns]))])
    return figure


def frontier(points: Mapping[str, tuple[float, float]], more: bool = False) -> list[str]:
    """Names of the (cost, worth) that no other one beats on both, from cheap to dear.

    Args:
        more: whether more of the cost is better.
    """
    order = sorted(points, key=lambda name: (-points[name][0] if more else points[name][0], -points[name][1]))
    found: list[str] = []
    for name in order:
        if not found or points[name][1] > points[found[-1]][1]:
            found.append(name)
    return found
