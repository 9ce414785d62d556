"""Scores that tell a right map from a wrong one, on a model of which it is known what it uses."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from medvitlib.errors import ExplanationError
from medvitlib.explain import faithfulness, removal
from medvitlib.explain.compare import compare_explanations
from medvitlib.explain.perturbation import integrated_gradients, occlusion

SQUARE = (slice(8, 16), slice(20, 28))


class Square(nn.Module):
    """Sees a checkerboard's contrast in one square, and nothing else."""

    def __init__(self):
        super().__init__()
        pattern = torch.zeros(1, 3, 32, 32)
        pattern[..., 8:16, 20:28] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
        self.weight = nn.Parameter(pattern)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x * self.weight).sum((1, 2, 3)) / 10
        return torch.stack([y, -y], 1)


@pytest.fixture
def images() -> torch.Tensor:
    """Noise, and in the square a checkerboard that says class 0."""
    x = 0.3 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[..., 8:16, 20:28] += torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)
    return x


@pytest.fixture
def masks() -> torch.Tensor:
    found = torch.zeros(4, 32, 32, dtype=torch.bool)
    found[:, SQUARE[0], SQUARE[1]] = True
    return found


def test_the_right_map_beats_the_wrong_one_by_every_score(images, masks):
    model, right = Square(), masks.float()
    wrong = faithfulness.random_maps(images)
    assert (faithfulness.deletion(model, images, right) < faithfulness.deletion(model, images, wrong)).all()
    assert (faithfulness.insertion(model, images, right) > faithfulness.insertion(model, images, wrong)).all()
    assert (faithfulness.road(model, images, right) > faithfulness.road(model, images, wrong)).all()
    assert (faithfulness.pointing(right, masks) == 1).all()
    assert (faithfulness.overlap(right, masks) == 1).all()
    assert (faithfulness.overlap(wrong, masks) < 0.2).all()


def test_images_without_evidence_are_not_pointed_at(images, masks):
    masks[1:] = False
    found = compare_explanations(Square(), images, {"occlusion": squares}, masks=masks)
    assert np.isnan(found.scores["occlusion"]["pointing"]).tolist() == [False, True, True, True]
    estimate = found.estimate("occlusion", "overlap")
    assert estimate.n_images == 1 and estimate.value == pytest.approx(found.scores["occlusion"]["overlap"][0])
    assert (faithfulness.pointing(torch.zeros(4, 32, 32), torch.ones(4, 32, 32, dtype=torch.bool)) == 0).all()
    masks[:] = False
    nothing = compare_explanations(Square(), images, {"occlusion": squares}, masks=masks).estimate("random", "pointing")
    assert str(nothing) == "undefined" and nothing.reason


def test_areas_are_those_written_out(images, masks):
    model = Square()
    shares = (0.0, 0.0625, 1.0)  # the square is a sixteenth of the image
    gone = images.clone()
    gone[:, :, SQUARE[0], SQUARE[1]] = removal.blurred(images)[:, :, SQUARE[0], SQUARE[1]]
    curve = [model(x).softmax(1)[:, 0] for x in (images, gone, removal.blurred(images))]
    expected = (curve[0] + curve[1]) / 2 * 0.0625 + (curve[1] + curve[2]) / 2 * 0.9375
    found = faithfulness.deletion(model, images, masks.float(), 0, shares)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)


def test_what_is_removed_is_the_mean_of_its_neighbours():
    """As the linear system that says so has it, solved by scipy."""
    coarse = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    gone = faithfulness.random_maps(smooth, cell=8) > 0.6
    found = removal.imputed(smooth, gone, torch.Generator().manual_seed(0))
    kept = ~gone[:, None].expand_as(smooth)
    assert torch.equal(found[kept], smooth[kept])
    for image, holes, filled in zip(smooth, gone, found, strict=True):
        expected = solved(image.numpy(), holes.numpy())
        apart = np.abs(filled.numpy()[:, holes.numpy()] - expected)
        assert apart.mean() < 0.1 * expected.std()  # the noise and all


