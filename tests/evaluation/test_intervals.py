"""Intervals equal their references, and cover what they say where patients have several images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import Estimate, clopper_pearson, wilson
from medvitlib.evaluation.intervals import CHUNK, bootstrap, effective_size, percentiles, proportion, resampled_weights


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 700), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_of_a_proportion_equal_scipy(n, share, confidence):
    k = round(share * n)
    reference = binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        expected = reference.proportion_ci(confidence, method=method)
        assert ours(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("interval", [wilson, clopper_pearson])
@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(interval, k, n):
    with pytest.raises(EvaluationError, match="successes"):
        interval(k, n)


def test_images_that_repeat_their_patient_are_worth_the_patients():
    per_patient = np.arange(50) % 3 == 0
    hits, groups = np.repeat(per_patient, 4), np.repeat(np.arange(50), 4)
    size, method = effective_size(hits, groups)
    # 50 patients, one degree of freedom for the mean, and Student's quantile in place of the normal one
    assert size == pytest.approx(49 * (norm.ppf(0.975) / t.ppf(0.975, 49)) ** 2)
    assert method.startswith("Wilson, design effect ") and float(method.split()[-1]) == pytest.approx(4.08, abs=0.011)


@pytest.mark.parametrize(("patients", "sizes"), [(5, [10]), (10, [1, 2, 8]), (30, [1, 2, 3, 4])])
def test_proportions_of_few_patients_are_covered(patients, sizes):
    """400 studies; patients differ (intraclass correlation 0.3), and some have many more images than others."""
    rng, covered, truth = np.random.default_rng(0), 0, 0.8
    for _ in range(400):
        groups = np.repeat(np.arange(patients), rng.choice(sizes, patients))
        own = rng.beta(truth * 7 / 3, (1 - truth) * 7 / 3, patients)
        found = proportion(rng.random(len(groups)) < own[groups], groups, True)
        covered += found.low <= truth <= found.high
    assert covered / 400 > 0.92


def test_independent_images_are_worth_themselves():
    rng = np.random.default_rng(0)
    size, _ = effective_size(rng.random(4000) < 0.3, np.repeat(np.arange(1000), 4))
    assert 3400 < size <= 4000


def test_one_image_a_patient_is_plain_wilson():
    hits = np.arange(40) < 30
    found = proportion(hits, np.arange(40)[::-1], True)
    assert (found.low, found.high) == wilson(30, 40)
    assert (found.method, found.n_images, found.n_groups) == ("Wilson", 40, 40)


def test_where_all_hits_agree_the_patients_count():
    found = proportion(np.ones(200, bool), np.repeat(np.arange(20), 10), True)
    assert (found.value, found.low) == (1, wilson(20, 20)[0])


def test_one_patient_is_one_observation():
    found = proportion(np.array([True, False, True]), np.zeros(3, int), True)
    assert found.low < 0.1 and found.high > 0.95


def test_no_images_is_undefined_with_the_reason():
    found = proportion(np.zeros(0, bool), np.zeros(0, int), True, empty="no image is PNEUMONIA")
    assert np.isnan(found.value) and found.reason == "no image is PNEUMONIA" and str(found) == "undefined"


def test_patients_are_drawn_whole_and_as_many_as_there_are():
    groups = np.array([0, 0, 1, 2, 2, 2])
    (weights,) = resampled_weights(groups, 500, 0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)


def test_memory_is_bounded_and_every_replicate_is_made():
    chunks = list(resampled_weights(np.arange(CHUNK // 7), 20, 0))
    assert max(chunk.size for chunk in chunks) <= CHUNK and sum(len(chunk) for chunk in chunks) == 20


def test_the_seed_decides_the_replicates():
    def mean(weights):
        return {"mean": weights @ np.arange(9.0)}

    first, again, other = (bootstrap(mean, np.arange(9), 100, seed)["mean"] for seed in (1, 1, 2))
    assert (first == again).all() and not (first == other).all()


def test_the_bootstrap_standard_error_of_a_mean_is_the_textbook_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=400)
    found = bootstrap(lambda w: {"mean": w @ x / w.sum(axis=1)}, np.arange(400), 4000, 0)["mean"]
    assert found.std() == pytest.approx(x.std() / 20, rel=0.04)


def test_undefined_replicates_are_left_out_and_counted():
    low, high, undefined = percentiles(np.r_[np.full(5, np.nan), np.arange(101.0)], 0.9)
    assert (low, high, undefined) == pytest.approx((5, 95, 5))
    assert np.isnan(percentiles(np.full(3, np.nan), 0.9)[0])


def test_too_few_replicates_are_refused():
    with pytest.raises(EvaluationError, match="at least 100"):
        bootstrap(lambda w: {}, np.arange(3), 50, 0)


def test_an_estimate_reads_as_figure_and_interval():
    estimate = Estimate(0.966, 0.951, 0.979, "Wilson", 624, 400)
    assert str(estimate) == "0.966 [0.951, 0.979]" and f"{estimate:.2f}" == "0.97 [0.95, 0.98]"
    assert estimate.to_dict()["n_images"] == 624


def test_patient_intervals_cover_and_image_intervals_do_not():
    """60 patients with 2 to 8 images whose outcomes are alike; 400 studies; nominal 95 %."""
    rng = np.random.default_rng(0)
    by_patient = by_image = 0
    for _ in range(400):
        groups = np.repeat(np.arange(60), rng.integers(2, 9, 60))
        hits = rng.random(len(groups)) < rng.beta(2.4, 0.6, 60)[groups]  # mean 0.8, correlation 1 / 4 within a patient
        found = proportion(hits, groups, True)
        by_patient += found.low <= 0.8 <= found.high
        naive = proportion(hits, np.arange(len(hits)), True)
        by_image += naive.low <= 0.8 <= naive.high
    assert by_patient / 400 > 0.92
    assert by_image / 400 < 0.85
