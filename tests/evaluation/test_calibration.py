"""Temperature scaling finds the temperature that was there, and scikit-learn's."""

import numpy as np
import pytest
import sklearn
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from medvitlib.errors import EvaluationError
from medvitlib.evaluation import apply_temperature, fit_temperature, log_probabilities

NEW_ENOUGH = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 8)


def overconfident(n: int, k: int, temperature: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    y = (logits + rng.gumbel(size=(n, k))).argmax(axis=1)  # drawn from softmax(logits)
    return y, logits * temperature


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_a_known_temperature_is_recovered(k, temperature):
    y, logits = overconfident(20_000, k, temperature)
    assert fit_temperature(y, logits) == pytest.approx(temperature, rel=0.04)


def test_no_other_temperature_has_a_smaller_nll():
    y, logits = overconfident(300, 3, 1.7)
    best = fit_temperature(y, logits)
    losses = [log_loss(y, softmax(logits / t, axis=1)) for t in (best, best * 1.01, best / 1.01)]
    assert losses[0] == min(losses)


@pytest.mark.skipif(not NEW_ENOUGH, reason="scikit-learn before 1.8 has no temperature scaling")
@pytest.mark.parametrize("k", [2, 4])
def test_it_is_scikit_learns_temperature(k):
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    rng = np.random.default_rng(0)
    y = rng.integers(k, size=900)
    x = rng.normal(size=(900, 8)) + 0.6 * rng.normal(size=(k, 8))[y]
    model = LogisticRegression(C=1e4).fit(x[:60], y[:60])  # too few for eight features: overconfident
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(x[60:500], y[60:500])
    logits = log_probabilities(model.predict_proba(x))
    temperature = fit_temperature(y[60:500], logits[60:500])
    assert temperature > 1.1
    assert apply_temperature(logits[500:], temperature) == pytest.approx(theirs.predict_proba(x[500:]), abs=2e-4)


def test_logits_and_log_probabilities_are_the_same_thing():
    y, logits = overconfident(200, 3, 2.0)
    p = softmax(logits, axis=1)
    assert fit_temperature(y, log_probabilities(p)) == pytest.approx(fit_temperature(y, logits), rel=1e-5)
    assert apply_temperature(log_probabilities(p), 1.0) == pytest.approx(p, abs=1e-12)


def test_two_classes_keep_their_ranking_and_their_half():
    p = np.sort(np.r_[0.5, np.random.default_rng(0).random(500)])
    scaled = apply_temperature(log_probabilities(np.stack([1 - p, p], axis=1)), 3.0)[:, 1]
    assert (np.diff(scaled) >= 0).all() and ((scaled >= 0.5) == (p >= 0.5)).all()


def test_huge_logits_and_exact_zeros_stay_finite():
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert np.isfinite(apply_temperature(log_probabilities(p), 0.05)).all()
    assert np.isfinite(apply_temperature(np.array([[1e4, -1e4]]), 2.0)).all()
    assert fit_temperature(np.array([0, 0, 1]), log_probabilities(p)) > 1  # one is certain and wrong


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(EvaluationError, match="positive"):
        apply_temperature(np.zeros((2, 2)), temperature)


def test_one_column_is_not_logits():
    with pytest.raises(EvaluationError, match=r"np\.stack"):
        fit_temperature(np.array([0, 1]), np.array([0.1, 0.9]))


def test_labels_and_logits_have_one_length():
    with pytest.raises(EvaluationError, match="3 labels but 2 rows"):
        fit_temperature(np.array([0, 1, 0]), np.zeros((2, 2)))
