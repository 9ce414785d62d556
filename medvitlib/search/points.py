"""The table of a search, read for its pictures: values, the levels of a parameter, and where they lie on an axis.

A row a point: a column for each parameter (numbers or words), "value" (the metric, the mean over its seeds; nan where
the point failed or was stopped) and, where there are several seeds, "sd". Every other column is a parameter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from medvitlib.errors import EvaluationError, one_of

if TYPE_CHECKING:
    import pandas as pd

NOT_PARAMETERS = ("value", "sd")
MOST_LEVELS = 16  # of which each has a tick, or a row of cells


class Levels(NamedTuple):
    """The different values of a parameter in order, as they are and as text, and which one each point has (N,)."""

    values: list
    names: list[str]
    codes: np.ndarray

    @property
    def numeric(self) -> bool:
        return all(isinstance(value, int | float | np.number) and not isinstance(value, bool) for value in self.values)


def point_values(table: "pd.DataFrame", parameters: Sequence[str]) -> np.ndarray:
    """(N,) float64 of the column "value", nan for failed points; the columns are there and something has a value."""
    if not len(table) or "value" not in table:
        raise EvaluationError(
            f"The table has {len(table)} rows and the columns {', '.join(map(str, table.columns)) or 'none'}: expected "
            "a row a point, a column for each parameter, and their 'value'."
        )
    known = [str(name) for name in table.columns if name not in NOT_PARAMETERS]
    for name in parameters:
        one_of("parameter", name, known, EvaluationError)
    if len(set(parameters)) < len(parameters):
        raise EvaluationError(f"{', '.join(parameters)}: each parameter can be shown once.")
    try:
        values = table["value"].astype(float).to_numpy(float)
    except (TypeError, ValueError) as error:
        raise EvaluationError(f"The column 'value' holds {error}: expected numbers, nan for a failed point.") from None
    values = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(values).all():
        raise EvaluationError(f"None of the {len(values)} points has a value: all failed or were stopped.")
    return values


def levels_of(table: "pd.DataFrame", name: str) -> Levels:
    """Numbers in rising order; words in the order in which they come; lists as text."""
    scalar = (str, int, float, bool, np.generic)
    values = [value if isinstance(value, scalar) and value == value else str(value) for value in table[name].tolist()]
    different = list(dict.fromkeys(values))
    levels = Levels(different, [], np.zeros(0, int))
    if levels.numeric:
        different.sort()
    names = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in different]
    if len(set(names)) < len(names):
        names = [str(value) for value in different]
    return Levels(different, names, np.array([different.index(value) for value in values]))


def axis_places(levels: Levels) -> tuple[np.ndarray, dict[str, float]]:
    """(levels,) where each lies on an axis from 0 to 1, and the ticks as {text: place}.

    Numbers that span a decade and step evenly in their logarithm have a logarithmic axis; words, and numbers of which
    two would lie too close to be told apart, are evenly spaced.
    """
    count = len(levels.values)
    even = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    if not levels.numeric or count == 1:
        return even, dict(zip(levels.names, even, strict=True))
    numbers = np.array(levels.values, float)
    logarithmic = (
        numbers[0] > 0 and numbers[-1] / numbers[0] >= 10 and _off_centre(np.log(numbers)) <= _off_centre(numbers)
    )
    scale = np.log if logarithmic else np.asarray
    low, high = scale(numbers[0]), scale(numbers[-1])
    positions = (scale(numbers) - low) / (high - low)
    if count <= MOST_LEVELS:
        positions = positions if np.diff(positions).min() > 0.06 else even
        return positions, dict(zip(levels.names, positions, strict=True))
    marks = MaxNLocator(5).tick_values(numbers[0], numbers[-1])
    if logarithmic:
        marks = 10.0 ** np.arange(np.ceil(np.log10(numbers[0])), np.log10(numbers[-1]) + 1e-9)
        marks = marks if len(marks) > 1 else np.geomspace(numbers[0], numbers[-1], 4)
    inside = [mark for mark in marks if numbers[0] <= mark <= numbers[-1]]
    return positions, {f"{mark:.3g}": float((scale(mark) - low) / (high - low)) for mark in inside}


def _off_centre(numbers: np.ndarray) -> float:
    """How far the median lies from the middle of the range, of which it is a share; 0 for even steps."""
    return float(abs(np.median(numbers) - (numbers[0] + numbers[-1]) / 2) / (numbers[-1] - numbers[0]))


def counted(known: np.ndarray) -> str:
    """ "27 points", or "27 points, 4 without a value"."""
    points = f"{len(known)} point{'s' if len(known) > 1 else ''}"
    return points if known.all() else f"{points}, {int((~known).sum())} without a value"
