"""Pictures of a search show its table: each cell its number, each line its point, and the best of them marked."""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medvitlib.errors import EvaluationError
from medvitlib.plotstyle import VERMILION
from medvitlib.search.pictures import plot_grid, plot_parallel

SPACE = {"patch_size": [8, 16, 32], "heads": [1, 2, 4], "dropout": [0.1, 0.3, 0.5]}
WORDS = {"optimizer": ["sgd", "adamw"], "augment": ["none", "light", "strong"], "pretrained": [True, False]}


def grid(space: dict = SPACE, seed: int = 0) -> pd.DataFrame:
    points = [dict(zip(space, point, strict=True)) for point in itertools.product(*space.values())]
    table = pd.DataFrame(points).assign(value=0.7 + 0.02 * np.random.default_rng(seed).normal(size=len(points)))
    return table.sample(frac=1, random_state=seed, ignore_index=True)


def panels(figure) -> dict[str, object]:
    return {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images}


def outlined(figure) -> list[tuple[str, int, int]]:
    """(panel, row, column) of each cell that has a red frame."""
    return [
        (title, round(patch.get_y() + 0.5), round(patch.get_x() + 0.5))
        for title, ax in panels(figure).items()
        for patch in ax.patches
        if isinstance(patch, Rectangle) and to_hex(patch.get_edgecolor()).upper() == VERMILION
    ]


def caption(figure) -> str:
    (text,) = [
        text for ax in figure.axes for text in ax.texts if text.get_text()[:1].isdigit() and "point" in str(text)
    ]
    return text.get_text().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")


def lines(figure) -> tuple[LineCollection, LineCollection]:
    return tuple(figure.axes[0].collections)


def test_every_point_is_a_cell_under_its_parameters():
    table = grid()
    found = panels(plot_grid(table, "patch_size", "heads", "dropout"))
    assert list(found) == ["dropout 0.1", "dropout 0.3", "dropout 0.5"]
    for dropout, ax in zip(SPACE["dropout"], found.values(), strict=True):
        expected = table[table.dropout == dropout].pivot(index="patch_size", columns="heads", values="value")
        np.testing.assert_allclose(ax.images[0].get_array(), expected)
        written = {
            (text.get_position()[1], text.get_position()[0]): text.get_text()
            for text in ax.texts
            if text.get_text()[:2] == "0."
        }
        for place, value in np.ndenumerate(expected.to_numpy()):
            assert written[place] == f"{value:.3f}"
    assert [label.get_text() for label in found["dropout 0.1"].get_yticklabels()] == ["8", "16", "32"]


def test_panels_share_their_colours_and_the_best_is_outlined_and_darkest():
    for larger in (True, False):
        table = grid()
        figure = plot_grid(table, "patch_size", "heads", "dropout", larger_is_better=larger)
        images = [ax.images[0] for ax in panels(figure).values()]
        assert {image.get_clim() for image in images} == {(table.value.min(), table.value.max())}
        best = table.loc[table.value.idxmax() if larger else table.value.idxmin()]
        ((title, row, column),) = outlined(figure)
        assert title == f"dropout {best.dropout:g}"
        assert (SPACE["patch_size"][row], SPACE["heads"][column]) == (best.patch_size, best.heads)
        assert sum(images[0].to_rgba(best.value)[:3]) < sum(images[0].to_rgba(table.value.mean())[:3])
        assert caption(figure) == f"27 points; outlined: the best, {best.value:.3f}"


def test_numbers_can_be_read_on_their_cell():
    for ax in panels(plot_grid(grid(), "patch_size", "heads", "dropout")).values():
        for text in ax.texts:
            if text.get_text()[:2] != "0.":
                continue
            column, row = text.get_position()
            red, green, blue, _ = ax.images[0].to_rgba(ax.images[0].get_array()[row, column])
            light = 0.3 * red + 0.59 * green + 0.11 * blue
            assert abs(light - (text.get_color() == "white")) > 0.4


def test_points_without_a_value_or_a_row_are_hatched_and_counted():
    table = grid()
    table.loc[[2, 5], "value"] = [np.nan, np.inf]
    figure = plot_grid(table.drop(index=9), "patch_size", "heads", "dropout")
    hatched = [patch for ax in panels(figure).values() for patch in ax.patches if patch.get_hatch()]
    assert len(hatched) == 3
    assert "26 points, 2 without a value" in caption(figure) and caption(figure).endswith("hatched: no value")


def test_further_parameters_are_averaged_and_named():
    table = grid()
    table.loc[table.index[0], "value"] = np.nan
    figure = plot_grid(table, "patch_size", "heads")
    (ax,) = panels(figure).values()
    np.testing.assert_allclose(ax.images[0].get_array(), table.pivot_table("value", "patch_size", "heads"))
    assert caption(figure).endswith("each cell is the mean over dropout") and "the best mean" in caption(figure)


def test_the_spread_of_seeds_stands_beneath_the_mean_but_not_beneath_a_mean_of_points():
    table = grid().assign(sd=0.0123)
    (ax, *_) = panels(plot_grid(table, "patch_size", "heads", "dropout")).values()
    assert sum(text.get_text().endswith("\n± 0.012") for text in ax.texts) == 9
    (ax,) = panels(plot_grid(table, "patch_size", "heads")).values()
    assert not any("±" in text.get_text() for text in ax.texts)


