"""Objects of the `datasets` package: columns found by type, images decoded and checked as files are."""

import hashlib
import io

import numpy as np
import PIL.Image
import pytest

from medvitlib.data import duplicates, open_dataset
from medvitlib.data.sources.huggingface import is_datasets
from medvitlib.errors import DataError

datasets = pytest.importorskip("datasets", reason="datasets is not installed (requirements-dev.txt has it)")
ClassLabel, Features, Image, Value = datasets.ClassLabel, datasets.Features, datasets.Image, datasets.Value


def pixels(n, seed=0, colour=False) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 9, 7, *([3] if colour else [])), dtype=np.uint8)


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def table(images, labels, label=None, name="label", **more):
    """A Dataset in memory; `images` are arrays or bytes; `more` are columns as (feature, values)."""
    cells = [
        {"bytes": i if isinstance(i, bytes) else encoded(i), "path": None} if i is not None else None for i in images
    ]
    features = {"image": Image(), name: label or ClassLabel(names=["a", "b"])} | {k: f for k, (f, _) in more.items()}
    content = {"image": cells, name: labels} | {k: values for k, (_, values) in more.items()}
    return datasets.Dataset.from_dict(content, features=Features(features))


@pytest.mark.parametrize("colour", [False, True])
def test_images_and_labels_are_those_of_the_object(own_cache, colour):
    images = pixels(70, colour=colour)
    ds = open_dataset(table(images, [k % 2 for k in range(70)]), image_size=(9, 7))
    assert (np.asarray(ds.images) == images.reshape(70, 9, 7, -1)).all() and ds.channels == (3 if colour else 1)
    assert (ds.name, ds.classes, ds.positive, ds.labels.tolist()) == ("datasets", ["a", "b"], None, [0, 1] * 35)
    assert ds.ids[69] == "00069" and set(ds.splits) == {""} and not ds.groups_known and ds.notes == []
    assert ds.hashes[3] == hashlib.sha256(encoded(images[3])).hexdigest()  # as the file would have


def test_keys_of_a_dictionary_are_the_official_parts(own_cache):
    parts = {
        "test": table(pixels(4, 1), [0, 1] * 2),
        "train": table(pixels(6, 2), [1, 0] * 3),
        "validation": table(pixels(2, 3), [0, 1]),
    }
    parts["unsupervised"] = table(pixels(2, 4), [0, 1])
    ds = open_dataset(datasets.DatasetDict(parts), image_size=(9, 7))
    assert ds.splits.tolist() == ["train"] * 6 + ["val"] * 2 + ["test"] * 4 and ds.ids[8] == "test/00000"
    assert (ds.images[8:, ..., 0] == pixels(4, 1)).all() and "unsupervised: parts beside" in ds.notes[0]
    one = open_dataset(datasets.DatasetDict({"full": parts["train"]}), image_size=(9, 7))
    assert set(one.splits) == {""} and len(one) == 6


def test_rows_that_cannot_be_used_are_left_out_with_the_reason(own_cache):
    images = [*pixels(60), encoded(pixels(1)[0])[:-20], b"<html>login</html>", None]
    source = table(images, [k % 2 for k in range(59)] + [None, 0, 1, 1])
    with pytest.warns(UserWarning, match="4 of 63"):
        ds = open_dataset(source, image_size=8, max_bad=0.1)
    assert [(q.path, q.reason.split(":")[0]) for q in ds.quarantine] == [
        ("datasets/00059", "no label"),
        ("datasets/00060", "truncated PNG"),
        ("datasets/00061", "not an image"),
        ("datasets/00062", "no image in this row"),
    ]
    assert len(ds) == 59 and ds.labels.tolist() == [k % 2 for k in range(59)]


def test_an_unlabelled_copy_does_not_bring_its_original_into_doubt(own_cache):
    images = pixels(40)
    images[7] = images[3]  # of class b, and a copy without a label
    with pytest.warns(UserWarning, match="1 of 40"):
        ds = open_dataset(table(images, [k % 2 if k != 7 else None for k in range(40)]), image_size=8)
    assert "00003" in ds.ids and len(duplicates(ds)) == 0 and ds.notes == []


@pytest.mark.parametrize(
    ("label", "values", "classes", "expected"),
    [
        (Value("string"), ["x", "y", "y", "x"], ["x", "y"], [0, 1, 1, 0]),
        (Value("int64"), [10, 9, 9, 10], ["9", "10"], [1, 0, 0, 1]),
        (Value("bool"), [True, False, False, True], ["0", "1"], [1, 0, 0, 1]),
        (datasets.Sequence(ClassLabel(names=["u", "v"])), [[0], [1], [1], [0]], ["u", "v"], [0, 1, 1, 0]),
        (datasets.Sequence(Value("int64")), [[5], [4], [4], [4]], ["4", "5"], [1, 0, 0, 0]),
    ],
)
def test_labels_of_any_type_are_named(own_cache, label, values, classes, expected):
    ds = open_dataset(table(pixels(4), values, label), image_size=8)
    assert ds.classes == classes and ds.labels.tolist() == expected


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (["u", "v", "w"], [[0], [1, 2], [], [2, 0]], [0, 1, 0, 1]),  # the numbers of those present, if any
        (["u", "v", "w"], [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1]], [0, 1, 0, 1]),  # 0 or 1 for each
    ],
)
def test_of_several_labels_an_image_one_is_chosen(own_cache, names, values, expected):
    source = table(pixels(4), values, datasets.Sequence(ClassLabel(names=names)))
    with pytest.raises(DataError, match=r"several of 3 findings \(u, v, w\)"):
        open_dataset(source, image_size=8)
    ds = open_dataset(source, image_size=8, positive="w")
    assert ds.classes == ["no w", "w"] and ds.positive == "w" and ds.labels.tolist() == expected


