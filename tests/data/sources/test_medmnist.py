"""MedMNIST by name: where files are found, what is known of each set, and what is told to the user."""

import hashlib
import http.server
import importlib.util
import runpy
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medvitlib.data import duplicates, open_dataset, save_npz, split
from medvitlib.data.sources import fetching, listing, medmnist
from medvitlib.errors import DataError


@pytest.fixture
def own_home(own_roots, own_cache, tmp_path, monkeypatch):
    """No files of the user's in any place where MedMNIST is looked for; returns the one data root."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return own_roots


def make(path, flag, counts=(12, 6, 8), side=28, labels=None):
    """A small file with the form of a published set."""
    info, rng = medmnist.sets()[flag], np.random.default_rng(0)
    shape = (side, side, 3) if info["n_channels"] == 3 else (side, side)
    k, content = len(info["label"]), {}
    for name, n in zip(("train", "val", "test"), counts, strict=True):
        content[f"{name}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        several = "multi-label" in info["task"]
        content[f"{name}_labels"] = rng.integers(0, 2, (n, k)) if several else (np.arange(n) % k)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **content)
    return path


def test_the_table_is_that_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # running it makes a folder there
    theirs = runpy.run_path(str(Path(importlib.util.find_spec("medmnist").origin).with_name("info.py")))["INFO"]
    assert medmnist.sets() == {flag: info for flag, info in theirs.items() if "3d" not in flag}
    assert len(medmnist.sets()) == 12


def test_reading_the_table_loads_nothing_and_makes_nothing(tmp_path):
    code = (
        "import os, sys; from medvitlib.data.sources.medmnist import sets; sets()\n"
        "assert not {'medmnist', 'torch', 'sklearn'} & set(sys.modules)\n"
        "assert not os.path.exists(os.path.expanduser('~/.medmnist'))"
    )
    environment = {"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0


@pytest.mark.parametrize("flag", list(medmnist.sets()))
def test_every_set_opens_with_its_own_classes(own_home, flag):
    make(own_home / "medmnist" / f"{flag}.npz", flag)
    findings = list(medmnist.sets()[flag]["label"].values())
    several = flag == "chestmnist"
    ds = open_dataset(f"medmnist/{flag}", image_size=28, positive="effusion" if several else None)
    assert ds.name == f"medmnist/{flag}" and ds.classes == (["no effusion", "effusion"] if several else findings)
    assert [int((ds.splits == name).sum()) for name in ("train", "val", "test")] == [12, 6, 8]
    assert not several or ds.positive == "effusion"
    assert ds.channels == medmnist.sets()[flag]["n_channels"]


@pytest.mark.parametrize(
    ("flag", "positive", "note"),
    [
        ("breastmnist", "malignant", "label 0 is malignant"),
        ("pneumoniamnist", "pneumonia", "image by image"),
        ("retinamnist", None, "quadratic kappa"),
        ("pathmnist", None, "another centre"),
        ("dermamnist", None, "non-commercial"),
        ("bloodmnist", None, "not the published file"),
    ],
)
def test_what_has_to_be_known_of_a_set_is_in_its_notes(own_home, flag, positive, note):
    make(own_home / f"{flag}.npz", flag)
    ds = open_dataset(f"medmnist/{flag}", image_size=28)
    assert ds.positive == positive and any(note in line for line in ds.notes)
    counts = medmnist.sets()[flag]["n_samples"]
    assert any(f"12 train images, not {counts['train']}" in line for line in ds.notes)


def test_chestmnist_needs_one_finding(own_home):
    make(own_home / "chestmnist.npz", "chestmnist")
    with pytest.raises(DataError, match=r"14 findings \(atelectasis, .*positive=None"):
        open_dataset("medmnist/chestmnist", image_size=28)


@pytest.mark.parametrize(
    "place",
    ["medmnist/BreastMNIST.npz", "breastmnist_28.npz", "my-upload/breastmnist.npz", "datasets/me/x/breastmnist.npz"],
)
def test_a_file_is_found_in_a_root_in_any_case(own_home, place):
    make(own_home / place, "breastmnist")
    for name in ("medmnist/breastmnist", "MedMNIST/BreastMNIST", "medmnist/breastmnist@28"):
        assert len(open_dataset(name, image_size=28)) == 26


def test_sizes_are_told_apart_and_the_packages_own_folder_is_searched(own_home, tmp_path):
    make(tmp_path / "home" / ".medmnist" / "pathmnist_64.npz", "pathmnist", side=64)
    assert open_dataset("medmnist/pathmnist@64", image_size=64).name == "medmnist/pathmnist@64"
    with pytest.raises(DataError) as caught:
        open_dataset("medmnist/pathmnist", image_size=28)
    message = str(caught.value)
    facts = ("there is medmnist/pathmnist@64", "107,180 images", "CC BY 4.0", "252 MB", "https://zenodo.org/records")
    ways = ("medvit fetch medmnist/pathmnist", "data/medmnist/pathmnist.npz", str(own_home), "1.", "2.", "3.")
    for part in facts + ways:
        assert part in message


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("medmnist/breatmnist", "Did you mean 'medmnist/breastmnist'"),
        ("medmnist/organmnist3d", "no 2-D set"),
        ("BreastMNIST@64", "Did you mean 'medmnist/breastmnist@64'"),
        ("brestmnist", "Did you mean 'medmnist/breastmnist'"),
        ("medmnist/pathmnist@65", "28, 64, 128, 224 px: write medmnist/pathmnist@64"),
        ("medmnist/pathmnist@", "is in no data root"),
        ("medmnist/", "no 2-D set"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(own_home, name, says):
    with pytest.raises(DataError, match=says):
        open_dataset(name)
    if "Did you mean" in says:
        with pytest.raises(DataError, match=says):
            fetching.fetch(name)


def test_a_file_opened_by_path_is_known_by_its_name(own_home, tmp_path):
    ds = open_dataset(make(tmp_path / "BreastMNIST_64.npz", "breastmnist", side=64), image_size=28)
    assert (ds.positive, ds.classes) == ("malignant", ["malignant", "normal, benign"])
    ds = open_dataset(make(tmp_path / "mine.npz", "breastmnist"), image_size=28)
    assert (ds.positive, ds.classes) == (None, ["0", "1"])


def test_classes_in_a_file_go_before_those_its_name_promises(own_home, tmp_path):
    whole = open_dataset(make(tmp_path / "bloodmnist.npz", "bloodmnist"), image_size=28)
    two = replace(whole.subset(whole.labels >= 6), classes=["neutrophil", "platelet"], positive="platelet", notes=["n"])
    two = replace(two, labels=two.labels - 6)
    (own_home / "medmnist").mkdir()
    save_npz(two, own_home / "medmnist" / "bloodmnist.npz")
    ds = open_dataset("medmnist/bloodmnist", image_size=28)
    assert (ds.classes, ds.positive, ds.labels.tolist()) == (two.classes, "platelet", two.labels.tolist())
    assert ds.notes[0] == "n" and "not the published file" in ds.notes[1]


def test_a_folder_of_such_files_says_to_open_one(own_home):
    make(own_home / "medmnist" / "breastmnist.npz", "breastmnist")
    with pytest.raises(DataError, match=r"It holds breastmnist\.npz: open such a file"):
        open_dataset("medmnist")


def test_without_the_package_a_name_says_what_to_install_and_a_file_still_opens(own_home, tmp_path, monkeypatch):
    path = make(tmp_path / "breastmnist.npz", "breastmnist")
    monkeypatch.setattr(medmnist.importlib.util, "find_spec", lambda name: None)
    medmnist.sets.cache_clear()
    try:
        with pytest.raises(DataError, match="pip install medmnist"):
            open_dataset("medmnist/breastmnist")
        assert open_dataset(path, image_size=28).classes == ["0", "1"]
        assert [row.name for row in medmnist.known_rows()] == ["medmnist/..."]
    finally:
        medmnist.sets.cache_clear()


@pytest.fixture
def served(tmp_path):
    """A folder served on this machine: (folder, address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_fetching_verifies_the_md5_and_then_the_name_opens(own_home, own_cache, served, monkeypatch):
    folder, address = served
    path = make(folder / "breastmnist_64.npz", "breastmnist", side=64)
    good = {"url_64": f"{address}/breastmnist_64.npz", "MD5_64": hashlib.md5(path.read_bytes()).hexdigest()}
    info = medmnist.sets()
    for change, works in (({"MD5_64": "0" * 32}, False), ({}, True)):
        table = info | {"breastmnist": info["breastmnist"] | good | change}
        monkeypatch.setattr(medmnist, "sets", lambda table=table: table)
        if not works:
            with pytest.raises(DataError):
                medmnist.fetch("medmnist/breastmnist@64")
            assert medmnist.find("breastmnist", 64) is None
            continue
        target = fetching.fetch("medmnist/breastmnist@64")
        assert target == own_cache / "data" / "medmnist" / "breastmnist_64.npz"
    ds = open_dataset("medmnist/breastmnist@64", image_size=64)
    assert len(ds) == 26 and not any("not the published file" in note for note in ds.notes)
    path.unlink()
    assert medmnist.fetch("MedMNIST/breastmnist@64") == target  # nothing is asked of the server
    row = next(row for row in medmnist.known_rows() if row.name == "medmnist/breastmnist")
    assert row.place == str(target)


def test_the_list_of_known_sets_says_all_that_a_user_chooses_by(own_home):
    rows = {row.name: row for row in listing.rows()}
    assert len([name for name in rows if name.startswith("medmnist/")]) == 12
    assert not any(row.place for row in rows.values())
    assert rows["medmnist/dermamnist"].licence == "CC BY-NC 4.0" and rows["medmnist/bloodmnist"].images == 17092
    assert "medmnist.com" in rows["medmnist/pathmnist"].origin and "Scientific Data" in listing.render([*rows.values()])


@pytest.mark.real_data
def test_breastmnist_as_it_lies_here(real_data, own_cache):
    ds = open_dataset("medmnist/breastmnist", image_size=28, root=real_data)
    assert [int((ds.splits == name).sum()) for name in ("train", "val", "test")] == [546, 78, 156]
    assert ds.positive == "malignant" and int((ds.labels == 0).sum()) == 210 and ds.quarantine == []
    assert any("not the published file (its MD5 is 098de56c" in note for note in ds.notes)
    table = duplicates(ds)
    assert table["id"].tolist() == ["train/00115", "test/00076"]
    assert table["class"].tolist() == ["malignant", "normal, benign"]  # one of the labels is wrong, nobody knows which
    assert any("train/00115, mislabelled" in note for note in ds.notes)
    with pytest.warns(UserWarning, match="train and test share 0 groups and 1 identical"):
        split(ds)
