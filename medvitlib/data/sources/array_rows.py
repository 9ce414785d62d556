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
from medvitlib.data.decode import DECODER_VERSION, Unreadable, Window, fit
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


ENDS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
"""What values can run from and to."""
MOST_OUTSIDE = 0.05
"""Share of images beyond them, that are left out."""


def stored_rows(
    path: Path, parts: Sequence[Part], size: tuple[int, int], want_md5: bool, window: Window = None
) -> tuple[Stored, list[str], str, tuple[float, float]]:
    """All images of the parts, each resized to (height, width); SHA-256 of each; MD5 of the file if wanted; the values
    that are black and white.

    What was found is remembered by the file's own hash: a second call reads nothing of the images.

    Raises:
        DataError: the archive is damaged, or changes meanwhile. OSError: it cannot be read.
    """
    rows = _Rows(path, parts)
    if not (digest := file_hashes([path])[0]):
        raise DataError(f"{path} cannot be read.")
    key = digest if window is None else hashlib.sha256(f"{digest} {window}".encode()).hexdigest()
    known = hashes, md5, ends = _recall(key, rows.count)
    hashes = list(hashes)
    ends = window or ends or _ends(rows)
    decoded = _decoded(rows, key, hashes, size, ends)
    if want_md5 and not md5:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
    if (hashes, md5, ends) != known:
        _remember(key, hashes, md5, ends)
    return decoded, hashes, md5, ends


def _ends(rows: "_Rows") -> tuple[float, float]:
    """Which of `ENDS` the images run from and to; where none fits, the error says what to pass."""
    kinds = {part.dtype.kind for part in rows.parts}
    if kinds == {"b"}:
        return 0.0, 1.0
    if all(part.dtype == np.uint8 for part in rows.parts):
        return 0.0, 255.0
    found = np.array([[float(row.min()), float(row.max())] for row in map(rows, range(rows.count))])
    for low, high in ENDS if "f" in kinds else ENDS[-1:]:
        inside = (found[:, 0] >= low) & (found[:, 1] <= high)
        if inside.mean() >= 1 - MOST_OUTSIDE:
            return low, high
    low, high = np.nanmin(found[:, 0]), np.nanmax(found[:, 1])
    likely = next((n for n in (4095, 65535) if high <= n), high) if low >= 0 and "f" not in kinds else high
    raise DataError(
        f"{rows.path}: {rows.parts[0].dtype} images with values from {low:g} to {high:g}, neither 0 to 255 nor (as "
        f"floats) 0 to 1 or -1 to 1. Pass those that are black and white, such as window=({min(low, 0):g}, {likely:g})."
    )


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


def _decoded(rows: _Rows, digest: str, hashes: list[str], size: tuple[int, int], ends: tuple[float, float]) -> Stored:
    """The images in the cache; fills `hashes`, where they are not known yet, on the way."""

    def make(i: int) -> np.ndarray:
        row = rows(i)
        try:
            image = _pixels(row, ends)
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


def _pixels(row: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """uint8 (H, W, 1 or 3), from black to white between the ends; alpha is dropped."""
    low, high = ends
    if row.dtype != np.uint8 or ends != (0, 255):
        if ends in ENDS and not ((row >= low) & (row <= high)).all():
            raise Unreadable(
                f"{row.dtype} values from {row.min()} to {row.max()}: expected {low:g} to {high:g}; scale all images "
                "alike"
            )
        if row.dtype.kind == "f" and not np.isfinite(row).all():
            raise Unreadable(f"{row.dtype} values of which some are no finite numbers")
        row = np.rint(((row.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255)).astype(np.uint8)
    return row[..., None] if row.ndim == 2 else row[..., :3]


def hash_pixels(image: np.ndarray) -> str:
    """SHA-256 of shape and pixels."""
    digest = hashlib.sha256(f"{image.shape} ".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _recall(digest: str, count: int) -> tuple[list[str], str, tuple[float, float] | None]:
    """Hashes of the rows, MD5 of the file with this SHA-256, and black and white; empty where not known."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(_memory(digest)) as known:
        low, high = map(float, known["ends"])
        if known["hashes"].shape == (count,):
            return known["hashes"].astype(str).tolist(), str(known["md5"]), (low, high)
    return [""] * count, "", None


def _remember(digest: str, hashes: list[str], md5: str, ends: tuple[float, float]) -> None:
    path = _memory(digest)
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    with suppress(OSError):  # then the file is read through again next time, no more
        with aside.open("wb") as file:
            np.savez(file, hashes=np.array(hashes, "S"), md5=md5, ends=ends)
        os.replace(aside, path)


def _memory(digest: str) -> Path:
    return cache_dir() / "images" / f"{digest[:32]}.rows.npz"
