"""A search's parameters become levels, and levels places on an axis."""

import numpy as np
import pandas as pd
import pytest

from medvitlib.errors import EvaluationError
from medvitlib.search.points import axis_places, levels_of, point_values


def places(values) -> dict[str, float]:
    return axis_places(levels_of(pd.DataFrame({"a": values}), "a"))[1]


def test_numbers_are_sorted_and_words_keep_their_order():
    table = pd.DataFrame({"number": [4, 1, 4, 2], "word": ["b", "a", "b", "c"], "odd": [None, [1, 2], True, None]})
    found = levels_of(table, "number")
    assert found.values == [1, 2, 4] and list(found.codes) == [2, 0, 2, 1] and found.numeric
    found = levels_of(table, "word")
    assert found.values == ["b", "a", "c"] and list(found.codes) == [0, 1, 0, 2] and not found.numeric
    assert levels_of(table, "odd").names == ["None", "[1, 2]", "True"]


def test_different_numbers_have_different_names():
    assert levels_of(pd.DataFrame({"a": [0.100001, 0.100002, 0.1]}), "a").names == ["0.1", "0.100001", "0.100002"]
    assert levels_of(pd.DataFrame({"a": [1e-4, 224.0]}), "a").names == ["0.0001", "224"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 16, 32], [0, 1 / 3, 1]),
        ([0.1, 0.3, 0.5], [0, 0.5, 1]),
        ([1e-5, 1e-4, 1e-3], [0, 0.5, 1]),  # a decade or more: by the logarithm
        ([1, 2, 4, 8, 16], [0, 0.25, 0.5, 0.75, 1]),
        (list(range(1, 13)), np.linspace(0, 1, 12)),  # even steps, though they span a decade
        ([0, 1e-4, 0.05], [0, 0.5, 1]),  # too close to be told apart: evenly spaced
        (["b", "a"], [0, 1]),
        ([3], [0.5]),
    ],
)
def test_where_values_lie(values, expected):
    assert list(places(values).values()) == pytest.approx(list(expected))


def test_many_numbers_have_few_round_ticks():
    rng = np.random.default_rng(0)
    assert list(places(10 ** rng.uniform(-5, -2, 60))) == ["0.0001", "0.001"]
    assert list(places(rng.uniform(0, 0.5, 60))) == ["0.1", "0.2", "0.3", "0.4"]  # no logarithm for a uniform draw


def test_values_are_numbers_and_whatever_is_none_is_nan():
    table = pd.DataFrame({"a": [1, 2, 3], "value": [0.5, None, np.inf]})
    np.testing.assert_array_equal(point_values(table, ["a"]), [0.5, np.nan, np.nan])
    with pytest.raises(EvaluationError, match="expected numbers"):
        point_values(table.assign(value="good"), ["a"])
    with pytest.raises(EvaluationError, match="3 rows and the columns a: expected a row a point"):
        point_values(table[["a"]], ["a"])
