"""Rows of the arrays in an .npz archive, streamed from the zip into the store of decoded images."""

import hashlib
import math
import os
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medvitlib.data.cache import Stored, file_hashes, stored
from medvitlib.data.decode import DECODER_VERSION, Unreadable, fit
from medvitlib.errors import DataError
from medvitlib.npzfile import BadNpz, damaged, skip_header
from medvitlib.paths import cache_dir


@dataclass(frozen=True)
class Part:
    """One official part of an archive: images (a member's name, shape and type), and labels and groups in memory."""

    split: str
    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    labels: np.ndarray
    groups: list[str]


def stored_rows(
    path: Path, parts: Sequence[Part], size: tuple[int, int], want_md5: bool
) -> tuple[Stored, list[str], str]:
    """All images of the parts, each resized to (height, width); SHA-256 of each; MD5 of the file if wanted.

    What was found is remembered by the file's own hash: a second call reads nothing of the images.

    Raises:
        DataError: the archive is damaged, or changes meanwhile. OSError: it cannot be read.
    """
    rows = _Rows(path, parts)
    if not (digest := file_hashes([path])[0]):
        raise DataError(f"{path} cannot be read.")
    known = hashes, md5 = _recall(digest, rows.count)
    hashes = list(hashes)
    decoded = _decoded(rows, digest, hashes, size)
    if want_md5 and not md5:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    if (hashes, md5) != known:
        _remember(digest, hashes, md5)
    return decoded, hashes, md5


class _Changed(Exception):
    pass


class _Rows:
    """Rows of all parts by number, read as streams: to be asked for in order, give or take a few threads."""

    def __init__(self, path: Path, parts: Sequence[Part]):
        self.path, self.parts = path, parts
        self.count = sum(part.shape[0] for part in parts)
        self._stat, self._lock = self._stamp(), threading.Lock()
        self._rewind()

    def __call__(self, i: int) -> np.ndarray:
        """(H, W) or (H, W, C) as stored."""
        with self._lock:
            if i < self._next and i not in self._ahead:
                self._rewind()
            while self._next <= i:
                if self._failure is None:
                    self._advance()
                if self._failure is not None:  # for every thread, for the stream has ended with it
                    raise DataError(f"{self.path} {self._failure}.")
            return self._ahead.pop(i)

    def _rewind(self) -> None:
        self._next, self._ahead, self._stream, self._failure = 0, {}, self._read(), None

    def _advance(self) -> None:
        try:
            self._ahead[self._next] = next(self._stream)
            self._next += 1
        except _Changed as error:
            self._failure = error
        except Exception as error:  # a damaged archive can raise anything
            self._failure = f"{error if isinstance(error, BadNpz) else damaged(error)}. Copy or download it again"

    def _read(self) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(self.path) as archive:
            for part in self.parts:
                with archive.open(part.member) as stream:
                    skip_header(stream, archive.getinfo(part.member).file_size)
                    for row in range(part.shape[0]):
                        content = stream.read(math.prod(part.shape[1:]) * part.dtype.itemsize)
                        if row == part.shape[0] - 1:
                            stream.read(1)  # at its end zipfile compares the checksum
                            if self._stamp() != self._stat:
                                raise _Changed("changed while it was being opened: open it again")
                        yield np.frombuffer(content, part.dtype).reshape(part.shape[1:])

    def _stamp(self) -> tuple[int, int]:
        stat = os.stat(self.path)
        return stat.st_size, stat.st_mtime_ns


def _decoded(rows: _Rows, digest: str, hashes: list[str], size: tuple[int, int]) -> Stored:
    """The images in the cache; fills `hashes`, where they are not known yet, on the way."""

    def make(i: int) -> np.ndarray:
        row = rows(i)
        try:
            image = _pixels(row)
        except Unreadable:
            hashes[i] = hash_pixels(row)
            raise
        hashes[i] = hash_pixels(image)
        return fit(image, size)

    grey = all(len(part.shape) == 3 or part.shape[3] == 1 for part in rows.parts)
    parameters = {"arrays": digest, "size": size, "decoder": DECODER_VERSION}
    channels = iter((1,) if grey else (1, 3))
    decoded = stored(parameters, rows.count, size, make, channels, "reading images")
    for i in range(rows.count):  # the images were in the cache, their hashes were not
        if not hashes[i]:
            with suppress(Unreadable):
                make(i)
    return decoded


def _pixels(row: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 1 or 3); alpha is dropped, floats 0..1 are multiplied by 255 and rounded."""
    if row.dtype != np.uint8:
        top = 1 if row.dtype.kind == "f" else 255
        if not ((row >= 0) & (row <= top)).all():
            raise Unreadable(
                f"{row.dtype} values from {row.min()} to {row.max()}: expected 0 to {top}; scale all images alike"
            )
        row = np.rint(row * (255 / top)).astype(np.uint8)
    return row[..., None] if row.ndim == 2 else row[..., :3]


def hash_pixels(image: np.ndarray) -> str:
    """SHA-256 of shape and pixels."""
    digest = hashlib.sha256(f"{image.shape} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _recall(digest: str, count: int) -> tuple[list[str], str]:
    """Hashes of the rows and MD5 of the file with this SHA-256; empty strings where not known."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(_memory(digest)) as known:
        if known["hashes"].shape == (count,):
            return known["hashes"].astype(str).tolist(), str(known["md5"])
    return [""] * count, ""


def _remember(digest: str, hashes: list[str], md5: str) -> None:
    path = _memory(digest)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # then the file is read through again next time, no more
        with aside.open("wb") as file:
            np.savez(file, hashes=np.array(hashes, "S"), md5=md5)
        os.replace(aside, path)


def _memory(digest: str) -> Path:
    return cache_dir() / "images" / f"{digest[:32]}.rows.npz"
