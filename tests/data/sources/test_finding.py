"""Sets are found by name, by path and by content, in any case; and where they are not, one message says what to do."""

import os

import numpy as np
import pytest

from medvitlib import paths
from medvitlib.data import FAMILIES, open_dataset
from medvitlib.data.sources import finding
from medvitlib.data.sources.finding import any_case, find, recognise
from medvitlib.data.sources.known import KNOWN, known_name
from medvitlib.errors import DataError

BLOOD = dict.fromkeys(KNOWN["blood_cells"].classes, 2)
CT = {"COVID": 2, "non-COVID": 2}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("chest_xray", "chest_xray"),
        ("Chest XRay", "chest_xray"),
        ("chest-xray-pneumonia", "chest_xray"),
        ("PaulTimothyMooney/Chest-Xray-Pneumonia", "chest_xray"),
        ("someone-else/chest-xray-pneumonia", None),
        ("BLOOD-CELLS", "blood_cells"),
        ("human-dataset-transformer-models", "human-dataset-transformer-models"),
        ("anyone/Human_Dataset_Transformer_Models", "human-dataset-transformer-models"),
        ("data/anyone/human-dataset-transformer-models", None),
        ("", None),
        ("/", None),
    ],
)
def test_names_that_a_set_goes_by(name, known):
    assert known_name(name) == known


@pytest.mark.parametrize("layout", ["anything", "Kaggle 1/dataset2-master/dataset2-master/images", "x/y/z"])
@pytest.mark.parametrize("name", ["blood_cells", "Blood-Cells", "paultimothymooney/blood-cells"])
def test_a_known_set_is_recognised_in_a_folder_called_anything(own_roots, write_classes, layout, name):
    for part in ("TRAIN", "TEST", "TEST_SIMPLE"):
        write_classes(own_roots / layout / part, BLOOD)
    write_classes(own_roots / "Kaggle 1" / "dataset-master" / "dataset-master", {"Annotations": 1, "JPEGImages": 1})
    assert find(name) == (own_roots / layout, "blood_cells")


def test_kaggles_blood_cells_open_at_their_mount(tmp_path, monkeypatch, own_roots, write_classes):
    """With a second data set beside it, photographs, and TEST_SIMPLE: none may become a class or a split."""
    mount = tmp_path / "kaggle" / "blood-cells"
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path / "kaggle")
    inner = mount / "dataset2-master" / "dataset2-master"
    for part in ("TRAIN", "TEST", "TEST_SIMPLE"):
        write_classes(inner / "images" / part, BLOOD)
    write_classes(mount / "dataset-master" / "dataset-master", {"Annotations": 1, "JPEGImages": 2})
    lines = [
        f"{part},{c},img_{k}.png,{part}-photo{k}.jpg,9,1" for part in ("TRAIN", "TEST") for c in BLOOD for k in (0, 1)
    ]
    (inner / "source_groups.csv").write_text("\n".join(["split,class,file,source,votes,second", *lines]))
    for source in ("blood_cells", mount, str(mount).upper().replace(str(tmp_path).upper(), str(tmp_path))):
        ds = open_dataset(source, image_size=16)
        assert (ds.name, ds.classes, ds.positive) == ("blood_cells", list(BLOOD), None)
        assert {split: int((ds.splits == split).sum()) for split in set(ds.splits)} == {"train": 8, "test": 8}
        assert ds.groups_known
        assert sorted(set(ds.groups)) == [f"{p}-photo{k}.jpg" for p in ("TEST", "TRAIN") for k in (0, 1)]


def test_the_positive_class_is_known_however_its_folder_is_spelled(own_roots, write_classes):
    write_classes(own_roots / "scans", {"Covid": 2, "Non-Covid": 2})
    ds = open_dataset("sarscov2_ct", image_size=16)
    assert ds.positive == "Covid" and "was taken for sarscov2_ct" in ds.notes[0]
    assert open_dataset("SARSCOV2_CT", image_size=16, positive="Non-Covid").positive == "Non-Covid"


