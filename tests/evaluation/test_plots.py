"""Figures show the numbers they should, belong to nobody, and repeat."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.metrics import auroc, average_precision
from medvitlib.plots import plot_confusion, plot_pr, plot_reliability, plot_roc, plot_threshold

RNG = np.random.default_rng(0)
Y = RNG.integers(2, size=200)
P = np.round(1 / (1 + np.exp(-(3 * Y - 1.5 + RNG.normal(size=200)))), 2)
GROUPS = np.arange(200) // 2
TWO = {"classes": ["NORMAL", "PNEUMONIA"], "positive": "PNEUMONIA", "groups": GROUPS}
P4 = RNG.dirichlet(np.ones(4), 200)
Y4 = P4.argmax(axis=1)
MARKS = {"default": 0.5, "95 % recall": 0.2}


def line(figure, label: str) -> tuple[np.ndarray, np.ndarray]:
    (found,) = [line for ax in figure.axes for line in ax.lines if str(line.get_label()).startswith(label)]
    return found.get_data()


def test_the_area_under_the_drawn_curves_is_the_metric():
    x, y = line(plot_roc(Y, P, **TWO), "PNEUMONIA")
    assert np.trapezoid(y, x) == pytest.approx(auroc(Y == 1, P), abs=1e-12)
    recall, precision = line(plot_pr(Y, P, **TWO), "PNEUMONIA")
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(average_precision(Y == 1, P), abs=1e-12)


@pytest.mark.parametrize(("plot", "places"), [(plot_roc, (0.1, 0.2, 0.3)), (plot_pr, (0.6, 0.7, 0.8))])
def test_the_band_holds_the_curve_and_not_all_else(plot, places):
    figure = plot(Y, P, **TWO)
    (band,) = figure.axes[0].collections
    (path,) = band.get_paths()
    x, y = line(figure, "PNEUMONIA")
    for place in places:
        height = y[np.searchsorted(x, place)]
        assert path.contains_point((place, height))
        assert not path.contains_point((place, height - 0.3))


def test_markers_stand_at_the_recall_of_their_threshold():
    figure = plot_roc(Y, P, thresholds=MARKS, **TWO)
    for name, threshold in MARKS.items():
        (x,), (y,) = line(figure, name)
        assert y == pytest.approx((P[Y == 1] >= threshold).mean()) and x == pytest.approx(
            (P[Y == 0] >= threshold).mean()
        )


def test_the_threshold_curve_between_two_scores_is_that_of_the_decision():
    figure = plot_threshold(Y, P, thresholds=MARKS, **TWO)
    drawn = {name: line(figure, name) for name in ("recall", "specificity")}
    (recall,) = [found for found in figure.axes[0].lines if found.get_label() == "recall"]
    assert recall.get_drawstyle() == "steps-post"
    for t in (0.313, 0.655):
        cuts, values = drawn["recall"]
        assert values[(cuts >= t).sum() - 1] == pytest.approx((P[Y == 1] >= t).mean())
        cuts, values = drawn["specificity"]
        assert values[(cuts >= t).sum() - 1] == pytest.approx((P[Y == 0] < t).mean())


def test_the_histogram_beneath_the_reliability_curve_counts_every_image():
    figure = plot_reliability(Y, P, temperature=1.31, **TWO)
    heights = [bar.get_height() for bar in figure.axes[1].patches]
    assert sum(heights) == 200
    assert "1.31" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("k", [2, 3, 4, 13])
@pytest.mark.parametrize("letters", [3, 24, 60])
def test_nothing_of_a_confusion_figure_is_cropped(k, letters):
    y = np.arange(4 * k) % k
    figure = plot_confusion(y, y, classes=[f"{'class name ' * 9}"[: letters - 2] + f"{i:02d}" for i in range(k)])
    figure.savefig(io.BytesIO())  # lays it out
    around, page = figure.get_tightbbox(), figure.bbox_inches
    assert around.y0 >= 0 and around.y1 <= page.height and around.x0 >= -0.01 and around.x1 <= page.width + 0.01


def test_the_confusion_figure_shows_counts_and_row_rates():
    figure = plot_confusion(Y, (P >= 0.5).astype(int), classes=TWO["classes"])
    counts, rates = ([text.get_text() for text in ax.texts[:4]] for ax in figure.axes)
    assert sum(int(text) for text in counts) == 200
    assert float(rates[0]) + float(rates[1]) == pytest.approx(1, abs=0.011)


def test_many_classes_have_a_curve_each():
    for figure in (plot_roc(Y4, P4, classes=list("abcd")), plot_pr(Y4, P4, classes=list("abcd"))):
        assert [line(figure, name)[0].size > 0 for name in "abcd"] == [True] * 4
    assert plot_reliability(Y4, P4, classes=list("abcd")).axes[0].get_ylabel() == "Share right"


@pytest.mark.parametrize("plot", [plot_roc, plot_pr, plot_reliability, plot_threshold])
def test_figures_repeat_to_the_byte_and_can_share_a_page(plot):
    first, second = io.BytesIO(), io.BytesIO()
    plot(Y, P, **TWO).savefig(first), plot(Y, P, **TWO).savefig(second)
    assert first.getvalue() == second.getvalue()
    page = Figure(figsize=(12, 4.5), layout="constrained")
    for half in page.subfigures(1, 2):
        assert plot(Y, P, on=half, **TWO) is half
    page.savefig(io.BytesIO())


def test_n_is_on_every_curve():
    for plot in (plot_roc, plot_pr, plot_reliability, plot_threshold):
        texts = [text.get_text() for text in plot(Y, P, **TWO).axes[0].texts]
        assert any(f"200 images ({Y.sum()} PNEUMONIA), 100 patients" in text for text in texts)


@pytest.mark.parametrize("plot", [plot_roc, plot_pr, plot_threshold])
def test_a_curve_needs_two_classes(plot):
    with pytest.raises(EvaluationError, match="every one is PNEUMONIA"):
        plot(np.ones(200, int), P, **TWO)


def test_nothing_here_touches_pyplot():
    code = "import sys, medvitlib.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
