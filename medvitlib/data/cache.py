"""Decode once: every image of a set as one uint8 array on disk, opened as a memory map ever after.

An array lies in `cache_dir()/images/` under a key made of the contents (SHA-256 of every file), the image size and the
decoder's version, so that renamed folders share it and changed files never meet it. Beside it lies a JSON file:
shape, a checksum, and the reasons why some rows are empty. Whatever does not match is built again.
"""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import cv2
import numpy as np
from filelock import FileLock

from medvitlib.data.decode import DECODER_VERSION, Unreadable, Window, fit, is_grey
from medvitlib.data.read_image import read_image
from medvitlib.errors import DataError, printable
from medvitlib.paths import cache_dir
from medvitlib.progress import track

WORKERS = min(8, os.cpu_count() or 1)  # OpenCV and hashlib release the interpreter lock
_CHUNK_BYTES = 64 * 2**20  # decoded images in flight: memory stays the same however many there are


Facts = dict[str, dict[int, Any]]


@dataclass(frozen=True)
class Stored:
    """An array of images on disk: uint8 (N, C, H, W) in .npy format; rows named in `reasons` are empty.

    `facts` has, by row, under "ranges" the smallest and the largest stored value of files of more than 8 bits, and
    under "pages" the number of pages of files with several.
    """

    path: Path
    shape: tuple[int, int, int, int]
    reasons: dict[int, str]
    facts: Facts = field(default_factory=dict)


