"""Unpack a zip or tar file of unknown origin: into a folder beside the target, which is renamed when all is well.

Refused are paths that lead out of the folder, links and devices, members of the same name, passwords, and more bytes
or members than any data set has. Archives inside an archive stay packed. Whatever happens, nothing is left behind.
"""

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from medvitlib.data.sources.download import check_room
from medvitlib.errors import DataError
from medvitlib.progress import track

MOST_BYTES = 200 * 10**9
MOST_MEMBERS = 1_000_000
MOST_EXPANSION = 200  # times the archive's size; text shrinks 10-fold, images hardly
FREE_EXPANSION = 50 * 10**6  # bytes that any archive may expand to, whatever its own size
DEEPEST = 32  # folders
_BLOCK = 2**20
_HEADER_LIMIT = 2**24  # bytes; tarfile reads a header's extension at once, however long it says it is
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack `archive` (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz; told by content, not by name) as `folder`.

    Args:
        folder: must not exist, or be empty.

    Raises:
        DataError: damaged, encrypted, or dangerous to unpack; no room; `folder` holds something.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"{folder} exists: rename or remove it, and {archive} can be unpacked there.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            whole = aside / "all"
            whole.mkdir()
            _unpack(archive, whole)
            if folder.exists():
                folder.rmdir()  # it is empty; a rename replaces it on some systems only
            os.replace(whole, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{archive} cannot be unpacked to {folder}: {error.strerror or error}. Check that the archive is there, "
            f"and that the folder can be written to and has room."
        ) from error
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    size = archive.stat().st_size
    budget = _Budget(archive, folder, max(size * MOST_EXPANSION, FREE_EXPANSION))
    with archive.open("rb") as file:
        start = file.read(512)
    packed = next((opener for magic, opener in _PACKED.items() if start.startswith(magic)), None)
    try:
        if start.startswith(_ZIP):
            with zipfile.ZipFile(archive) as opened:
                count = len(opened.infolist())
                for _ in track(_zip_members(opened, budget), f"unpacking {archive.name}", total=count, unit="file"):
                    pass
        elif packed or start[257:262] == b"ustar":
            with (
                (packed or open)(archive, "rb") as raw,
                tarfile.open(fileobj=_Counted(raw, budget), mode="r:") as opened,
            ):
                for _ in track(_tar_members(opened, budget), f"unpacking {archive.name}", unit="file"):
                    pass
        else:
            page = re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE)
            what = "a web page, perhaps a login" if page else f"of an unknown kind (it begins with {start[:8]!r})"
            raise DataError(f"{archive} is no zip or tar file but {what}. Download it again, or unpack it by hand.")
        if not budget.members:
            raise EOFError("it holds no files")
    except DataError:
        raise
    except Exception as error:  # zipfile, tarfile and four decompressors raise some fifteen kinds between them
        if isinstance(error, OSError) and error.errno:
            raise  # of the disk, not of the archive
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{archive} is damaged or not complete ({why}): delete it and download it again.") from error


class _Budget:
    """What unpacking may still cost."""

    def __init__(self, archive: Path, folder: Path, expansion: int):
        self.archive, self.folder, self.left = archive, folder, min(expansion, MOST_BYTES)
        self.members, self.unchecked = 0, 0

    def refuse(self, why: str) -> None:
        raise DataError(
            f"{self.archive} is refused: {why}. Nothing was unpacked. Get it from its original source; if you trust "
            f"it, unpack it by hand."
        )

    def spend(self, count: int) -> None:
        """Count bytes that were decompressed."""
        self.left -= count
        self.unchecked += count
        if self.left < 0:
            self.refuse("it expands to far more than images do (a decompression bomb?)")
        if self.unchecked > 2**26:
            self.room(0)
            self.unchecked = 0

    def room(self, needed: int) -> None:
        check_room(str(self.archive), self.folder.parent.parent, needed)

    def place(self, name: str) -> Path:
        """Where a member goes."""
        self.members += 1
        if self.members > MOST_MEMBERS:
            self.refuse(f"it has more than {MOST_MEMBERS:,} members")
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
        if name[:1] in ("/", "\\") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
            self.refuse(f"its member {name!r} would lie outside the folder")
        if len(parts) > DEEPEST:
            self.refuse(f"its member {name[:60]!r}... lies {len(parts)} folders deep")
        return self.folder.joinpath(*parts)

    def write(self, name: str, source, counted: bool) -> None:
        """Copy one member; `counted` if its bytes are those of a `_Counted` already."""
        path = self.place(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:  # exclusively: also refuses a.png beside A.png where they are one file
                while block := source.read(_BLOCK):
                    self.spend(0 if counted else len(block))
                    file.write(block)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            self.refuse(f"two of its members have one name, {name!r}")

    def make(self, name: str) -> None:
        path = self.place(name)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            self.refuse(f"two of its members have one name, {name!r}")


class _Counted:
    """A file that is read against a budget."""

    def __init__(self, file, budget: _Budget):
        self.file, self.budget, self.seek, self.tell = file, budget, file.seek, file.tell

    def read(self, count: int) -> bytes:
        if count > _HEADER_LIMIT:
            self.budget.refuse("one of its headers is absurdly long")
        block = self.file.read(count)
        self.budget.spend(len(block))
        return block


def _zip_members(opened: zipfile.ZipFile, budget: _Budget) -> Iterator[None]:
    members = opened.infolist()
    if (total := sum(member.file_size for member in members)) > budget.left:
        budget.spend(total)
    budget.room(total)
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.flag_bits & 1:
            budget.refuse("it is encrypted with a password")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            budget.refuse(f"its member {member.filename!r} is a link or a device")
        if member.is_dir():
            budget.make(member.filename)
        else:
            with opened.open(member) as source:
                budget.write(member.filename, source, counted=False)
        yield


def _tar_members(opened: tarfile.TarFile, budget: _Budget) -> Iterator[None]:
    while member := opened.next():
        opened.members.clear()  # it keeps a record of each, which a million of them make a gigabyte
        if not (member.isreg() or member.isdir()) or member.issparse():
            budget.refuse(f"its member {member.name!r} is a link, a device or a sparse file")
        if member.isdir():
            budget.make(member.name)
        else:
            budget.write(member.name, opened.extractfile(member), counted=True)
        yield
    # tarfile takes a damaged header for the end; the true end is a block of zeros, and then that of the compression
    opened.fileobj.seek(opened.offset)
    if opened.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("its end is missing")
    while opened.fileobj.read(_BLOCK):
        pass
