"""`medvit fetch`: through kagglehub or kaggle, each played by a stand-in; or one message that says how to by hand."""

import io
import os
import sys
import types
import zipfile

import pytest

from medvitlib.cli import main
from medvitlib.data.sources import download, fetching
from medvitlib.data.sources.fetching import fetch
from medvitlib.data.sources.finding import find
from medvitlib.errors import DataError

KAGGLE = """#!{python}
import sys, shutil
arguments = sys.argv[1:]
assert arguments[:3] == ["datasets", "download", "-d"] and arguments[4] == "-p", arguments
print("Dataset URL: https://www.kaggle.com/datasets/" + arguments[3])
{action}
"""


@pytest.fixture(autouse=True)
def nothing_installed(own_roots, own_cache, monkeypatch, tmp_path):
    """Neither tool, whatever this machine has."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: sys.modules.get(name))
    monkeypatch.setattr(download, "RESERVE", 0)


@pytest.fixture
def kaggle(tmp_path):
    """Install a command `kaggle` that does `action` (Python) with `arguments`."""

    def install(action: str) -> None:
        (tmp_path / "bin" / "kaggle").write_text(KAGGLE.format(python=sys.executable, action=action))
        (tmp_path / "bin" / "kaggle").chmod(0o755)

    return install


@pytest.fixture
def kagglehub(monkeypatch):
    """Install a package kagglehub whose dataset_download is the function given."""

    def install(download) -> None:
        monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=download))

    return install


def packed(*folders: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for folder in folders:
            archive.writestr(f"{folder}/1.png", b"x")
    return buffer.getvalue()


def test_without_either_tool_one_message_says_how_to_by_hand(own_cache):
    with pytest.raises(DataError) as caught:
        fetch("chest_xray")
    facts = (
        "pip install kagglehub",
        "kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
        "2.5 GB",
        "CC BY 4.0",
    )
    for fact in (*facts, "5,856 images", "Kermany", str(own_cache / "data" / "chest_xray")):
        assert fact in str(caught.value)
    assert not own_cache.exists()


def test_the_command_downloads_and_we_unpack(kaggle, tmp_path, own_cache):
    (tmp_path / "whole.zip").write_bytes(packed("COVID", "non-COVID"))
    kaggle(f"shutil.copy({str(tmp_path / 'whole.zip')!r}, arguments[5] + '/sarscov2-ctscan-dataset.zip')")
    place = fetch("plameneduardo/sarscov2-ctscan-dataset")
    assert place == own_cache / "data" / "sarscov2_ct" and (place / "non-COVID" / "1.png").read_bytes() == b"x"
    assert [p.name for p in place.parent.iterdir() if p.suffix != ".lock"] == ["sarscov2_ct"]
    assert find("sarscov2_ct") == (place, "sarscov2_ct")
    (tmp_path / "bin" / "kaggle").unlink()
    assert fetch("SARSCOV2_CT") == place  # it is there


def test_a_folder_that_only_bears_the_name_is_no_reason_not_to_fetch(kaggle, tmp_path, own_roots, own_cache):
    (own_roots / "sarscov2_ct" / "notes").mkdir(parents=True)
    (tmp_path / "whole.zip").write_bytes(packed("COVID", "non-COVID"))
    kaggle(f"shutil.copy({str(tmp_path / 'whole.zip')!r}, arguments[5] + '/sarscov2-ctscan-dataset.zip')")
    assert fetch("sarscov2_ct") == find("sarscov2_ct")[0] == own_cache / "data" / "sarscov2_ct"


def test_kagglehub_downloads_into_a_folder_of_ours(kagglehub, monkeypatch, own_cache):
    monkeypatch.setenv("KAGGLEHUB_CACHE", "/the/users")

    def download(slug):
        place = fetching.Path(os.environ["KAGGLEHUB_CACHE"]) / "datasets" / slug / "versions" / "2"
        for name in ("COVID", "non-COVID"):
            (place / "deep" / name).mkdir(parents=True)
        return str(place)

    kagglehub(download)
    assert fetch("sarscov2_ct") == own_cache / "data" / "sarscov2_ct"
    assert find("sarscov2_ct")[0] == own_cache / "data" / "sarscov2_ct" / "deep"
    assert os.environ["KAGGLEHUB_CACHE"] == "/the/users"


def test_what_kaggle_mounts_is_not_copied(kagglehub, tmp_path, own_cache):
    mount = tmp_path / "input" / "x"
    for name in ("COVID", "non-COVID"):
        (mount / name).mkdir(parents=True)
    kagglehub(lambda slug: str(mount))
    assert fetch("sarscov2_ct") == mount and not (own_cache / "data" / "sarscov2_ct").exists()


def test_where_one_tool_fails_the_other_is_tried(kagglehub, kaggle, tmp_path):
    def download(slug):
        raise ConnectionError("no route to host")

    kagglehub(download)
    kaggle("sys.exit('401 Client Error: Unauthorized')")
    with pytest.raises(DataError) as caught:
        fetch("blood_cells")
    for part in ("kagglehub: ConnectionError: no route", "kaggle: 401", "KAGGLE_API_TOKEN", "licence MIT"):
        assert part in str(caught.value)
    (tmp_path / "whole.zip").write_bytes(
        packed(*(f"d/images/TRAIN/{c}" for c in fetching.KNOWN["blood_cells"].classes))
    )
    kaggle(f"shutil.copy({str(tmp_path / 'whole.zip')!r}, arguments[5] + '/blood-cells.zip')")
    assert fetch("blood_cells").name == "blood_cells"


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"<!DOCTYPE html>login", "a web page"), (packed("cats", "dogs"), "no folders COVID, non-COVID")],
)
def test_what_is_not_the_set_is_refused_and_fetched_again(kaggle, tmp_path, own_cache, content, says):
    (tmp_path / "wrong.zip").write_bytes(content)
    kaggle(f"shutil.copy({str(tmp_path / 'wrong.zip')!r}, arguments[5] + '/sarscov2-ctscan-dataset.zip')")
    with pytest.raises(DataError, match=says):
        fetch("sarscov2_ct")
    assert not (own_cache / "data" / "sarscov2_ct").exists()
    (tmp_path / "wrong.zip").write_bytes(packed("COVID", "non-COVID"))
    assert fetch("sarscov2_ct").is_dir()


def test_interrupted_the_part_is_kept_for_the_next_call(kaggle, monkeypatch, own_cache):
    kaggle("open(arguments[5] + '/blood-cells.zip', 'wb').write(b'PK'); import time; time.sleep(60)")

    def interrupted(items, *args, **kwargs):
        while not list(own_cache.rglob("*.zip")):
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("blood_cells")
    assert (own_cache / "data" / ".blood_cells.fetching" / "blood-cells.zip").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("chest-xrays", "Did you mean 'chest_xray'"),
        ("paultimothymooney", "There are: chest_xray"),
        ("phantom/cxr", "need no fetching"),
        ("reticulocytes", "no source is known"),
        ("human-dataset-transformer-models", "call it OWNER/human-dataset-transformer-models"),
        ("me/human-dataset-transformer-models", "pip install kagglehub"),
    ],
)
def test_what_cannot_be_fetched_says_why(name, says, capsys):
    assert main(["fetch", name]) == 1
    assert says in capsys.readouterr().err


def test_a_disk_without_room_is_found_out_before(kaggle, free_disk):
    kaggle("sys.exit('never called')")
    free_disk(10**9)
    with pytest.raises(DataError, match=r"chest_xray needs 4,920 MB more .* 1,000 MB free"):
        fetch("chest_xray")
