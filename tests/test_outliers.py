"""A distance from the training images: false alarms at the rate that was asked for, and strangers are far."""

import numpy as np
import pytest

from medvitlib.errors import MedvitError
from medvitlib.outliers import Familiar, familiar


def features(n: int, seed: int, dims: int = 60) -> np.ndarray:
    """A few strong directions, many weak ones."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(5, dims))
    return rng.normal(size=(n, 5)) @ mixing + 0.3 * rng.normal(size=(n, dims)) + 2.0


@pytest.mark.parametrize("alarms", [0.05, 0.2])
def test_the_share_of_usual_images_that_are_called_unlike_is_the_one_asked_for(alarms):
    found = familiar(features(400, 0), np.arange(400), features(300, 1), np.arange(300), alarms=alarms)
    rate = (found.distance(features(3000, 2)) > found.limit).mean()
    assert rate == pytest.approx(alarms, abs=0.5 * alarms)
    assert found.measured.low <= rate <= found.measured.high
    assert found.measured.n_images == 300


def test_strangers_are_far_in_a_main_direction_and_outside_of_all():
    found = familiar(features(400, 0), np.arange(400), features(100, 1), np.arange(100))
    outside = features(50, 3) + 3 * np.random.default_rng(4).normal(size=(50, 60))
    along = features(50, 5) + 12 * np.random.default_rng(99).normal(size=(5, 60))[0]
    assert (found.distance(outside) > found.limit).all()
    assert (found.distance(along) > found.limit).all()


def test_the_distance_is_mahalanobis_with_the_small_variances_made_equal():
    x = features(500, 0)
    found = familiar(x, np.arange(500), x, np.arange(500))
    values, vectors = np.linalg.eigh(np.cov(x.T))
    values, vectors = values[::-1].copy(), vectors[:, ::-1]
    values[30:] = values[30:].mean()  # half of the directions
    scores = (x[:20] - x.mean(0)) @ vectors
    expected = np.sqrt((scores**2 / values).sum(1) / 60)
    np.testing.assert_allclose(found.distance(x[:20]), expected, rtol=1e-3)


def test_it_goes_through_json():
    found = familiar(features(100, 0), np.arange(100), features(50, 1), np.arange(50))
    values = found.to_dict()
    again = Familiar.from_dict(values)
    x = features(10, 7)
    assert np.array_equal(again.distance(x), found.distance(x)) and again.measured == found.measured


def test_too_few_images_are_refused():
    for x, groups in ((features(10, 0), np.arange(10)), (features(30, 0), np.zeros(30))):
        with pytest.raises(MedvitError, match=f"{len(x)} training images of .* at least 20 images of 2 patients"):
            familiar(x, groups, features(10, 1), np.arange(10))
    with pytest.raises(MedvitError, match="NaN or infinite"):
        familiar(np.full((30, 4), np.nan), np.arange(30), features(10, 1, 4), np.arange(10))
