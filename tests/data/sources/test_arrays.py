"""Arrays in MedMNIST's layout: every form of them that is about, and every way in which a file can be wrong."""

import os
import shutil
import warnings
import zipfile

import numpy as np
import pytest

from medvitlib.data import duplicates, open_dataset, save_npz, split
from medvitlib.data.decode import fit
from medvitlib.data.sources import array_rows
from medvitlib.errors import DataError

COUNTS = {"train": 12, "val": 6, "test": 8}


def arrays(shape=(9, 7), seed=0, counts=COUNTS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    content = {}
    for name, n in counts.items():
        content[f"{name}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        content[f"{name}_labels"] = (np.arange(n) % 3)[:, None].astype(np.uint8)
    return content


@pytest.fixture
def write(tmp_path):
    def write(content, name="set.npz", compressed=True):
        (np.savez_compressed if compressed else np.savez)(tmp_path / name, **content)
        return tmp_path / name

    return write


def whole(content) -> np.ndarray:
    return np.concatenate([content[f"{name}_images"] for name in COUNTS])


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 1), (9, 7, 3), (9, 7, 4)])
def test_images_labels_and_parts_are_those_of_the_file(write, own_cache, shape, compressed):
    content = arrays(shape)
    ds = open_dataset(write(content, compressed=compressed), image_size=(9, 7))
    assert (np.asarray(ds.images) == whole(content).reshape(26, 9, 7, -1)[..., :3]).all()  # no alpha
    assert ds.labels.tolist() == [k % 3 for n in COUNTS.values() for k in range(n)]
    assert ds.splits.tolist() == [name for name, n in COUNTS.items() for _ in range(n)]
    assert ds.ids[[0, 11, 12, 25]].tolist() == ["train/00000", "train/00011", "val/00000", "test/00007"]
    assert (ds.name, ds.classes, ds.positive, ds.channels) == (
        "set",
        ["0", "1", "2"],
        None,
        3 if shape[2:] > (1,) else 1,
    )
    assert not ds.groups_known and (ds.groups == ds.ids).all() and ds.notes == [] and ds.quarantine == []


def test_images_are_resized_as_files_are(write, own_cache):
    content = arrays((9, 7, 3))
    ds = open_dataset(write(content), image_size=5)
    assert (np.asarray(ds.images) == [fit(image, (5, 5)) for image in whole(content)]).all()
    assert "enlarged to 20x20" in open_dataset(write(content), image_size=20).notes[0]


def test_a_large_file_read_by_many_threads_keeps_its_order(write, own_cache):
    content = {"images": np.arange(3000, dtype=np.uint16).view(np.uint8).reshape(3000, 1, 2).repeat(4, 1)}
    ds = open_dataset(write(content | {"labels": np.arange(3000) % 2}), image_size=(4, 2))
    assert (np.asarray(ds.images)[..., 0] == content["images"]).all() and ds.ids[2999] == "02999"
    assert len(set(ds.hashes)) == 3000 and set(ds.splits) == {""}


def test_a_colour_set_of_grey_pictures_is_grey_and_one_late_colour_makes_it_colour(write, own_cache):
    images = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(6, 2).repeat(3, 3)
    labels = np.arange(40) % 2
    assert open_dataset(write({"images": images, "labels": labels}), image_size=6).channels == 1
    images[39, 2, 2] = (1, 2, 3)
    ds = open_dataset(write({"images": images, "labels": labels}), image_size=6)
    assert ds.channels == 3 and (np.asarray(ds.images) == images).all() and len(set(ds.hashes)) == 40


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (np.array([7, 2, 7, 40]), ["2", "7", "40"], ["7", "2", "7", "40"]),
        (np.array([[7.0], [2.0], [7.0], [2.0]]), ["2", "7"], ["7", "2", "7", "2"]),
        (np.array([-1, 1, 1, -1], np.int8), ["-1", "1"], ["-1", "1", "1", "-1"]),
        (np.array(["ill", "well", "ill", "ill"]), ["ill", "well"], ["ill", "well", "ill", "ill"]),
        (np.array([True, False, True, True]), ["0", "1"], ["1", "0", "1", "1"]),
        (np.eye(3, dtype=int)[[2, 0, 1, 1]], ["0", "1", "2"], ["2", "0", "1", "1"]),
    ],
)
def test_labels_of_any_kind_are_named(write, own_cache, labels, classes, expected):
    ds = open_dataset(write({"images": arrays()["train_images"][:4], "labels": labels}), image_size=8)
    assert ds.classes == classes and [ds.classes[k] for k in ds.labels] == expected