def test_columns_are_chosen_where_there_are_several(own_cache):
    more = {
        "mask": (Image(), [{"bytes": encoded(image), "path": None} for image in pixels(4, 5)]),
        "site": (ClassLabel(names=["s", "t"]), [0, 0, 1, 1]),
        "patient": (Value("string"), ["p", "p", "q", None]),
    }
    source = table(pixels(4), [0, 1, 0, 1], **more)
    for options, says in (
        ({}, "image, mask.*image_column="),
        ({"image_column": "image"}, "label, site.*label_column="),
        ({"image_column": "patient", "label_column": "site"}, "expected a column of type Image"),
        ({"image_column": "image", "label_column": "lable"}, "no column 'lable'"),
        ({"image_column": "image", "label_column": "site", "group_column": "who"}, "no column 'who'"),
        ({"image_colum": "image"}, "takes image_column, label_column and group_column"),
    ):
        with pytest.raises(DataError, match=says):
            open_dataset(source, image_size=8, **options)
    ds = open_dataset(source, image_size=(9, 7), image_column="mask", label_column="site", group_column="patient")
    assert ds.classes == ["s", "t"] and (ds.images[0, ..., 0] == pixels(4, 5)[0]).all()
    assert ds.groups.tolist() == ["p", "p", "q", "00003"] and not ds.groups_known


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: table(pixels(2), [0, 1]).to_iterable_dataset(), "streaming=True"),
        (lambda: table(pixels(2), [0, 1]).remove_columns("label"), "no column of type ClassLabel"),
        (lambda: table(pixels(2), [0, 1]).remove_columns("image"), "no column of type Image"),
        (lambda: table(pixels(2), [0, 0]), "one class only"),
        (lambda: table(pixels(2), [None, None]), "no label in any row"),
        (lambda: table(pixels(2), [0.5, 1.0], Value("float32")), "expected whole numbers"),
        (
            lambda: table(pixels(3), [[0], [1, -1], []], datasets.Sequence(ClassLabel(names=["a", "b", "c"]))),
            r"holds \[-1\]: expected 0 to 2",
        ),
        (lambda: table(pixels(2), [0, 1]).select([]), "no rows"),
        (lambda: datasets.DatasetDict(), "expected a path, a name, or a datasets object"),
        (
            lambda: datasets.DatasetDict(a=table(pixels(2), [0, 1]), b=table(pixels(2), [0, 1])),
            "train, validation, test",
        ),
        (
            lambda: datasets.DatasetDict(val=table(pixels(2), [0, 1]), valid=table(pixels(2), [0, 1])),
            "train, validation, test",
        ),
        (
            lambda: datasets.DatasetDict(
                train=table(pixels(2), [0, 1]), test=table(pixels(2), [0, 1], ClassLabel(names=["b", "a"]))
            ),
            "part 'test' has another column 'label'",
        ),
    ],
)
def test_what_cannot_be_used_is_said_in_one_message(own_cache, make, says):
    with pytest.raises(DataError, match=says):
        open_dataset(make(), image_size=8)


def test_options_of_other_sources_are_refused(own_cache, tmp_path):
    with pytest.raises(DataError, match="no class of column 'label' of datasets"):
        open_dataset(table(pixels(2), [0, 1]), positive="c")
    with pytest.raises(DataError, match="root"):
        open_dataset(table(pixels(2), [0, 1]), root=tmp_path)
    assert not list(own_cache.rglob("*.npy"))  # before anything was decoded


def test_formats_and_selections_make_no_difference(own_cache):
    source = table(pixels(20), [k % 2 for k in range(20)])
    plain = open_dataset(source, image_size=8)
    assert open_dataset(source.with_format("numpy"), image_size=8).fingerprint == plain.fingerprint
    backwards = open_dataset(source.select(range(19, -1, -1)), image_size=8)
    assert (np.asarray(backwards.images) == np.asarray(plain.images)[::-1]).all()
    assert backwards.hashes.tolist() == plain.hashes.tolist()[::-1]


def test_files_on_disk_are_read_from_their_paths(own_cache, tmp_path, write_image):
    paths = [str(write_image(tmp_path / f"{k}.png", k)) for k in range(6)]
    source = datasets.Dataset.from_dict({"image": paths, "label": [0, 1] * 3}).cast_column("image", Image())
    ds = open_dataset(source, image_size=8)
    assert len(ds) == 6 and ds.hashes[2] == hashlib.sha256((tmp_path / "2.png").read_bytes()).hexdigest()


def test_medmnist_from_the_hub_keeps_its_positive_class(own_cache):
    """albertvillanova/medmnist-v2 has one configuration a set, named as in MedMNIST."""
    source = table(pixels(4), [0, 1, 1, 0], ClassLabel(names=["malignant", "normal, benign"]))
    source.info.config_name = "breastmnist"
    ds = open_dataset(datasets.DatasetDict(train=source), image_size=8)
    assert (ds.name, ds.positive) == ("breastmnist", "malignant") and "label 0 is malignant" in ds.notes[0]


def test_other_objects_are_not_taken_for_one():
    assert is_datasets(table(pixels(2), [0, 1])) and is_datasets({"train": table(pixels(2), [0, 1])})
    assert not any(map(is_datasets, ("path", {"train": [1]}, {}, np.zeros(3), None)))
