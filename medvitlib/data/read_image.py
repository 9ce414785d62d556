"""One file of any kind that is read, by its content, to one uint8 image."""

import io
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from medvitlib.data.decode import Window, content_kind, stored_values, to_8_bit
from medvitlib.data.dicom import decode_dicom, is_dicom
from medvitlib.data.nifti import is_nifti, nifti_values

SEVERAL = ("TIFF", "GIF", "PNG", "WebP")
"""Formats that can hold more than one picture."""


@dataclass(frozen=True)
class Picture:
    """What a file shows: uint8 (H, W, 1 or 3); smallest and largest stored value, None if they have 8 bits; how many
    pages or frames it has, of which this is the first."""

    pixels: np.ndarray
    ends: tuple[float, float] | None = None
    pages: int = 1


def read_image(data: bytes, name: str = "", window: Window = None) -> Picture:
    """Decode a file (`medvitlib.data.decode.decode`, `medvitlib.data.dicom.decode_dicom`, or NIfTI).

    Args:
        name: for the reason, if it cannot be read: the content decides what it is.
        window: of more than 8 bits, the values shown as black and as white.

    Raises:
        Unreadable: in words, why there is no image.
    """
    if is_dicom(data):
        return Picture(decode_dicom(data, window))
    values = nifti_values(data) if is_nifti(data) else stored_values(data, name)
    ends = None if values.dtype == np.uint8 else (float(values.min()), float(values.max()))
    return Picture(to_8_bit(values, window), ends, _pages(data) if content_kind(data) in SEVERAL else 1)


def _pages(data: bytes) -> int:
    with suppress(Exception):  # of a picture that was read: what is damaged lies behind it
        return Image.open(io.BytesIO(data)).n_frames
    return 1
