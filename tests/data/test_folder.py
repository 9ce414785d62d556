import os

import pytest

from medvitlib.data.folder import scan
from medvitlib.errors import DataError


def found(listing) -> dict[str, tuple[str, str]]:
    return {sample.id: (sample.label, sample.split) for sample in listing.samples}


def test_class_folders(tmp_path, write_image):
    for name in ("a/1.png", "a/deeper/still/2.JPG", "b/3.tif"):
        write_image(tmp_path / name)
    assert found(scan(tmp_path)) == {"a/1.png": ("a", ""), "a/deeper/still/2.JPG": ("a", ""), "b/3.tif": ("b", "")}


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("train", "val", "test"), ("train", "val", "test")),
        (("TRAIN", "Valid", "Test"), ("train", "val", "test")),
        (("Training", "validation", "Testing"), ("train", "val", "test")),
    ],
)
def test_split_folders_in_any_case(tmp_path, write_classes, folders, splits):
    for folder in folders:
        write_classes(tmp_path / folder, {"x": 1, "y": 1})
    expected = {
        f"{folder}/{label}/img_0.png": (label, split)
        for folder, split in zip(folders, splits, strict=True)
        for label in "xy"
    }
    assert found(scan(tmp_path)) == expected


def test_kaggle_doubled_folders_beside_their_copy(tmp_path, write_classes):
    inner = tmp_path / "chest_xray" / "chest_xray"
    for part in ("train", "test"):
        write_classes(inner / part, {"x": 2, "y": 2})
    write_classes(tmp_path / "chest_xray" / "__MACOSX" / "train", {"x": 3})
    (inner / "train" / "x" / ".DS_Store").write_bytes(b"junk")
    ids = set(found(scan(inner)))
    assert len(ids) == 8
    for outer in (tmp_path / "chest_xray", tmp_path):
        listing = scan(outer)
        assert set(found(listing)) == ids  # the same ids however deep they were opened
        assert any("4 hidden files" in note for note in listing.notes)
    for part in ("train", "test"):  # Kaggle's archive also holds the set twice: the outer one is read
        write_classes(tmp_path / "chest_xray" / part, {"x": 1, "y": 1})
    listing = scan(tmp_path / "chest_xray")
    assert len(listing.samples) == 4 and any("not read" in note for note in listing.notes)


def test_class_folders_one_level_down(tmp_path, write_classes):
    write_classes(tmp_path / "wrapped", {"a": 2, "b": 2})
    assert set(found(scan(tmp_path))) == {"a/img_0.png", "a/img_1.png", "b/img_0.png", "b/img_1.png"}


def test_other_files_are_listed_and_hidden_ones_counted(tmp_path, write_classes):
    write_classes(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / "notes.txt").write_text("hello")
    (tmp_path / "a" / "._img_0.png").write_text("resource fork")
    listing = scan(tmp_path)
    assert len(listing.samples) == 4
    assert [path.name for path in listing.side_files] == ["notes.txt"]
    assert any("1 hidden" in note for note in listing.notes)


def test_linked_folders_are_followed_once(tmp_path, write_classes):
    write_classes(tmp_path / "set", {"a": 1, "b": 1})
    write_classes(tmp_path, {"elsewhere": 3})
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "a" / "again").symlink_to(tmp_path / "set" / "a")  # a loop
    names = [sample.id for sample in scan(tmp_path / "set").samples]
    assert names == ["a/img_0.png", "a/more/img_0.png", "a/more/img_1.png", "a/more/img_2.png", "b/img_0.png"]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, write_classes, monkeypatch):
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "locked").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        scan(tmp_path)


def test_names_that_are_no_text_become_readable(tmp_path, write_image):
    write_image(tmp_path / "1.png")
    for name in (b"caf\xe9", b"plain"):
        os.mkdir(os.path.join(os.fsencode(tmp_path), name))
        os.link(tmp_path / "1.png", os.path.join(os.fsencode(tmp_path), name, b"\xe9.png"))
    assert [sample.id for sample in scan(tmp_path).samples] == ["caf\\xe9/\\xe9.png", "plain/\\xe9.png"]