def test_several_findings_an_image_need_the_one_that_is_meant(write, own_cache):
    path = write({"images": arrays()["train_images"][:4], "labels": np.array([[0, 1], [1, 1], [0, 0], [1, 0]])})
    for positive in (None, "2"):
        with pytest.raises(DataError, match=r"several of 2 findings \(0, 1\).*pass positive='0'"):
            open_dataset(path, image_size=8, positive=positive)
    ds = open_dataset(path, image_size=8, positive="1")
    assert (ds.classes, ds.positive, ds.labels.tolist()) == (["no 1", "1"], "1", [1, 1, 0, 0])
    assert "1 images have more than one" in ds.notes[0]


def test_groups_come_from_the_file_a_pattern_or_a_side_car(write, own_cache, tmp_path):
    patients = np.array(["p1", "p1", "p2", "p3"] * 3)
    content = {"images": arrays()["train_images"], "labels": np.arange(12) % 2}
    ds = open_dataset(write(content | {"groups": patients}), image_size=8)
    assert ds.groups_known and ds.groups.tolist() == patients.tolist()
    path = write(content)
    assert len(set(open_dataset(path, image_size=8, groups=r"\d(\d)$").groups)) == 10
    rows = [f"{k:05d},g{k // 2}" for k in range(12)]
    (tmp_path / "mine.csv").write_text("\n".join(["path,group", *rows]))
    assert open_dataset(path, image_size=8, groups=tmp_path / "mine.csv").groups[3] == "g1"


def test_one_image_in_two_parts_is_found_whatever_its_type(write, own_cache):
    content = arrays()
    content["test_images"][5], content["test_labels"][5] = content["train_images"][2], content["train_labels"][2]
    ds = open_dataset(write(content), image_size=8)
    assert duplicates(ds)["id"].tolist() == ["train/00002", "test/00005"]
    scaled = {k: (v / 255).astype(np.float32) if "images" in k else v[:, 0] for k, v in content.items()}
    floats = open_dataset(write(scaled, "floats.npz"), image_size=8)
    assert (
        floats.fingerprint == ds.fingerprint
        and "float32 images from 0 to 1: these were taken for black and white" in floats.notes[0]
    )
    wide = {k: v.astype(np.int64) for k, v in content.items()}
    assert open_dataset(write(wide, "wide.npz"), image_size=8).fingerprint == ds.fingerprint


def test_a_picture_out_of_range_is_left_out_and_many_are_an_error(write, own_cache):
    content = {"images": np.random.default_rng(0).random((60, 6, 6)), "labels": np.arange(60) % 2}
    content["images"][7, 0, 0], content["images"][9, 1, 1] = np.nan, -0.5
    with pytest.warns(UserWarning, match="2 of 60"):
        ds = open_dataset(write(content), image_size=6)
    assert len(ds) == 58 and "00007" not in ds.ids and "expected 0 to 1" in ds.quarantine[0].reason
    with pytest.raises(DataError, match=r"values from 900 to 900, neither .* such as window=\(0, 4095\)"):
        open_dataset(write({"images": np.full((60, 6, 6), 900), "labels": content["labels"]}), image_size=6)


def in_parts(images: np.ndarray, labels: np.ndarray, names: str) -> dict[str, np.ndarray]:
    """Under names such as "X_{part}, y_{part}"."""
    at = {"train": slice(0, 40), "test": slice(40, 60)}
    keys = names.split(", ")
    return {
        k.format(part=part): v[rows] for part, rows in at.items() for k, v in zip(keys, (images, labels), strict=True)
    }


