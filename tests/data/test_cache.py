import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
import warnings

import cv2
import numpy as np
import pytest

from medvitlib.data import cache, open_dataset
from medvitlib.data.decode import decode, fit
from medvitlib.errors import DataError
from medvitlib.paths import cache_dir

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def folder(tmp_path, write_classes):
    return write_classes(tmp_path / "set", {"a": 20, "b": 20})


@pytest.fixture
def builds(monkeypatch):
    """Counts how often an array is built."""
    built, build = [], cache._build
    monkeypatch.setattr(cache, "_build", lambda *args: built.append(args[0]) or build(*args))
    return built


def arrays(own_cache):
    return sorted((own_cache / "images").glob("*.npy"))


def test_stored_images_equal_decoding_each_by_hand(folder):
    ds = open_dataset(folder, image_size=(10, 14))
    for i, ident in enumerate(ds.ids):
        expected = fit(decode((folder / ident).read_bytes(), ident), (10, 14))
        assert (ds.images[i] == expected[..., :1]).all()


def test_images_are_decoded_once(folder, builds, own_cache, tmp_path):
    first = open_dataset(folder, image_size=16)
    assert (np.asarray(open_dataset(folder, image_size=16).images) == np.asarray(first.images)).all()
    folder.rename(tmp_path / "renamed")  # the key is the content
    open_dataset(tmp_path / "renamed", image_size=16)
    assert len(builds) == len(arrays(own_cache)) == 1
    open_dataset(tmp_path / "renamed", image_size=17)
    assert len(builds) == 2


def test_files_are_hashed_again_only_when_they_change(folder, monkeypatch, write_image):
    before = open_dataset(folder, image_size=16)
    hashed, hash_file = [], cache._hash_file
    monkeypatch.setattr(cache, "_hash_file", lambda path: hashed.append(path) or hash_file(path))
    open_dataset(folder, image_size=16)
    assert hashed == []
    write_image(folder / "a" / "img_3.png", seed=77)
    after = open_dataset(folder, image_size=16)
    assert [path.name for path in hashed] == ["img_3.png"]
    changed = before.hashes != after.hashes
    assert list(before.ids[changed]) == ["a/img_3.png"]
    assert (after.images[int(np.flatnonzero(changed)[0])] != before.images[int(np.flatnonzero(changed)[0])]).any()


def flip_byte(path, at=-5):
    data = bytearray(path.read_bytes())
    data[at] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip_byte,
        lambda path: flip_byte(path, 30),  # in the header
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: np.save(path, np.zeros((2, 2))),
        lambda path: path.with_suffix(".json").unlink(),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").write_text("[1]"),
        lambda path: path.with_suffix(".json").write_text(json.dumps({"shape": [1, 1, 2, 2]})),
    ],
)
def test_a_damaged_cache_is_built_again(folder, builds, own_cache, damage):
    expected = np.asarray(open_dataset(folder, image_size=16).images)
    time.sleep(0.02)  # so that the time of the change differs
    damage(arrays(own_cache)[0])
    assert (np.asarray(open_dataset(folder, image_size=16).images) == expected).all()
    assert len(builds) == 2
    open_dataset(folder, image_size=16)
    assert len(builds) == 2


def test_a_cache_that_was_copied_is_checked_and_kept(folder, builds, own_cache):
    open_dataset(folder, image_size=16)
    os.utime(arrays(own_cache)[0])
    open_dataset(folder, image_size=16)
    assert len(builds) == 1


def test_a_damaged_index_only_costs_time(folder, own_cache):
    open_dataset(folder, image_size=16)
    for index in (own_cache / "images").glob("index-*.json"):
        for text in ("{]", "[1]", '{"a": 1}'):
            index.write_text(text)
            assert len(open_dataset(folder, image_size=16)) == 40
    for index in (own_cache / "images").glob("index-*.json"):
        entries = json.loads(index.read_text())
        index.write_text(json.dumps({file: [stamp, "0" * 64] for file, (stamp, _) in entries.items()}))
    with pytest.raises(DataError, match="open it again"):
        open_dataset(folder, image_size=16)
    assert len(open_dataset(folder, image_size=16)) == 40  # and again it can be


def test_nothing_half_built_stays(folder, own_cache, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_planes", fail)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(folder, image_size=16)
    assert not arrays(own_cache) and not list((own_cache / "images").glob("*.building"))


def test_one_coloured_image_makes_the_set_coloured(tmp_path, write_classes, write_image, builds):
    folder = write_classes(tmp_path / "many", {"a": 40, "b": 40})
    write_image(folder / "a" / "img_1.png", seed=3, colour=True)  # not among the 16 that are looked at first
    ds = open_dataset(folder, image_size=16)
    assert ds.channels == 3 and len(builds) == 2
    assert (ds.images[1] == fit(decode((folder / ds.ids[1]).read_bytes(), "x"), (16, 16))).all()
    grey = ds.images[0]
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()


def test_rgb_files_without_colour_are_kept_as_grey(tmp_path, write_classes):
    folder = write_classes(tmp_path / "set", {"a": 3, "b": 3})
    for path in folder.rglob("*.png"):
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_COLOR))
    assert open_dataset(folder, image_size=16).channels == 1


def test_opencvs_threads_are_left_as_they_were(folder):
    before = cv2.getNumThreads()
    open_dataset(folder, image_size=16)
    assert cv2.getNumThreads() == before


def test_a_cache_that_cannot_be_written_says_where_and_what_to_set(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match=r"file/below.*MEDVIT_CACHE"):
        open_dataset(folder, image_size=16)


def _open_with_little_room(folder, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    try:
        open_dataset(folder, image_size=64)
        queue.put("opened")
    except DataError as error:
        queue.put(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="needs file size limits")
def test_a_full_disk_is_an_error_not_a_crash(folder, own_cache):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_open_with_little_room, args=(folder, queue))
    process.start()
    message = queue.get(timeout=30)
    process.join()
    assert "MEDVIT_CACHE" in message and str(own_cache) in message
    assert not list((own_cache / "images").glob("*.building"))


def _open_and_report(folder, barrier, queue):
    built, build = [], cache._build

    def slowly(*args):
        built.append(1)
        time.sleep(0.3)
        return build(*args)

    cache._build = slowly
    barrier.wait()
    queue.put((len(built), open_dataset(folder, image_size=16).images[0].sum(), len(built)))


def test_two_processes_at_once_decode_once(folder):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_open_and_report, args=(folder, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    reports = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(report[2] for report in reports) == [0, 1]
    assert reports[0][1] == reports[1][1] == open_dataset(folder, image_size=16).images[0].sum()


def test_a_file_that_changes_under_way_is_noticed(folder, monkeypatch, write_image):
    monkeypatch.setattr(cache, "_hash_file", lambda path: "0" * 64)
    with pytest.raises(DataError, match="changed while"):
        open_dataset(folder, image_size=16)


@pytest.mark.real_data
def test_the_second_opening_of_5856_files_takes_no_time(real_data):
    first = open_dataset("chest_xray", image_size=56, root=real_data)
    start = time.process_time()
    again = open_dataset("chest_xray", image_size=56, root=real_data)
    assert time.process_time() - start < 2
    assert again.fingerprint == first.fingerprint


def test_warnings_are_left_as_they_were(folder):
    filters = list(warnings.filters)
    for _ in range(3):
        open_dataset(folder, image_size=16)
        shutil.rmtree(cache_dir())
    assert warnings.filters == filters