def test_an_empty_class_folder_is_mentioned(tmp_path, write_classes):
    write_classes(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "c").mkdir()
    assert "no image in c: not taken for a class." in scan(tmp_path).notes


def test_manifest(tmp_path, write_image):
    write_image(tmp_path / "images" / "1.png")
    elsewhere = write_image(tmp_path / "far" / "2.png")
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"Path, Label, Split, Group\nimages/1.png,0,Train,p1\n{elsewhere},1,VAL,p2\nx.png,1,train,\n")
    first, second, _ = scan(manifest).samples
    assert (first.id, first.label, first.split, first.group) == ("images/1.png", "0", "train", "p1")
    assert (second.path, second.label, second.split, second.group) == (elsewhere, "1", "val", "p2")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("place,class\na.png,x\n", "one that names the path is missing"),
        ("path,kind\na.png,x\n", "one that names the class is missing"),
        ("file,image,class\na.png,b.png,x\n", "file, image: each could be the path"),
        ("path,class,patient_id,patient\na.png,x,1,2\n", "patient_id, patient: each could be the group"),
        ("path,class\na.png,x\nb.png,X \n", "'X', 'x' differ in case or spaces alone"),
        ("path,class\na.png,x\nb.png,\n", "line 3"),
        ("path,class,split\na.png,x,holdout\n", "'holdout'"),
        ("path,class\na.png,x\na.png,y\n", "more than once"),
        ("path,class\na.png,x\nb/../a.png,y\n", "more than once"),
        ("path,class\na\0.png,x\nb.png,y\n", "must be text"),
        ("path,class\na.png,x\nb.png,x\n", "one class only"),
        ("", "one that names the path is missing"),
    ],
)
def test_a_bad_manifest_says_what_is_wrong(tmp_path, text, says):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=says):
        scan(tmp_path / "m.csv")