@pytest.mark.parametrize("names", ["X_{part}, y_{part}", "{part}_x, {part}_y", "x_{part}, labels_{part}"])
def test_arrays_as_keras_and_others_call_them_are_read_and_said(write, own_cache, names):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    ds = open_dataset(write(in_parts(images, np.arange(60) % 2, names)), image_size=8)
    assert (np.asarray(ds.images)[..., 0] == images).all() and (ds.splits == "test").sum() == 20
    assert "were taken for what their names say" in ds.notes[-1] and "as images" in ds.notes[-1]
    alone = open_dataset(write({"x": images, "y": np.arange(60) % 2}, "alone.npz"), image_size=8)
    assert set(alone.splits) == {""} and (alone.labels == np.arange(60) % 2).all()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda u: u / np.float32(255), "from 0 to 1"),
        (lambda u: u / 127.5 - 1, "from -1 to 1"),
        (lambda u: u.astype(np.float32), ""),
        (lambda u: u.astype(np.uint16), ""),
        (lambda u: u > 127, "from 0 to 1"),
    ],
)
def test_values_of_any_kind_are_shown_from_black_to_white(write, own_cache, made, said):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    given = made(images)
    expected = np.where(images > 127, 255, 0) if given.dtype == bool else images
    path = write({"images": given, "labels": np.arange(60) % 2})
    for _ in range(2):  # as found, and as remembered
        ds = open_dataset(path, image_size=8)
        assert (np.asarray(ds.images)[..., 0] == expected).all() and said in " ".join(ds.notes)


@pytest.mark.parametrize("made", [lambda u: u.astype(np.uint16) * 16, lambda u: (u / 255 - 0.485) / 0.229])
def test_values_that_could_mean_anything_need_a_window(write, own_cache, made):
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    given = made(images)
    path = write({"images": given, "labels": np.arange(60) % 2})
    with pytest.raises(DataError, match=r"such as window=\((0, 4095|-2\.1\d*, 2\.2\d*)\)"):
        open_dataset(path, image_size=8)
    low, high = float(given.min()), float(given.max())
    shown = np.asarray(open_dataset(path, image_size=8, window=(low, high)).images)[..., 0]
    assert np.abs(shown - (given - low) / (high - low) * 255).max() <= 0.51
    half = np.asarray(open_dataset(path, image_size=8, window=(low, 2 * high)).images)
    assert half.max() < shown.max()


def test_the_second_time_no_image_is_read(write, own_cache, monkeypatch):
    path = write(arrays((9, 7, 3)))
    first = open_dataset(path, image_size=8)
    shutil.copy(path, path.with_name("copy.npz"))  # and its name does not matter
    monkeypatch.setattr(array_rows, "skip_header", lambda *_: pytest.fail("the images were read again"))
    for name in ("set.npz", "copy.npz"):
        again = open_dataset(path.with_name(name), image_size=8)
        assert again.fingerprint == first.fingerprint and (np.asarray(again.images) == first.images).all()


def test_a_changed_file_is_read_anew_and_lost_hashes_are_made_again(write, own_cache):
    first = open_dataset(write(arrays()), image_size=8)
    for memory in own_cache.rglob("*.rows.npz"):
        memory.write_bytes(b"junk")
    again = open_dataset(write(arrays()), image_size=8)
    assert again.fingerprint == first.fingerprint and (again.hashes == first.hashes).all()
    other = open_dataset(write(arrays(seed=1)), image_size=8)
    assert other.fingerprint != first.fingerprint and not (np.asarray(other.images) == first.images).all()


