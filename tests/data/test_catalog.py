import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from medvitlib.data import Dataset, open_dataset
from medvitlib.data.dicom import save_dicom
from medvitlib.errors import DataError, printable


@pytest.fixture
def folder(tmp_path, write_classes):
    return write_classes(tmp_path / "set", {"a": 30, "b": 30})


def test_everything_stays_aligned_when_files_are_left_out(folder, write_image):
    write_image(folder / "b" / "img_5.png", seed=5)
    clean = open_dataset(folder, image_size=16)
    (folder / "a" / "img_0.png").write_bytes(b"")
    (folder / "b" / "img_3.png").write_text("not an image")
    with pytest.warns(UserWarning, match="2 of 60 files") as caught:
        ds = open_dataset(folder, image_size=16)
    assert "img_0.png (empty file (0 bytes))" in str(caught[0].message) and caught[0].filename == __file__
    assert [re.sub(".*/set/", "", q.path) for q in ds.quarantine] == ["a/img_0.png", "b/img_3.png"]
    assert len(ds) == len(ds.ids) == len(ds.labels) == len(ds.groups) == len(ds.hashes) == len(ds.images) == 58
    for i, ident in enumerate(ds.ids):
        j = list(clean.ids).index(ident)
        assert (ds.images[i] == clean.images[j]).all() and ds.hashes[i] == clean.hashes[j]
        assert ds.classes[ds.labels[i]] == ident[0]
    with pytest.warns(UserWarning, match="2 of 60 files"):  # from the cache, just as loud
        assert open_dataset(folder, image_size=16).quarantine == ds.quarantine


def test_names_with_control_characters_are_escaped_in_what_is_said_and_kept_in_what_is_stored(tmp_path, write_classes):
    red, doubtful = "\x1b[31mred", "x\nmedvit: all is well.png"
    folder = write_classes(tmp_path / "set", {red: 30, "b": 30})
    (folder / "b" / doubtful).write_bytes(b"")
    (folder / "empty\u202e").mkdir()
    with pytest.warns(UserWarning, match="1 of 61 files") as caught:
        ds = open_dataset(folder, image_size=16)
    said = [str(caught[0].message), repr(ds), *ds.notes]
    assert all(line.isprintable() for line in said) and r"x\nmedvit: all is well.png" in said[0]
    assert r"30 \x1b[31mred" in repr(ds) and r"empty\u202e" in said[2]
    assert red in ds.classes and ds.quarantine[0].path.endswith(doubtful)
    with pytest.raises(DataError) as refusal:
        open_dataset(folder, image_size=16, max_bad=0)
    assert r"x\nmedvit" in str(refusal.value) and printable(refusal.value, keep="\n") == str(refusal.value)


def test_a_file_that_is_left_out_needs_no_group(folder):
    (folder / "a" / "scan.png").write_text("not an image")  # nor does its name tell a patient
    with pytest.warns(UserWarning, match="1 of 61 files"):
        ds = open_dataset(folder, image_size=16, groups=r"img_(\d+)")
    assert ds.groups_known and ds.notes == [] and len(np.unique(ds.groups)) == 30


def test_more_than_the_share_of_bad_files_is_an_error(folder):
    for k in range(4):
        (folder / "a" / f"img_{k}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 60 images.*6\.7%(?s:.*)img_0\.png: empty file(?s:.*)max_bad"):
        open_dataset(folder, image_size=16)
    with pytest.warns(UserWarning):
        assert len(open_dataset(folder, image_size=16, max_bad=0.07)) == 56


def test_side_files_are_listed_but_do_not_count(folder):
    for k in range(20):
        (folder / "a" / f"note_{k}.txt").write_text("x")
    with pytest.warns(UserWarning, match="20 of 80 files"):
        ds = open_dataset(folder, image_size=16)
    assert len(ds) == 60 and len(ds.quarantine) == 20 and "ends in .txt" in ds.quarantine[0].reason


def test_identical_files_under_two_classes_are_both_left_out(folder):
    shutil.copy(folder / "a" / "img_1.png", folder / "b" / "copy.png")
    with pytest.warns(UserWarning, match="2 of 61"):
        ds = open_dataset(folder, image_size=16)
    assert [q.reason for q in ds.quarantine] == [
        "mislabelled: the same image is filed under b as b/copy.png",
        "mislabelled: the same image is filed under a as a/img_1.png",
    ]