def test_words_keep_their_order_and_one_cell_is_enough():
    table = pd.DataFrame({"optimizer": ["sgd", "adamw"], "augment": "none", "value": [0.8, 0.8]})
    figure = plot_grid(table, "optimizer", "augment")
    (ax,) = panels(figure).values()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["sgd", "adamw"]
    assert len(outlined(figure)) == 2  # both are the best
    figure.savefig(io.BytesIO())


def test_every_point_is_a_line_that_ends_at_its_value_and_the_best_is_red_and_on_top():
    table = grid()
    others, best = lines(plot_parallel(table, list(SPACE)))
    (red,) = best.get_segments()
    assert to_hex(best.get_color()[0]).upper() == VERMILION and best.zorder > others.zorder
    ends = np.sort([segment[-1, 1] for segment in [*others.get_segments(), red]])
    scaled = (table.value - table.value.min()) / np.ptp(table.value)
    np.testing.assert_allclose(ends, np.sort(scaled), atol=1e-12)
    point = table.loc[table.value.idxmax()]
    for axis, (name, values) in enumerate(SPACE.items()):
        place = red[red[:, 0] == axis][0, 1]
        assert place == pytest.approx((point[name] - values[0]) / (values[-1] - values[0]), abs=0.03)


def test_lines_that_share_a_value_do_not_hide_each_other():
    others, best = lines(plot_parallel(grid(), list(SPACE)))
    for axis in range(3):
        places = [s[s[:, 0] == axis][0, 1] for s in [*others.get_segments(), *best.get_segments()]]
        assert len(np.unique(np.round(places, 6))) == 27


def test_the_smallest_is_red_where_smaller_is_better():
    _, best = lines(plot_parallel(grid(WORDS), list(WORDS), metric="validation loss", larger_is_better=False))
    assert best.get_segments()[0][-1, 1] == 0


def test_points_without_a_value_are_grey_and_leave_the_scale():
    table = grid()
    table.loc[[3, 4], "value"] = np.nan
    figure = plot_parallel(table, list(SPACE))
    others, _ = lines(figure)
    failed = [segment[-1, 1] < 0 for segment in others.get_segments()]
    assert sum(failed) == 2
    assert {to_hex(colour) for colour, lost in zip(others.get_color(), failed, strict=True) if lost} == {"#c7c7c7"}
    assert "no value" in [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("parameters", [["dropout"], list(SPACE)])
def test_the_caption_tells_the_best_point_lies_under_the_title_and_stays_inside(parameters):
    table = grid().rename(columns={"heads": "number_of_attention_heads"})
    parameters = [name.replace("heads", "number_of_attention_heads") for name in parameters]
    figure = plot_parallel(table, parameters)
    figure.savefig(io.BytesIO())
    best = table.loc[table.value.idxmax()]
    assert caption(figure).endswith(", ".join(f"{name} {best[name]:g}" for name in parameters))
    (text,) = [text for text in figure.axes[0].texts if text.get_text().startswith("27 points")]
    title, box = figure._suptitle.get_window_extent(), text.get_window_extent()
    assert len(figure._suptitle.get_text().splitlines()) == len(text.get_text().splitlines())
    assert box.y1 < title.y1 - 0.9 * 11 / 72 * figure.dpi and box.x1 < figure.bbox.x1


def test_one_point_and_equal_values_leave_something_to_see():
    for table in (grid().head(1), grid().assign(value=0.8)):
        for figure in (plot_grid(table, "patch_size", "heads", "dropout"), plot_parallel(table, list(SPACE))):
            figure.savefig(io.BytesIO())
            assert f"{table.value.iloc[0]:.3f}" in [text.get_text() for ax in figure.axes for text in ax.texts]


def test_figures_repeat_to_the_byte_and_can_share_a_page():
    first, second = io.BytesIO(), io.BytesIO()
    for buffer in (first, second):
        plot_parallel(grid(), list(SPACE)).savefig(buffer)
    assert first.getvalue() == second.getvalue()
    page = Figure(figsize=(9, 8), layout="constrained")
    top, bottom = page.subfigures(2, 1)
    assert plot_grid(grid(), "patch_size", "heads", "dropout", on=top) is top
    assert plot_parallel(grid(), list(SPACE), on=bottom) is bottom
    page.savefig(io.BytesIO())


def test_what_cannot_be_drawn_is_said():
    table = grid()
    with pytest.raises(EvaluationError, match=r"parameter 'head' is unknown\. Did you mean 'heads'"):
        plot_grid(table, "patch_size", "head")
    with pytest.raises(EvaluationError, match=r"heads, heads: each parameter"):
        plot_grid(table, "heads", "heads")
    with pytest.raises(EvaluationError, match="0 rows"):
        plot_grid(table.head(0), "patch_size", "heads")
    with pytest.raises(EvaluationError, match="None of the 27 points has a value"):
        plot_parallel(table.assign(value=np.nan), list(SPACE))
    with pytest.raises(EvaluationError, match="expected a list of columns"):
        plot_parallel(table, "heads")
    many = pd.DataFrame({"lr": np.arange(20.0), "heads": 1, "value": 0.5})
    with pytest.raises(EvaluationError, match=r"lr has 20 values.*plot_parallel"):
        plot_grid(many, "lr", "heads")