def test_of_two_candidates_the_one_with_the_sets_name_is_taken(own_roots, write_classes):
    for place in ("a/copy", "b/copy"):
        write_classes(own_roots / place, CT)
    with pytest.raises(DataError, match=r"2 folders .*a/copy.*b/copy.*Pass the path"):
        find("sarscov2_ct")
    write_classes(own_roots / "deep" / "sarscov2-ctscan-dataset" / "x", CT)
    assert find("sarscov2_ct")[0] == own_roots / "deep" / "sarscov2-ctscan-dataset" / "x"


def test_a_folder_of_the_sets_name_without_its_classes_comes_last(own_roots, write_classes):
    (own_roots / "sarscov2_ct").mkdir()
    (own_roots / "sarscov2_ct" / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="no data set called 'sarscov2_ct'"):
        find("sarscov2_ct")
    write_classes(own_roots / "sarscov2_ct", {"ill": 2, "well": 2})
    assert find("sarscov2_ct")[0] == own_roots / "sarscov2_ct"
    write_classes(own_roots / "unpacked" / "here", CT)
    assert find("sarscov2_ct")[0] == own_roots / "unpacked" / "here"


def test_who_may_not_read_the_sets_folder_is_told_where_it_is(own_roots, monkeypatch):
    (own_roots / "sarscov2_ct").mkdir()
    monkeypatch.setattr(finding.os, "access", lambda place, mode: place != own_roots / "sarscov2_ct")
    assert find("sarscov2_ct")[0] == own_roots / "sarscov2_ct"


def test_other_classes_are_not_taken_for_a_known_set(own_roots, write_classes):
    write_classes(own_roots / "three", {**CT, "normal": 2})
    write_classes(own_roots / "one", {"COVID": 2})
    write_classes(own_roots / "mixed" / "train", CT)
    write_classes(own_roots / "mixed" / "test", {"COVID": 2})
    write_classes(own_roots / ".hidden", CT)
    with pytest.raises(DataError, match="no data set called 'sarscov2_ct'"):
        find("sarscov2_ct")


def test_a_set_of_unknown_content_is_found_by_its_name_only(own_roots, write_classes):
    write_classes(own_roots / "datasets" / "me" / "Human-Dataset-Transformer-Models", {"x": 2, "y": 2})
    for name in ("human-dataset-transformer-models", "me/human-dataset-transformer-models"):
        ds = open_dataset(name, image_size=16)
        assert (len(ds), ds.positive, ds.classes) == (4, None, ["x", "y"])


def test_a_set_that_is_missing_is_explained_by_its_kaggle_name(own_roots):
    with pytest.raises(DataError, match=r"12,444 images, licence MIT(?s:.*)medvit fetch blood_cells(?s:.*)MEDVIT_DATA"):
        open_dataset("paultimothymooney/blood-cells")
    with pytest.raises(DataError, match=r"No page is known.*BG, erythrocyte, reticulocyte into data/reticulocytes"):
        open_dataset("reticulocytes")


def test_what_is_offered_instead_of_a_set_looks_like_it(own_roots):
    assert {facts.rendered for facts in KNOWN.values()} == set(FAMILIES)
    with pytest.raises(DataError, match="do without: open 'phantom/wbc4'"):
        open_dataset("blood_cells")


def test_a_folder_of_another_kaggle_owner_is_a_path(own_roots):
    with pytest.raises(DataError, match="someone/chest-xray does not exist"):
        open_dataset("someone/chest-xray")


def test_kaggles_name_is_a_path_only_where_no_root_has_the_set(own_roots, write_classes):
    write_classes(finding.Path("paultimothymooney/blood-cells"), BLOOD)
    assert find("paultimothymooney/blood-cells")[0] == finding.Path.cwd() / "paultimothymooney" / "blood-cells"
    write_classes(own_roots / "blood_cells", BLOOD)
    assert find("paultimothymooney/blood-cells")[0] == own_roots / "blood_cells"


