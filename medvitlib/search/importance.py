"""What the metric of a search depends on, and how much."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure, SubFigure

from medvitlib.errors import EvaluationError
from medvitlib.plotstyle import BLUE, canvas, headline
from medvitlib.search.points import MOST_LEVELS, Levels, axis_places, counted, levels_of, point_values

if TYPE_CHECKING:
    import pandas as pd


def parameter_importance(table: "pd.DataFrame", parameters: Sequence[str]) -> "pd.Series":
    """Share of the metric's variance that each parameter explains (fANOVA, Hutter et al. 2014), the largest first.

    A random forest fits the metric, and its variance over the whole space is divided among the parameters; what only
    their combinations explain is left out, and the rest sums to 1. The values of a grid count alike, however far apart.
    From few points the forest fits noise too: a share is a hint, no test. Where all values are alike, every share is 0.

    Raises:
        EvaluationError: fewer than two points with a value, no parameter that varies.
    """
    import optuna
    import pandas as pd

    values = point_values(table, parameters)
    known = np.isfinite(values)
    if known.sum() < 2:
        raise EvaluationError(f"{counted(known)}: what the metric depends on needs two points at least.")
    levels = {name: levels_of(table[known], name) for name in parameters}
    varied = {name: found for name, found in levels.items() if len(found.values) > 1}
    if not varied:
        raise EvaluationError(f"None of {', '.join(parameters)} varies among the points that have a value.")
    if np.ptp(values[known]) == 0:
        return pd.Series(0.0, index=list(parameters), name="importance")
    space, places = {}, {}
    for name, found in varied.items():
        places[name], ends = _coordinates(found)
        words = optuna.distributions.CategoricalDistribution(range(len(found.values)))
        space[name] = optuna.distributions.FloatDistribution(*ends) if found.numeric else words
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        for number, value in enumerate(values[known]):
            place = {name: column[number].item() for name, column in places.items()}
            study.add_trial(optuna.trial.create_trial(params=place, distributions=space, value=value))
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    complete = pd.Series({name: float(shares.get(name, 0.0)) for name in parameters}, name="importance")
    return complete.sort_values(ascending=False, kind="stable")


def plot_importance(importance: "pd.Series", *, on: Figure | SubFigure | None = None) -> Figure | SubFigure:
    """A bar a parameter with its share of the metric's variance, the longest on top; see `parameter_importance`."""
    if not len(importance):
        raise EvaluationError("No importance was given: expected a share for one parameter at least.")
    shares = importance.sort_values(kind="stable")
    figure = canvas(on, (5.6, 0.36 * len(shares) + 0.8))
    ax = figure.subplots()
    bars = ax.barh([str(name) for name in shares.index], shares, color=BLUE, height=0.62)
    ax.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=4, fontsize=9)
    ax.set(xlim=(0, 1.12 * max(shares.max(), 0.01)), ylim=(-0.5, len(shares) - 0.5), xticks=[])
    ax.tick_params(length=0, labelsize=10)
    ax.spines[["top", "right", "bottom"]].set_visible(False)
    headline(ax, "What the metric depends on", "share of its variance (fANOVA); from few points a hint, no test")
    return figure


def _coordinates(levels: Levels) -> tuple[np.ndarray, tuple[float, float]]:
    """(N,) where each point lies, and the ends of the space: every value of a grid has the same share of it."""
    if levels.numeric and len(levels.values) > MOST_LEVELS:
        return axis_places(levels)[0][levels.codes], (0.0, 1.0)
    return levels.codes, (-0.5, len(levels.values) - 0.5)
