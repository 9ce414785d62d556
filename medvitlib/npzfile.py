"""Other people's .npz archives: opened without running what they hold, or unpacking what they should not."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

_PICKLE = b"\x80"
_MOST_EXPANSION = 50  # weights and images compress little; a small file that claims gigabytes fills memory or disk
_HARMLESS = 2**28  # bytes


class BadNpz(ValueError):
    """What is wrong with a file, as the rest of a sentence that starts with its path."""


def open_npz(path: Path) -> zipfile.ZipFile:
    """The archive; nothing in it is unpacked yet.

    Raises:
        OSError: it is absent or may not be read.
        BadNpz: a pickle, no archive, damaged, or a small file that claims to hold absurdly much.
    """
    with path.open("rb") as file:
        head = file.read(2)
    if head != b"PK":
        raise BadNpz(
            "is a pickle; pickles are refused, because reading one can run any code"
            if head.startswith(_PICKLE)
            else "is not an npz archive"
        )
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive can raise anything
        raise damaged(error) from None
    claimed, size = sum(entry.file_size for entry in archive.infolist()), path.stat().st_size
    if claimed > max(_MOST_EXPANSION * size, _HARMLESS):
        archive.close()
        raise BadNpz(f"is damaged or a trap: its {size / 1e6:.1f} MB claim to hold {claimed / 1e9:.1f} GB")
    return archive


def read_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the order is Fortran's, and type of one array, whose values are not read.

    Raises:
        BadNpz: not an array, one of pickled objects, or one with more or fewer values than the archive holds.
    """
    with _opened(archive, name) as stream:
        return skip_header(stream, archive.getinfo(name).file_size)


def skip_header(stream: IO[bytes], size: int) -> tuple[tuple[int, ...], bool, np.dtype]:
    """What `read_header` returns; the stream, `size` bytes in all, is left where the values begin."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise BadNpz("holds pickled Python objects, which are refused")
    if any(length < 0 for length in shape) or stream.tell() + math.prod(shape) * dtype.itemsize != size:
        raise BadNpz(f"is damaged (an array says {shape} of {dtype}, and holds {size} bytes)")
    return shape, fortran, dtype


def read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, whole, read-only. Raises as `read_header`."""
    with _opened(archive, name) as stream:
        shape, fortran, dtype = skip_header(stream, archive.getinfo(name).file_size)
        content = stream.read()
        return np.ndarray(shape, dtype, content, order="F" if fortran else "C")


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    try:
        with archive.open(name) as stream:
            yield stream
    except BadNpz:
        raise
    except Exception as error:  # as above
        raise damaged(error) from None


def damaged(error: Exception) -> BadNpz:
    """Whatever a parser met, in the same words."""
    return BadNpz(f"is damaged ({str(error).strip() or type(error).__name__})")
