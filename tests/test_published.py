"""Our figures, with their intervals, above those that others have published for the same data set."""

import numpy as np
import pytest

from medvitlib.evaluation import build_report
from medvitlib.published import PUBLISHED, beside_published


@pytest.fixture(scope="module")
def report():
    y = np.arange(40) % 2
    return build_report(y, np.where(np.arange(40) < 6, 0.6, np.where(y, 0.8, 0.3)), classes=["a", "b"], positive="b")


def test_a_row_an_operating_point_then_what_was_published(report):
    table = beside_published({"ours": report}, "sarscov2_ct", ("accuracy", "precision", "recall", "mcc"))
    assert list(table.index) == ["ours, @0.5", PUBLISHED["sarscov2_ct"][0]["model"]]
    point = report.operating_points["0.5"]
    assert table.loc["ours, @0.5"].tolist() == [str(point[name]) for name in table.columns]
    assert table.iloc[-1].tolist() == ["0.817", "0.827", "0.817", "0.644"]


def test_what_nobody_reported_is_left_empty_and_other_sets_have_our_rows_alone(report):
    table = beside_published({"ours": report}, "chest_xray")
    assert list(table.columns) == ["accuracy", "recall", "auroc"] and table["recall"].iloc[1] == ""
    assert table["auroc"].iloc[0] == str(report.metrics["auroc"])
    assert list(beside_published({"ours": report}, "phantom/ct").index) == ["ours, @0.5"]
