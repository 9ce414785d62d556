"""Figures show each layer and head where it belongs, with a scale, and belong to nobody."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from medvitlib.errors import ExplanationError
from medvitlib.explain import AttentionMaps, LayerMaps, attention_maps, rollout
from medvitlib.explain.pictures import HEAT, show_attention, show_map

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 48, 1), np.uint8)


def heat_of(axis) -> list[np.ndarray]:
    return [np.asarray(drawn.get_array()) for drawn in axis.images if drawn.get_cmap() is HEAT]


def panels(figure) -> list:
    return [axis for axis in figure.axes if axis.get_visible() and heat_of(axis)]


def planted(layers: int = 3, heads: int = 2) -> AttentionMaps:
    """Layer l, head h looks at patch (l, h) of 4 x 6, and the class token gives the rest to itself."""
    out = []
    for layer in range(layers):
        weights = torch.zeros(1, heads, 1, 25, 25)
        weights[..., 0] = 0.5
        for head in range(heads):
            weights[0, head, 0, :, 1 + layer * 6 + head] = 0.5
        out.append(LayerMaps(f"blocks.{layer}", weights, torch.arange(-1, 24)[None], (4, 6)))
    return AttentionMaps(tuple(out), class_token=True)


@pytest.mark.parametrize("view", ["class", "mean", (1, 5)])
def test_one_row_a_layer_and_one_column_a_head(view):
    figure = show_attention(IMAGE, planted(), view)
    figure.savefig(io.BytesIO())
    drawn = panels(figure)
    assert len(drawn) == 6
    for number, axis in enumerate(drawn):
        layer, head = divmod(number, 2)
        (heat,) = heat_of(axis)
        assert heat.shape == IMAGE.shape[:2]
        rows, columns = (heat > 0.8 * heat.max()).nonzero()
        assert (rows.mean() // 8, columns.mean() // 8) == (layer, head)
        assert heat.max() == pytest.approx(12, rel=0.2)  # half of the attention on one of 24 patches
    places = np.array([axis.get_window_extent().p0 for axis in drawn]).reshape(3, 2, 2)
    assert (places[:, 0, 0] < places[:, 1, 0]).all() and (np.diff(places[:, 0, 1]) < 0).all()
    assert [axis.get_title() for axis in drawn[:2]] == ["head 1", "head 2"]
    assert [axis.get_ylabel() for axis in drawn[::2]] == ["layer 1", "layer 2", "layer 3"]


def test_the_colour_scale_is_stated():
    shared, own = show_attention(IMAGE, planted()), show_attention(IMAGE, planted(), scale="own")
    limits = {axis.images[-1].get_clim() for axis in panels(shared)}
    assert limits == {(0, 12)}
    labels = [axis.get_xlabel() for axis in shared.axes]
    assert "attention from the class token,\neven = 1" in labels
    heads = [["head 1"], ["head 2"], [], [], [], []]
    assert [axis.get_title() for axis in panels(own)] == ["\n".join([*head, "0.00 to 12.00"]) for head in heads]


def test_an_even_attention_does_not_look_like_a_peak():
    even = LayerMaps("layer", torch.full((1, 1, 1, 24, 24), 1 / 24), torch.arange(24)[None], (4, 6))
    (axis,) = panels(show_attention(IMAGE, AttentionMaps((even,)), "mean"))
    assert axis.images[-1].get_clim() == (0, 2)
    np.testing.assert_allclose(heat_of(axis)[0], 1, rtol=1e-5)


def test_layers_and_an_image_of_the_batch_can_be_chosen(make, images):
    maps = attention_maps(make("vit"), images)
    (first, second) = (panels(show_attention(IMAGE, maps, layers=[1], index=index)) for index in (0, 2))
    assert len(first) == len(second) == 2
    assert first[0].get_ylabel() == "layer 2"
    assert not np.allclose(heat_of(first[0])[0], heat_of(second[0])[0])


def test_stages_of_swin_have_their_own_columns(make, images):
    figure = show_attention(IMAGE, attention_maps(make("swin"), images), "mean")
    titles = [axis.get_title() for axis in panels(figure)]
    assert titles == ["head 1", "head 2", "", "", "head 1", "head 2", "head 3", "head 4", "", "", "", ""]


def test_one_map_over_its_image(make, images):
    heat = rollout(attention_maps(make("ours"), images))[1]
    figure = show_map(IMAGE, heat, "rollout of a$b", "share")
    figure.savefig(io.BytesIO())
    assert [len(heat_of(axis)) for axis in figure.axes[:2]] == [0, 1]
    assert figure.axes[2].get_ylabel() == "share"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "cls"}, "view='cls' is unknown"),
        ({"view": (4, 0)}, "rows are 0 to 3"),
        ({"scale": "log"}, "There are: shared, own"),
        ({"layers": [3]}, "layers 0 to 2"),
        ({"layers": []}, "layers 0 to 2"),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(ExplanationError, match=message):
        show_attention(IMAGE, planted(), **options)


def test_nothing_here_touches_pyplot():
    code = "import sys, medvitlib.explain.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
