"""A recipe taken on a batch gives the images that it gives one by one, to rounding, from the same draws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from medvitlib.data import RECIPES, augmented, open_dataset, recipe
from medvitlib.data.augment_batched import BATCHED, BATCHED_RECIPES, as_numbers, augment_batch, jitter
from medvitlib.data.recipes import Dihedral, Erase, Rotate

SETS = {
    "grey": lambda: open_dataset("phantom/cxr", image_size=48, n_patients=24),
    "colour": lambda: open_dataset("phantom/blood3", image_size=(40, 56), n_patients=16),
    "colour, square": lambda: open_dataset("phantom/blood3", image_size=48, n_patients=16),
}


@pytest.fixture(scope="module", params=SETS)
def dataset(request):
    return SETS[request.param]()


@pytest.mark.parametrize("name", BATCHED_RECIPES)
def test_a_batch_becomes_what_its_images_become_one_by_one(name, dataset):
    drawn, rows = augmented(dataset, name, seed=3), np.arange(len(dataset))
    drawn.set_epoch(2)
    before = torch.from_numpy(dataset.images.planes(rows))
    expected = torch.from_numpy(drawn.images.planes(rows)).float()
    of = drawn.images.recipe
    found = augment_batch(of, before, as_numbers(of, drawn.images.draws(rows)))
    assert found.dtype == torch.uint8 and found.shape == before.shape
    apart = (found.float() - expected).abs()
    # two roundings, one of them stretched by contrast; resampling on bytes rounds its weights, too
    assert apart.max() <= 6 and apart.mean() < 0.4 and apart.flatten(1).mean(1).max() < 1.5
    assert name == "none" or (before.float() - expected).abs().mean() > 5  # else nothing was tested


def test_all_recipes_but_randaugment_are_taken_on_batches():
    assert set(RECIPES) - set(BATCHED_RECIPES) == {"randaugment"}


def test_what_is_exact_is_exact(dataset):
    """Flips, turns by right angles, erasing and no turn at all move bytes about."""
    x = torch.from_numpy(dataset.images.planes(slice(0, 12)))
    for step in (Dihedral(), Erase(1.0, (0.02, 0.1), (0.5, 2.0)), Rotate(0.0)):
        draws = [step.make_params([image]) for image in x]
        expected = torch.stack([step.transform(image, draw) for image, draw in zip(x, draws, strict=True)])
        how = BATCHED[type(step)]
        found = how.arithmetic(x.float(), torch.tensor([how.numbers(draw) for draw in draws]))
        assert torch.equal(found.to(torch.uint8), expected), type(step).__name__


@pytest.mark.parametrize("name", BATCHED_RECIPES)
@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_shape_and_type_of_any_images_are_kept(name, c, h, w, seed):
    images = torch.randint(0, 256, (3, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    of, before = recipe(name, (h, w)), images.clone()
    torch.manual_seed(seed)
    draws = []
    for image in images:
        kept = [not hasattr(step, "p") or bool(torch.rand(1) < step.p) for step in of.transforms]
        draws.append([step.make_params([image]) if k else None for step, k in zip(of.transforms, kept, strict=True)])
    out = augment_batch(of, images, as_numbers(of, draws))
    assert out.shape == images.shape and out.dtype == torch.uint8 and torch.equal(images, before)


def test_each_image_has_its_own_order_of_brightness_and_contrast():
    x = torch.tensor([40, 200], dtype=torch.uint8).expand(2, 3, 4, 2).contiguous()
    found = jitter(x.float(), torch.tensor([[0, 2.0, 1, 0.5], [1, 0.5, 0, 2.0]]))
    brighter_first = F.adjust_contrast(F.adjust_brightness(x[0], 2.0), 0.5)  # 400 is cut off at 255 before the mean
    contrast_first = F.adjust_brightness(F.adjust_contrast(x[1], 0.5), 2.0)
    assert torch.equal(found.byte(), torch.stack([brighter_first, contrast_first]))
    assert not torch.equal(brighter_first, contrast_first)


def test_drawing_leaves_the_global_generator_alone(dataset):
    state = torch.get_rng_state()
    augmented(dataset, "reticulocyte").images.draws(slice(0, 3))
    assert torch.equal(state, torch.get_rng_state())