def file_hashes(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, "" for one that cannot be read.

    A file whose size and times have not changed since it was last hashed is not read again.
    """
    index_path = _index_path(paths)
    index = _read_index(index_path)
    stamps = [_stamp(path) for path in paths]
    known = [index.get(str(path)) for path in paths]  # [stamp, hash] each
    hashes = [entry[1] if entry and entry[0] == stamp else "" for entry, stamp in zip(known, stamps, strict=True)]
    todo = [i for i, digest in enumerate(hashes) if not digest and stamps[i]]
    if todo:
        with ThreadPoolExecutor(WORKERS) as pool:
            found = pool.map(_hash_file, [paths[i] for i in todo])
            for i, digest in zip(todo, track(found, "reading files", total=len(todo), unit="file"), strict=True):
                hashes[i] = digest
        index |= {str(paths[i]): [stamps[i], hashes[i]] for i in todo if hashes[i]}
        with suppress(OSError):  # without the index the files are hashed again next time, no more
            _write_json(index_path, index)
    return hashes


def stored_files(paths: Sequence[Path], hashes: Sequence[str], size: tuple[int, int], window: Window = None) -> Stored:
    """The decoded images of `paths`, each resized to (height, width); grey (C = 1) if all of them are."""

    def read(i: int) -> bytes:
        try:
            data = paths[i].read_bytes()
        except OSError as error:
            if hashes[i]:  # it could be read a moment ago: not a property of the file, so nothing to remember
                raise DataError(
                    f"{printable(paths[i])} cannot be read any more: {error.strerror}. Open the set again."
                ) from error
            raise Unreadable(f"cannot be read: {error.strerror}") from None
        if hashes[i] and hashlib.sha256(data).hexdigest() != hashes[i]:
            _index_path(paths).unlink(missing_ok=True)  # or the index was wrong: next time everything is hashed
            raise DataError(f"{printable(paths[i])} changed while the data set was being opened: open it again.")
        return data

    return stored_contents([path.name for path in paths], read, hashes, size, window)


def stored_contents(
    names: Sequence[str],
    read: Callable[[int], bytes],
    hashes: Sequence[str],
    size: tuple[int, int],
    window: Window = None,
) -> Stored:
    """As `stored_files`, for encoded images from anywhere: `read(i)` gives one, or raises Unreadable."""
    facts: Facts = {"ranges": {}, "pages": {}}

    def make(i: int) -> np.ndarray:
        picture = read_image(read(i), names[i], window)
        if picture.ends is not None:
            facts["ranges"][int(i)] = picture.ends
        if picture.pages > 1:
            facts["pages"][int(i)] = picture.pages
        return fit(picture.pixels, size)

    def channels() -> Iterator[int]:
        spread = np.linspace(0, len(names) - 1, 16).astype(int)
        yield 1 if all(_grey_or_bad(make, i) for i in np.unique(spread)) else 3
        yield 3  # the sample was grey, but some image is not

    # what the file's ending claims stands in the reason why it cannot be used, so it belongs to the key
    files = [f"{digest}{PurePath(name).suffix.lower()}" for digest, name in zip(hashes, names, strict=True)]
    parameters = {"files": files, "size": size, "decoder": DECODER_VERSION} | ({"window": window} if window else {})
    return stored(parameters, len(names), size, make, channels(), "decoding images", facts)


def stored(
    parameters: dict,
    count: int,
    size: tuple[int, int],
    make: Callable[[int], np.ndarray],
    channels: Iterator[int],
    what: str = "rendering images",
    facts: Facts | None = None,
) -> Stored:
    """The array that `parameters` (JSON-able) name; built by calling `make(i)` for each row if it is not there.

    Safe when several processes ask at once: one builds, the others wait and read.

    Args:
        make: gives uint8 (H, W, 1 or 3), or raises Unreadable, which leaves the row empty and is remembered.
        channels: 1 or 3, to try in turn; 1 fails on the first coloured image.
        what: shown beside the progress.
        facts: filled by `make`, and kept: see `Stored`.

    Raises:
        DataError: if the cache cannot be written.
    """
    key = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:32]
    path = _folder() / f"{key}.npy"
    if found := _open(path, count, size):
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if found := _open(path, count, size):  # another process has built it meanwhile
                return found
            with one_opencv_thread():
                for c in channels:
                    with suppress(_NotGrey):
                        return _build(path, (count, c, *size), make, what, {} if facts is None else facts)
            raise AssertionError("three channels hold any image")
    except OSError as error:
        need = count * size[0] * size[1] * 3 / 1e6
        raise DataError(
            f"the decoded images cannot be kept in {path.parent}: {error.strerror or error}. They need up to "
            f"{need:,.1f} MB: free some space there, or set MEDVIT_CACHE to a folder that can be written."
        ) from error


class _NotGrey(Exception):
    pass


def _build(
    path: Path, shape: tuple[int, int, int, int], make: Callable[[int], np.ndarray], what: str, facts: Facts
) -> Stored:
    aside = path.with_suffix(".building")
    reasons: dict[int, str] = {}
    try:
        # Plain writes, not a memory map: a full disk is then an OSError, where a map would kill the process.
        with aside.open("wb") as file, ThreadPoolExecutor(WORKERS) as pool:
            header = io.BytesIO()
            np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(header.getvalue())
            crc = zlib.crc32(header.getvalue())
            chunk = max(WORKERS, min(512, _CHUNK_BYTES // max(1, int(np.prod(shape[1:])))))
            rows = (
                row for at in range(0, shape[0], chunk) for row in pool.map(_caught(make), _upto(at, chunk, shape[0]))
            )
            for i, row in enumerate(track(rows, what, total=shape[0])):
                if isinstance(row, Unreadable):
                    reasons[i], row = str(row), np.zeros((*shape[2:], 1), np.uint8)
                plane = _planes(row, shape[1])
                crc = zlib.crc32(plane, crc)
                file.write(plane)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    _write_meta(path, shape, reasons, crc, facts)
    return Stored(path, shape, reasons, facts)


def _upto(start: int, step: int, stop: int) -> range:
    return range(start, min(start + step, stop))


def _caught(make: Callable[[int], np.ndarray]) -> Callable[[int], np.ndarray | Unreadable]:
    def made(i: int) -> np.ndarray | Unreadable:
        try:
            return make(i)
        except Unreadable as reason:
            return reason

    return made


def _planes(image: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) to contiguous (channels, H, W): the layout that models read, so that a batch is one copy."""
    if channels == 1 and not is_grey(image):
        raise _NotGrey
    return np.ascontiguousarray(np.broadcast_to(image[..., :channels], (*image.shape[:2], channels)).transpose(2, 0, 1))


def _grey_or_bad(read: Callable[[int], np.ndarray], i: int) -> bool:
    try:
        return is_grey(read(i))
    except Unreadable:
        return True


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """One OpenCV thread a worker; put back after.

    Here, around all workers, and not in `decode`: the setting belongs to the process, not to a thread.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _open(path: Path, count: int, size: tuple[int, int]) -> Stored | None:
    """The stored array if it is there and whole. Its checksum is read only when its times say it was touched."""
    try:
        meta = json.loads(path.with_suffix(".json").read_text())
        shape, stat = tuple(meta["shape"]), path.stat()
        if shape != (count, 3 if shape[1] == 3 else 1, *size) or stat.st_size != meta["bytes"]:
            return None
        if stat.st_mtime_ns != meta["mtime_ns"]:
            if _checksum(path) != meta["crc32"]:
                return None
            with suppress(OSError):  # a read-only cache is checked each time
                _write_json(path.with_suffix(".json"), meta | {"mtime_ns": stat.st_mtime_ns})
        reasons = {int(i): str(reason) for i, reason in meta["reasons"].items()}
        facts = {name: {int(i): value for i, value in rows.items()} for name, rows in meta.get("facts", {}).items()}
        return Stored(path, shape, reasons, facts) if all(0 <= i < count for i in reasons) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def _checksum(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc


def _write_meta(path: Path, shape: tuple, reasons: dict[int, str], crc: int, facts: Facts) -> None:
    stat = path.stat()
    meta = {"shape": shape, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "crc32": crc, "reasons": reasons}
    meta |= {"facts": facts}
    _write_json(path.with_suffix(".json"), meta)


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    aside.write_text(json.dumps(content))
    os.replace(aside, path)


def _index_path(paths: Sequence[Path]) -> Path:
    folder = os.path.commonpath([path.absolute() for path in paths])
    return _folder() / f"index-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"


def _read_index(path: Path) -> dict[str, list]:
    """What `file_hashes` wrote: {file: [stamp, hash]}, without any entry that is not of that form."""
    try:
        index = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    rows = index.items() if isinstance(index, dict) else ()
    return {file: e for file, e in rows if isinstance(e, list) and len(e) == 2 and isinstance(e[1], str)}


def _folder() -> Path:
    return cache_dir() / "images"


def _stamp(path: Path) -> list[int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
