"""Sets of classes: they hold the true one as often as promised, or are refused."""

import math

import numpy as np
import pytest

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.conformal import Conformal, NotCalibrated, conformal

CLASSES = ("a", "b", "c")


def drawn(n: int, seed: int, rare: float = 0.1, images: int = 1):
    """Patients of three classes, one of them rare, and probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.choice(3, n, p=[0.6, 0.4 - rare, rare]), images)
    own = np.repeat(rng.normal(1.0, 1.0, n), images) + 0.3 * rng.normal(size=n * images)  # a patient's images agree
    logits = rng.normal(size=(n * images, 3))
    logits[np.arange(len(y)), y] += own
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return y, p, np.repeat(np.arange(n), images)


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_a_new_image_is_covered_as_often_as_was_promised_in_every_class(coverage):
    held = np.zeros(3)
    for seed in range(200):
        found = conformal(*drawn(300, seed)[:2], classes=CLASSES, coverage=coverage)
        y, p, _ = drawn(300, seed + 1000)
        inside = found.sets(p)[np.arange(300), y]
        held += [inside[y == label].mean() for label in range(3)]
    assert (held / 200 >= coverage - 0.01).all()
    assert (held / 200 <= coverage + 0.06).all()  # and not by sets of everything


def test_over_all_classes_the_rare_one_may_fall_short():
    by = {}
    for way in ("class", "all"):
        rates = []
        for seed in range(60):
            y, p, _ = drawn(400, seed)
            p = p * [1, 1, 0.3]  # the model is shy of the rare class
            p /= p.sum(1, keepdims=True)
            found = conformal(y[:200], p[:200], classes=CLASSES, by=way)
            inside = found.sets(p[200:])[np.arange(200), y[200:]]
            rates.append((inside.mean(), inside[y[200:] == 2].mean()))
        by[way] = np.mean(rates, 0)
    assert by["all"][0] > 0.89 and by["all"][1] < 0.8
    assert by["class"][1] > 0.89


def test_patients_count_once_and_all_their_images_are_covered():
    rates = []
    for seed in range(100):
        y, p, patients = drawn(150, seed, rare=0.2, images=4)
        found = conformal(y, p, classes=CLASSES, groups=patients)
        assert sum(found.patients) == 150
        y, p, patients = drawn(150, seed + 1000, rare=0.2, images=4)
        inside = found.sets(p)[np.arange(len(y)), y].reshape(150, 4)
        rates.append(inside.all(1).mean())
    assert np.mean(rates) >= 0.89


def test_the_cutoff_is_the_order_statistic_written_out():
    p = np.linspace(0.05, 0.95, 19)
    found = conformal(np.ones(19, int), np.stack([1 - p, p], 1), classes=("n", "y"), positive="y", by="all")
    missed = 20 - math.ceil(20 * 0.9)
    assert found.cutoffs[1] == pytest.approx(np.sort(p)[missed - 1])
    assert found.sets([[0.5, 0.5]]).shape == (1, 2)
    assert Conformal(**found.to_dict()) == found


def test_too_few_patients_are_refused_with_the_number_it_takes():
    y, p, _ = drawn(12, 0)
    y[:] = [0] * 9 + [1] * 3
    with pytest.raises(NotCalibrated, match=r"hold b 90 % of the time take 9 images to calibrate on; there are 3"):
        conformal(y, p, classes=CLASSES)
    assert conformal(y, p, classes=CLASSES, by="all").patients == (12, 12, 12)
    with pytest.raises(NotCalibrated, match=r"take 19 patients .* there are 12"):
        conformal(y, p, classes=CLASSES, by="all", coverage=0.95, groups=np.arange(12))
    with pytest.raises(EvaluationError, match="unknown"):
        conformal(y, p, classes=CLASSES, by="klass")
    with pytest.raises(EvaluationError, match="coverage"):
        conformal(y, p, classes=CLASSES, coverage=1.2)
