"""Points of a search equal a plain loop's figures, a better point is told apart from the others, equal ones are not."""

import numpy as np
import pytest
from scipy.stats import norm, studentized_range
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    log_loss,
    matthews_corrcoef,
    roc_auc_score,
)

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_groups
from medvitlib.evaluation.intervals import proportion, resampled_weights
from medvitlib.evaluation.paired import METRICS, compare_with_best
from medvitlib.evaluation.scoring import score
from medvitlib.training import config

TWO = {"classes": ["normal", "tumour"], "positive": "tumour"}
SKLEARN = {
    "auroc": lambda y, p: roc_auc_score(y, p),
    "auprc": lambda y, p: average_precision_score(y, p),
    "accuracy": lambda y, p: accuracy_score(y, p >= 0.5),
    "balanced_accuracy": lambda y, p: balanced_accuracy_score(y, p >= 0.5),
    "f1": lambda y, p: f1_score(y, p >= 0.5),
    "mcc": lambda y, p: matthews_corrcoef(y, p >= 0.5),
    "nll": lambda y, p: log_loss(y, p),
    "brier": lambda y, p: brier_score_loss(y, p),
}


def study(points: int, patients: int = 40, seeds: int = 1, accuracy=0.75, seed: int = 0):
    """labels (N,), a list of (seeds, N, 2), groups (N,): points whose hits depend on image and patient, and luck."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    labels = rng.integers(2, size=len(groups))
    hard = rng.normal(size=patients)[groups] + rng.normal(size=len(groups))  # the same images are hard for all
    limits = np.sqrt(6) * norm.ppf(np.broadcast_to(accuracy, points))
    noise = rng.normal(size=(points, seeds, len(groups))) * 2
    right = hard + noise < limits[:, None, None]
    sure = rng.uniform(0.5, 1, right.shape)
    p = np.where(right == labels, sure, 1 - sure)
    return labels, list(np.stack([1 - p, p], axis=-1)), groups


def test_the_metrics_are_those_that_training_can_stop_by():
    assert {f"val_{name}" for name in METRICS} == set(config.METRICS)


@pytest.mark.parametrize("metric", METRICS)
def test_values_and_standard_errors_are_those_of_a_plain_loop(metric):
    labels, points, groups = study(2, 25, seeds=2)
    points[1] = points[1][:1]  # one seed
    found = compare_with_best(labels, points, **TWO, groups=groups, metric=metric, n_boot=100, seed=3)
    rows = np.concatenate(list(resampled_weights(check_groups(groups, len(labels)), 100, 3))).astype(int)
    looped = np.array(
        [
            [
                np.mean([SKLEARN[metric](np.repeat(labels, row), np.repeat(p[:, 1], row)) for p in seeds])
                for seeds in points
            ]
            for row in [np.ones(len(labels), int), *rows]
        ]
    )
    values, replicates = looped[0], looped[1:]
    best = config.METRICS[f"val_{metric}"](range(2), key=values.__getitem__)
    assert found.best == best
    np.testing.assert_allclose([v.value for v in found.values], values, atol=1e-12)
    errors = np.std(replicates - replicates[:, [best]], axis=0, ddof=1)
    gaps = values - values[best]
    half = found.critical * np.sqrt(errors**2 + gaps**2 / 25)
    np.testing.assert_allclose([d.value for d in found.differences], gaps, atol=1e-12)
    np.testing.assert_allclose([(d.low, d.high) for d in found.differences], np.c_[gaps - half, gaps + half], atol=1e-9)
    if metric != "accuracy":
        ends = np.quantile(replicates, [0.025, 0.975], axis=0).T
        np.testing.assert_allclose([(v.low, v.high) for v in found.values], ends, atol=1e-9)


def test_the_interval_of_one_seed_is_that_of_a_report_and_more_seeds_share_wilsons():
    labels, points, groups = study(2, seeds=3)
    one = compare_with_best(labels, [p[0] for p in points], **TWO, groups=groups).values[0]
    assert one == score(labels, points[0][0], **TWO, groups=groups)["accuracy"]
    hits = np.mean([(p.argmax(axis=1) == labels) for p in points[0]], axis=0)
    assert compare_with_best(labels, points, **TWO, groups=groups).values[0] == proportion(hits, groups, True)


def test_macro_averages_stand_for_more_than_two_classes():
    rng = np.random.default_rng(0)
    labels, points = rng.integers(3, size=60), list(rng.dirichlet(np.ones(3), (2, 60)))
    reports = [score(labels, p, classes=list("abc"), n_boot=100) for p in points]
    for metric, name in {"f1": "f1_macro", "auroc": "auroc_macro", "mcc": "mcc", "nll": "nll"}.items():
        found = compare_with_best(labels, points, classes=list("abc"), metric=metric, n_boot=100)
        assert [v.value for v in found.values] == pytest.approx([r[name].value for r in reports])


def test_two_points_are_compared_as_mcnemar_does():
    """One image a patient, two points: (b - c)² / (b + c), here its root."""
    first, second = np.ones(100, bool), np.ones(100, bool)
    first[:12], second[12:30] = False, False
    points = [np.stack([1 - hits, hits], axis=1) for hits in (first, second)]
    comparison = compare_with_best(np.ones(100, int), points, **TWO, n_boot=4000)
    found = comparison.differences[1]
    error = (found.high - found.low) / 2 / comparison.critical
    assert found.value / error == pytest.approx((12 - 18) / np.sqrt(30), rel=0.04)
    assert comparison.critical == pytest.approx(1.96, abs=0.06)


def test_the_critical_value_for_points_that_know_nothing_of_each_other_is_tukeys():
    rng = np.random.default_rng(0)
    labels = np.ones(2000, int)
    points = [np.stack([1 - hits, hits], axis=1) for hits in (rng.random((10, 2000)) < 0.7).astype(float)]
    expected = studentized_range.ppf(0.95, 10, np.inf) / np.sqrt(2)  # 3.16; 1.96 for each pair by itself
    assert compare_with_best(labels, points, **TWO, n_boot=2000).critical == pytest.approx(expected, abs=0.1)


def test_a_better_point_is_found_and_equal_ones_are_not_told_apart():
    """40 studies of nine points: all alike, and one really better; the error of the whole table stays below 5 %."""
    wrong = found = 0
    for seed in range(40):
        labels, points, groups = study(9, seed=seed)
        alike = compare_with_best(labels, points, **TWO, groups=groups, n_boot=200, seed=seed)
        wrong += not alike.indistinguishable.all()
        labels, points, groups = study(9, 120, accuracy=[0.6] * 4 + [0.93] + [0.6] * 4, seed=seed)
        better = compare_with_best(labels, points, **TWO, groups=groups, n_boot=200, seed=seed)
        found += better.best == 4 and better.indistinguishable.sum() == 1
    assert wrong <= 3 and found >= 36


def test_each_difference_by_itself_would_call_equal_points_worse():
    """Why the intervals are simultaneous: of 27 equal points, the luckiest beats some at 5 % each."""
    labels, points, groups = study(27, seed=2)
    found = compare_with_best(labels, points, **TWO, groups=groups, n_boot=500)
    halves = np.array([(d.high - d.low) / 2 for d in found.differences])
    alone = np.abs([d.value for d in found.differences]) > 1.96 / found.critical * halves
    assert alone.sum() > 0 and found.indistinguishable.all()


def test_the_same_predictions_are_the_same_and_the_first_is_the_best():
    labels, points, groups = study(2, seeds=3)
    best = points[np.argmax([(p.argmax(axis=-1) == labels).mean() for p in points])]
    found = compare_with_best(labels, [best, best[::-1], *points], **TWO, groups=groups, n_boot=200, metric="accuracy")
    assert found.best == 0 and found.indistinguishable[:2].all()
    assert [(d.value, d.low, d.high) for d in found.differences[:2]] == [(0, 0, 0)] * 2


def test_one_patient_and_three_images_prove_nothing():
    labels = np.ones(3, int)
    right, wrong = np.tile([0.1, 0.9], (3, 1)), np.tile([0.9, 0.1], (3, 1))
    for groups in (np.zeros(3, int), None):
        found = compare_with_best(labels, [wrong, right], **TWO, groups=groups, n_boot=200)
        assert found.best == 1 and found.indistinguishable.all() and found.differences[0].value == -1
    many = compare_with_best(np.ones(40, int), [np.tile(p[0], (40, 1)) for p in (wrong, right)], **TWO, n_boot=200)
    assert list(many.indistinguishable) == [False, True]


def test_resamples_without_a_class_are_left_out_and_counted():
    labels, points, _ = study(2)
    labels[:] = 0
    labels[:2] = 1
    found = compare_with_best(labels, points, **TWO, metric="auroc", n_boot=400)
    rows = np.concatenate(list(resampled_weights(np.arange(len(labels)), 400, 0)))
    missing = int((rows[:, :2].sum(axis=1) == 0).sum())
    assert missing > 20
    for estimate in (*found.values, *found.differences):
        assert f"{missing} of 400 replicates undefined" in estimate.method and np.isfinite(estimate.low)


def test_a_metric_that_is_undefined_is_said():
    labels, points, _ = study(2)
    with pytest.raises(EvaluationError, match=r"auroc is undefined on these .* images, whose classes are: tumour"):
        compare_with_best(np.ones_like(labels), points, **TWO, metric="auroc")
    with pytest.raises(EvaluationError, match=r"defined in .* of 110 resamples, and 100 are needed"):
        compare_with_best(np.arange(len(labels)) // (len(labels) - 1), points, **TWO, metric="auroc", n_boot=110)


def test_the_sentence_tells_the_best_and_how_many_are_as_good():
    labels, points, groups = study(4, 120, accuracy=[0.6, 0.9, 0.9, 0.6])
    n = len(labels)
    names = [f"heads {k}" for k in range(4)]

    def said(*chosen, **options):
        given = [points[k] for k in chosen]
        return compare_with_best(labels, given, **TWO, n_boot=200, **options).sentence([names[k] for k in chosen])

    best = compare_with_best(labels, points, **TWO, groups=groups, n_boot=200)
    value = best.values[best.best]
    start = f"Best of 4: {names[best.best]} with validation accuracy {value} ({n} images, 120 patients); "
    assert said(0, 1, 2, 3, groups=groups) == start + "1 of the other 3 cannot be told apart from it."
    assert said(1, 1, 1).endswith("patients unknown); none of the other 2 can be told apart from it.")
    assert said(0, 1, 3).endswith("the other 2 are worse.")
    assert said(0, 1).endswith("; the other one is worse.") and said(1, 1).endswith("cannot be told apart from it.")
    assert said(0).startswith("The only point: heads 0 with") and said(0).endswith("no other to compare it with.")
    assert "with validation AUROC 0." in said(0, 1, metric="auroc")


def test_the_table_has_a_row_a_point():
    labels, points, groups = study(3)
    found = compare_with_best(labels, points, **TWO, groups=groups, n_boot=200)
    table = found.table(["a", "b", "c"])
    assert list(table.index) == ["a", "b", "c"] and table["indistinguishable"].tolist() == list(found.indistinguishable)
    assert table.loc["b", "difference"] == pytest.approx(table.loc["b", "value"] - table["value"].max())
    with pytest.raises(EvaluationError, match="expected 3 names"):
        found.table(["a", "b"])


def test_what_cannot_be_compared_is_said():
    labels, points, _ = study(2)
    with pytest.raises(EvaluationError, match="one point at least"):
        compare_with_best(labels, [], **TWO)
    with pytest.raises(EvaluationError, match=r"'val_acuracy' is unknown\. Did you mean 'accuracy'"):
        compare_with_best(labels, points, **TWO, metric="val_acuracy")
    with pytest.raises(EvaluationError, match="larger_is_better=True for nll: expected False"):
        compare_with_best(labels, points, **TWO, metric="nll", larger_is_better=True)
    with pytest.raises(EvaluationError, match=r"Point 1 of 2, counted from 0: .* labels but .* rows"):
        compare_with_best(labels, [points[0], points[1][:, 1:]], **TWO)
    with pytest.raises(EvaluationError, match=r"Point 0 of 1.*expected \(seeds, images, classes\)"):
        compare_with_best(labels, [points[0][0, :, 1]], **TWO)
    with pytest.raises(EvaluationError, match="at least 100"):
        compare_with_best(labels, points, **TWO, n_boot=10)
