"""Every metric, on every row of weights, is scikit-learn's with sample_weight."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medvitlib.evaluation.inputs import Checked
from medvitlib.evaluation.metrics import (
    auroc,
    average_precision,
    brier,
    class_counts,
    ece,
    nll,
    quadratic_kappa,
    score_metrics,
    threshold_metrics,
)


def drawn(seed: int, n: int = 60, k: int = 2, rows: int = 3, levels: int = 7):
    """Labels, probabilities on a few levels (so that many tie) and multiplicities with zeros, every class present."""
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(k), rng.integers(k, size=n - k)]
    p = rng.integers(1, levels, size=(n, k)).astype(float)
    p /= p.sum(axis=1, keepdims=True)
    weights = rng.poisson(1.0, size=(rows, n)).astype(float)
    weights[:, :k] = 1
    return y, p, weights


def checked(y, p, positive=None):
    names = tuple("abcdefgh"[: p.shape[1]])
    return Checked(y, p, names, positive, np.arange(len(y)), False)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 80), st.integers(2, 30))
def test_ranking_metrics_equal_scikit_learn_with_ties_and_weights(seed, n, levels):
    y, p, weights = drawn(seed, n=n, levels=levels)
    positive = y == 1
    areas, steps = auroc(positive, p[:, 1], weights), average_precision(positive, p[:, 1], weights)
    for row, area, step in zip(weights, areas, steps, strict=True):
        assert area == pytest.approx(sk.roc_auc_score(positive, p[:, 1], sample_weight=row), abs=1e-12)
        assert step == pytest.approx(sk.average_precision_score(positive, p[:, 1], sample_weight=row), abs=1e-12)
    assert auroc(positive, p[:, 1]) == pytest.approx(sk.roc_auc_score(positive, p[:, 1]), abs=1e-12)


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_two_class_decisions_equal_scikit_learn(seed, positive):
    y, p, weights = drawn(seed)
    called = p.argmax(axis=1)
    found = threshold_metrics(class_counts(y, called, 2, weights), positive)
    for i, row in enumerate(weights):
        given = {"y_true": y, "y_pred": called, "sample_weight": row}
        expected = {
            "accuracy": sk.accuracy_score(**given),
            "balanced_accuracy": sk.balanced_accuracy_score(**given),
            "precision": sk.precision_score(**given, pos_label=positive),
            "recall": sk.recall_score(**given, pos_label=positive),
            "specificity": sk.recall_score(**given, pos_label=1 - positive),
            "f1": sk.f1_score(**given, pos_label=positive),
            "mcc": sk.matthews_corrcoef(**given),
        }
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_the_kappa_of_grades_equals_scikit_learn(seed, k):
    y, p, weights = drawn(seed, n=80, k=k)
    called = p.argmax(axis=1)
    found = quadratic_kappa(y, called, k, weights)
    for row, value in zip(weights, found, strict=True):
        expected = sk.cohen_kappa_score(y, called, weights="quadratic", sample_weight=row)
        assert value == pytest.approx(expected, abs=1e-12)
    assert quadratic_kappa(y, called, k) == pytest.approx(sk.cohen_kappa_score(y, called, weights="quadratic"))
    assert quadratic_kappa(y, y, k) == 1 and np.isnan(quadratic_kappa(np.zeros(3, int), np.zeros(3, int), k))


@pytest.mark.parametrize("seed", range(5))
def test_many_class_decisions_equal_scikit_learn(seed):
    y, p, weights = drawn(seed, n=80, k=5)
    called = p.argmax(axis=1)
    called[called == 4] = 0  # a class that is never called: its precision counts as 0
    found = threshold_metrics(class_counts(y, called, 5, weights), None)
    for i, row in enumerate(weights):
        given = {"y_true": y, "y_pred": called, "sample_weight": row}
        tables = sk.multilabel_confusion_matrix(**given)
        expected = {
            "accuracy": sk.accuracy_score(**given),
            "balanced_accuracy": sk.balanced_accuracy_score(**given),
            "mcc": sk.matthews_corrcoef(**given),
            "specificity_macro": np.mean(tables[:, 0, 0] / tables[:, 0].sum(axis=1)),
        }
        for average in ("macro", "weighted"):
            options = {**given, "average": average, "zero_division": 0}
            expected[f"precision_{average}"] = sk.precision_score(**options)
            expected[f"recall_{average}"] = sk.recall_score(**options)
            expected[f"f1_{average}"] = sk.f1_score(**options)
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_many_class_scores_equal_scikit_learn():
    y, p, weights = drawn(1, n=90, k=4)
    found = score_metrics(checked(y, p), weights)
    for i, row in enumerate(weights):
        one_hot = np.eye(4)[y]
        assert found["auroc_macro"][i] == pytest.approx(
            sk.roc_auc_score(y, p, multi_class="ovr", average="macro", sample_weight=row), abs=1e-12
        )
        assert found["auprc_macro"][i] == pytest.approx(
            sk.average_precision_score(one_hot, p, average="macro", sample_weight=row), abs=1e-12
        )
        assert found["nll"][i] == pytest.approx(sk.log_loss(y, p, sample_weight=row), abs=1e-12)
        assert found["brier"][i] == pytest.approx(np.average(((p - one_hot) ** 2).sum(axis=1), weights=row), abs=1e-12)


def test_brier_and_nll_of_two_classes_equal_scikit_learn():
    y, p, weights = drawn(2)
    for row, b, loss in zip(weights, brier(y == 1, p[:, 1], weights), nll(y, p, weights), strict=True):
        assert b == pytest.approx(sk.brier_score_loss(y, p[:, 1], sample_weight=row), abs=1e-12)
        assert loss == pytest.approx(sk.log_loss(y, p[:, 1], sample_weight=row), abs=1e-12)


def test_a_certain_and_wrong_probability_costs_what_it_costs_in_scikit_learn():
    y, p = np.array([0, 1]), np.array([[0.0, 1.0], [0.2, 0.8]])
    assert nll(y, p) == pytest.approx(sk.log_loss(y, p), rel=1e-9)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_ece_is_the_definition(bins):
    rng = np.random.default_rng(3)
    p = np.r_[0.0, 1.0, rng.random(200)]
    correct = rng.random(202) < p
    weights = rng.poisson(1.0, size=(2, 202)).astype(float)
    for row, value in zip(weights, ece(p, correct, weights, bins=bins), strict=True):
        expected = 0.0
        for m in range(bins):
            inside = (p > m / bins) & (p <= (m + 1) / bins) | ((m == 0) & (p == 0))
            if row[inside].sum():
                gap = np.average(correct[inside], weights=row[inside]) - np.average(p[inside], weights=row[inside])
                expected += row[inside].sum() / row.sum() * abs(gap)
        assert value == pytest.approx(expected, abs=1e-12)


def test_a_calibrated_bin_has_no_error():
    assert ece(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_auroc_depends_on_ranks_alone_and_mirrors(seed):
    y, p, _ = drawn(seed, n=40)
    positive = y == 1
    value = auroc(positive, p[:, 1])
    assert auroc(positive, p[:, 1] ** 3) == pytest.approx(value, abs=1e-12)
    assert auroc(~positive, p[:, 1]) == pytest.approx(1 - value, abs=1e-12)


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_a_replicate_without_one_of_the_classes_is_undefined(metric):
    y, p = np.array([True, False, False]), np.array([0.9, 0.2, 0.4])
    rows = np.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 1]])
    assert np.isnan(metric(y, p, rows)).tolist() == [True, True, False]


def test_mcc_of_a_constant_decision_is_0_as_in_scikit_learn():
    y = np.array([0, 1, 1])
    assert (
        threshold_metrics(class_counts(y, np.ones(3, int), 2), 1)["mcc"][0] == 0 == sk.matthews_corrcoef(y, np.ones(3))
    )