def test_a_manifest_that_is_not_text(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(DataError, match="cannot be read as a CSV file"):
        scan(tmp_path / "m.csv")


def test_what_is_no_data_set_says_what_was_expected(tmp_path, write_image, write_classes):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no images.*FOLDER/CLASS"):
        scan(tmp_path / "empty")
    write_image(tmp_path / "flat" / "1.png")
    (tmp_path / "flat" / "labels.csv").write_text("path,class\n")
    with pytest.raises(DataError, match=r"1 images but no class folders.*labels\.csv"):
        scan(tmp_path / "flat")
    write_image(tmp_path / "parts" / "train" / "1.png")
    with pytest.raises(DataError, match="1 images but no class folders"):
        scan(tmp_path / "parts")
    write_classes(tmp_path / "single", {"only": 3})
    with pytest.raises(DataError, match="one class only, 'only'"):
        scan(tmp_path / "single")
    with pytest.raises(DataError, match=r"does not exist.*empty, flat, parts, single"):
        scan(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file"):
        scan(tmp_path / "flat" / "1.png")


def test_a_class_that_train_lacks_is_refused(tmp_path, write_classes):
    write_classes(tmp_path / "train", {"Normal": 2, "ill": 2})
    write_classes(tmp_path / "test", {"NORMAL": 2, "ill": 2})
    with pytest.raises(DataError, match="'NORMAL', 'Normal' differ in case"):
        scan(tmp_path)


def test_a_root_of_several_sets_is_refused(tmp_path, write_classes):
    write_classes(tmp_path / "one" / "train", {"a": 1, "b": 1})
    write_classes(tmp_path / "two", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="2 data sets"):
        scan(tmp_path)


def layout(folder, write_image, *places):
    for seed, place in enumerate(places):
        write_image(folder / place, seed)
    return folder


READINGS = {
    "folds": [f"fold_{f}/{c}/{f}{c}{i}.png" for f in range(3) for c in ("all", "hem") for i in range(2)],
    "patients": [f"patient{p:02d}/{'ab'[p % 2]}/{i}.png" for p in range(6) for i in range(2)],
    "copies": [f"{s}/{c}/{i}.png" for s in ("original", "augmented") for c in "ab" for i in range(2)],
}


@pytest.mark.parametrize("reading", READINGS)
def test_folders_with_two_readings_are_refused_with_both_and_read_as_said(tmp_path, write_image, reading):
    layout(tmp_path, write_image, *READINGS[reading])
    tops, inner = (sorted({place.split("/")[k] for place in READINGS[reading]}) for k in (0, 1))
    with pytest.raises(DataError, match=r"two readings.*layout='CLASS'.*layout='\*/CLASS' if") as refused:
        scan(tmp_path)
    assert tops[0] in str(refused.value) and ", ".join(inner) in str(refused.value)
    assert {sample.label for sample in scan(tmp_path, "CLASS").samples} == set(tops)
    listing = scan(tmp_path, "*/CLASS")
    assert {sample.label for sample in listing.samples} == set(inner)
    assert sorted(sample.id for sample in listing.samples) == sorted(READINGS[reading])
    with pytest.raises(DataError, match="layout 'CLAS' is unknown"):
        scan(tmp_path, "CLAS")


@pytest.mark.parametrize("names", [("images_part_1", "images_part_2"), ("p0", "p1", "p2"), ("patient_1", "patient_2")])
def test_parts_and_patients_are_no_classes(tmp_path, write_image, names):
    layout(tmp_path, write_image, *(f"{name}/{k}.png" for name in names for k in range(2)))
    with pytest.raises(DataError, match="look like parts or patients, not classes"):
        scan(tmp_path)
    assert {sample.label for sample in scan(tmp_path, "CLASS").samples} == set(names)


@pytest.mark.parametrize("names", [("0", "1"), ("grade 0", "grade 1", "grade 2"), ("stage1", "stage2"), ("G1", "G2")])
def test_numbered_classes_are_classes(tmp_path, write_image, names):
    layout(tmp_path, write_image, *(f"{name}/p{p}/{k}.png" for name in names for p in range(4) for k in range(2)))
    assert {sample.label for sample in scan(tmp_path).samples} == set(names)


def test_dev_and_eval_are_parts_and_it_is_said(tmp_path, write_image):
    layout(tmp_path, write_image, *(f"{s}/{c}/{s}.png" for s in ("train", "dev", "eval") for c in "ab"))
    listing = scan(tmp_path)
    assert {sample.split for sample in listing.samples} == {"train", "val", "test"}
    assert "folders were taken as parts: dev for val, eval for test." in listing.notes


def test_parts_inside_class_folders_are_official_parts(tmp_path, write_classes):
    for name in ("benign", "malignant"):
        write_classes(tmp_path / name, {"train": 3, "Test": 2})
    listing = scan(tmp_path)
    assert found(listing)["benign/Test/img_1.png"] == ("benign", "test")
    assert found(listing)["malignant/train/img_0.png"] == ("malignant", "train") and len(listing.samples) == 10
    assert listing.how == "a folder for each class, with folders of its official parts in it"


@pytest.mark.parametrize("names", [("control", "test"), ("train", "test"), ("a", "b", "validation")])
def test_a_class_that_is_called_like_a_part_has_to_be_named_one(tmp_path, write_classes, names):
    write_classes(tmp_path, dict.fromkeys(names, 2))
    with pytest.raises(DataError, match=r'no class folders\. Pass layout="CLASS" \(--layout\) if .* put a folder'):
        scan(tmp_path)
    assert {sample.label for sample in scan(tmp_path, "CLASS").samples} == set(names)


def test_a_set_unpacked_into_itself_is_not_a_class_of_its_own(tmp_path, write_classes):
    write_classes(tmp_path / "set", {"a": 2, "b": 2})
    write_classes(tmp_path / "set" / "set", {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"same names as those beside it \(a, b\): a copy of the set in itself"):
        scan(tmp_path / "set")
    assert len(scan(tmp_path / "set" / "set").samples) == 4