def test_a_manifest_with_a_missing_file(folder):
    lines = [f"{c}/img_{k}.png,{c}" for c in "ab" for k in range(30)]
    (folder / "list.csv").write_text("\n".join(["path,class", *lines, "a/gone.png,a"]))
    with pytest.warns(UserWarning, match="No such file"):
        ds = open_dataset(folder / "list.csv", image_size=16)
    assert len(ds) == 60 and ds.name == "list"


@pytest.mark.parametrize("size", [16, (12, 20)])
def test_a_dataset_speaks_torch(folder, size):
    ds = open_dataset(folder, image_size=size)
    h, w = (16, 16) if size == 16 else size
    assert isinstance(ds, Dataset) and isinstance(ds, torch.utils.data.Dataset)
    assert ds.image_size == (h, w) and ds.channels == 1 and ds.images.shape == (60, h, w, 1)
    image, label = ds[31]
    assert image.shape == (1, h, w) and image.dtype == torch.uint8 and label == 1 and isinstance(label, int)
    loader = torch.utils.data.DataLoader(ds, batch_size=8, num_workers=2)
    batches = list(loader)
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.stack([ds[i][0] for i in range(60)]))
    assert torch.equal(torch.cat([y for _, y in batches]), torch.from_numpy(ds.labels))


def test_subset_by_positions_and_by_mask(folder):
    ds = open_dataset(folder, image_size=16)
    some = ds.subset([40, 2, 7])
    assert list(some.ids) == [ds.ids[40], ds.ids[2], ds.ids[7]] and some.classes == ds.classes
    assert all((some.images[k] == ds.images[i]).all() for k, i in enumerate((40, 2, 7)))
    assert (some.subset([2, 0]).images[1] == ds.images[40]).all()
    assert list(ds.subset(ds.labels == 1).ids) == list(ds.ids[ds.labels == 1])


def test_images_behave_like_an_array(folder, write_classes):
    ds = open_dataset(write_classes(folder, {"a": 1}, colour=True), image_size=16)
    whole = np.asarray(ds.images)
    assert ds.channels == 3 and whole.shape == (60, 16, 16, 3)
    assert (ds.images[-1] == whole[-1]).all() and (ds.images[3:6] == whole[3:6]).all()
    assert (ds.images[[5, 1]] == whole[[5, 1]]).all() and (ds.images[2, 4:6, ..., 0] == whole[2, 4:6, ..., 0]).all()
    with pytest.raises(IndexError):
        ds.images[60]


def test_the_fingerprint_follows_the_data_not_the_place(folder, tmp_path, write_image):
    before = open_dataset(folder, image_size=16).fingerprint
    shutil.copytree(folder, tmp_path / "copy")
    assert open_dataset(tmp_path / "copy", image_size=16).fingerprint == before
    assert open_dataset(tmp_path / "copy", image_size=16, groups=r"(img_\d+)").fingerprint != before
    assert open_dataset(folder, image_size=17).fingerprint != before
    write_image(folder / "a" / "img_0.png", seed=99)
    assert open_dataset(folder, image_size=16).fingerprint != before


def test_it_introduces_itself_in_a_line(folder):
    assert repr(open_dataset(folder, image_size=16)) == (
        "Dataset('set': 60 images of 16x16 px, grey, patients unknown; 30 a, 30 b)"
    )


def test_summary_counts_images_and_patients(folder):
    assert open_dataset(folder, image_size=16).summary().to_dict() == {"images": {"a": 30, "b": 30, "all": 60}}
    table = open_dataset(folder, image_size=16, groups=r"img_\d*(\d)\.").summary()
    assert table.loc["all", "patients"] == 10 and table.loc["a", "patients"] == 10


def test_names_are_found_in_any_case_and_under_kaggle_names(own_roots, write_classes):
    write_classes(own_roots / "Chest-Xray-Pneumonia" / "chest_xray" / "train", {"NORMAL": 2, "PNEUMONIA": 2})
    for name in ("chest_xray", "CHEST_XRAY", "chest-xray-pneumonia"):
        ds = open_dataset(name, image_size=16)
        assert (ds.name, ds.positive, len(ds)) == ("chest_xray", "PNEUMONIA", 4)
    write_classes(own_roots / "My Set", {"x": 2, "y": 2})
    assert open_dataset("my_set", image_size=16).positive is None
    assert open_dataset("my_set", image_size=16, positive="y").positive == "y"


def test_root_comes_before_the_environment(own_roots, tmp_path, write_classes):
    write_classes(own_roots / "s", {"x": 2, "y": 2})
    write_classes(tmp_path / "mine" / "s", {"x": 3, "y": 3})
    assert len(open_dataset("s", image_size=16, root=tmp_path / "mine")) == 6


