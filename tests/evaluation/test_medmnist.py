"""MedMNIST's own Evaluator says the same of the same predictions, so that figures can stand beside published ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvitlib.data.sources import medmnist as sets
from medvitlib.evaluation import build_report, score

FLAGS = ("breastmnist", "pneumoniamnist", "bloodmnist", "pathmnist", "retinamnist")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    """The package's class; importing it makes a folder in the user's home."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        from medmnist.evaluator import Evaluator
    return Evaluator


def predictions(flag: str, n: int = 200):
    """Labels (N, 1) as MedMNIST keeps them, and probabilities (N, K) that are often right and sometimes equal."""
    rng = np.random.default_rng(len(flag))
    k = len(sets.sets()[flag]["label"])
    y = np.r_[np.arange(k), rng.integers(k, size=n - k)]
    p = 0.02 + rng.integers(0, 4, size=(n, k)) + 2.0 * np.eye(k)[y] * rng.random((n, 1))
    return y[:, None], p / p.sum(axis=1, keepdims=True)


def official(evaluator, flag: str, labels: np.ndarray, p: np.ndarray, folder: Path):
    np.savez(folder / f"{flag}.npz", test_labels=labels)
    return evaluator(flag, "test", root=str(folder)).evaluate(p)


def asked(flag: str) -> dict:
    classes = list(sets.sets()[flag]["label"].values())
    return {"classes": classes, "positive": sets.POSITIVE.get(flag), "n_boot": 100}


@pytest.mark.parametrize("flag", FLAGS)
def test_accuracy_and_auc_are_the_official_ones(flag, evaluator, tmp_path):
    labels, p = predictions(flag)
    theirs = official(evaluator, flag, labels, p, tmp_path)
    ours = score(labels[:, 0], p, **asked(flag))
    area = ours.get("auroc") or ours["auroc_macro"]
    assert area.value == pytest.approx(theirs.AUC, abs=1e-6) and 0.5 < theirs.AUC < 1
    assert ours["accuracy"].value == pytest.approx(theirs.ACC, abs=1e-6)


@pytest.mark.parametrize("flag", FLAGS)
def test_the_official_figures_can_be_had_from_what_a_report_saves(flag, evaluator, tmp_path):
    labels, p = predictions(flag)
    report = build_report(labels[:, 0], p, ordered=sets.is_ordered(flag), **asked(flag))
    report.save(tmp_path, figures=False)
    saved = pd.read_csv(tmp_path / "predictions.csv")
    theirs = official(evaluator, flag, labels, saved[[f"p_{name}" for name in report.classes]].to_numpy(), tmp_path)
    found = report.to_dict()["metrics"]
    area = found.get("auroc") or found["auroc_macro"]
    assert area["value"] == pytest.approx(theirs.AUC, abs=1e-6)
    assert found["accuracy"]["value"] == pytest.approx(theirs.ACC, abs=1e-6)
    if report.positive is not None:
        assert report.operating_points["0.5"]["accuracy"].value == pytest.approx(theirs.ACC, abs=1e-6)
    assert ("kappa" in found) == (flag == "retinamnist")


def test_a_temperature_leaves_two_classes_official_figures_and_may_move_the_auc_of_more(evaluator, tmp_path):
    """Softmax of z / T ranks the images of two classes as before; with more, p_k depends on the other logits, too."""
    for flag, moves in (("breastmnist", False), ("bloodmnist", True)):
        labels, p = predictions(flag)
        warmer = p**0.5 / (p**0.5).sum(axis=1, keepdims=True)
        one, other = (official(evaluator, flag, labels, given, tmp_path) for given in (p, warmer))
        assert one.ACC == other.ACC and (abs(one.AUC - other.AUC) > 1e-6) == moves


def test_which_sets_have_grades_is_told_by_name_and_by_file():
    assert sets.is_ordered("medmnist/retinamnist@64") and sets.is_ordered("/data/RetinaMNIST_224.npz")
    assert not sets.is_ordered("medmnist/bloodmnist") and not sets.is_ordered("phantom/cxr")
