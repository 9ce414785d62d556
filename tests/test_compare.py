"""The table of several models says what their reports say, one row a model and operating point."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from medvitlib.compare import comparison_table
from medvitlib.data import open_dataset, split
from medvitlib.errors import EvaluationError
from medvitlib.evaluate import evaluate
from medvitlib.models.zoo import build
from medvitlib.training.probe import fit_probe

MODELS = {"tiny ViT": "vit_tiny_test", "tiny ResNet": "test_resnet"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDVIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


def probes(family: str, models: dict[str, str], **options) -> dict:
    """Name of the model -> its run and report, on rendered images."""
    parts = split(open_dataset(family, image_size=32, seed=1, **options), val=0.25, test=0.25, seed=0)
    found = {}
    for title, name in models.items():
        model = build(name, len(parts.train.classes), weights=None, image_size=32, quiet=True)
        run = fit_probe(model, parts, name=f"{name}-{len(parts.train.classes)}", strengths=(0.01, 0.1), precision=None)
        found[title] = run, evaluate(run, parts.test, n_boot=100, precision=None)
    return found


@pytest.fixture(scope="module")
def two(folders):
    return probes("phantom/cxr", MODELS, n_patients=60, difficulty=0.0)


@pytest.fixture(scope="module")
def many(folders):
    return probes("phantom/wbc4", {"tiny ViT": "vit_tiny_test"}, n_patients=40)


def test_each_model_has_a_row_for_each_operating_point_with_its_reports_figures(two):
    table = comparison_table(two)
    assert list(table.columns) == [
        "parameters", "minutes", "accuracy", "precision", "recall", "F1", "AUROC", "threshold",
    ]  # fmt: skip
    points = [(name, f"@{point}") for name, (_, report) in two.items() for point in report.operating_points]
    assert list(table.index) == points and {"@0.5", "@recall"} <= {point for _, point in points}
    for name, (_, report) in two.items():
        shown = report.operating_table()
        for point in report.operating_points:
            row = table.loc[(name, f"@{point}")]
            assert (
                row[["accuracy", "precision", "recall", "F1"]].tolist()
                == shown.loc[point, ["accuracy", "precision", "recall", "f1"]].tolist()
            )
            assert row["AUROC"] == str(report.metrics["auroc"])
            assert float(row["threshold"]) == pytest.approx(report.thresholds[point], rel=5e-3)


def test_a_certified_threshold_is_a_row_of_its_own(two):
    run, report = two["tiny ViT"]
    point = {**report.operating_points["recall"], "threshold": 0.125}
    certified = replace(report, operating_points={**report.operating_points, "certified": point})
    assert comparison_table({"a": (run, certified)}).loc[("a", "@certified"), "threshold"] == "0.125"


def test_every_parameter_is_counted_position_and_class_token_included(two):
    table = comparison_table(two)
    for name, (run, _) in two.items():
        counted = sum(parameter.numel() for parameter in run.model.parameters())
        assert table.loc[(name, "@0.5"), "parameters"] == f"{counted:,}"


def test_minutes_are_those_of_the_epochs_and_a_probe_has_none(two, tmp_path):
    run, report = two["tiny ViT"]
    assert set(comparison_table(two)["minutes"]) == {"–"}
    pd.DataFrame({"epoch": [1, 2], "seconds": [100.0, 50.0]}).to_csv(tmp_path / "metrics.csv", index=False)
    trained = replace(run, folder=tmp_path)
    assert comparison_table({"a": (trained, report)})["minutes"].tolist()[0] == "2.5"


def test_more_than_two_classes_have_one_row_of_macro_averages(many):
    (report,) = (report for _, report in many.values())
    table = comparison_table(many)
    assert list(table.index) == [("tiny ViT", "argmax")] and report.positive is None
    row = table.iloc[0]
    for column, metric in {"accuracy": "accuracy", "F1": "f1_macro", "AUROC": "auroc_macro"}.items():
        assert row[column] == str(report.metrics[metric])
    assert row["threshold"] == "–"


def test_what_was_scored_on_other_images_is_not_compared(two, many):
    with pytest.raises(EvaluationError, match="at least"):
        comparison_table({})
    with pytest.raises(EvaluationError, match="models for the same classes"):
        comparison_table({"a": two["tiny ViT"], "b": many["tiny ViT"]})
    run, report = two["tiny ViT"]
    shorter = replace(report, y_true=report.y_true[1:])
    other_patients = replace(report, groups=np.roll(report.groups, 5))
    for changed in (shorter, other_patients):
        with pytest.raises(EvaluationError, match="not the same: evaluate both on one test set"):
            comparison_table({"a": (run, report), "b": (run, changed)})
    laxer = replace(report, settings={**report.settings, "target_recall": 0.8})
    with pytest.raises(EvaluationError, match=r"target_recall=0\.95, 'b' with 0\.8"):
        comparison_table({"a": (run, report), "b": (run, laxer)})
