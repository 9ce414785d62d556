"""Training curves show the numbers of metrics.csv, mark the epoch kept, and bear short, broken and two-phase runs."""

import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from medvitlib.curves import plot_cuts, plot_histories, plot_history
from medvitlib.errors import EvaluationError
from medvitlib.evaluation import Estimate


def history(epochs: int = 8, head: int = 0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    epoch = np.arange(1, epochs + 1)
    auroc = 0.7 + 0.02 * epoch + 0.03 * rng.normal(size=epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "phase": np.where(epoch <= head, "head", "all"),
            "lr": np.where(epoch <= head, 1e-3, 3e-4 / epoch),
            "train_loss": 0.6 / epoch,
            "val_nll": 0.5 / epoch + 0.02 * epoch,
            "val_accuracy": auroc - 0.1,
            "val_auroc": auroc,
            "val_f1": auroc - 0.12,
            "images_per_second": 40.0,
            "seconds": 30.0,
            "best": (auroc >= np.maximum.accumulate(auroc)).astype(int),
        }
    )


def lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}


def rings(ax) -> set[tuple[float, float]]:
    return {(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_markerfacecolor() == "white"}


def test_the_three_panels_show_the_table():
    table = history()
    loss, metric, rate = plot_history(table).axes
    np.testing.assert_array_equal(lines(loss)["training loss"], table.train_loss)
    np.testing.assert_array_equal(lines(loss)["validation loss"], table.val_nll)
    np.testing.assert_array_equal(lines(metric)["validation AUROC"], table.val_auroc)
    np.testing.assert_array_equal(lines(metric)["validation accuracy"], table.val_accuracy)
    np.testing.assert_array_equal(lines(rate)["learning rate"], table.lr)
    assert [text.get_text() for text in loss.texts] == ["8 epochs"]


def test_the_epoch_that_was_kept_is_ringed_on_every_curve():
    table = history()
    row = table[table.best == 1].iloc[-1]
    loss, metric, rate = plot_history(table).axes
    assert rings(loss) == {(row.epoch, row.train_loss), (row.epoch, row.val_nll)}
    assert rings(metric) == {(row.epoch, row.val_auroc), (row.epoch, row.val_accuracy)}
    assert rings(rate) == {(row.epoch, row.lr)}
    assert metric.texts[0].get_text() == f"kept: epoch {row.epoch:.0f}, validation AUROC {row.val_auroc:.3f}"


@pytest.mark.parametrize(("metric", "best"), [("val_nll", "idxmin"), ("val_f1", "idxmax")])
def test_without_marks_the_stopping_metric_says_which_epoch(metric, best):
    table = history().drop(columns="best")
    expected = table.epoch[getattr(table[metric], best)()]
    assert f"epoch {expected}," in plot_history(table, metric=metric).axes[1].texts[0].get_text()


def test_the_head_phase_is_shaded_and_named_only_where_there_was_one():
    for ax in plot_history(history(8, head=2)).axes:
        (span,) = ax.patches
        assert (span.get_x(), span.get_width()) == (0.5, 2) and "head" in [text.get_text() for text in ax.texts]
    assert not any(ax.patches for ax in plot_history(history()).axes)


def test_one_epoch_and_gaps_leave_something_to_see():
    for column, (value,) in lines(plot_history(history(1)).axes[0]).items():
        assert np.isfinite(value), column
    table = history()
    table.loc[[1, 3], "val_nll"] = np.nan
    table.loc[:, "val_auroc"] = np.nan
    figure = plot_history(table.drop(columns="best"))
    (dots,) = [line for line in figure.axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert list(dots.get_xdata()) == [1, 3]  # the first epoch and the third stand alone
    assert figure.axes[1].texts[0].get_text() == "no epoch was kept"
    figure.savefig(io.BytesIO())


def test_several_runs_share_each_panel_and_one_legend():
    runs = {"ViT": history(8, 2), "ResNet18": history(5, seed=1)}
    figure = plot_histories(runs)
    assert [ax.get_title(loc="left").strip() for ax in figure.axes] == [
        "Training loss",
        "Validation loss",
        "Validation AUROC",
    ]
    for ax, column in zip(figure.axes, ("train_loss", "val_nll", "val_auroc"), strict=True):
        for name, table in runs.items():
            np.testing.assert_array_equal(lines(ax)[name], table[column])
        assert len(rings(ax)) == 2 and ax.get_xlim() == (0.5, 8.5)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["ViT", "ResNet18", "epoch kept"]


def test_figures_repeat_to_the_byte_and_can_share_a_page():
    first, second = io.BytesIO(), io.BytesIO()
    plot_history(history()).savefig(first), plot_history(history()).savefig(second)
    assert first.getvalue() == second.getvalue()
    page = Figure(figsize=(11, 7), layout="constrained")
    top, bottom = page.subfigures(2, 1)
    assert plot_history(history(), on=top) is top and plot_histories({"a": history()}, on=bottom) is bottom
    page.savefig(io.BytesIO())


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(EvaluationError, match=r"no column 'lr'; it has: epoch, .*val_nll"):
        plot_history(history().drop(columns="lr"))
    with pytest.raises(EvaluationError, match="no column 'val_aurok'"):
        plot_history(history(), metric="val_aurok")
    with pytest.raises(EvaluationError, match="no row"):
        plot_history(history(0))
    with pytest.raises(EvaluationError, match="one run and one column"):
        plot_histories({})


def test_every_cut_is_a_dot_and_the_reported_one_has_its_interval():
    values = {"by file": np.array([0.8, 0.81, 0.79]), "by photograph": np.array([0.6, 0.9])}
    figure = plot_cuts(values, {"by photograph": Estimate(0.9, 0.7, 1.0, "", 10, 3)})
    dots, more, interval, diamond = figure.axes[0].lines
    assert dots.get_xdata().tolist() == [0.8, 0.81, 0.79] and more.get_xdata().tolist() == [0.6, 0.9]
    assert interval.get_xdata().tolist() == [0.7, 1.0] and diamond.get_xdata() == [0.9]
    with pytest.raises(EvaluationError, match="expected names among"):
        plot_cuts(values, {"by fole": Estimate(0.9, 0.7, 1.0, "", 10, 3)})
