import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from medvitlib import pictures
from medvitlib.data import RECIPES, augmented, batches, open_dataset, recipe, recipe_table, recipes
from medvitlib.data.recipes import STAINS, Dihedral, Erase, Rotate, StainJitter
from medvitlib.errors import DataError


@pytest.fixture(scope="module")
def grey():
    return open_dataset("phantom/cxr", image_size=48, n_patients=8)


@pytest.fixture
def colour(tmp_path, write_classes):
    return open_dataset(write_classes(tmp_path / "set", {"a": 5, "b": 4}, colour=True), image_size=(40, 56))


def everything(dataset, **loader) -> torch.Tensor:
    return torch.cat([x for x, _ in DataLoader(dataset, **loader)])


def drawn(step, image, n, seed=0):
    torch.manual_seed(seed)
    return [step(image) for _ in range(n)]


@pytest.mark.parametrize("name", RECIPES)
@settings(max_examples=15, deadline=None)
@given(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_a_recipe_keeps_shape_and_type_of_any_image(name, c, h, w, seed):
    image = torch.randint(0, 256, (c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    torch.manual_seed(seed)
    before = image.clone()
    out = recipe(name, (h, w))(image)
    assert out.shape == image.shape and out.dtype == torch.uint8
    assert torch.equal(image, before), "the image that was given was written into"


@pytest.mark.parametrize("name", RECIPES[1:])
def test_two_images_alike_in_one_batch_come_out_different(name, grey):
    repeated = grey.subset([0, 0, 0, 0, 0, 0])
    renamed = replace(repeated, ids=np.array(list("abcdef")))
    for ds in (repeated, renamed):
        x, _ = next(iter(batches(augmented(ds, name), 6)))
        assert len({image.numpy().tobytes() for image in x}) >= 5


@pytest.mark.parametrize("name", RECIPES)
def test_a_batch_equals_its_images_taken_one_by_one(name, colour):
    drawn = augmented(colour, name, seed=3)
    together = drawn.images.planes(np.arange(len(drawn)))
    assert (together == np.stack([drawn[i][0].numpy() for i in range(len(drawn))])).all()
    assert (np.moveaxis(together, 1, 3) == np.asarray(drawn.images)).all()
    assert drawn.images.planes(slice(2, 2)).shape == (0, 3, 40, 56)


@pytest.mark.parametrize("name", ["reticulocyte", "cells", "xray", "randaugment"])
def test_order_batch_size_and_subsets_change_no_draw(name, colour):
    drawn = augmented(colour, name, seed=1)
    expected = torch.cat([x for x, _ in batches(drawn, 9)])
    assert torch.equal(expected, torch.cat([x for x, _ in batches(drawn, 4)]))
    order = np.array([7, 2, 5])
    assert torch.equal(expected[order], everything(drawn.subset(order), batch_size=2))
    assert torch.equal(expected[order], everything(augmented(colour.subset(order), name, seed=1), batch_size=3))
    x, y = next(iter(batches(drawn, 9, shuffle=True, generator=torch.Generator().manual_seed(0))))
    where = [next(i for i in range(9) if torch.equal(expected[i], image)) for image in x]
    assert sorted(where) == list(range(9)) and (colour.labels[where] == y.numpy()).all()


def test_workers_change_no_draw_and_hear_of_a_new_epoch(colour):
    drawn = augmented(colour, "reticulocyte")
    workers = DataLoader(drawn, batch_size=4, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1):
        drawn.set_epoch(epoch)
        epochs.append(torch.cat([x for x, _ in workers]))
        assert torch.equal(epochs[-1], everything(drawn, batch_size=5))
    assert not torch.equal(*epochs)


class Mean(v2.Transform):
    """As sensitive as a step can be to the order in which an image's mean is summed up."""

    def transform(self, inpt, params):
        return torch.full_like(inpt, int(inpt.float().mean() * 2**17) % 256)


def test_the_number_of_threads_changes_no_draw(write_classes, tmp_path, monkeypatch):
    monkeypatch.setitem(recipes._STEPS, "light", lambda size: [Mean()])
    ds = open_dataset(write_classes(tmp_path / "set", {"a": 3, "b": 3}, size=(640, 640)), image_size=640)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(augmented(ds, "light").images.planes(slice(0, 6)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert (found[0] == found[1]).all()


def test_seeds_and_epochs_draw_anew_and_can_be_repeated(grey):
    one, other = augmented(grey, "light", seed=0), augmented(grey, "light", seed=1)
    first = one.images.planes(slice(0, 4))
    assert not (first == other.images.planes(slice(0, 4))).all((1, 2, 3)).any()
    one.set_epoch(1)
    assert not (first == one.images.planes(slice(0, 4))).all((1, 2, 3)).any()
    assert (first != one.subset([0]).images.planes(0)).any(), "a subset follows the epoch"
    one.set_epoch(0)
    assert (first == one.images.planes(slice(0, 4))).all()


@pytest.mark.parametrize("name", RECIPES)
def test_no_global_generator_is_touched(name, grey):
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    drawn = augmented(grey, name)
    drawn.images.planes(slice(0, 3))
    drawn.mask(0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_none_changes_nothing(colour):
    assert (np.asarray(augmented(colour, "none").images) == np.asarray(colour.images)).all()


@pytest.mark.parametrize("name", RECIPES)
def test_a_pickled_set_draws_alike_as_in_a_worker_that_is_spawned(grey, name):
    drawn = augmented(grey, name, seed=2)
    drawn.set_epoch(4)
    again = pickle.loads(pickle.dumps(drawn))
    assert (again.images.planes(slice(0, 3)) == drawn.images.planes(slice(0, 3))).all()


def test_an_augmented_set_is_the_same_set(grey):
    drawn = augmented(grey, "xray")
    assert drawn.fingerprint == grey.fingerprint and drawn.classes == grey.classes and len(drawn) == len(grey)
    assert "'xray', epoch 0" in repr(drawn) and (drawn.labels == grey.labels).all()


@pytest.mark.parametrize(("name", "upside_down"), [("xray", False), ("light", False), ("reticulocyte", True)])
def test_only_recipes_for_cells_turn_an_image_upside_down(name, upside_down):
    falling = torch.linspace(255, 0, 64).to(torch.uint8)[None, :, None].expand(1, 64, 64).contiguous()
    tops = [out[0, :20].float().mean() > out[0, -20:].float().mean() for out in drawn(recipe(name, 64), falling, 150)]
    assert all(tops) != upside_down and any(tops)


def test_cells_come_in_all_eight_ways_and_keep_their_shape():
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3)
    turns = [torch.rot90(x, k, (1, 2)) for k in range(4) for x in (image, image.flip(-1))]
    expected = {x.contiguous().numpy().tobytes() for x in turns}
    assert {x.numpy().tobytes() for x in drawn(Dihedral(), image, 200)} == expected and len(expected) == 8
    oblong = torch.arange(6, dtype=torch.uint8).view(1, 2, 3)
    flips = {oblong.flip(axes).numpy().tobytes() for axes in ((), (1,), (2,), (1, 2))}
    assert {x.numpy().tobytes() for x in drawn(Dihedral(), oblong, 100)} == flips


@pytest.mark.parametrize("c", [1, 3])
def test_stain_jitter_of_no_strength_is_the_identity(c):
    image = torch.randint(0, 256, (c, 50, 40), dtype=torch.uint8)
    assert torch.equal(StainJitter(0.0, 0.0)(image), image)


def test_stain_jitter_is_the_formula_and_moves_no_pixel():
    image = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    step = StainJitter(0.2, 0.05)
    params = step.make_params([image])
    density = -np.log10((image.numpy().reshape(3, -1).T + 1.0) / 256)  # (pixels, 3)
    concentrations = np.linalg.solve(STAINS.double().numpy().T, density.T).T
    jittered = concentrations * params["a"].double().numpy() + params["b"].double().numpy()
    expected = np.clip(np.round(256 * 10 ** -(jittered @ STAINS.double().numpy()) - 1), 0, 255)
    out = step.transform(image, params)
    difference = np.abs(out.numpy().reshape(3, -1).T - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02 and not torch.equal(out, image)
    mirrored = step.transform(image.flip(-1), params)
    assert torch.equal(mirrored, out.flip(-1)), "a pixel's new colour depends on its old colour alone"


def test_a_turn_brings_in_no_new_brightness():
    image = torch.full((1, 30, 50), 200, dtype=torch.uint8)
    assert all(torch.equal(x, image) for x in drawn(Rotate(15), image, 20))
    spot = torch.zeros(1, 41, 41, dtype=torch.uint8)
    spot[0, 20, 35] = 255  # to the right of the centre: its angle can be read off
    for out in drawn(Rotate(15), spot, 50):
        y, x = np.argwhere(out[0].numpy() == out.max().item())[0] - 20
        assert abs(np.degrees(np.arctan2(-y, x))) <= 15 + 3


def test_erasing_leaves_a_box_of_the_mean_colour():
    image = torch.randint(0, 256, (3, 40, 30), dtype=torch.uint8)
    for out in drawn(Erase(1.0, (0.02, 0.1), (0.5, 2.0)), image, 20):
        changed = (out != image).any(0)
        assert 0.01 < changed.float().mean() < 0.12
        assert (out[:, changed].float() - image.float().mean((1, 2))[:, None]).abs().max() < 1


@pytest.mark.parametrize("name", ["light", "reticulocyte", "cells", "xray"])
def test_the_evidence_mask_moves_with_the_image(name):
    image = torch.zeros(1, 64, 64, dtype=torch.uint8)
    image[:, 10:30, 36:50] = 250
    torch.manual_seed(2)
    for _ in range(20):
        out, mask = recipe(name, 64)(image, tv_tensors.Mask((image > 0).to(torch.uint8)))
        bright = out > out.float().quantile(0.5) + 40
        agree = (bright & (mask > 0)).sum() / (bright | (mask > 0)).sum()
        assert agree > 0.8 and set(mask.unique().tolist()) <= {0, 1}


def test_masks_of_a_data_set_follow_its_draws(grey):
    ill = int(np.flatnonzero(grey.labels == 1)[0])
    drawn = augmented(grey, "cells", seed=5)
    mask, stored = drawn.mask(ill), grey.mask(ill)
    turns = [np.rot90(x, k) for k in range(4) for x in (stored, stored[:, ::-1])]
    assert mask.dtype == bool and mask.sum() == stored.sum() and any((mask == turn).all() for turn in turns)
    assert augmented(grey, "randaugment").mask(ill) is None
    assert (drawn.subset([ill]).mask(0) == mask).all()


def test_the_table_names_every_step_with_the_numbers_that_run():
    table = recipe_table(image_size=(32, 40))
    assert list(table.recipe.unique()) == list(RECIPES)
    for name in RECIPES:
        steps = {type(step).__name__: step for step in recipe(name, (32, 40)).transforms}
        rows = table[table.recipe == name]
        assert list(rows.step.unique()) == list(steps)
        for row in rows[rows.parameter != "-"].itertuples():
            value = getattr(steps[row.step], row.parameter)
            assert getattr(value, "value", value) == row.value
    said = {(row.recipe, row.step, row.parameter): row.value for row in table.itertuples()}
    assert said["reticulocyte", "RandomResizedCrop", "scale"] == (0.7, 1.0)
    assert said["reticulocyte", "Rotate", "degrees"] == 15
    assert recipe_table("cells", 32).equals(table[table.recipe == "cells"].reset_index(drop=True))


def test_randaugment_never_turns_bright_to_dark():
    rising = torch.arange(0, 256, 4, dtype=torch.uint8)[None, None].expand(1, 64, 64).contiguous()
    for out in drawn(recipe("randaugment", 64), rising, 100):
        assert out[0, 20:44, 36:50].float().mean() > out[0, 20:44, 14:28].float().mean()


def test_what_cannot_be_augmented_is_refused(grey):
    with pytest.raises(DataError, match="recipe 'X-ray' is unknown\\. Did you mean 'xray'"):
        augmented(grey, "X-ray")
    with pytest.raises(DataError, match="is augmented already, by 'light'"):
        augmented(augmented(grey, "light"), "xray")
    for name in (None, ["light"]):
        with pytest.raises(DataError, match="is unknown"):
            recipe(name)
    for size in (0, (4,), (8, -1), "224", 2.5):
        with pytest.raises(DataError, match="image_size="):
            recipe("light", size)
    for image in (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 8, 8), torch.zeros(1, 8, 9).byte()):
        with pytest.raises(DataError, match="one uint8 image"):
            recipe("light", 8)(image)


def test_a_recipe_is_shown_beside_the_image_as_it_is(grey):
    ill = int(np.flatnonzero(grey.labels == 1)[0])
    figure = pictures.show_recipe(grey, "xray", ill, draws=3, masks=True)
    shown = [np.asarray(axis.images[0].get_array()) for axis in figure.axes]
    assert (shown[0] == grey.images[ill][..., 0]).all() and len({x.tobytes() for x in shown}) == 4
