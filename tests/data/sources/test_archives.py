"""Archives end in the folder they promise, or in one error: whatever is in them, and whatever happened to them."""

import io
import random
import stat
import tarfile
import zipfile
from contextlib import suppress

import pytest

from medvitlib.data.sources import archives
from medvitlib.data.sources.archives import unpack
from medvitlib.errors import DataError

RANDOM = random.Random(0)
FILES = {f"set/{c}/img {k}.png": RANDOM.randbytes(300 + 700 * k) for c in ("NORMAL", "é") for k in range(4)}
FILES |= {"set/labels.csv": b"path,class\n" * 500, "readme.txt": b""}
TARS = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def packed(kind: str, files=None) -> bytes:
    """An archive as bytes; `files` are (name, content) pairs, or FILES."""
    files, buffer = list((files or FILES).items()) if not isinstance(files, list) else files, io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode=TARS[kind]) as archive:
            for name, content in files:
                member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tree(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def try_unpack(tmp_path):
    """Unpack bytes: -> what lies in the folder then; in any case nothing else may have changed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()

    def attempt(content: bytes) -> dict[str, bytes]:
        archive, folder = tmp_path / "in" / "a.bin", tmp_path / "out" / "deep" / "set"
        archive.write_bytes(content)
        try:
            assert unpack(archive, folder) == folder
            return tree(folder)
        finally:
            found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")}
            assert {p for p in found if not p.startswith("out/deep/set")} <= {"in", "in/a.bin", "out", "out/deep"}
            if folder.exists():
                archives.shutil.rmtree(folder)

    return attempt


@pytest.mark.parametrize("kind", ["zip", *TARS])
def test_what_went_in_comes_out(try_unpack, kind):
    assert try_unpack(packed(kind)) == FILES


def test_a_folder_of_the_user_is_not_touched(tmp_path):
    (tmp_path / "a.zip").write_bytes(packed("zip"))
    (tmp_path / "set").mkdir()
    unpack(tmp_path / "a.zip", tmp_path / "set")
    before = tree(tmp_path / "set")
    with pytest.raises(DataError, match="rename or remove it"):
        unpack(tmp_path / "a.zip", tmp_path / "set")
    assert tree(tmp_path / "set") == before == FILES
    assert (tmp_path / "set").stat().st_mode & 0o077  # not private to the user, as temporary folders are


def test_interrupted_it_leaves_nothing_behind(tmp_path, monkeypatch):
    (tmp_path / "a.zip").write_bytes(packed("zip"))

    def interrupted(items, *args, **kwargs):
        next(iter(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(archives, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.zip", tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


OUTSIDE = ["../x", "a/../../x", "/x", "//x", "C:/x", "c:x", "\\x", "..\\x", "a\\..\\..\\x", "\\\\server\\share\\x"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_paths_that_lead_out_are_refused(try_unpack, kind, name):
    with pytest.raises(DataError, match="outside the folder"):
        try_unpack(packed(kind, [("ok.png", b"1"), (name, b"2")]))


def test_backslashes_separate_folders(try_unpack):
    assert try_unpack(packed("zip", {"set\\A\\1.png": b"1", "./set//A/2.png": b"2"})) == {
        "set/A/1.png": b"1",
        "set/A/2.png": b"2",
    }


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(try_unpack, kind):
    member = tarfile.TarInfo("inside")
    member.type, member.linkname = kind, "../../outside"
    with pytest.raises(DataError, match="a link, a device"):
        try_unpack(packed("tar", [(member, b""), ("inside/x", b"")]))


def test_links_in_a_zip_are_refused(try_unpack):
    link = zipfile.ZipInfo("inside")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match="a link or a device"):
        try_unpack(packed("zip", [(link, "../../outside"), ("inside/x", b"")]))


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b", "a//b")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(try_unpack, kind, names):
    with pytest.raises(DataError, match="one name"):
        try_unpack(packed(kind, [(name, b"x") for name in names]))


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_bombs_are_refused(try_unpack, monkeypatch, kind):
    monkeypatch.setattr(archives, "FREE_EXPANSION", 10**6)
    with pytest.raises(DataError, match="bomb"):
        try_unpack(packed(kind, {"a": bytes(2**25)}))


def test_a_header_that_would_fill_the_memory_is_refused(try_unpack):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    with pytest.raises(DataError, match="absurdly long"):
        try_unpack(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def test_too_many_and_too_deep_members_are_refused(try_unpack, monkeypatch):
    with pytest.raises(DataError, match="folders deep"):
        try_unpack(packed("zip", {"a/" * 40 + "x": b""}))
    monkeypatch.setattr(archives, "MOST_MEMBERS", 5)
    with pytest.raises(DataError, match="more than 5 members"):
        try_unpack(packed("tar"))


def test_archives_inside_stay_packed(try_unpack):
    assert list(try_unpack(packed("zip", {"inner.zip": packed("zip")}))) == ["inner.zip"]


def test_a_password_is_said_to_be_one(try_unpack):
    content = bytearray(packed("zip", {"a": b"1"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataError, match="encrypted"):
        try_unpack(bytes(content))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>login", "a web page"),
        (b"Rar!\x1a\x07\x00" + bytes(600), "unknown kind"),
        (b"", "unknown kind"),
        (packed("zip", [])[:30], "damaged"),
        (packed("zip", []), "holds no files"),
        (packed("tar.gz", []), "holds no files"),
    ],
    ids=["a page", "rar", "nothing", "half a zip", "an empty zip", "an empty tar"],  # gzip's bytes tell the time
)
def test_what_is_no_archive_says_so(try_unpack, content, says):
    with pytest.raises(DataError, match=says):
        try_unpack(content)


def test_a_disk_without_room_is_found_out_before(try_unpack, free_disk):
    free_disk(1000)
    with pytest.raises(DataError, match=r"needs 0 MB more .*Free some"):
        try_unpack(packed("zip"))


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        unpack(tmp_path / "gone.zip", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Truncated, with flipped bits, with a piece cut out, doubled or overwritten, or with bytes behind it."""
    at, length = rng.randrange(len(content)), rng.randrange(1, 600)
    ways = [
        lambda: content[:at],
        lambda: content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
        lambda: content[:at] + rng.randbytes(length) + content[at + length :],
        lambda: content[:at] + content[at + length :],
        lambda: content[: at + length] + content[at:],
        lambda: content + rng.randbytes(length),
    ]
    return rng.choice(ways)()


@pytest.mark.parametrize("kind", ["zip", *TARS])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_archive_is_unpacked_rightly_or_refused(try_unpack, kind):
    rng, whole, refused = random.Random(kind), packed(kind), 0
    for _ in range(80):
        try:
            found = try_unpack(mutated(whole, rng))
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            if kind == "tar":  # has checksums of names and sizes, none of contents, and a count of nothing
                assert {(name, len(c)) for name, c in found.items()} <= {(name, len(c)) for name, c in FILES.items()}
            else:
                assert found == FILES
    assert refused > 40


def test_hostile_names_at_random_stay_inside_or_are_refused(try_unpack):
    rng = random.Random(1)
    pieces = ["..", ".", "/", "\\", "a", "A", ":", "C:", "~", "\n", "con", " ", "é", "x" * 300, "\udcff", "*", "$HOME"]
    for _ in range(120):
        names = ["".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(3)]
        with suppress(DataError):
            try_unpack(packed("tar", [(name, b"x") for name in names]))
