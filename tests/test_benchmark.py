"""One recipe over a set: trained without the test part, chosen on validation, scored once, written down."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from medvitlib.benchmark import MEAN, Recipe, adapted, choose_size, open_set, scored, validated
from medvitlib.benchmark_results import audited, benchmark_table, figures_of, macro_f1, pictures_of, write_results
from medvitlib.data.stand_ins import stand_in
from medvitlib.errors import MedvitError, WeightsError
from medvitlib.evaluation.metrics import nll
from medvitlib.models.zoo import first_at_hand
from medvitlib.training.features import forward

CPU = {"device": "cpu", "precision": None}
TINY = {"model": "vit_tiny_test", "weights": None, "epochs": 1}


@pytest.fixture(scope="module")
def grades(tmp_path_factory):
    path = stand_in("grades", tmp_path_factory.mktemp("made"), side=32, n_patients=48)
    return path, *open_set(path, 32)


@pytest.fixture(scope="module")
def once(grades):
    _, ds, parts = grades
    runs = adapted(ds, parts, Recipe(methods=("probe", "lora", "rlrr", "lp_ft"), **TINY), name="bench", **CPU)
    return parts, scored(runs, parts, name="bench", ordered=True, n_boot=100, **CPU)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    ds, parts = open_set(stand_in("slices", tmp_path_factory.mktemp("made"), side=32, n_patients=30), 32)
    runs = adapted(ds, parts, Recipe(methods=("probe", "lora"), folds=3, **TINY), name="folded", **CPU)
    return parts, runs, scored(runs, parts, name="folded", n_boot=100, **CPU)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_every_method_and_their_mean_have_a_report_with_kappa_and_macro_f1(once):
    parts, result = once
    assert list(result.reports) == ["probe", "lora", "rlrr", "lp_ft", MEAN] == list(result.validation)
    for report in result.reports.values():
        found = figures_of(report)
        assert list(found) == ["accuracy", "macro F1", "AUROC", "kappa"] and len(report.y_true) == len(parts.test)
        assert all(np.isnan(figure.low) or figure.low <= figure.value <= figure.high for figure in found.values())


def test_what_is_chosen_is_the_best_on_validation_whatever_the_test_part_says(once):
    parts, result = once
    assert result.chosen == min(result.validation, key=result.validation.get)
    probe = result.runs["probe"][0]
    assert result.validation["probe"] == pytest.approx(float(nll(parts.val.labels, softmax(probe.validation_logits))))


def test_the_mean_is_that_of_uncalibrated_probabilities(once):
    parts, result = once
    models = [runs[0].model for runs in result.runs.values()]
    expected = np.mean([softmax(forward(model, parts.test, **CPU).astype(float)) for model in models], axis=0)
    report = result.reports[MEAN]
    warmed = expected ** (1 / report.temperature)
    np.testing.assert_allclose(report.probabilities, warmed / warmed.sum(1, keepdims=True), atol=1e-5)


def test_folds_choose_on_every_image_outside_the_test_part_and_answer_together(folded):
    parts, runs, result = folded
    assert [len(members) for members in runs.values()] == [3, 3]
    report = result.reports["lora"]
    assert report.settings["validation_images"] == len(parts.train) + len(parts.val)
    expected = np.mean([softmax(forward(run.model, parts.test, **CPU).astype(float)) for run in runs["lora"]], axis=0)
    second, first = np.sort(expected, axis=1)[:, -2:].T
    sure = first - second > 1e-4  # two that are as likely may come in either order
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(report.probabilities.argmax(1)[sure], expected.argmax(1)[sure])
    assert report.settings["candidates"] == sum(run.candidates for run in runs["lora"])


def test_macro_f1_of_two_classes_is_scikit_learns(folded):
    _, _, result = folded
    report = result.reports["probe"]
    positive = report.classes.index(report.positive)
    called = np.where(report.probabilities[:, positive] >= 0.5, positive, 1 - positive)
    assert macro_f1(report).value == pytest.approx(f1_score(report.y_true, called, average="macro"))


def test_what_is_left_on_disk_says_the_same_as_the_table(once, folded, tmp_path):
    results = {"standin grades": once[1], "slices": folded[2]}
    figures = {"standin grades": pictures_of(once[1], once[0]), "slices": pictures_of(folded[2], folded[0])}
    assert list(figures["slices"]) == ["curves", "confusion", "roc", "mistakes", "gradcam"]
    written = pd.read_csv(write_results(results, figures, tmp_path / "results") / "metrics.csv")
    assert {path.name for path in (tmp_path / "results" / "plots").iterdir()} == {
        f"{name.replace(' ', '-')}-{what}.png" for name, drawn in figures.items() for what in drawn
    }
    row = written[(written["set"] == "slices") & (written["method"] == "lora")].iloc[0]
    assert row["AUROC"] == pytest.approx(folded[2].reports["lora"].metrics["auroc"].value) and np.isnan(row["kappa"])
    table = benchmark_table(results)
    assert len(table) == len(written) == 8 and (table["chosen"] == "yes").sum() == 2
    assert table.loc[("standin grades", "probe"), "kappa"] == str(once[1].reports["probe"].metrics["kappa"])


def test_the_size_is_chosen_by_a_probe_on_validation(grades):
    path, *_ = grades
    size, found = choose_size(path, (16, 32), Recipe(**TINY), name="size", **CPU)
    assert set(found) == {16, 32} and size == min(found, key=found.get)
    ds, parts = open_set(path, size)
    again = validated(adapted(ds, parts, Recipe(methods=("probe",), **TINY), name="again", **CPU))
    assert again["probe"] == pytest.approx(found[size])


def test_of_many_training_images_some_are_drawn_in_every_class_and_it_is_said(grades):
    path, _, whole = grades
    _, parts = open_set(path, 32, most=40)
    assert abs(len(parts.train) - 40) <= 2 and len(parts.test) == len(whole.test)
    shares = [np.bincount(part.labels) / len(part) for part in (parts.train, whole.train)]
    np.testing.assert_allclose(*shares, atol=0.05)
    assert "40 of" in parts.notes[-1]


def test_a_large_set_is_audited_in_part(grades):
    assert len(audited(grades[1], most=30).dataset) == 30


def test_the_first_model_with_weights_is_taken_and_the_others_are_named(monkeypatch, tmp_path):
    def locate(name, source):
        if name == "vit_base_patch16_224":
            raise WeightsError(f"no pretrained weights found for {name}:\n  hub: out of reach")
        return tmp_path, "cache"

    monkeypatch.setattr("medvitlib.models.zoo.locate", locate)
    name, why = first_at_hand(("vit_base_patch16_224", "vit_small_patch14_dinov2"))
    assert name == "vit_small_patch14_dinov2" and why == "no pretrained weights found for vit_base_patch16_224"
    with pytest.raises(WeightsError, match="medvit weights fetch"):
        first_at_hand(("vit_base_patch16_224",))


def test_an_unknown_method_is_answered_with_the_nearest():
    with pytest.raises(MedvitError, match="Did you mean 'lora'"):
        Recipe(methods=("probe", "lorra"))