def solved(image: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """(C, number of holes): each hole as the mean of its neighbours, direct ones twice as heavy."""
    number = np.full(holes.shape, -1)
    number[holes] = np.arange(holes.sum())
    matrix, right = np.zeros((holes.sum(), holes.sum())), np.zeros((holes.sum(), len(image)))
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    for row, (y, x) in enumerate(np.argwhere(holes)):
        for dy, dx in steps:
            if 0 <= y + dy < 32 and 0 <= x + dx < 32:
                weight = 2 if 0 in (dy, dx) else 1
                matrix[row, row] += weight
                if holes[y + dy, x + dx]:
                    matrix[row, number[y + dy, x + dx]] -= weight
                else:
                    right[row] += weight * image[:, y + dy, x + dx]
    return np.linalg.solve(matrix, right).T


def test_rank_correlation_is_scipys():
    one, other = torch.rand(3, 5, 6), torch.rand(3, 5, 6).round(decimals=1)
    expected = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(one, other, strict=True)]
    assert faithfulness.rank_correlation(one, other).numpy() == pytest.approx(expected, abs=1e-6)
    assert (faithfulness.rank_correlation(one, torch.zeros(3, 5, 6)) == 0).all()


def test_shuffled_weights_are_put_back_and_tell_a_map_of_the_image_from_one_of_the_model(images):
    model = Square()
    before = model.weight.detach().clone()
    of_model = faithfulness.randomisation(integrated_gradients, model, images)
    of_image = faithfulness.randomisation(lambda m, x, t: x.abs().sum(1), model, images)
    assert torch.equal(model.weight, before)
    assert (of_image > 0.999).all() and (of_model.abs() < 0.3).all()


def test_a_map_that_follows_noise_is_unstable(images):
    model = Square()
    steady = faithfulness.stability(integrated_gradients, model, images)
    nervous = faithfulness.stability(lambda m, x, t: (1000 * x).sum(1).sin(), model, images)
    assert (steady > 0.5).all() and (nervous.abs() < 0.2).all()


def test_the_table_has_every_method_beside_its_controls_and_says_who_beats_them(images, masks):
    methods = {"occlusion": squares, "corner": corner}
    found = compare_explanations(Square(), images, methods, masks=masks)
    table = found.table()
    assert list(table.index) == ["occlusion", "corner", "random", "centred"]
    assert table.loc["random", "stability"] == "" != table.loc["occlusion", "stability"]
    assert found.beats("occlusion", "deletion") and found.beats("occlusion", "overlap")
    assert not found.beats("corner", "deletion")
    said = found.sentences()
    assert said[0].startswith("occlusion beats a random and a centred map at")
    assert said[1].startswith("corner beats a random and a centred map at nothing")
    assert any(line.startswith("corner hardly changes") for line in said)
    value = found.estimate("occlusion", "overlap")
    assert value.value == pytest.approx(np.mean(found.scores["occlusion"]["overlap"]))
    with pytest.raises(ExplanationError, match="are the controls' names"):
        compare_explanations(Square(), images, {"random": corner})
    for wrong in ([squares], {"occlusion": "squares"}):
        with pytest.raises(ExplanationError, match="expected names and functions"):
            compare_explanations(Square(), images, wrong)
    for asked in (("oclusion", "overlap"), ("occlusion", "overlaps"), ("random", "stability")):
        with pytest.raises(ExplanationError, match="unknown"):
            found.estimate(*asked)
    with pytest.raises(ExplanationError, match="bool"):
        compare_explanations(Square(), images, methods, masks=masks.float())
    for given in ({"masks": masks[:3]}, {"groups": np.arange(5)}):
        with pytest.raises(ExplanationError, match="there are 4 images"):
            compare_explanations(Square(), images, methods, **given)
    for wrong in (lambda m, x, t: torch.zeros(len(x), 8, 8), lambda m, x, t: torch.full((len(x), 32, 32), torch.nan)):
        with pytest.raises(ExplanationError, match=r"expected \(4, 32, 32\), \(N, H, W\), all of them finite"):
            compare_explanations(Square(), images, {"wrong": wrong})


def test_scores_do_not_depend_on_the_batches(images, masks):
    whole, parts = (
        compare_explanations(Square(), images, {"occlusion": squares}, masks=masks, batch_size=n) for n in (32, 3)
    )
    for method in whole.scores:
        for score in ("deletion", "insertion", "pointing", "overlap"):
            np.testing.assert_allclose(whole.scores[method][score], parts.scores[method][score], atol=1e-6)


def squares(model: nn.Module, images: torch.Tensor, target) -> torch.Tensor:
    return occlusion(model, images, target, window=4)


def corner(model: nn.Module, images: torch.Tensor, target) -> torch.Tensor:
    maps = torch.zeros(len(images), *images.shape[-2:])
    maps[:, :6, :6] = torch.arange(36.0).view(6, 6)
    return maps