@pytest.mark.parametrize("name", ["s", "chest_xray", "medmnist/breastmnist"])
def test_a_root_that_is_none_is_an_error_even_where_the_set_is_elsewhere(own_roots, write_classes, name):
    write_classes(own_roots / "s", {"x": 2, "y": 2})
    with pytest.raises(DataError, match=r"root=.*/mine. is no folder"):
        open_dataset(name, root=own_roots / "mine")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "name is empty"),
        ("https://example.org/set.npz", "is an address: download"),
        ("~nobody-of-that-name/set", "does not exist"),
    ],
)
def test_what_is_neither_name_nor_path_is_refused(own_roots, source, says):
    with pytest.raises(DataError, match=says):
        open_dataset(source)


def test_a_missing_set_is_one_message_with_three_ways(own_roots):
    with pytest.raises(DataError) as caught:
        open_dataset("chest_xray")
    message = str(caught.value)
    for part in ("medvit fetch chest_xray", "MEDVIT_DATA", "phantom/cxr", str(own_roots), "1.", "2.", "3."):
        assert part in message


def test_a_typo_is_answered_with_the_nearest_name(own_roots):
    with pytest.raises(DataError, match="Did you mean 'chest_xray'"):
        open_dataset("chest_xrays")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"positive": "c"}, "expected one of \\['a', 'b'\\]"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"image_size": "big"}, "image_size"),
        ({"image_size": 10**6}, "at most 134 million pixels"),
        ({"max_bad": 5}, "between 0 and 1"),
        ({"n_patients": 3}, "options of rendered sets"),
    ],
)
def test_bad_options_are_refused(folder, options, says):
    with pytest.raises(DataError, match=says):
        open_dataset(folder, **options)


def test_a_folder_of_nothing_but_junk(tmp_path):
    for c in "ab":
        (tmp_path / c).mkdir()
        (tmp_path / c / "1.png").write_text("junk")
    with pytest.raises(DataError, match="2 of 2 images"):
        open_dataset(tmp_path, max_bad=1.0)


@pytest.mark.real_data
def test_chest_xrays_as_published(real_data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = open_dataset("chest_xray", image_size=56, root=real_data)
    counts = {part: np.bincount(ds.labels[ds.splits == part]).tolist() for part in ("train", "val", "test")}
    assert counts == {"train": [1341, 3875], "val": [8, 8], "test": [234, 390]}
    assert (ds.classes, ds.positive, ds.channels, ds.quarantine) == (["NORMAL", "PNEUMONIA"], "PNEUMONIA", 1, [])
    assert ds.groups_known and len(np.unique(ds.groups)) == 2846 + 427 + 15


@pytest.mark.real_data
def test_ct_slices_of_many_sizes_and_no_patients(real_data):
    ds = open_dataset("sarscov2_ct", image_size=56, root=real_data)
    assert len(ds) == 300 and ds.classes == ["COVID", "non-COVID"] and not ds.groups_known


@pytest.mark.parametrize("ending", [".dicom", ".ima", ".123", ".jpg_", ".png~", ".pgm", ".j2k", ".gif"])
def test_no_image_is_passed_over_for_its_ending(tmp_path, ending):
    rng = np.random.default_rng(0)
    kinds = {".jpg_": "JPEG", ".png~": "PNG", ".pgm": "PPM", ".j2k": "JPEG2000", ".gif": "GIF"}
    for k in range(20):
        path = tmp_path / "set" / "ab"[k % 2] / f"{k}{ending if k % 4 == 0 else '.png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (24, 24), dtype=np.uint8)
        if k % 4 == 0 and ending not in kinds:
            save_dicom(path, pixels)
        else:
            Image.fromarray(pixels).save(path, kinds[ending] if k % 4 == 0 else "PNG")
    ds = open_dataset(tmp_path / "set", image_size=24)
    assert len(ds) == 20 and not ds.quarantine


def test_wrong_endings_are_counted_by_class_and_said_once(tmp_path, write_classes):
    folder = write_classes(tmp_path / "set", {"a": 6, "b": 6})
    for path in sorted((folder / "a").iterdir())[:4]:
        Image.open(path).save(path, "JPEG")
    ds = open_dataset(folder, image_size=24)
    assert len(ds) == 12
    assert ds.notes == ["4 files named PNG are JPEG (4 of a): they were read as what they are."]
