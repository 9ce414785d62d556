"""A notebook's figures against its table: what tolerance each gets, and what turns the notebook red."""

import json

import numpy as np
import pytest

from medvitlib.evaluation import build_report
from medvitlib.tools import figures
from medvitlib.tools.figures import FACTOR, NEAR, RECORD, SMALLEST, Figures, tolerances, write_table


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "expected_path", lambda number: tmp_path / f"{number}.json")
    return tmp_path / "07.json"


def recorded(**groups):
    return {group: {name: (value, 0.0) for name, value in rows.items()} for group, rows in groups.items()}


def test_a_tolerance_is_several_times_the_spread_of_its_group():
    one = recorded(even={"a": 0.5, "b": 200.0}, noisy={"a": 0.5, "b": 0.5}, wild={"a": 0.1})
    two = recorded(even={"a": 0.5, "b": 200.0}, noisy={"a": 0.51, "b": 0.5}, wild={"a": 0.2})
    made = tolerances({"native": one, "sse": two}, {"seed": 0})
    assert made["figures"]["even"] == {"even: a": [0.5, SMALLEST], "even: b": [200.0, 200 * SMALLEST]}
    assert made["figures"]["noisy"]["noisy: b"] == [0.5, pytest.approx(FACTOR * 0.01)]
    assert "differs by up to 0.1" in made["not compared"]["wild"] and made["measured in"] == ["native", "sse"]


def test_decisions_are_compared_only_where_the_scores_hardly_differ():
    groups = {"m": {"auroc": 0.9}, "m, decisions": {"accuracy": 0.8}, "n": {"auroc": 0.9}, "n, decisions": {"f1": 0.7}}
    one, two = recorded(**groups), recorded(**groups)
    two["m"]["auroc"] = (0.902, 0.0)
    made = tolerances({"native": one, "sse": two}, {})
    assert made["figures"].keys() == {"m", "n", "n, decisions"} and "m, decisions" in made["not compared"]


def test_images_near_a_threshold_widen_what_is_decided_by_it_alone():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 100), rng.uniform(0.6, 0.9, 100)
    p[:4] = 0.5 + NEAR / 2
    numbers = Figures("07", {})
    numbers.add("model", build_report(y, p, classes=["a", "b"], positive="b", n_boot=100))
    fewest = np.bincount(y).min()
    assert numbers.found["model"]["auroc"][1] == 0
    assert numbers.found["model, decisions"]["accuracy"][1] == pytest.approx(4 / fewest)


def test_a_figure_outside_its_tolerance_turns_the_notebook_red(table, capsys):
    write_table(table, tolerances({"native": recorded(m={"auroc": 0.9, "nll": 0.3})}, {"seed": 0}))

    def checked(**values):
        numbers = Figures("07", {"seed": values.pop("seed", 0)})
        numbers.add("m", values)
        numbers.check()
        return capsys.readouterr().out

    assert checked(auroc=0.901, nll=0.3) == "2 figures within tolerance\n"
    for wrong in ({"auroc": 0.92, "nll": 0.3}, {"auroc": 0.9}, {"auroc": float("nan"), "nll": 0.3}):
        with pytest.raises(AssertionError, match="1 of 2 figures differ"):
            checked(**wrong)
    assert checked(auroc=0.5, nll=0.3, seed=1) == "not compared: seed differ from the committed notebook's\n"


def test_figures_are_recorded_where_that_is_asked_for(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(RECORD, str(tmp_path / "values.json"))
    numbers = Figures("07", {})
    numbers.add("m", {"auroc": 0.9})
    numbers.check()
    assert json.loads((tmp_path / "values.json").read_text()) == {"m": {"auroc": [0.9, 0.0]}}
    monkeypatch.delenv(RECORD)
    numbers.check()
    assert capsys.readouterr().out == "figures recorded\nnothing to compare with: there is no 07.json\n"