def test_a_file_that_changes_while_it_is_read_is_refused(write, own_cache, monkeypatch):
    path = write(arrays())
    original = array_rows._pixels
    monkeypatch.setattr(array_rows, "_pixels", lambda *given: (os.utime(path, (1, 1)), original(*given))[1])
    with pytest.raises(DataError, match="changed while it was being opened"):
        open_dataset(path, image_size=8)
    assert not list(own_cache.rglob("*.npy"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train_labels": None}, "no labels beside it"),
        ({"val_images": None}, "no images beside it"),
        ({"train_labels": np.zeros(11, int)}, r"12 images, labels \(11,\)"),
        ({"train_labels": np.zeros((), int)}, r"12 images, labels \(\)"),
        ({"train_labels": np.full((12, 1), np.nan)}, "expected whole numbers or texts"),
        ({"train_labels": np.full((12, 1), 0.5)}, "expected whole numbers or texts"),
        ({"train_labels": np.full((12, 3), 2)}, "expected one form"),
        ({"train_labels": np.array(["a"] * 12)}, "expected one form"),
        ({"train_images": np.zeros((12, 3, 9, 7), np.uint8)}, "channels come last"),
        ({"train_images": np.zeros((12, 9, 9, 9), np.uint8)}, "Volumes are not read"),
        ({"train_images": np.zeros((12, 63), np.uint8)}, r"expected \(N, H, W\)"),
        ({"train_images": np.zeros((12, 0, 7), np.uint8)}, r"expected \(N, H, W\)"),
        ({"train_images": np.zeros((12, 9, 7), bool)}, "images of bool and uint8: expected one type"),
        ({"train_images": np.zeros((12, 9, 7), "M8[s]")}, "expected uint8"),
        ({"train_images": np.asfortranarray(arrays()["train_images"])}, "Fortran order"),
        ({"train_images": np.array([None] * 12)}, "pickled Python objects"),
        ({"train_labels": np.array([None] * 12)}, "pickled Python objects"),
        ({"training_images": np.zeros((12, 9, 7), np.uint8)}, "keep one of them"),
        ({"classes": np.array(["a", "b"])}, r"labels \[2\] have no name"),
        ({"classes": np.array(["a", "b", "a"])}, "expected different ones"),
        ({f"{name}_labels": np.full(n, b"\xff") for name, n in COUNTS.items()}, "save them as str"),
        ({"train_groups": np.full(12, b"\xff")}, "save them as str"),
        ({name: None for name in arrays()} | {"z": np.zeros(3)}, "MedMNIST's layout"),
        ({f"{name}_labels": np.zeros(n, int) for name, n in COUNTS.items()}, "one class only"),
    ],
)
def test_what_is_wrong_with_the_arrays_is_one_message(write, own_cache, changes, says):
    content = {name: array for name, array in (arrays() | changes).items() if array is not None}
    with pytest.raises(DataError, match=says):
        open_dataset(write(content), image_size=8)


def test_what_is_wrong_with_the_call_is_said_before_anything_is_decoded(write, own_cache):
    path = write(arrays())
    for options, says in (({"positive": "3"}, "no class of"), ({"n_patients": 3}, "options of rendered sets")):
        with pytest.raises(DataError, match=says):
            open_dataset(path, image_size=8, **options)
    for gone in (path.with_name("none.npz"), path.parent):
        with pytest.raises(DataError, match=r"No such file|Is a directory|cannot be read|no images"):
            open_dataset(str(gone) if gone.suffix else gone, image_size=8)
    with pytest.raises(DataError, match="source is a ndarray"):
        open_dataset(arrays()["train_images"])
    assert not list(own_cache.rglob("*.npy"))


def test_arrays_that_are_not_read_are_named(write, own_cache):
    extra = {"images": np.zeros((2, 3, 3), np.uint8), "weights": np.zeros(3)}
    ds = open_dataset(write(arrays() | extra), image_size=8)
    assert len(ds) == 26 and ds.notes[0] == "weights.npy, images.npy: not read."


