"""Thresholds: the best of those that reach the recall, and the guarantee of the certified one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import (
    NotCertifiable,
    choose_certified_threshold,
    choose_recall_threshold,
    choose_threshold_by_min_recall,
    patients_needed,
    summarize_at_threshold,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 12), st.sampled_from([0.3, 0.8, 0.95, 1.0]))
def test_the_choice_is_the_best_by_exhaustive_search(seed, n, levels, min_recall):
    rng = np.random.default_rng(seed)
    y = np.r_[1, rng.integers(2, size=n - 1)]
    p = rng.integers(levels, size=n) / levels
    best = None
    for t in np.unique(p):
        called = p >= t
        recall, precision = called[y == 1].mean(), y[called].mean()
        if recall >= min_recall and (best is None or precision >= best[1]):
            best = (t, precision, recall)
    choice = choose_threshold_by_min_recall(y, p, min_recall)
    assert (choice.threshold, choice.precision, choice.recall) == best


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(2, 12), st.sampled_from([0.3, 0.8, 0.95, 1.0]))
def test_the_recall_threshold_decides_as_the_published_rule_or_as_0_5(seed, n, levels, min_recall):
    rng = np.random.default_rng(seed)
    y, p = np.r_[1, rng.integers(2, size=n - 1)], rng.integers(levels, size=n) / levels
    published = choose_threshold_by_min_recall(y, p, min_recall)
    choice = choose_recall_threshold(y, p, min_recall)
    assert choice.threshold <= min(0.5, published.threshold) and choice.recall >= published.recall >= min_recall
    if choice.threshold < 0.5:
        np.testing.assert_array_equal(p >= choice.threshold, p >= published.threshold)


def test_between_classes_far_apart_the_recall_threshold_is_the_middle_of_the_gap():
    choice = choose_recall_threshold([0, 0, 1, 1], [0.02, 0.1, 0.6, 0.7], 0.95)
    assert choice.threshold == pytest.approx(0.35) and "guarantees nothing" in choice.sentence


def test_no_recall_threshold_is_above_one_half_and_its_sentence_names_the_published_one():
    choice = choose_recall_threshold([0, 0, 1, 1], [0.02, 0.9, 0.95, 0.97], 0.95)
    assert choice.threshold == 0.5 and "One of 0.95 would reach" in choice.sentence


@pytest.mark.parametrize("patients", [20, 50, 200])
@pytest.mark.parametrize("separation", [0.5, 2.0, 6.0, 12.0])
def test_on_new_patients_recall_at_the_recall_threshold_is_not_stochastically_lower_than_at_one_half(
    patients, separation
):
    def draw(n, rng):
        ill = rng.integers(2, size=n)
        ill[:2] = 0, 1
        group = np.repeat(np.arange(n), rng.integers(1, 5, size=n))
        logit = separation * (ill - 0.5) + rng.normal(size=n)  # of the patient; images scatter around it
        score = 1 / (1 + np.exp(-logit[group] - rng.normal(size=len(group))))
        return ill[group], score, group

    recalls = {"0.5": [], "recall": [], "published": []}
    for seed in range(100):
        rng = np.random.default_rng(seed)
        validation, (y, p, _) = draw(patients, rng), draw(500, rng)
        thresholds = {
            "0.5": 0.5,
            "recall": choose_recall_threshold(*validation[:2], 0.95, validation[2]).threshold,
            "published": choose_threshold_by_min_recall(*validation[:2], 0.95, validation[2]).threshold,
        }
        for name, threshold in thresholds.items():
            recalls[name].append((p[y == 1] >= threshold).mean())
    ordered = {name: np.sort(values) for name, values in recalls.items()}
    assert (ordered["recall"] >= ordered["0.5"]).all()
    if separation == 12.0:  # the fault of the published rule that this one mends
        assert (ordered["published"] < ordered["0.5"]).mean() > 0.9


def test_a_recall_that_is_met_exactly_counts():
    y, p = np.r_[np.ones(20, int), 0], np.r_[np.linspace(0.1, 0.9, 20), 0.05]
    assert choose_threshold_by_min_recall(y, p, 0.95).recall == 0.95


def test_the_choice_says_what_it_rests_on():
    choice = choose_threshold_by_min_recall([1, 1, 0], [0.9, 0.4, 0.2], 0.9, groups=["a", "a", "b"])
    assert (choice.n_positive, choice.n_patients, choice.certified, choice.confidence) == (2, 1, False, None)
    assert "90 % recall on 2 positive images (1 patients)" in choice.sentence


@pytest.mark.parametrize("min_recall", [0, 1.1, -1, 95])
def test_a_recall_is_a_share(min_recall):
    with pytest.raises(EvaluationError, match="expected a share"):
        choose_threshold_by_min_recall([0, 1], [0.1, 0.9], min_recall)


def test_without_positives_there_is_no_recall():
    with pytest.raises(EvaluationError, match="No image is positive"):
        choose_threshold_by_min_recall([0, 0], [0.1, 0.9], 0.9)


@pytest.mark.parametrize(("misses", "needed"), list(enumerate([59, 93, 124, 153, 181])))
def test_the_patients_needed_are_the_known_numbers(misses, needed):
    assert patients_needed(0.95, 0.95, misses) == needed
    assert binom.cdf(misses, needed, 0.05) <= 0.05 < binom.cdf(misses, needed - 1, 0.05)


@pytest.mark.parametrize(("n", "rank"), [(59, 0), (92, 0), (93, 1), (123, 1), (124, 2), (153, 3), (181, 4)])
def test_the_certified_threshold_is_the_order_statistic(n, rank):
    p = np.random.default_rng(n).permutation(np.linspace(0.01, 0.99, n))
    choice = choose_certified_threshold(np.r_[np.ones(n, int), 0], np.r_[p, 0.5], None, 0.95)
    assert choice.threshold == np.sort(p)[rank]
    assert choice.certified and choice.confidence == 0.95 and choice.n_patients is None


def test_58_positive_patients_are_too_few_however_many_images_they_have():
    groups = np.repeat(np.arange(58), 5)
    with pytest.raises(NotCertifiable, match="58 positive patients; at least 59 needed for 95 % recall with 95 % conf"):
        choose_certified_threshold(np.ones(290, int), np.linspace(0, 1, 290), groups, 0.95)


def test_a_certificate_names_what_was_compared():
    with pytest.raises(NotCertifiable, match="allowing for 6 penalties compared on them"):
        choose_certified_threshold(
            np.ones(60, int), np.linspace(0, 1, 60), None, 0.95, candidates=6, compared="penalties"
        )


def test_models_compared_on_the_same_patients_share_the_risk():
    y, p = np.ones(100, int), np.linspace(0, 1, 100)
    assert choose_certified_threshold(y, p, np.arange(100), 0.95, candidates=8).threshold == 0
    with pytest.raises(NotCertifiable, match=f"at least {patients_needed(0.95, 1 - 0.05 / 9)}.*9 models"):
        choose_certified_threshold(y, p, np.arange(100), 0.95, candidates=9)


def test_a_patient_is_missed_with_their_lowest_positive_image():
    """The patient's negative images and other patients' do not matter."""
    groups = np.repeat(np.arange(59), 3)
    y, p = np.tile([1, 1, 0], 59), np.tile([0.9, 0.6, 0.01], 59)
    p[1] = 0.3
    assert choose_certified_threshold(y, p, groups, 0.95).threshold == 0.3


def test_ties_at_the_threshold_are_found():
    choice = choose_certified_threshold(np.ones(93, int), np.r_[np.full(50, 0.2), np.full(43, 0.7)], None, 0.95)
    assert choice.threshold == 0.2 and choice.recall == 1


@pytest.mark.parametrize("continuous", [True, False])
def test_the_guarantee_holds_over_many_studies(continuous):
    """3000 studies of 93 patients with 1 to 4 positive images that are alike; promised: 95 % of new patients."""
    rng = np.random.default_rng(0)

    def worst_images(n: int) -> np.ndarray:
        scores = rng.normal(size=(n, 1)) + rng.normal(size=(n, 4))
        scores[np.arange(4) >= rng.integers(1, 5, size=(n, 1))] = np.inf
        scores = 1 / (1 + np.exp(-scores))
        return scores if continuous else np.floor(scores * 20) / 20

    new = np.sort(worst_images(400_000).min(axis=1))
    violations = 0
    for _ in range(3000):
        scores = worst_images(93)
        real = scores < 1
        groups = np.repeat(np.arange(93), real.sum(axis=1))
        found = choose_certified_threshold(np.ones(len(groups), int), scores[real], groups, 0.95).threshold
        violations += np.searchsorted(new, found) / len(new) > 0.05
    assert violations <= binom.ppf(0.999, 3000, 0.05)
    if continuous:  # and no wider than need be: 93 patients are just enough for one miss
        assert violations >= binom.ppf(0.001, 3000, binom.cdf(1, 93, 0.05))


def test_the_summary_counts_images_and_patients():
    groups = np.array(["a", "a", "b", "c", "c", "d"])
    found = summarize_at_threshold([1, 1, 1, 0, 0, 1], [0.9, 0.2, 0.8, 0.6, 0.1, 0.5], 0.5, groups)
    assert [found[name] for name in ("tp", "fp", "fn", "tn")] == [3, 1, 1, 1]
    assert (found["recall"].value, found["precision"].value, found["specificity"].value) == (0.75, 0.75, 0.5)
    assert found["patient_recall"].value == pytest.approx(2 / 3)  # one image of patient a is missed
    assert found["patient_recall"].n_groups == found["patient_recall"].n_images == 3


def test_the_summary_has_no_patient_recall_where_patients_are_unknown():
    assert "patient_recall" not in summarize_at_threshold([0, 1], [0.2, 0.8], 0.5)
