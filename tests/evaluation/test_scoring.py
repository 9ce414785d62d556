"""`score` gives every metric an interval and its n, and says why where there is none."""

import time

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import build_report, score, wilson

TWO = {"classes": ["NORMAL", "PNEUMONIA"], "positive": "PNEUMONIA"}
BINARY = {"auroc", "auprc", "accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "mcc", "brier"}


def simulated(n_patients: int, seed: int, spread: float = 1.0):
    """Images of patients who share an effect; probabilities are calibrated where spread is 1."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_patients), rng.integers(1, 5, n_patients))
    y = (rng.random(n_patients) < 0.5).astype(int)[groups]
    x = 1.2 * (2 * y - 1) + 0.9 * rng.normal(size=n_patients)[groups] + 0.6 * rng.normal(size=len(groups))
    return y, 1 / (1 + np.exp(-spread * 2 * 1.2 / (0.81 + 0.36) * x)), groups


def test_two_classes_have_every_metric_with_interval_and_n():
    y, p, groups = simulated(200, 0)
    found = score(y, p, groups=groups, **TWO)
    assert set(found) == BINARY | {"nll", "ece"}
    for name, estimate in found.items():
        assert estimate.low <= estimate.value <= estimate.high and estimate.low < estimate.high, name
    assert (found["auroc"].n_images, found["auroc"].n_groups) == (len(y), 200)
    assert (found["recall"].n_images, found["recall"].n_groups) == (y.sum(), len(set(groups[y == 1])))
    assert found["precision"].n_images == (p >= 0.5).sum()
    assert found["auroc"].method == "patient bootstrap" and found["recall"].method.startswith("Wilson, design effect")


def test_many_classes_have_macro_and_weighted_averages():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 300)
    y = np.array([rng.choice(4, p=row) for row in p])
    found = score(y, p, classes=list("abcd"))
    averages = {f"{metric}_{kind}" for metric in ("precision", "recall", "f1") for kind in ("macro", "weighted")}
    others = {"accuracy", "balanced_accuracy", "mcc", "specificity_macro", "auroc_macro", "auprc_macro"}
    assert set(found) == averages | others | {"brier", "nll", "ece"}
    assert all(e.low <= e.value <= e.high for e in found.values())
    assert found["accuracy"].n_groups is None and found["auroc_macro"].method == "image bootstrap"


def test_naming_the_other_class_swaps_recall_and_specificity():
    y, p, _ = simulated(50, 1)
    probabilities = np.stack([1 - p, p], axis=1)
    one = score(y, probabilities, **TWO)
    other = score(y, probabilities, classes=TWO["classes"], positive="NORMAL")
    assert one["recall"] == other["specificity"]
    assert one["auroc"].value == pytest.approx(other["auroc"].value)


def test_the_threshold_counts_itself_as_positive():
    found = score([0, 0, 1, 1], [0.1, 0.3, 0.3, 0.8], threshold=0.3, **TWO)
    assert (found["recall"].value, found["specificity"].value) == (1.0, 0.5)


def test_the_order_of_images_and_of_group_names_changes_nothing_but_draws():
    y, p, groups = simulated(80, 2)
    order = np.random.default_rng(0).permutation(len(y))
    first = score(y, p, groups=groups, **TWO)
    second = score(y[order], p[order], groups=groups[order], **TWO)
    for name, estimate in first.items():
        assert second[name].value == pytest.approx(estimate.value, abs=1e-12)
        assert second[name].low == pytest.approx(estimate.low, abs=1e-9)


def test_one_class_alone_leaves_auroc_undefined_and_says_so():
    found = score(np.ones(20, int), np.linspace(0.2, 0.9, 20), **TWO)
    for name in ("auroc", "auprc", "balanced_accuracy", "mcc"):
        assert np.isnan(found[name].value) and found[name].reason == "needs two classes; every image is PNEUMONIA"
    assert np.isnan(found["specificity"].value) and found["specificity"].reason == "every image is PNEUMONIA"
    assert found["recall"].value > 0.5 and not np.isnan(found["brier"].low)


def test_one_class_alone_and_no_error_still_has_an_interval():
    assert score(np.ones(20, int), np.full(20, 0.9), **TWO)["f1"].low < 0.95


def test_precision_without_positive_calls_is_undefined():
    found = score([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.1], **TWO)
    assert np.isnan(found["precision"].value) and found["precision"].reason == "no image was called PNEUMONIA"
    assert found["recall"].value == 0 and found["f1"].value == 0


def test_an_absent_class_is_named():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 40)
    found = score(np.arange(40) % 2, p, classes=["a", "b", "c"])
    assert found["auroc_macro"].reason == "without c: no image" and not np.isnan(found["auroc_macro"].value)


def test_undefined_replicates_are_counted_in_the_method():
    y = np.r_[1, np.zeros(30, int)]
    found = score(y, np.r_[0.5, np.linspace(0.9, 0.1, 30)], **TWO)
    assert "of 1000 replicates undefined" in found["auroc"].method


def test_no_error_seen_is_not_certainty():
    """A bootstrap of perfect results is a point; the interval is that of a class whose patients were all found."""
    y = np.r_[np.zeros(80, int), np.ones(60, int)]
    groups = np.r_[np.arange(80), np.repeat(np.arange(100, 120), 3)]  # 20 positive patients with 3 images
    found = score(y, 0.1 + 0.8 * y, groups=groups, **TWO)
    worst = wilson(20, 20)[0]
    assert found["auroc"].value == 1 and found["auroc"].low == pytest.approx(worst)
    assert found["balanced_accuracy"].low == pytest.approx((1 + worst) / 2)
    assert found["recall"].low == pytest.approx(worst)
    assert all(found[name].low < 1 for name in ("auprc", "mcc", "f1"))
    assert found["auroc"].reason == "no error was seen"


@pytest.mark.parametrize("spread", [1.0, 1.8])
def test_intervals_cover_the_truth_for_clustered_images(spread):
    """100 studies of 100 patients with 1 to 4 images; the truth from 20,000 patients."""
    y, p, groups = simulated(20_000, 99, spread)
    truth = {name: e.value for name, e in score(y, p, n_boot=100, **TWO).items()}
    hits = dict.fromkeys(truth, 0)
    for seed in range(100):
        y, p, groups = simulated(100, seed, spread)
        for name, e in score(y, p, groups=groups, n_boot=200, **TWO).items():
            hits[name] += e.low <= truth[name] <= e.high
    assert min(hits.values()) / 100 > 0.86, hits


def test_624_images_take_well_under_two_seconds():
    y, p, groups = simulated(250, 5)
    start = time.process_time()
    score(y, p, groups=groups, **TWO)
    assert time.process_time() - start < 2


def test_figures_that_resampling_cannot_vary_have_no_interval():
    y = np.arange(40) % 2
    found = score(y, np.full(40, 0.9), **TWO)  # everything is called positive
    for name in ("balanced_accuracy", "mcc"):
        assert np.isnan(found[name].low) and "gives the same value" in found[name].reason
    wrong = score(y, 1.0 - y, **TWO)
    for name in ("auroc", "f1", "brier", "ece"):
        assert np.isnan(wrong[name].low) and wrong[name].reason != "no error was seen"


def test_a_calibration_error_never_exceeds_one():
    found = score(np.array([1, 1, 1, 0]), np.array([0.05, 0.1, 0.02, 0.97]), **TWO)
    assert found["ece"].high <= 1


def test_kappa_is_there_for_grades_alone_with_an_interval_and_a_bound_where_no_error_was_seen():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, 200)
    near = np.clip(y + rng.integers(-1, 2, 200), 0, 4)
    grades = {"classes": list("01234"), "n_boot": 200}
    found = score(y, np.eye(5)[near], ordered=True, **grades)["kappa"]
    assert found.value == pytest.approx(cohen_kappa_score(y, near, weights="quadratic"))
    assert found.low < found.value < found.high and found.method == "image bootstrap"
    assert "kappa" not in score(y, np.eye(5)[near], **grades)
    perfect = score(y, np.eye(5)[y], ordered=True, **grades)["kappa"]
    assert perfect.value == 1 and 0.9 < perfect.low < 1 and perfect.reason == "no error was seen"
    alone = score(np.zeros(9, int), np.eye(5)[near[:9]], ordered=True, **grades)["kappa"]
    assert np.isnan(alone.low)


GRADES = {
    "numbers in the alphabet's order": ([str(k) for k in range(11)], True),
    "words with numbers": ([f"grade {k}" for k in range(11)], True),
    "words, named in order": (["none", "mild", "moderate", "severe", "proliferative"], "lowest first"),
    "words in an order of their own": (["none", "mild", "moderate", "severe", "proliferative"], "as given"),
}


@pytest.mark.parametrize(("names", "ordered"), GRADES.values(), ids=GRADES)
def test_grades_are_ordered_by_what_they_mean_not_by_the_alphabet(names, ordered):
    rng = np.random.default_rng(1)
    y = rng.integers(0, len(names), 300)
    near = np.clip(y + rng.integers(-1, 2, 300), 0, len(names) - 1)
    classes = names if ordered == "as given" else sorted(names)  # as folders come
    place = np.array([classes.index(name) for name in names])
    asked = {"classes": classes, "ordered": names if ordered == "lowest first" else True, "n_boot": 100}
    found = build_report(place[y], np.eye(len(names))[place[near]], **asked)
    assert found.metrics["kappa"].value == pytest.approx(cohen_kappa_score(y, near, weights="quadratic"))
    assert f"Grades, from the lowest to the highest: {', '.join(names)}." in found.sentences()


def test_an_order_that_can_only_be_guessed_is_asked_for():
    y, classes = np.arange(9) % 3, ["mild", "none", "severe"]
    with pytest.raises(EvaluationError, match="could only be guessed: they stand as in the alphabet"):
        score(y, np.eye(3)[y], classes=classes, ordered=True, n_boot=100)
    with pytest.raises(EvaluationError, match="expected each of mild, none, severe once, the lowest first"):
        score(y, np.eye(3)[y], classes=classes, ordered=["none", "mild"], n_boot=100)
