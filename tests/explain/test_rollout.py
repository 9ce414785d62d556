"""Rollout is the product of the paper, and refuses what it cannot follow."""

import numpy as np
import pytest
import torch

from medvitlib.errors import ExplanationError
from medvitlib.explain import AttentionMaps, LayerMaps, attention_maps, rollout


def maps_of(layers: list, prefix: int) -> AttentionMaps:
    """One image and one head of nested lists (T, T); patches in one row."""
    count = len(layers[0]) - prefix
    patches = torch.cat([torch.full((prefix,), -1), torch.arange(count)])[None]
    tensors = [torch.tensor(layer)[None, None, None].float() for layer in layers]
    return AttentionMaps(tuple(LayerMaps("", t, patches, (1, count)) for t in tensors), class_token=prefix > 0)


def by_loops(maps, fuse, discard, query) -> np.ndarray:
    """One image, one layer, one row after another."""
    out = []
    for image in range(len(maps.layers[0].weights)):
        reached = None
        for layer in maps.layers:
            heads = layer.full()[image].numpy().astype(float)
            fused = fuse(heads, axis=0)
            tokens = len(fused)
            places = [(fused[i, j], i, j) for i in range(tokens) for j in range(tokens)]
            for _, i, j in sorted(places)[: int(tokens * tokens * discard)]:
                if not (maps.class_token and (i, j) == (0, 0)):
                    fused[i, j] = 0
            for i in range(tokens):
                fused[i] *= 0.5
                fused[i, i] += 0.5
                fused[i] /= sum(fused[i])
            reached = (
                fused
                if reached is None
                else np.array(
                    [
                        [sum(fused[i, m] * reached[m, j] for m in range(tokens)) for j in range(tokens)]
                        for i in range(tokens)
                    ]
                )
            )
        prefix = tokens - maps.grid[0] * maps.grid[1]
        row = reached[0] if query == "class" else reached[prefix:].mean(0)
        out.append(row[prefix:].reshape(maps.grid))
    return np.array(out)


@pytest.mark.parametrize("discard", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(("fusion", "fuse"), [("mean", np.mean), ("max", np.max), ("min", np.min)])
@pytest.mark.parametrize("name", ["ours", "distilled", "named"])
def test_rollout_equals_plain_loops(make, images, name, fusion, fuse, discard):
    maps = attention_maps(make(name), images)
    for query in ("class", "mean") if maps.class_token else ("mean",):
        found = rollout(maps, fusion, discard, query)
        np.testing.assert_allclose(found.numpy(), by_loops(maps, fuse, discard, query), atol=1e-6)
    expected = rollout(maps, fusion, discard, "class" if maps.class_token else "mean")
    assert torch.equal(rollout(maps, fusion, discard), expected)


def test_two_layers_by_hand_in_their_order():
    """A class token and two patches: it looks at the first patch, and the first patch at the second."""
    looks = [[0, 1, 0], [0, 1, 0], [0, 0, 1]]  # halves: [.5, .5, 0], [0, 1, 0], [0, 0, 1]
    moves = [[1, 0, 0], [0, 0, 1], [0, 0, 1]]  # halves: [1, 0, 0], [0, .5, .5], [0, 0, 1]
    assert rollout(maps_of([looks, moves], prefix=1)).tolist() == [[[0.5, 0.0]]]
    assert rollout(maps_of([moves, looks], prefix=1)).tolist() == [[[0.25, 0.25]]]
    assert rollout(maps_of([looks, moves], prefix=1), query="mean").tolist() == [[[0.25, 0.75]]]


def test_the_class_tokens_own_entry_is_never_discarded():
    lowest = [[[0.2, 0.8], [0.6, 0.4]]]  # the lower half is the diagonal
    (((kept,),),) = rollout(maps_of(lowest, prefix=1), discard=0.5).tolist()
    assert kept == pytest.approx(0.4)  # (.5 + .1, .4), not (.5, .4) / .9
    ((both,),) = rollout(maps_of(lowest, prefix=0), discard=0.5).tolist()  # two patches: nothing is spared
    assert both == pytest.approx([(0.5 / 0.9 + 0.3 / 0.8) / 2, (0.4 / 0.9 + 0.5 / 0.8) / 2])


def test_each_image_loses_its_own_lowest(make, images):
    model = make("vit")
    together, alone = attention_maps(model, images), attention_maps(model, images[2:])
    torch.testing.assert_close(rollout(together, discard=0.5)[2:], rollout(alone, discard=0.5), atol=1e-5, rtol=0)


def test_maps_are_not_changed(make, images):
    maps = attention_maps(make("vit"), images)
    before = [layer.weights.clone() for layer in maps.layers]
    for fusion in ("mean", "max", "min"):
        rollout(maps, fusion, discard=0.9)
    assert all(torch.equal(layer.weights, weights) for layer, weights in zip(maps.layers, before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_fusion": "maximum"}, "head_fusion 'maximum' is unknown. Did you mean 'max'"),
        ({"head_fusion": "men"}, "Did you mean 'mean'"),
        ({"query": "cls"}, "query 'cls' is unknown. Did you mean 'class'"),
        ({"discard": 1.0}, "discard=1.0: a share from 0"),
        ({"discard": -0.1}, "discard=-0.1"),
    ],
)
def test_unknown_options_are_answered_with_the_known_ones(make, images, options, message):
    with pytest.raises(ExplanationError, match=message):
        rollout(attention_maps(make("ours"), images), **options)


def test_what_rollout_cannot_follow_is_refused(make, images):
    with pytest.raises(ExplanationError, match="Swin attends within windows"):
        rollout(attention_maps(make("swin"), images))
    with pytest.raises(ExplanationError, match="no class token"):
        rollout(attention_maps(make("mean"), images), query="class")
