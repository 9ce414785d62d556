"""Images that somebody hands over for an answer: a path, a folder, an array, a DICOM file, an address, or several.

`incoming` lists them without reading any, `read` reads one. A data set for training is opened by `open_dataset`.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medvitlib.data.decode import DICOM, SUFFIXES, Unreadable, fit, is_grey, is_image
from medvitlib.data.folder import walk
from medvitlib.data.read_image import Picture, read_image
from medvitlib.data.remote import fetch, is_address
from medvitlib.data.transforms import Preprocessing
from medvitlib.errors import DataError

Source = str | os.PathLike | bytes | np.ndarray | torch.Tensor | Iterable
Given = np.ndarray | bytes | None
"""An image, a file's content, or nothing yet: its name says where it is."""


def incoming(source: Source) -> tuple[Iterator[tuple[str, Given]], int | None]:
    """(name, image or None) of everything that was given, and how many where that is known beforehand.

    Args:
        source: a path of an image or folder, an http(s) address, the bytes of a file, uint8 (H, W), (H, W, C) or
            (N, H, W, C), of which the images are called by their position; or a list of these.

    Raises:
        DataError: nothing at that path, a folder without images, or an array that holds none.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        array = np.asarray(source)
        array = array[..., None] if array.ndim == 2 else array
        array = array[None] if array.ndim == 3 else array
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
            raise DataError(
                f"an array of {array.dtype} {np.shape(source)}: expected uint8 (H, W), (H, W, C) or (N, H, W, C), with "
                "1 or 3 channels."
            )
        return ((str(i), image) for i, image in enumerate(array)), len(array)
    if isinstance(source, bytes):
        return iter([("image", source)]), 1
    if isinstance(source, Iterable) and not isinstance(source, str | os.PathLike):
        several = [incoming(one) for one in source]  # a wrong path is told before the first answer
        counts = [count for _, count in several]
        return (pair for found, _ in several for pair in found), None if None in counts else sum(counts)
    if is_address(source):
        return iter([(str(source), None)]), 1
    path = Path(source)
    if path.is_dir():
        found = _files(path)
        if (first := next(found, None)) is None:
            raise DataError(f"{path} holds no image (PNG, JPEG, BMP, TIFF or DICOM).")
        return ((str(file), None) for file in _chained(first, found)), None
    if not path.exists():
        raise DataError(f"there is nothing at {path}. Check the path; an address starts with https://.")
    return iter([(str(path), None)]), 1


def read(name: str, given: Given, expected: Preprocessing, allow_private: bool = False) -> Picture:
    """One image as a model takes it: pixels uint8 (H, W, C) of its size and channels.

    Args:
        name, given: as `incoming` lists them.
        expected: the model's.
        allow_private: fetch from this machine's network, too.

    Raises:
        Unreadable: in words, why there is no image.
    """
    try:
        if given is None:
            given = fetch(name, allow_private=allow_private) if is_address(name) else Path(name).read_bytes()
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror or error})") from None
    picture = Picture(given)
    if isinstance(given, bytes):
        picture = read_image(given, "" if is_address(name) else name, expected.window)
    image = fit(picture.pixels, tuple(expected.image_size))
    if expected.channels == 1 and image.shape[2] == 3:
        if not is_grey(image):
            raise Unreadable("a picture in colour, for a model of grey ones")
        image = np.ascontiguousarray(image[:, :, :1])
    return replace(picture, pixels=image)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below that is called like an image, or is one by its first bytes, in order, one folder at a time; and
    every folder that cannot be listed, so that it is missed."""
    unlisted: list[OSError] = []
    for path in walk(folder, unlisted.append):
        if path.name.upper() != "DICOMDIR" and (path.suffix.lower() in SUFFIXES.keys() | DICOM or is_image(path)):
            yield path
    yield from (Path(error.filename) for error in unlisted)


def _chained(first: Path, rest: Iterator[Path]) -> Iterator[Path]:
    yield first
    yield from rest
