"""The parameter that the metric was made from explains it; what cannot be explained is said."""

import io
import itertools

import numpy as np
import optuna
import pandas as pd
import pytest

from medvitlib.errors import EvaluationError
from medvitlib.search.importance import parameter_importance, plot_importance

GRID = pd.DataFrame(itertools.product([8, 16, 32], ["sgd", "adamw", "adam"], [0.1, 0.3, 0.5]), columns=list("abc"))


def test_shares_follow_the_variance_that_each_parameter_brings():
    """Effects without interaction, each over three even levels: variance 2/3 of the square of its step."""
    steps = {"a": {8: -3, 16: 0, 32: 3}, "b": {"sgd": -2, "adamw": 0, "adam": 2}, "c": {0.1: 0, 0.3: 0, 0.5: 0}}
    value = sum(GRID[name].map(effect) for name, effect in steps.items())
    found = parameter_importance(GRID.assign(value=value.astype(float)), list("abc"))
    assert list(found.index) == ["a", "b", "c"] and found.sum() == pytest.approx(1)
    assert found["a"] == pytest.approx(9 / 13, abs=0.06) and found["c"] < 0.02


def test_a_lone_word_can_matter_most_and_failed_points_are_left_out():
    value = np.where(GRID.b == "adamw", 0.9, 0.5) + 0.01 * np.random.default_rng(0).normal(size=27)
    table = GRID.assign(value=value)
    table.loc[[0, 5], "value"] = np.nan
    found = parameter_importance(table, list("abc"))
    assert found.index[0] == "b" and found["b"] > 0.9


def test_a_drawn_learning_rate_is_seen_by_its_logarithm_and_repeats():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"lr": 10 ** rng.uniform(-5, -2, 40), "dropout": rng.uniform(0, 0.5, 40), "heads": 4})
    table["value"] = -((np.log10(table.lr) + 3.5) ** 2)
    found = parameter_importance(table, ["lr", "dropout", "heads"])
    assert found["lr"] > 0.9 and found["heads"] == 0
    assert found.equals(parameter_importance(table, ["lr", "dropout", "heads"]))


def test_the_logging_of_others_is_left_as_it_was(capsys):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    parameter_importance(GRID.assign(value=GRID.a / 32), list("abc"))
    assert optuna.logging.get_verbosity() == optuna.logging.INFO and "study" not in capsys.readouterr().err


def test_bars_stand_in_order_with_their_share():
    figure = plot_importance(pd.Series({"heads": 0.1, "patch_size": 0.655, "dropout": 0.245}))
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["heads", "dropout", "patch_size"]  # from below
    assert [bar.get_width() for bar in ax.patches] == [0.1, 0.245, 0.655]
    assert {"10 %", "24 %", "66 %"} <= {text.get_text() for text in ax.texts}
    figure.savefig(io.BytesIO())


def test_where_all_points_are_alike_nothing_matters():
    assert parameter_importance(GRID.assign(value=0.5), list("abc")).to_dict() == dict.fromkeys("abc", 0.0)


def test_what_has_no_importance_is_said():
    with pytest.raises(EvaluationError, match="1 point: what"):
        parameter_importance(GRID.assign(value=0.5).head(1), list("abc"))
    with pytest.raises(EvaluationError, match="None of d varies"):
        parameter_importance(GRID.assign(d=1, value=np.arange(27.0)), ["d"])
    with pytest.raises(EvaluationError, match="one parameter at least"):
        plot_importance(pd.Series(dtype=float))
    two = parameter_importance(GRID.assign(value=np.arange(27.0)).iloc[[0, 26]], list("abc"))
    assert two.sum() == pytest.approx(1)
