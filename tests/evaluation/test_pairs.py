"""Two models: counts and tests equal their references, the interval is a loop's and covers, bad input is said."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import f1_score, log_loss, roc_auc_score

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_groups
from medvitlib.evaluation.intervals import resampled_weights
from medvitlib.evaluation.pairs import compare_pair, mcnemar

TWO = {"classes": ["normal", "tumour"], "positive": "tumour"}
THREE = {"classes": ["a", "b", "c"]}


def right(hits: np.ndarray, labels: np.ndarray, sure: float = 0.8) -> np.ndarray:
    """(N, 2) probabilities of a model that is right where `hits`."""
    p = np.where(hits == (labels == 1), sure, 1 - sure)
    return np.stack([1 - p, p], axis=1)


def study(patients: int = 40, seed: int = 0):
    """labels, first, second, groups: what is hard is hard for both, but each model has patients of its own to fail."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(patients), rng.integers(1, 6, patients))
    labels = rng.integers(2, size=len(groups))
    hard = rng.normal(size=len(groups))
    own = rng.normal(size=(2, patients))[:, groups] * 1.5
    limits = np.sqrt(1 + 2.25 + 0.25) * norm.ppf([0.8, 0.7])[:, None]
    hits = hard + own + rng.normal(size=(2, len(groups))) * 0.5 < limits
    return labels, *(right(one, labels) for one in hits), groups


def three(seed: int = 0, n: int = 70):
    rng = np.random.default_rng(seed)
    return rng.integers(3, size=n), *rng.dirichlet(np.ones(3), (2, n)), np.sort(rng.integers(25, size=n))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_test_is_scipys_binomial_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == mcnemar(c, b) == pytest.approx(expected, rel=1e-9)


def test_ten_images_decided_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    first = np.array([1, 1, 1, 0, 1, 1, 1, 1, 1, 0], bool)  # right 8 times
    second = np.array([1, 1, 0, 0, 1, 1, 0, 0, 0, 1], bool)  # right 5 times, once alone
    found = compare_pair(labels, right(first, labels), right(second, labels), **TWO)
    assert (found.only_first, found.only_second) == (4, 1)
    assert found.difference.value == pytest.approx(0.3)
    assert found.p_value == pytest.approx(2 * (1 + 5) / 2**5)
    assert (found.difference.n_images, found.difference.n_groups) == (10, None)


def test_decisions_are_made_at_one_half_for_two_classes_and_by_the_largest_of_three():
    labels = np.array([1, 0])
    found = compare_pair(labels, np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([[0.6, 0.4], [0.6, 0.4]]), **TWO)
    assert (found.only_first, found.only_second) == (1, 1)
    column = compare_pair(labels, np.array([0.5, 0.5]), np.array([0.4, 0.4]), **TWO)
    assert (column.only_first, column.difference) == (1, found.difference)
    labels, first, second, _ = three()
    one, other = (p.argmax(axis=1) == labels for p in (first, second))
    found = compare_pair(labels, first, second, **THREE, n_boot=100)
    assert (found.only_first, found.only_second) == ((one & ~other).sum(), (other & ~one).sum())
    assert found.difference.value == pytest.approx(one.mean() - other.mean())


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    ("metric", "reference"),
    [
        ("accuracy", lambda y, p: (p.argmax(axis=1) == y).mean()),
        ("f1", lambda y, p: f1_score(y, p.argmax(axis=1), average="macro")),
        ("auroc", lambda y, p: roc_auc_score(y, p, multi_class="ovr")),
        ("nll", lambda y, p: log_loss(y, p)),
    ],
)
def test_the_interval_is_that_of_a_plain_loop_over_patients_drawn_for_both(metric, reference, grouped):
    labels, first, second, groups = three()
    ids = groups if grouped else None
    found = compare_pair(labels, first, second, **THREE, groups=ids, metric=metric, n_boot=100, seed=5, confidence=0.9)
    looped = []
    for (row,) in resampled_rows(check_groups(ids, len(labels)), 100, 5):
        y = np.repeat(labels, row)
        looped.append(reference(y, np.repeat(first, row, axis=0)) - reference(y, np.repeat(second, row, axis=0)))
    expected = (reference(labels, first) - reference(labels, second), *np.quantile(looped, [0.05, 0.95]))
    assert (found.difference.value, found.difference.low, found.difference.high) == pytest.approx(expected, abs=1e-9)
    unit = "patient" if grouped else "image"
    assert found.difference.method == f"{unit} bootstrap"
    assert found.difference.n_groups == (len(np.unique(groups)) if grouped else None)


def resampled_rows(groups: np.ndarray, n_boot: int, seed: int):
    """(1, N) integers, one draw at a time."""
    return np.concatenate(list(resampled_weights(groups, n_boot, seed))).astype(int)[:, None]


@pytest.mark.parametrize("metric", ["accuracy", "auroc", "brier"])
def test_swapped_models_change_the_sign_and_nothing_else(metric):
    labels, first, second, groups = study()
    options = {**TWO, "groups": groups, "metric": metric, "n_boot": 200}
    one, other = compare_pair(labels, first, second, **options), compare_pair(labels, second, first, **options)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert one.p_value == other.p_value and one.excludes_zero == other.excludes_zero
    mine, theirs = one.difference, other.difference
    assert (mine.value, mine.low, mine.high) == pytest.approx((-theirs.value, -theirs.high, -theirs.low), abs=1e-12)