def test_paths_match_in_any_case(tmp_path, monkeypatch, write_classes):
    folder = write_classes(tmp_path / "data" / "chest_xray", {"a": 2, "b": 2})
    (folder / "list.csv").write_text("path,class\na/img_0.png,a\nb/img_0.png,b\n")
    monkeypatch.chdir(tmp_path)
    for source in ("Data/Chest_XRay", tmp_path / "DATA" / "CHEST_XRAY"):
        assert find(source)[0] == folder
    assert find("DATA/chest_xray/List.CSV")[0] == folder / "list.csv"
    monkeypatch.chdir(tmp_path / "data")
    assert find("Chest_Xray")[0] == folder


def test_a_relative_path_means_the_same_in_a_notebook_and_in_a_shell(tmp_path, monkeypatch, write_classes):
    folder = write_classes(tmp_path / "data" / "chest_xray", {"a": 2, "b": 2})
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    for stand in (tmp_path, tmp_path / "notebooks"):
        monkeypatch.chdir(stand)
        assert find("Data/chest_xray")[0] == folder
    own = write_classes(tmp_path / "notebooks" / "data" / "chest_xray", {"a": 2, "b": 2})
    assert find("Data/chest_xray")[0] == own  # where one stands goes before
    with pytest.raises(DataError, match="notebooks/data/none does not exist"):
        open_dataset("data/none")


def test_a_path_that_could_mean_two_folders_is_not_guessed(tmp_path):
    for name in ("Set", "SET"):
        (tmp_path / name).mkdir()
    assert any_case(tmp_path / "set") == tmp_path / "set" and not (tmp_path / "set").exists()
    assert any_case(tmp_path / "SET") == tmp_path / "SET"


def test_looking_ends_however_large_the_folder_is(tmp_path, monkeypatch):
    for k in range(30):
        (tmp_path / f"{k:02d}" / "x").mkdir(parents=True)
    os.symlink(tmp_path, tmp_path / "00" / "round")
    opened, real = [], finding._subfolders
    monkeypatch.setattr(finding, "FOLDERS", 20)
    monkeypatch.setattr(finding, "_subfolders", lambda place: opened.append(place) or real(place))
    assert recognise(tmp_path) == {} and len(opened) == 20


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["blood_cells", "paultimothymooney/blood-cells"])
def test_real_blood_cells_come_with_their_photographs(real_data, name):
    ds = open_dataset(name, image_size=32, root=real_data)
    assert ds.classes == list(KNOWN["blood_cells"].classes) and ds.groups_known
    counts = {part: np.bincount(ds.labels[ds.splits == part]).tolist() for part in set(ds.splits)}
    assert counts == {"train": [500] * 4, "test": [150] * 4}
    train, test = (set(ds.groups[ds.splits == part]) for part in ("train", "test"))
    assert len(train) <= 278 and len(test) <= 71 and not train & test
    assert all(group.startswith("BloodImage_") for group in train | test)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["plameneduardo/sarscov2-ctscan-dataset", "SARSCOV2_CT"])
def test_real_ct_slices_have_a_positive_class(real_data, name):
    ds = open_dataset(name, image_size=32, root=real_data)
    assert (ds.name, ds.positive, np.bincount(ds.labels).tolist()) == ("sarscov2_ct", "COVID", [150, 150])


@pytest.mark.real_data
def test_real_red_cells_are_a_folder_like_any_other(real_data):
    ds = open_dataset("Chula_RBC12", image_size=32, root=real_data)
    assert len(ds) == 1950 and len(ds.classes) == 13 and ds.positive is None and ds.groups_known


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["paultimothymooney/chest-xray-pneumonia", "Chest_Xray"])
def test_real_chest_xrays_are_found_by_every_name(real_data, name):
    assert find(name, root=real_data) == (real_data / "chest_xray", "chest_xray")
    assert recognise(real_data)["chest_xray"] == [real_data / "chest_xray"]
