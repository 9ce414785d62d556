import pickle

import numpy as np
import pytest
import torch

from medvitlib.data import batches, loading, open_dataset
from medvitlib.errors import DataError


@pytest.fixture
def ds(tmp_path, write_classes):
    return open_dataset(write_classes(tmp_path / "set", {"a": 11, "b": 10}, colour=True), image_size=(12, 16))


def test_batches_hold_every_image_once_in_order(ds):
    found = list(batches(ds, 8))
    assert [len(x) for x, _ in found] == [8, 8, 5] and len(batches(ds, 8)) == 3
    x, y = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
    assert x.shape == (21, 3, 12, 16) and x.dtype == torch.uint8 and all(x.is_contiguous() for x, _ in found)
    assert (x.permute(0, 2, 3, 1).numpy() == np.asarray(ds.images)).all()
    assert y.dtype == torch.int64 and (y.numpy() == ds.labels).all()


def test_shuffling_follows_the_generator_and_keeps_labels_with_images(ds):
    def passes(seed):
        loader = batches(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(seed))
        return [torch.cat([x for x, _ in loader]) for _ in range(2)], [y for _, y in loader]

    (one, two), _ = passes(0)
    assert torch.equal(one, passes(0)[0][0]) and not torch.equal(one, two) and not torch.equal(one, passes(1)[0][0])
    by_content = {ds.images[i].tobytes(): ds.labels[i] for i in range(len(ds))}
    for x, y in batches(ds, 8, shuffle=True, generator=torch.Generator().manual_seed(3)):
        assert [by_content[image.permute(1, 2, 0).numpy().tobytes()] for image in x] == y.tolist()


def test_batches_of_a_subset(ds):
    some = ds.subset(np.arange(20, 4, -3))
    x = torch.cat([x for x, _ in batches(some, 4)])
    assert (x.permute(0, 2, 3, 1).numpy() == np.asarray(ds.images)[20:4:-3]).all()


def test_a_batch_is_ours_to_write_into(ds):
    x, _ = next(iter(batches(ds, 4)))
    before = ds.images[0].copy()
    x.zero_()
    assert (ds.images[0] == before).all()


def test_giving_pages_back_changes_nothing(ds, monkeypatch):
    expected = [x for x, _ in batches(ds, 4)]
    monkeypatch.setattr(loading, "_RELEASE_BYTES", 0)
    assert all(torch.equal(a, b) for a, (b, _) in zip(expected, batches(ds, 4), strict=True))


def test_a_pickled_dataset_is_small_and_whole(ds):
    next(iter(batches(ds, 4)))
    data = pickle.dumps(ds)
    assert len(data) < 20_000
    assert (np.asarray(pickle.loads(data).images) == np.asarray(ds.images)).all()


def test_a_batch_size_below_one_is_refused(ds):
    with pytest.raises(DataError, match="batch_size=0"):
        batches(ds, 0)


def test_some_classes_are_a_data_set_of_their_own(tmp_path, write_classes):
    folder = write_classes(tmp_path / "cells", {"burr": 5, "round": 6, "target": 7})
    ds = open_dataset(folder, image_size=16)
    two = ds.of_classes(["target", "burr"])
    assert two.classes == ["target", "burr"] and np.bincount(two.labels).tolist() == [7, 5]
    assert [ds.classes[k] for k in ds.labels[ds.labels != 1]] == [two.classes[k] for k in two.labels]
    assert two.positive is None and len(ds) == 18
    for names, words in (
        (["target", "bur"], "class 'bur' is unknown. Did you mean 'burr'"),
        ("burr", "expected two or more"),
        (["burr", "burr"], "expected two or more different"),
    ):
        with pytest.raises(DataError, match=words):
            ds.of_classes(names)