def test_groups_may_have_any_names_and_images_any_order():
    labels, first, second, groups = study()
    found = compare_pair(labels, first, second, **TWO, groups=groups, n_boot=200)
    named = np.array([f"patient {g}" for g in groups])
    assert compare_pair(labels, first, second, **TWO, groups=named, n_boot=200) == found
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = compare_pair(*(a[order] for a in (labels, first, second)), **TWO, groups=groups[order], n_boot=200)
    assert shuffled.difference.low == pytest.approx(found.difference.low)
    assert replace(shuffled, difference=found.difference) == found


def test_the_interval_covers_where_images_repeat_their_patient_and_one_over_images_does_not():
    """200 studies of 40 patients, in which the first model is better by 0.1."""
    covered, by_image = 0, 0
    for seed in range(200):
        labels, first, second, groups = study(seed=seed)
        for ids in (groups, None):
            found = compare_pair(labels, first, second, **TWO, groups=ids, n_boot=200, seed=seed).difference
            inside = found.low <= 0.1 <= found.high
            covered += inside and ids is not None
            by_image += inside and ids is None
    assert covered / 200 > 0.9 and by_image / 200 < 0.85


def test_the_same_model_twice_is_not_told_apart_and_has_no_interval():
    labels, first, _, groups = study()
    found = compare_pair(labels, first, first, **TWO, groups=groups, n_boot=100)
    assert (found.only_first, found.only_second, found.p_value, found.difference.value) == (0, 0, 1.0, 0.0)
    assert np.isnan(found.difference.low) and not found.excludes_zero
    assert "there is no interval: every sample of the patients gives the same value" in found.sentence("a", "b")


def test_one_patient_proves_nothing_however_many_images():
    labels = np.ones(30, int)
    hits = np.ones(30, bool)
    found = compare_pair(labels, right(hits, labels), right(~hits, labels), **TWO, groups=np.zeros(30), n_boot=100)
    assert found.difference.value == 1 and np.isnan(found.difference.low) and not found.excludes_zero
    assert found.p_value < 1e-8  # what the sentence warns of
    assert "it is the interval that holds" in found.sentence("a", "b")


def test_the_sentence_says_what_was_compared_and_what_holds():
    labels = np.ones(100, int)
    first, second = np.ones(100, bool), np.ones(100, bool)
    second[:20], first[20:22] = False, False
    models = right(first, labels), right(second, labels)
    alone = compare_pair(labels, *models, **TWO, n_boot=500)
    assert alone.sentence("LoRA", "probe") == (
        f"LoRA minus probe, accuracy: {alone.difference:+.3f} (100 images, patients unknown); the 95 % interval "
        "excludes zero. Decided rightly by LoRA alone: 20 images; by probe alone: 2 (McNemar's exact test: p < 0.001)."
    )
    assert alone.difference.value == pytest.approx(0.18) and alone.difference.low > 0
    one_each = compare_pair(labels, *models, **TWO, groups=np.arange(100), n_boot=500)
    assert "(100 images, 100 patients)" in one_each.sentence("a", "b") and "holds" not in one_each.sentence("a", "b")
    several = compare_pair(labels, *models, **TWO, groups=np.arange(100) // 2, n_boot=500)
    assert several.sentence("a", "b").endswith(
        " That test takes images as independent, and patients have several: it is the interval that holds."
    )
    loss = compare_pair(labels, *models, **TWO, metric="nll", n_boot=500, confidence=0.9).sentence("a", "b")
    assert "loss, smaller is better: -" in loss and "the 90 % interval excludes zero" in loss
    close = compare_pair(labels, right(first[::-1], labels), right(first, labels), **TWO, n_boot=500)
    assert "interval includes zero" in close.sentence("a", "b") and "p = 1)" in close.sentence("a", "b")


def test_draws_without_a_class_are_left_out_and_counted():
    labels, first, second, _ = study()
    labels = (np.arange(len(labels)) < 2).astype(int)
    found = compare_pair(labels, first, second, **TWO, metric="auroc", n_boot=400)
    assert "of 400 replicates undefined" in found.difference.method


def test_what_cannot_be_compared_is_said():
    labels, first, second, groups = study()

    def refused(message, y=labels, one=first, other=second, **options):
        with pytest.raises(EvaluationError, match=message):
            compare_pair(y, one, other, **{**TWO, "n_boot": 100, **options})

    refused(r"'acuracy' is unknown\. Did you mean 'accuracy'", metric="acuracy")
    refused("confidence is 95", confidence=95)
    refused("at least 100", n_boot=50)
    refused("The first model: .* labels but .* rows", one=first[1:])
    refused("The second model: .* labels but .* rows", other=second[1:])
    refused("The second model: .*apply a softmax first", other=second * 10)
    refused("The first model: .*must sum to 1", one=first * 0.5)
    refused("The second model: probabilities holds 1 NaN", other=np.where(np.arange(len(labels)) == 3, np.nan, 0.5))
    refused("expected integers", y=labels.astype(float))
    refused("y_true reaches from 0 to 2", y=labels * 2)
    refused("expected at least two different names", classes=["a"], positive="a")
    refused("Which of the two classes is positive", positive=None)
    refused("'cancer' is not a class name", positive="cancer")
    refused("groups has shape", groups=groups[1:])
    refused("have no group", groups=np.where(groups == 0, np.nan, groups))
    refused("auroc is undefined on these", y=np.ones_like(labels), metric="auroc")
    found = compare_pair(labels, first, second, **TWO, n_boot=100)
    for names in (("", "b"), ("a", "a")):
        with pytest.raises(EvaluationError, match="expected two different ones"):
            found.sentence(*names)
    with pytest.raises(EvaluationError, match="expected counts"):
        mcnemar(-1, 3)
