"""Two ROC areas: the test equals its definition, counts patients, and is right as often as it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import delong


def scores(seed: int, n: int = 60, ties: bool = True):
    """labels, and two scores that share what makes an image hard."""
    rng = np.random.default_rng(seed)
    y = np.r_[[0, 0, 1, 1], rng.integers(2, size=n - 4)]
    hard = rng.normal(size=n) + y
    both = hard + rng.normal(size=(2, n))
    return y, *(both.round(1) if ties else both)


def by_all_pairs(y, first, second):
    """Difference and standard error as DeLong et al. write them: every positive with every negative."""
    v10, v01 = [], []
    for score in (first, second):
        above = score[y == 1][:, None] - score[y == 0]
        kernel = (above > 0) + (above == 0) / 2
        v10.append(kernel.mean(1))
        v01.append(kernel.mean(0))
    covariance = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    return v10[0].mean() - v10[1].mean(), np.sqrt([1, -1] @ covariance @ [1, -1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_difference_and_error_are_those_of_all_pairs(seed, ties):
    y, first, second = scores(seed, ties=ties)
    found = delong(y, first, second)
    difference, error = by_all_pairs(y, first, second)
    assert found.difference == pytest.approx(roc_auc_score(y, first) - roc_auc_score(y, second), abs=1e-12)
    assert (found.difference, found.standard_error) == pytest.approx((difference, error), abs=1e-12)
    assert not found.clustered and found.low < found.difference < found.high


def test_the_other_way_round_the_sign_is_the_other_one():
    y, first, second = scores(3)
    one, other = delong(y, first, second), delong(y, second, first)
    assert (one.difference, one.low, one.p_value) == pytest.approx((-other.difference, -other.high, other.p_value))


def test_every_image_twice_is_no_news_where_it_is_known_whose_they_are():
    y, first, second = scores(5)
    once, twice = delong(y, first, second), delong(*(np.repeat(a, 2) for a in (y, first, second)))
    known = delong(*(np.repeat(a, 2) for a in (y, first, second)), np.repeat(np.arange(len(y)), 2))
    assert known.standard_error == pytest.approx(once.standard_error, rel=1e-9) and known.clustered
    assert twice.standard_error < 0.75 * once.standard_error  # and would be, if they were new


def test_of_equal_models_one_in_twenty_is_called_different_patients_with_several_images_included():
    rng, called = np.random.default_rng(0), {"images": 0, "patients": 0}
    patients = np.repeat(np.arange(30), 4)
    for _ in range(300):
        y = (patients < 15).astype(int)
        both = y + rng.normal(size=(2, 30))[:, patients] + 0.5 * rng.normal(size=(2, 120))
        called["images"] += delong(y, *both).p_value < 0.05
        called["patients"] += delong(y, *both, patients).p_value < 0.05
    assert 0.02 < called["patients"] / 300 < 0.10
    assert called["images"] / 300 > 0.2


def test_the_same_scores_are_equal_and_opposite_perfect_ones_have_no_error_to_judge_by():
    y, first, _ = scores(1)
    assert delong(y, first, first).p_value == 1
    upside_down = delong(y, y, 1 - y)
    assert upside_down.difference == 1 and np.isnan(upside_down.p_value)


def test_one_patient_of_a_kind_is_refused():
    with pytest.raises(EvaluationError, match="1 have a positive image, 3 a negative one"):
        delong(np.array([1, 0, 0, 0]), np.arange(4.0), np.arange(4.0))
    with pytest.raises(EvaluationError, match=r"expected \(4,\)"):
        delong(np.array([1, 1, 0, 0]), np.arange(4.0), np.arange(3.0))
