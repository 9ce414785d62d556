import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvitlib.data import Dataset, duplicates, open_dataset, same_split, split
from medvitlib.data.splits import _folds
from medvitlib.errors import DataError


class NoImages:
    """Stands in for decoded images where only labels and groups matter."""

    shape = (0, 8, 8, 1)

    def take(self, rows):
        return self


def made(labels, groups, splits=None, hashes=None, known=True) -> Dataset:
    n = len(labels)
    return Dataset(
        name="made",
        classes=[f"class {k}" for k in range(max(labels) + 1)],
        positive=None,
        ids=np.array([f"{i:05d}" for i in range(n)]),
        labels=np.asarray(labels, np.int64),
        groups=np.asarray(groups, dtype=str),
        groups_known=known,
        splits=np.full(n, "") if splits is None else np.asarray(splits),
        hashes=np.array([f"hash {i}" for i in range(n)]) if hashes is None else np.asarray(hashes, dtype=str),
        images=NoImages(),
    )


def patients(n: int, seed: int = 0, classes: int = 2):
    """Labels and groups of n patients with one to five images each."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, n)
    return np.repeat(np.arange(n) % classes, sizes), np.repeat([f"p{k}" for k in range(n)], sizes)


def parts(cut) -> dict[str, Dataset]:
    return {name: getattr(cut, name) for name in ("train", "val", "test")}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(80, 160),
    val=st.sampled_from([0.1, 0.15, 0.2, 0.25]),
    test=st.sampled_from([0.1, 0.2, 0.3]),
    classes=st.integers(2, 3),
)
def test_every_image_is_in_one_part_every_patient_too_and_shares_are_as_asked(seed, n, val, test, classes):
    labels, groups = patients(n, seed, classes)
    ds = made(labels, groups)
    cut = split(ds, val=val, test=test, seed=seed)
    assert sorted(np.concatenate([part.ids for part in parts(cut).values()])) == list(ds.ids)
    seen = [set(part.groups) for part in parts(cut).values()]
    assert len(set.union(*seen)) == sum(map(len, seen))
    for name, share in (("val", val), ("test", test)):
        part = parts(cut)[name]
        assert abs(len(part) / len(ds) - share) < 0.06
        for label in range(classes):
            assert abs((part.labels == label).sum() / (labels == label).sum() - share) < 0.12


def test_the_same_seed_cuts_the_same_and_another_does_not():
    ds = made(*patients(100))
    assert list(split(ds, seed=1).test.ids) == list(split(ds, seed=1).test.ids)
    assert list(split(ds, seed=1).test.ids) != list(split(ds, seed=2).test.ids)


def test_identical_files_under_two_patients_stay_together():
    labels, groups = patients(100)
    hashes = np.array([f"hash {i}" for i in range(len(labels))])
    twins = [(a, b) for a, b in zip(range(0, 60, 3), range(120, 180, 3), strict=True) if labels[a] == labels[b]]
    for a, b in twins:
        hashes[b] = hashes[a]
    cut = split(made(labels, groups, hashes=hashes))
    where = {ident: name for name, part in parts(cut).items() for ident in part.ids}
    assert twins and all(where[f"{a:05d}"] == where[f"{b:05d}"] for a, b in twins)
    assert any("identical files" in note for note in cut.notes)


def official(n_val: int):
    """160 images in train, n_val a class in val, 60 in test; every image a patient."""
    labels = np.arange(160 + 2 * n_val + 60) % 2
    splits = ["train"] * 160 + ["val"] * 2 * n_val + ["test"] * 60
    return made(labels, np.arange(len(labels)), splits)


def test_official_parts_are_used():
    cut = split(official(25))
    assert [len(part) for part in parts(cut).values()] == [160, 50, 60]
    assert all(set(part.splits) == {name} for name, part in parts(cut).items())


def test_a_tiny_official_val_joins_train():
    cut = split(official(8), val=0.25)
    assert [len(part) for part in parts(cut).values()] == [132, 44, 60]
    assert set(cut.test.splits) == {"test"} and "val" in set(cut.train.splits) | set(cut.val.splits)
    assert any("16 images (8 class 0, 8 class 1)" in note for note in cut.notes)


def test_without_an_official_test_one_is_cut_and_the_official_val_kept():
    labels = np.arange(200) % 2
    cut = split(made(labels, np.arange(200), ["train"] * 150 + ["val"] * 50), test=0.2)
    assert set(cut.val.splits) == {"val"} and len(cut.val) == 50 and abs(len(cut.test) - 40) <= 4


def test_an_official_split_that_leaks_is_used_and_says_so():
    ds = official(25)
    groups, hashes = ds.groups.copy(), ds.hashes.copy()
    groups[215:218] = groups[:3]  # three test images of train's patients
    hashes[218] = hashes[10]
    with pytest.warns(UserWarning, match="LEAK"):
        cut = split(dataclasses.replace(ds, groups=groups, hashes=hashes))
    assert [note for note in cut.notes if note.startswith("LEAK")] == [
        "LEAK in the official split: train and test share 3 groups and 1 identical files (8 images). "
        "Figures on test are too good by an unknown amount."
    ]


def test_a_leak_of_near_duplicates_alone_is_called_that(monkeypatch):
    from medvitlib.data import near

    pairs = near.Pairs(np.array([0, 1]), np.array([215, 216]), np.array(["altered copy"] * 2), np.array([40, 40]))
    monkeypatch.setattr(near, "near_duplicates", lambda ds: pairs)
    with pytest.warns(UserWarning, match="train and test share 2 clusters of near-duplicates"):
        split(official(25), by="clusters")


def test_our_test_part_keeps_clear_of_an_official_val_that_leaks():
    labels = np.arange(300) % 2
    groups = np.r_[np.arange(200), np.arange(100)]  # every patient of val has an image in train
    with pytest.warns(UserWarning, match="train and val share 100 groups"):
        cut = split(made(labels, groups, ["train"] * 200 + ["val"] * 100), test=0.1)
    assert len(cut.test) and not set(cut.test.groups) & (set(cut.val.groups) | set(cut.train.groups))


@pytest.mark.parametrize("splits", [["val"] * 60 + ["test"] * 60, ["test"] * 120])
def test_a_set_without_training_images_is_refused(splits):
    with pytest.raises(DataError, match="no training images"):
        split(made(np.arange(120) % 2, np.arange(120), splits))


def test_an_official_test_that_lacks_a_class_is_mentioned():
    labels = np.r_[np.arange(160) % 2, np.zeros(40, int)]
    cut = split(made(labels, np.arange(200), ["train"] * 160 + ["test"] * 40), val=0.5, test=0.9)
    assert any("no image of class 1" in note for note in cut.notes)  # and a share for test means nothing here


def test_a_cut_through_a_patient_is_never_returned(monkeypatch):
    from medvitlib.data import splits as module

    monkeypatch.setattr(module, "_cut", lambda ds, units, pool, *_: pool & (np.arange(len(ds)) % 3 == 0))
    with pytest.raises(AssertionError, match="cut in two"):
        split(made(*patients(60)))


def test_unknown_patients_are_mentioned():
    labels = np.arange(100) % 2
    cut = split(made(labels, np.arange(100), known=False))
    assert any("patients are not known" in note for note in cut.notes)
    assert "patients" not in cut.table()


def test_groups_too_large_to_share_out_are_mentioned():
    labels, groups = np.arange(400) % 2, np.repeat(np.arange(8), 50)
    labels = np.repeat(np.arange(8) % 2, 50)
    labels[::7] = 1 - labels[::7]
    cut = split(made(labels, groups), val=0.3, test=0.3)
    assert any("groups are too large" in note for note in cut.notes)


@pytest.mark.parametrize(("val", "test"), [(0, 0.2), (0.2, 0), (0.5, 0.5), (-0.1, 0.2), (1.2, 0.1)])
def test_impossible_shares_are_refused(val, test):
    with pytest.raises(DataError, match="shares"):
        split(made(*patients(50)), val=val, test=test)


def test_too_few_patients_are_counted():
    labels = np.array([0] * 100 + [1] * 30)
    groups = [f"a{k}" for k in range(100)] + [f"b{k % 3}" for k in range(30)]
    with pytest.raises(DataError, match=r"class 'class 1' has 3 patients .* 5 are needed"):
        split(made(labels, groups))


@given(st.floats(0.02, 0.98))
def test_folds_come_close_to_any_share(share):
    folds, taken = _folds(share)
    assert abs(taken / folds - share) <= 0.02 and 0 < taken < folds


def test_the_table_counts_images_and_patients():
    table = split(official(25)).table()
    assert list(table.columns) == ["images", "patients", "class 0", "class 0 patients", "class 1", "class 1 patients"]
    assert table.loc["train"].tolist() == [160, 160, 80, 80, 80, 80]
    wide = split(made(*patients(120, classes=4))).table()
    assert list(wide.columns) == ["images", "patients", *(f"class {k}" for k in range(4))]


def test_duplicates_are_listed_by_cluster(tmp_path, write_classes):
    folder = write_classes(tmp_path, {"a": 6, "b": 6})
    shutil.copy(folder / "a" / "img_1.png", folder / "a" / "copy.png")
    table = duplicates(open_dataset(folder, image_size=8))
    assert table["id"].tolist() == ["a/copy.png", "a/img_1.png"] and table["cluster"].tolist() == [0, 0]
    assert table["class"].tolist() == ["a", "a"]
    (folder / "a" / "copy.png").unlink()
    assert duplicates(open_dataset(folder, image_size=8)).empty


@pytest.mark.real_data
def test_kermany_is_cut_by_child_and_its_test_is_left_alone(real_data):
    ds = open_dataset("chest_xray", image_size=56, root=real_data)
    cut = split(ds, val=0.2, seed=0)
    assert set(cut.test.splits) == {"test"} and len(cut.test) == 624
    assert len(cut.train) + len(cut.val) == 5216 + 16
    assert abs(len(cut.val) / 5232 - 0.2) < 0.01
    ill = [(part.labels == 1).mean() for part in (cut.train, cut.val)]
    assert abs(ill[0] - ill[1]) < 0.01
    seen = [set(part.groups) for part in parts(cut).values()]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 3288
    assert not any(note.startswith("LEAK") for note in cut.notes)
    assert len(duplicates(ds)) == 62


@pytest.mark.real_data
def test_augmented_copies_of_one_photograph_stay_together(real_data):
    ds = open_dataset("blood_cells", image_size=32, root=real_data)
    cut = split(ds, val=0.2)
    assert ds.groups_known and not set(cut.train.groups) & set(cut.val.groups)
    assert set(cut.test.splits) == {"test"} and len(cut.test) == 600


def test_another_size_is_split_alike():
    large, small = (open_dataset("phantom/ct", image_size=size, n_patients=12) for size in (224, 64))
    parts = split(large, by="clusters")
    again = same_split(parts, small)
    for name in ("train", "val", "test"):
        one, other = getattr(parts, name), getattr(again, name)
        assert list(one.ids) == list(other.ids) and list(one.groups) == list(other.groups)
        assert list(one.labels) == list(other.labels) and other.image_size == (64, 64)
    with pytest.raises(DataError, match=r"lacks .* of the train part"):
        same_split(parts, small.subset(range(3)))


def test_a_positive_class_of_three_is_refused_before_anything_is_trained(tmp_path, write_classes):
    ds = open_dataset(write_classes(tmp_path / "set", {"a": 9, "b": 9, "c": 9}), image_size=32, positive="b")
    with pytest.raises(
        DataError, match=r"'set' has 3 classes \(a, b, c\): a positive class is one of two. Leave it out"
    ):
        split(ds)
    assert split(ds.of_classes(["a", "b"])).train.positive == "b"


def test_classes_named_as_columns_are_kept_apart_from_them(tmp_path, write_classes):
    ds = open_dataset(write_classes(tmp_path / "set", {"patients": 20, "images": 20, "all": 20}), image_size=32)
    table = split(ds).table()
    assert list(table.columns) == ["images", "all", "class images", "class patients"]
    assert table["images"].tolist() == [36, 12, 12] and (table.iloc[:, 1:].sum(axis=1) == table["images"]).all()
    summary = ds.summary()
    assert summary.loc["all", "images"] == 60 and summary.loc["class all", "images"] == 20


def test_a_large_official_validation_part_with_a_rare_class_is_kept_and_the_class_named(tmp_path, write_classes):
    write_classes(tmp_path / "set" / "train", {"a": 60, "b": 30})
    write_classes(tmp_path / "set" / "val", {"a": 40, "b": 3})
    parts = split(open_dataset(tmp_path / "set", image_size=32))
    assert len(parts.val) == 43
    assert "it has only 3 of b: nothing that concerns them alone can be chosen by it." in parts.notes
