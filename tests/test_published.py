"""Our figures, with their intervals, above those that others have published for the same data set."""

import re

import numpy as np
import pytest

from medvitlib.data.sources.medmnist import sets
from medvitlib.evaluation import build_report, wilson
from medvitlib.published import PUBLISHED, beside_published, differences_from_published, published_table


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


def test_the_number_of_images_gives_a_published_accuracy_its_interval():
    table = published_table(["medmnist/breastmnist@64", "medmnist/retinamnist", "phantom/ct"])
    low, high = wilson(0.904 * 156, 156)
    row = table.loc[("medmnist/breastmnist", "published: ViT-B, fine-tuned")]
    assert row["accuracy"] == f"0.904 [{low:.3f}, {high:.3f}]" and row["test images"] == "156"
    assert set(table.index.get_level_values("set")) == {"medmnist/breastmnist", "medmnist/retinamnist"}
    for name, rows in PUBLISHED.items():
        if name.startswith("medmnist/"):
            assert {row["n"] for row in rows} == {sets()[name.partition("/")[2]]["n_samples"]["test"]}


def test_a_difference_is_called_chance_where_its_interval_holds_zero(report):
    found = differences_from_published("ours", report, "medmnist/breastmnist")
    assert len(found) == len(PUBLISHED["medmnist/breastmnist"])
    (difference,) = re.findall(r"a difference of ([-+][\d.]+)", found[1])
    assert float(difference) == pytest.approx(37 / 40 - 0.904, abs=0.0011) and found[1].endswith("could be chance.")
    y = np.arange(1000) % 2
    poor = build_report(y, np.where(np.arange(1000) < 500, 0.6, 0.4), classes=["a", "b"], positive="b", n_boot=100)
    assert all(
        line.endswith("more than chance.") for line in differences_from_published("ours", poor, "medmnist/pathmnist")
    )
    assert differences_from_published("ours", report, "phantom/ct") == []
