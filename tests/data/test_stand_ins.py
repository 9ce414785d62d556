"""Rendered sets in MedMNIST's layout are opened as the real ones are; folds keep the test part out."""

import numpy as np
import pytest

from medvitlib.data import open_dataset, split
from medvitlib.data.folds import folds
from medvitlib.data.stand_ins import KINDS, stand_in
from medvitlib.errors import DataError


@pytest.mark.parametrize("kind", KINDS)
def test_a_stand_in_has_medmnists_arrays_and_opens_by_patient(kind, tmp_path):
    path = stand_in(kind, tmp_path, side=28, n_patients=48)
    with np.load(path, allow_pickle=False) as arrays:
        for part in ("train", "val", "test"):
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            assert images.dtype == np.uint8 and images.shape[1:] == ((28, 28, 3) if kind == "cells" else (28, 28))
            assert labels.shape == (len(images), 1) and set(labels.ravel()) == set(range(len(KINDS[kind])))
    ds = open_dataset(path, image_size=28)
    assert ds.classes == KINDS[kind] and ds.groups_known and ds.positive == ("COVID" if kind == "slices" else None)
    parts = split(ds)
    assert set(parts.test.splits) == {"test"} and not set(parts.train.groups) & set(parts.test.groups)
    assert any("rendered" in note for note in ds.notes)


def test_the_same_seed_writes_the_same_file(tmp_path):
    one, other = (stand_in("grades", tmp_path, side=28, n_patients=40).read_bytes() for _ in range(2))
    assert one == other


def test_every_image_outside_the_test_part_is_left_out_once():
    ds = open_dataset("phantom/wbc4", image_size=28, n_patients=40)
    parts = split(ds)
    found = folds(ds, parts, 4, seed=1)
    outside = sorted([*parts.train.ids, *parts.val.ids])
    assert sorted(name for cut in found for name in cut.val.ids) == outside
    for cut in found:
        assert sorted([*cut.train.ids, *cut.val.ids]) == outside and cut.test is parts.test
        assert not set(cut.train.groups) & set(cut.val.groups)
        assert "cut in 4 folds" in cut.notes[-1]


def test_folds_that_cannot_be_are_refused():
    ds = open_dataset("phantom/wbc4", image_size=28, n_patients=40)
    with pytest.raises(DataError, match="2 folds or more"):
        folds(ds, split(ds), 1)
    with pytest.raises(DataError, match="50 folds were asked for"):
        folds(ds, split(ds), 50)
