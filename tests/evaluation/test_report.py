"""The report chooses on validation, scores the test set, says what is doubtful, and survives the disk."""

import html
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medvitlib.errors import EvaluationError, printable
from medvitlib.evaluation import (
    Estimate,
    Predictions,
    Report,
    Stored,
    apply_temperature,
    build_report,
    choose_recall_threshold,
    choose_threshold_by_min_recall,
    fit_temperature,
    log_probabilities,
    score,
)

CLASSES = ["NORMAL", "PNEUMONIA"]
TWO = {"classes": CLASSES, "positive": "PNEUMONIA", "n_boot": 200}


def simulated(part: str, n_patients: int, seed: int, shift: float = 0.0):
    """Overconfident probabilities (N, 2) of patients with 1 to 3 images, as `Predictions`."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), rng.integers(1, 4, n_patients))
    y = (rng.random(n_patients) < 0.6).astype(int)[patient]
    x = 1.5 * (2 * y - 1) + rng.normal(size=len(y)) + 0.7 * rng.normal(size=n_patients)[patient] - shift * y
    p = 1 / (1 + np.exp(-4 * x))
    return Predictions(y, np.stack([1 - p, p], axis=1), np.array([f"{part}/{i}" for i in patient]))


def reported(test: Predictions, validation: Predictions | None = None, **options) -> Report:
    given = {"groups": test.groups, "validation": validation, **TWO, **options}
    return build_report(test.y_true, test.probabilities, **given)


@pytest.fixture(scope="module")
def validation():
    return simulated("val", 200, 1)


@pytest.fixture(scope="module")
def report(validation):
    return reported(simulated("test", 150, 2), validation)


def test_temperature_and_threshold_come_from_validation_alone(validation):
    one, other = (reported(simulated("test", 60, seed, shift=2.0), validation) for seed in (3, 4))
    expected = fit_temperature(validation.y_true, log_probabilities(validation.probabilities))
    calibrated = apply_temperature(log_probabilities(validation.probabilities), expected)[:, 1]
    arguments = validation.y_true, calibrated, 0.95
    for report in (one, other):
        assert report.temperature == expected > 1.3
        assert report.thresholds["recall"] == choose_recall_threshold(*arguments).threshold
        assert report.thresholds["published"] == choose_threshold_by_min_recall(*arguments).threshold
    assert one.thresholds == other.thresholds


def test_its_figures_are_those_of_score_on_calibrated_probabilities(report):
    found = score(report.y_true, report.probabilities, groups=report.groups, **TWO)
    assert report.metrics == found
    assert report.operating_points["0.5"]["recall"] == found["recall"]
    assert report.calibration["after"]["ece"] == found["ece"]


def test_calibration_helps_an_overconfident_model_and_moves_nobody_across_a_half(report):
    assert report.calibration["after"]["nll"].value < report.calibration["before"]["nll"].value - 0.02
    raw = simulated("test", 150, 2).probabilities[:, 1]
    assert ((raw >= 0.5) == (report.probabilities[:, 1] >= 0.5)).all()


def test_calibration_that_does_harm_on_other_images_is_said(report):
    assert "worse" not in " ".join(report.sentences())
    sharp = simulated("val", 200, 1)
    said = sharp.y_true ^ (np.arange(len(sharp.y_true)) % 150 == 0)  # three are wrong
    sharp = Predictions(sharp.y_true, np.eye(2)[said] * 0.8 + 0.1, sharp.groups)  # asks for a small temperature
    harmed = reported(simulated("test", 150, 2), sharp)
    assert harmed.calibration["change"]["nll"].low > 0
    assert any("Scaling made the test NLL worse, by 0." in s for s in harmed.sentences())


def test_a_temperature_of_one_harms_nobody(report):
    """The change of the loss is then rounding error, on whatever side of zero."""
    stored = Stored(1.0, {})
    kept = build_report(report.y_true, report.probabilities, groups=report.groups, stored=stored, **TWO)
    assert abs(kept.calibration["change"]["nll"].value) < 1e-9
    for tiny in (1e-16, -1e-16):
        kept.calibration["change"]["nll"] = replace(kept.calibration["change"]["nll"], low=tiny, value=tiny, high=tiny)
        assert "worse" not in " ".join(kept.sentences())


def test_calibration_whose_harm_may_be_chance_is_not_called_worse():
    """NLL 0.642 to 0.670 [0.550, 0.800] on 40 patients says nothing about the test images."""
    seen = False
    for seed in range(20):
        report = reported(simulated("test", 20, 100 + seed), simulated("val", 60, seed))
        change = report.calibration["change"]["nll"]
        before, after = (report.calibration[when]["nll"].value for when in ("before", "after"))
        assert change.value == pytest.approx(after - before)
        assert ("worse" in " ".join(report.sentences())) == (change.low > 0)
        seen |= change.value > 0 >= change.low
    assert seen, "no draw in which the loss rose by no more than chance"


def test_the_operating_points_differ_as_they_should(report):
    points = report.operating_points
    assert list(points) == ["0.5", "recall", "published", "certified"]
    assert points["certified"]["threshold"] < points["recall"]["threshold"] < 0.5
    assert points["certified"]["recall"].value >= points["recall"]["recall"].value > points["0.5"]["recall"].value
    n = sum(points["recall"][name] for name in ("tp", "fp", "fn", "tn"))
    assert n == len(report.y_true)


def test_a_recall_threshold_that_stays_at_one_half_says_why():
    apart = {
        "y_true": np.repeat([0, 1], 30),
        "probabilities": np.repeat([0.3, 0.97], 30),
        "groups": np.arange(60).astype(str),
    }
    report = reported(simulated("test", 60, 0), Predictions(**apart))
    assert report.thresholds["recall"] == 0.5 < report.thresholds["published"]
    assert any("The threshold stays at 0.5. One of 0.97 would reach" in sentence for sentence in report.sentences())


def test_too_few_positive_patients_are_a_sentence_not_a_threshold():
    report = reported(simulated("test", 60, 0), simulated("val", 60, 1))
    assert "certified" not in report.thresholds
    (note,) = report.notes
    assert note.startswith("No certified threshold: ") and "at least 59 needed" in note and note in report.sentences()


def test_models_compared_on_validation_lower_the_certified_threshold_or_forbid_it(report, validation):
    many = reported(simulated("test", 150, 2), validation, candidates=20)
    assert "certified" not in many.thresholds or many.thresholds["certified"] < report.thresholds["certified"]
    assert many.thresholds["recall"] == report.thresholds["recall"]


def test_recall_of_100_percent_is_chosen_but_never_certified(validation):
    report = reported(simulated("test", 60, 2), validation, target_recall=1.0)
    assert report.choices["recall"].recall == 1 and "cannot be guaranteed" in report.notes[0]


def test_without_validation_nothing_is_chosen_and_it_says_so():
    report = reported(simulated("test", 60, 2))
    assert report.temperature == 1 and list(report.thresholds) == ["0.5"]
    assert any("no threshold was chosen" in sentence for sentence in report.sentences())


def test_a_patient_on_both_sides_is_an_error(validation):
    test = Predictions(validation.y_true[:50], validation.probabilities[:50], validation.groups[:50])
    with pytest.raises(EvaluationError, match="both validation and test"):
        reported(test, validation)


def test_a_patient_is_the_same_whether_a_number_or_what_pandas_makes_of_it(validation):
    numbers = np.arange(len(validation.y_true))
    other = Predictions(validation.y_true, validation.probabilities, numbers)
    with pytest.raises(EvaluationError, match="both validation and test"):
        reported(Predictions(validation.y_true, validation.probabilities, numbers.astype(float)), other)


def test_a_perfect_validation_set_fits_no_temperature():
    y = np.arange(40) % 2
    perfect = Predictions(y, np.stack([0.9 - 0.8 * y, 0.1 + 0.8 * y], axis=1))
    report = reported(Predictions(y, perfect.probabilities), perfect)
    assert report.temperature == 1 and "no validation image is called wrongly" in report.notes[0]


def test_useless_validation_probabilities_fit_no_temperature():
    rng = np.random.default_rng(0)
    y, p = np.arange(200) % 2, rng.random(200)
    y[p > 0.7] = 0  # worse than chance: only an infinite temperature would help
    report = build_report(y, p, **TWO, validation=Predictions(y, p))
    assert report.temperature == 1 and "say nothing" in report.notes[0]


def test_unknown_patients_are_said_wherever_they_matter():
    test = simulated("test", 40, 0)
    report = reported(Predictions(test.y_true, test.probabilities))
    text = " ".join(report.sentences())
    assert "patients unknown" in text and "every interval is too narrow" in text
    assert set(report.table()["patients"]) == {"unknown"}
    assert "Only" not in text or "images of" in text


def test_few_patients_of_a_class_are_called_rough():
    report = reported(simulated("test", 30, 0))
    assert sum("fewer than 30" in sentence for sentence in report.sentences()) == 2


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "of 95 %"), (2.0, "below the target of 95 %, beyond chance")])
def test_a_missed_target_is_called_missed(validation, shift, verdict):
    report = reported(simulated("test", 150, 6, shift), validation)
    assert any("The recall is" in sentence and verdict in sentence for sentence in report.sentences())


def test_the_positive_class_may_come_first():
    """Swapping the columns and the labels, with the name, changes no figure."""
    test, held_out = simulated("test", 80, 0), simulated("val", 120, 1)
    one = reported(test, held_out)
    test, held_out = (Predictions(1 - s.y_true, s.probabilities[:, ::-1], s.groups) for s in (test, held_out))
    other = reported(test, held_out, classes=CLASSES[::-1])
    for name, estimate in one.metrics.items():
        assert other.metrics[name].value == pytest.approx(estimate.value, abs=1e-9), name
    assert other.thresholds == pytest.approx(one.thresholds)


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(4), 500)
    y = np.array([rng.choice(4, p=row) for row in p])
    options = {
        "classes": ["a,b", "NA", "ü", "1"],
        "n_boot": 200,
        "validation": Predictions(y[:200], p[:200] ** 2 / (p[:200] ** 2).sum(1, keepdims=True)),
    }
    return build_report(y[200:], p[200:], **options)


def test_many_classes_have_recall_by_class_and_no_thresholds(many):
    assert many.thresholds == {} and many.operating_table().empty
    assert list(many.per_class) == list(many.classes)
    assert many.temperature == pytest.approx(2, rel=0.3)


@pytest.mark.parametrize("which", ["report", "many"])
def test_a_saved_report_reads_back_the_same(which, request, tmp_path):
    report = request.getfixturevalue(which)
    again = Report.load(report.save(tmp_path / "run"))
    assert again.to_json() == report.to_json()
    assert (again.probabilities == report.probabilities).all() and (again.y_true == report.y_true).all()
    assert again.groups is None if report.groups is None else (again.groups == report.groups).all()
    assert again.table().equals(report.table())


def test_the_folder_holds_what_the_design_says_and_nothing_half_written(report, tmp_path):
    n = len(report.y_true)
    report.save(tmp_path, ids=[f"img{i}.png" for i in range(n)], splits=["test"] * n)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    confusion = {f"plots/confusion{name}.png" for name in ("", "_recall", "_certified")}
    curves = {f"plots/{name}.png" for name in ("roc", "pr", "reliability", "threshold")}
    assert names == {"report.json", "predictions.csv"} | curves | confusion
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert list(table) == ["id", "group", "split", "y_true", "p_NORMAL", "p_PNEUMONIA"]
    assert table["y_true"].map(CLASSES.index).tolist() == report.y_true.tolist()


def test_plots_of_an_earlier_report_do_not_stay(report, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "confusion_of_before.png").write_bytes(b"old")
    report.save(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == set(report.figures())
    report.save(tmp_path, figures=False)
    assert not list((tmp_path / "plots").iterdir())


def test_json_is_strict_even_where_figures_are_undefined(tmp_path):
    report = build_report(np.ones(30, int), np.linspace(0.6, 0.9, 30), **TWO)
    assert json.loads(report.to_json(), parse_constant=pytest.fail)["metrics"]["auroc"]["value"] is None
    again = Report.load(report.save(tmp_path))
    assert np.isnan(again.metrics["auroc"].value)
    assert any("Undefined" in sentence and "every image is PNEUMONIA" in sentence for sentence in again.sentences())


def test_names_of_another_number_of_images_are_refused(report, tmp_path):
    with pytest.raises(EvaluationError, match="ids has 1 entries"):
        report.save(tmp_path, ids=["a"])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_report_is_answered(tmp_path):
    with pytest.raises(EvaluationError, match="No report"):
        Report.load(tmp_path)


def test_an_unknown_format_is_answered(tmp_path):
    (tmp_path / "report.json").write_text('{"format": 99}')
    with pytest.raises(EvaluationError, match="format is 99; expected 1"):
        Report.load(tmp_path)


def shown(report):
    """The report as text, and each table of its HTML as a list of rows of cells."""
    tables = re.findall("<table>(.*?)</table>", report._repr_html_())
    rows = [
        [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", table)] for table in tables
    ]
    return str(report), rows


@given(
    names=st.lists(st.text(st.characters(exclude_characters="."), min_size=1, max_size=200), min_size=3, max_size=40),
    groups_known=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_a_report_of_many_classes_prints_whole_at_80_columns(names, groups_known, seed):
    names = list(dict.fromkeys(names))
    assume(len(names) > 2)
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, len(names), 30), rng.dirichlet(np.ones(len(names)), 30)
    report = build_report(y, p, classes=names, groups=np.arange(30) // 2 if groups_known else None, n_boot=100)
    text, (metrics, recalls) = shown(report)
    assert max(map(len, text.splitlines())) <= 80 and "..." not in text
    assert printable(text, keep="\n") == text
    together = "".join(text.split())
    for name, estimate in [*report.metrics.items(), *report.per_class.items()]:
        for part in (*printable(name).split(), str(estimate)):
            assert "".join(part.split()) in together, name
    assert [row[0] for row in metrics[1:]] == list(report.metrics)
    assert [row[0] for row in recalls[1:]] == [html.escape(printable(name)) for name in names]
    assert {row[3] for row in recalls[1:]} <= ({"unknown"} if not groups_known else set(map(str, range(31))))


def test_two_classes_have_every_operating_point_with_its_threshold(report):
    text, (metrics, points) = shown(report)
    assert max(map(len, text.splitlines())) <= 80 and text == repr(report)
    assert points[0] == ["operating point", "0.5", "recall", "published", "certified"]
    assert points[1] == ["threshold", *(f"{value:.3g}" for value in report.thresholds.values())]
    assert {row[0]: row[1:] for row in metrics[1:]}["auroc"] == [
        str(report.metrics["auroc"]),
        str(len(report.y_true)),
        str(len(np.unique(report.groups))),
    ]
    for row in [*metrics, *points]:
        assert all(cell in text for cell in row)


def test_operating_points_that_do_not_fit_beside_each_other_continue_below():
    wide = Estimate(-0.5, -0.75, -0.25, "", 10, None)
    points = {name: {"threshold": 0.5, "mcc": wide} for name in ("0.5", "recall", "certified")}
    one = reported(simulated("test", 60, 2))
    text = str(replace(one, operating_points={k: {"patient_recall_and_more": wide} | v for k, v in points.items()}))
    assert max(map(len, text.splitlines())) <= 80 and text.count("-0.500 [-0.750, -0.250]") == 6
    assert text.count("operating point") == 2


def test_a_report_keeps_why_a_threshold_does_not_exist(tmp_path):
    few, test = simulated("val", 20, 3), simulated("test", 60, 2)
    report = reported(test, few)
    reason = report.refused["certified"]
    assert "positive patients; at least" in reason and "certified" not in report.thresholds
    assert f"No certified threshold: {reason}" in report.notes
    assert Report.load(report.save(tmp_path, figures=False)).refused == report.refused
    stored = Stored(report.temperature, report.thresholds, report.refused)
    later = build_report(test.y_true, test.probabilities, **TWO, groups=test.groups, stored=stored)
    assert later.refused == report.refused and f"No certified threshold: {reason}" in later.sentences()
