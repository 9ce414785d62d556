"""Views show the right patch in the right place, and say what they leave out."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT

from medvitlib.errors import ExplanationError
from medvitlib.explain import AttentionMaps, LayerMaps, attention_maps, upsample
from medvitlib.models.vit import VisionTransformer

GRID = 3, 5  # rows and columns cannot be taken for each other
BRIGHT = [(0, 4), (2, 0), (1, 3)]  # one an image


def planted() -> VisionTransformer:
    """Every token asks for brightness, which the first channel of a patch holds: an attention known beforehand."""
    model = VisionTransformer((24, 40), 8, 1, dim=16, depth=1, heads=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 1 / 64
        model.blocks[0].norm1.weight.fill_(1)
        for head in (0, 8):
            model.blocks[0].attn.qkv.bias[head] = 10  # queries
            model.blocks[0].attn.qkv.weight[16 + head, 0] = 1  # keys
    return model


def bright_images() -> torch.Tensor:
    images = torch.zeros(3, 1, 24, 40)
    for image, (row, column) in zip(images, BRIGHT, strict=True):
        image[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1
    return images


@pytest.mark.parametrize("library", ["ours", "timm"])
def test_a_planted_patch_is_found_in_its_row_and_column_by_every_view(library):
    model = planted()
    if library == "timm":
        theirs = TimmViT((24, 40), 8, 1, 2, embed_dim=16, depth=1, num_heads=2)
        theirs.load_state_dict(model.state_dict())
        model = theirs
    maps = attention_maps(model, bright_images())
    for view in (maps.of_class_token(), maps.of_mean_query(), maps.of_patch(2, 3)):
        assert view[0].shape == (3, 2, *GRID)
        for image, place in zip(view[0], BRIGHT, strict=True):
            assert image[(0, *place)] > 0.99 and image[(1, *place)] > 0.99


def random_layer(prefix: int, grid: tuple[int, int] = GRID, seed: int = 0) -> LayerMaps:
    """Two images, two heads, one window."""
    tokens = prefix + grid[0] * grid[1]
    weights = torch.rand(2, 2, 1, tokens, tokens, generator=torch.Generator().manual_seed(seed))
    patches = torch.cat([torch.full((prefix,), -1), torch.arange(tokens - prefix)])[None]
    return LayerMaps("layer", weights / weights.sum(-1, keepdim=True), patches, grid)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_views_are_rows_of_the_map_without_any_prefix_token(prefix):
    layer = random_layer(prefix)
    maps = AttentionMaps((layer,), class_token=prefix > 0)
    full = layer.full()
    assert torch.equal(maps.of_patch(1, 3)[0].flatten(2), full[:, :, prefix + 8, prefix:])
    expected = full[:, :, prefix:, prefix:].mean(dim=2)
    torch.testing.assert_close(maps.of_mean_query()[0].flatten(2), expected)
    if prefix:
        assert torch.equal(maps.of_class_token()[0].flatten(2), full[:, :, 0, prefix:])


def test_views_sum_to_one_minus_what_prefix_tokens_got_unless_renormalised():
    layer = random_layer(prefix=2)
    maps = AttentionMaps((layer,), class_token=True)
    rest = 1 - layer.full()[:, :, 0, :2].sum(-1)
    torch.testing.assert_close(maps.of_class_token()[0].sum((-2, -1)), rest)
    for view in (maps.of_class_token, maps.of_mean_query, lambda **how: maps.of_patch(0, 0, **how)):
        whole, part = view(renormalise=True)[0], view()[0]
        torch.testing.assert_close(whole.sum((-2, -1)), torch.ones(2, 2))
        torch.testing.assert_close(whole * part.sum((-2, -1), keepdim=True), part)


@pytest.mark.parametrize("name", ["swin", "swinv2"])
def test_views_of_windows_are_those_of_the_whole_map(make, images, name):
    maps = attention_maps(make(name), images)
    for layer, view in zip(maps.layers, maps.of_mean_query(), strict=True):
        torch.testing.assert_close(view.flatten(2), layer.full().mean(dim=2))
    chosen = maps.of_patch(5, 9)
    for layer, view in zip(maps.layers, chosen, strict=True):
        merged = maps.grid[0] // layer.grid[0]
        place = 5 // merged * layer.grid[1] + 9 // merged
        assert torch.equal(view.flatten(2), layer.full()[:, :, place])
    seen = chosen[0][0, 0] > 0
    assert seen[4:8, 8:12].all() and seen.sum() == 16  # its window


def test_a_shifted_window_is_put_back_where_it_was(make, images):
    maps = attention_maps(make("swin"), images)
    seen = maps.of_patch(5, 9)[1][0, 0] > 1e-12  # windows of 4 begin at 2, the last ones hold what was wrapped round
    assert seen[2:6, 6:10].all() and seen.sum() == 16
    corner = maps.of_patch(7, 11)[1][0, 0] > 1e-12
    assert corner[6:, 10:].all() and corner.sum() == 4


def test_a_chosen_patch_is_followed_through_merging_of_odd_grids():
    grids = [(5, 9), (3, 5), (2, 3), (1, 2)]
    maps = AttentionMaps(tuple(random_layer(0, grid) for grid in grids), windowed=True)
    views = maps.of_patch(3, 7)
    for layer, view, place in zip(maps.layers, views, [(3, 7), (1, 3), (0, 1), (0, 0)], strict=True):
        assert torch.equal(view, layer.of_patch(*place))


def test_a_model_without_class_token_says_what_to_use(make, images):
    for name in ("mean", "named", "swin"):
        maps = attention_maps(make(name), images)
        with pytest.raises(ExplanationError, match=r"of_mean_query\(\), or one patch, of_patch"):
            maps.of_class_token()


@pytest.mark.parametrize("place", [(3, 0), (0, 5), (-1, 0)])
def test_a_patch_outside_the_grid_is_refused(place):
    with pytest.raises(ExplanationError, match="rows are 0 to 2, columns 0 to 4"):
        AttentionMaps((random_layer(1),)).of_patch(*place)


def test_upsampled_maps_keep_their_place_and_range():
    maps = torch.zeros(2, 4, *GRID)
    maps[..., 2, 1] = 1
    large = upsample(maps, (30, 50))
    assert large.shape == (2, 4, 30, 50) and large.min() == 0 and large.max() <= 1
    rows, columns = (large[1, 3] > 0.5).nonzero().float().mean(0).tolist()
    assert (rows, columns) == pytest.approx((25.5, 14.5), abs=1.1)
    assert torch.equal(upsample(torch.full((1, *GRID), 0.25), (7, 9)), torch.full((1, 7, 9), 0.25))