def test_a_small_file_that_unpacks_to_much_is_refused(own_cache, tmp_path):
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in (("images", np.zeros((2**14, 128, 130), np.uint8)), ("labels", np.zeros(2**14, int))):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
    with pytest.raises(DataError, match=r"0\.3 MB claim to hold 0\.3 GB"):
        open_dataset(tmp_path / "set.npz", image_size=8)


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One of: some bits turned, cut short, a piece written over another, or a stretch of zeros."""
    data = bytearray(content)
    kind, at = rng.integers(4), int(rng.integers(len(data)))
    if kind == 0:
        for place in rng.integers(0, len(data), 3):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    else:
        n = int(rng.integers(1, 200))
        data[at : at + n] = data[:n] if kind == 2 else bytes(n)
    return bytes(data)


def test_a_hundred_damaged_files_open_as_they_were_or_give_one_error(write, own_cache):
    content = [write(arrays((9, 7, 3)), f"{c}.npz", compressed=c).read_bytes() for c in (False, True)]
    want = open_dataset(write(arrays((9, 7, 3))), image_size=8)
    rng, refused = np.random.default_rng(0), 0
    for k in range(100):
        path = write({}, f"m{k}.npz")
        path.write_bytes(_mutated(content[k % 2], rng))
        try:
            ds = open_dataset(path, image_size=8)
        except DataError as error:
            refused += 1
            assert str(path) in str(error)
        else:  # damage where nobody looks: time stamps, padding, or a member's name
            kept = np.isin(want.ids, ds.ids)
            assert (np.asarray(ds.images) == np.asarray(want.images)[kept]).all()
            assert (ds.labels == want.labels[kept]).all()
    assert refused >= 80 and not list(own_cache.rglob("*.building"))


def test_members_that_are_swapped_or_twice_there_are_noticed(write, own_cache, tmp_path):
    content = arrays()
    swapped = content | {"train_images": content["train_labels"], "train_labels": content["train_images"]}
    with pytest.raises(DataError, match=r"expected \(N, H, W\)"):
        open_dataset(write(swapped), image_size=8)
    with pytest.raises(DataError, match=r"6 images, labels \(12, 1\)"):
        open_dataset(write(content | {"val_labels": content["train_labels"]}), image_size=8)
    with warnings.catch_warnings(), zipfile.ZipFile(write(content), "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("val_images.npy", b"x")
    with pytest.raises(DataError, match="keep one of them"):
        open_dataset(tmp_path / "set.npz", image_size=8)


def test_a_dataset_that_is_saved_opens_as_it_was(own_cache, tmp_path):
    ds = open_dataset("phantom/cxr", image_size=24, n_patients=40)
    again = open_dataset(save_npz(ds, tmp_path / "plain.npz"), image_size=24)
    assert (np.asarray(again.images) == np.asarray(ds.images)).all() and (again.labels == ds.labels).all()
    assert (again.classes, again.positive, again.notes) == (ds.classes, "pneumonia", ds.notes)
    assert (again.groups == ds.groups).all() and again.groups_known
    parts = split(ds)
    again = open_dataset(save_npz(parts, tmp_path / "parts.npz"), image_size=24)
    for name in ("train", "val", "test"):
        part, saved = getattr(parts, name), again.subset(again.splits == name)
        assert (np.asarray(saved.images) == np.asarray(part.images)).all() and (saved.groups == part.groups).all()
    assert len(split(again).test) == len(parts.test) and not list(tmp_path.glob(".*"))


def test_unknown_groups_stay_unknown_and_what_cannot_be_saved_is_refused(write, own_cache, tmp_path):
    ds = open_dataset(write(arrays()), image_size=(9, 7))
    again = open_dataset(save_npz(ds, tmp_path / "again.npz"), image_size=(9, 7))
    assert again.fingerprint == ds.fingerprint and not again.groups_known
    with np.load(tmp_path / "again.npz") as saved:
        assert saved["val_labels"].shape == (6, 1) and saved["val_images"].shape == (6, 9, 7)
        assert sorted(saved.files) == sorted([*arrays(), "classes"])
    for target, says in (("again.npy", "ends in .npz"), ("none/x.npz", "cannot be written")):
        with pytest.raises(DataError, match=says):
            save_npz(ds, tmp_path / target)
