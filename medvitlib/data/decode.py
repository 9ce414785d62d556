"""Bytes of one file to one uint8 image, or the reason why not.

A decoder that guesses is worse than one that refuses: OpenCV returns the upper half of a truncated JPEG over
a grey lower half without a word. Whatever is not a whole image raises `Unreadable`. The content says what a file is:
one whose name claims another format was renamed, which `medvitlib.data.catalog` counts and says.
One kind of damage stays unseen: a JPEG that has lost its middle and kept its end, of which no decoder at hand tells.

Pillow decodes JPEG and PNG: OpenCV's copies of libjpeg and libpng write their warnings to the terminal, and only a
redirection of the whole process's output would stop them. OpenCV decodes what Pillow cannot without loss of depth.
"""

import ctypes
import io
import os
import struct
import warnings
import zlib
from contextlib import suppress
from functools import cache
from pathlib import PurePath

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from medvitlib.errors import DataError

DECODER_VERSION = 5
"""Part of every cache key: raise it when the pixels that `decode` or `fit` return change."""
MAX_PIXELS = 2**27
"""Larger than any radiograph; a small file that claims more is a decompression bomb or a whole slide to be tiled."""

MAX_BYTES = 2**29
"""Of the pixels that a header promises: checked before anything is decoded."""

HEAD = 2048
"""Bytes by which a file's kind is told."""
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".webp": "WebP",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".pgm": "PNM",
    ".ppm": "PNM",
    ".pnm": "PNM",
    ".nii": "NIfTI",
}
"""File name endings that are read, and the format each one claims."""
DICOM = {".dcm", ".dicom", ".ima"}
"""Endings of DICOM files, which often have none."""

_WIDTH, _HEIGHT, _SAMPLES, _BITS_PER_SAMPLE = 256, 257, 277, 258  # TIFF 6.0
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_PLANES, _APART = 284, 2
_SAMPLE_FORMAT, _UNSIGNED = 339, 1
_ORIENTATION = 0x112  # EXIF

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"GIF8": "GIF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    **{b"P%d%c" % (n, space): "PNM" for n in range(1, 7) for space in b" \t\r\n"},
}
_FOREIGN = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip",
}


Window = tuple[float, float] | None
"""Lower and upper end of the values that are shown from black to white."""


class Unreadable(DataError):
    """A file that is not one whole image; the message is the reason, in words for a person."""


def content_kind(data: bytes) -> str | None:
    """Return the format of a file, by its first `HEAD` bytes or more: one of `SUFFIXES`, "DICOM", or None."""
    start = data[:HEAD]
    if start[:2] == b"\x1f\x8b":  # gzip, in which NIfTI files are kept
        with suppress(zlib.error):
            start = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, 348)
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIfTI"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[128:132] == b"DICM":
        return "DICOM"
    return next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)


def is_image(path: PurePath) -> bool:
    """Whether a file on disk is an image by its first bytes, whatever it is called."""
    with suppress(OSError), open(path, "rb") as file:
        return content_kind(file.read(HEAD)) is not None
    return False


def decode(data: bytes, name: str = "", window: Window = None) -> np.ndarray:
    """Decode one image file: `to_8_bit` of its `stored_values`.

    Returns:
        uint8, (H, W, 1) if stored as grey, else (H, W, 3) in RGB order.

    Raises:
        Unreadable: empty, truncated, damaged, not an image, too large, or of an unsupported pixel type.
    """
    return to_8_bit(stored_values(data, name), window)


def stored_values(data: bytes, name: str = "") -> np.ndarray:
    """The pixels of one image file. EXIF orientation is applied and alpha is dropped.

    Args:
        data: the whole file.
        name: its name, for the reason: the content decides what the file is.

    Returns:
        uint8, uint16, or of a TIFF int16, int32 or floating point: (H, W, 1) if stored as grey, else (H, W, 3) in RGB
        order. Of several pages or frames the first is read.

    Raises:
        Unreadable: as `decode`.
    """
    kind, claimed = _kind(data), SUFFIXES.get(PurePath(name).suffix.lower())
    try:
        return _decoded(data, kind)
    except Unreadable as error:
        if claimed in (None, kind):
            raise
        raise Unreadable(f"{error} (the name says {claimed})") from None


def to_8_bit(values: np.ndarray, window: Window = None) -> np.ndarray:
    """Pixels as 8 bits: as they are where they have 8; else the window's lower end becomes 0, its upper one 255.

    Without a window that of 16-bit pixels is the image's own smallest and largest value: dividing by 257 instead would
    turn the 12-bit data that detectors store in 16-bit files almost black. It hides how bright images are beside each
    other; a window, the same for all, does not.

    Args:
        values: as `stored_values` returns them.
        window: lower and upper end, in the file's values.

    Raises:
        Unreadable: signed or floating-point values without a window, or values that are no numbers.
    """
    if values.dtype == np.uint8:
        return values
    low, high = window or (float(values.min()), float(values.max()))
    if values.dtype != np.uint16 and window is None:
        raise Unreadable(
            f"{values.dtype} pixels, {low:g} to {high:g}: what they mean has to be stated. Pass window=(lower, upper), "
            "the values to be shown as black and as white in all images, or save 8-bit or 16-bit unsigned images"
        )
    if not np.isfinite(values).all():
        raise Unreadable(f"{values.dtype} pixels of which some are no finite numbers")
    scaled = (values.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)


def check_window(window: object) -> Window:
    """Return a window as two numbers.

    Raises:
        DataError: it is none.
    """
    if window is None:
        return None
    with suppress(TypeError, ValueError):
        low, high = map(float, window)
        if np.isfinite([low, high]).all() and low < high:
            return low, high
    raise DataError(f"window={window!r}: expected two numbers, the lower and the upper end, such as (0, 4095).")


def _decoded(data: bytes, kind: str) -> np.ndarray:
    silence()
    _check_bytes(data, kind)
    pillow = _check_whole(data, kind)
    if kind not in ("BMP", "TIFF") and not (kind == "PNG" and _is_deep(data)):
        return _pixels(pillow)
    if kind == "TIFF" and _in_deep_planes(data):
        raise Unreadable("a TIFF of more than 8 bits with its colours in planes apart: save it as a PNG")
    tags = _entries(data) if kind == "TIFF" else {}
    if max(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) != _UNSIGNED:
        return _signed_or_float(pillow)
    if (
        tags
        and pillow is not None
        and pillow.mode in ("L", "RGB", "RGBA")
        and max(tags.get(_BITS_PER_SAMPLE, (8,))) == 8
    ):
        return _pixels(pillow)  # OpenCV would multiply the colours by alpha, and reads not all tiles
    data = _bare(data) if kind == "PNG" else data
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise Unreadable(f"damaged {kind}: {str(error).strip().splitlines()[0]}") from None
    if image is None:
        raise Unreadable(f"damaged {kind}: its header reads, its pixels do not")
    if kind == "TIFF" and pillow is None and image.dtype == np.uint8:
        raise Unreadable("a TIFF of a pixel type that would lose its depth (16-bit with alpha): save it without alpha")
    if image.dtype == np.uint16 and pillow is not None and tags.get(_PHOTOMETRIC) == (_WHITE_IS_ZERO,):
        image = 65535 - image  # OpenCV turns 8-bit pixels round, but not these
    if image.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f"{image.dtype} pixels: save it as 8-bit or 16-bit unsigned")
    if image.ndim == 2:
        return image[:, :, None]
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


@cache
def silence() -> None:
    """Keep the remarks of OpenCV, libtiff, Pillow and pydicom on damaged files off the terminal.

    What is wrong with a file is said by `Unreadable`. These are settings of the process, not of a thread: they are made
    once, before the first image is decoded, and stay. Where $OPENCV_LOG_LEVEL is set, OpenCV's level is left alone.
    """
    if "OPENCV_LOG_LEVEL" not in os.environ:
        (cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging).setLogLevel(0)  # OpenCV 4, OpenCV 5
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
    with suppress(OSError, AttributeError):  # a Pillow without libtiff, or one that does not show its symbols (Windows)
        libtiff = ctypes.CDLL(Image.core.__file__)
        libtiff.TIFFSetErrorHandler(None)
        libtiff.TIFFSetWarningHandler(None)


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides, from a side or both. Raises DataError for what is no size, or more than any image may have."""
    size = (image_size, image_size) if np.ndim(image_size) == 0 else tuple(image_size)
    whole = len(size) == 2 and all(isinstance(side, int | np.integer) and side >= 1 for side in size)
    if not whole or int(size[0]) * int(size[1]) > MAX_PIXELS:
        raise DataError(
            f"image_size={image_size!r}: expected a side in pixels or (height, width), of at most "
            f"{MAX_PIXELS / 1e6:.0f} million pixels."
        )
    return int(size[0]), int(size[1])


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, C) to (height, width), C kept. The picture is stretched, not cropped: the aspect is not kept.

    Pixels are averaged when shrinking (INTER_AREA), interpolated linearly otherwise; at that size already, untouched.
    """
    h, w = image.shape[:2]
    if (h, w) == tuple(size):
        return image
    shrinks = size[0] <= h and size[1] <= w
    out = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return out.reshape(*size, image.shape[2])  # OpenCV drops the last axis of a grey image


def is_grey(image: np.ndarray) -> bool:
    """Whether (H, W, C) has one channel, or three that are equal everywhere."""
    if image.shape[2] == 1:
        return True
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    return bool((r == g).all() and (g == b).all())


def _kind(data: bytes) -> str:
    if not data:
        raise Unreadable("empty file (0 bytes)")
    kind = content_kind(data)
    if kind == "DICOM":
        raise Unreadable("not a PNG, JPEG, BMP or TIFF: it is a DICOM file; export it with its window applied")
    if kind:
        return kind
    for signature, what in _FOREIGN.items():
        if data.startswith(signature):
            raise Unreadable(f"not a PNG, JPEG, BMP or TIFF: it is {what} file")
    head = data[:512]
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise Unreadable("not an image: it is a web page, as a failed download leaves")
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head):
        raise Unreadable("not an image: it is text")
    raise Unreadable(f"not a PNG, JPEG, BMP or TIFF: it starts with {head[:8].hex(' ')}")


def _check_bytes(data: bytes, kind: str) -> None:
    """Refuse a PNG or TIFF whose header promises more than `MAX_BYTES`; other kinds have 8 bits: pixels are counted."""
    if kind == "PNG" and len(data) >= 26:
        width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
        bits = depth * {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 1)
    elif kind == "TIFF":
        entries = _entries(data)
        width, height = (entries.get(tag, (0,))[0] for tag in (_WIDTH, _HEIGHT))
        depths = entries.get(_BITS_PER_SAMPLE, (8,))
        bits = max(depths) * max(entries.get(_SAMPLES, (1,))[0], len(depths))
    else:
        return
    if width * height * bits > 8 * MAX_BYTES:
        raise Unreadable(
            f"claims {width}x{height} px of {bits} bits, more than {MAX_BYTES / 2**20:.0f} MB of pixels: cut it into "
            "tiles, or save it with 8 bits"
        )


def _check_whole(data: bytes, kind: str) -> Image.Image | None:
    """Refuse truncated and absurdly large files; Pillow decides where the end markers leave a doubt."""
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise Unreadable(f"claims more than {MAX_PIXELS / 1e6:.0f} million pixels") from None
    except Exception:  # Pillow's parsers raise whatever the damage provokes, struct.error to SyntaxError
        if kind == "TIFF":
            return None  # Pillow cannot identify some pixel types that OpenCV reads
        raise Unreadable(f"damaged {kind}: its header makes no sense") from None
    if image.width * image.height > MAX_PIXELS:
        raise Unreadable(
            f"claims {image.width}x{image.height} px, more than {MAX_PIXELS / 1e6:.0f} million pixels: "
            "cut a whole slide into tiles"
        )
    if kind == "PNG":
        _check_png(data)
    try:
        image.load()
    except Exception as error:  # as above
        raise Unreadable(f"truncated or damaged {kind}: {_first_line(error)}") from None
    return image


def _in_deep_planes(tiff: bytes) -> bool:
    """Whether a TIFF stores colours of 16 bits one after the other: OpenCV gives unset memory for them."""
    entries = _entries(tiff)
    return entries.get(_PLANES) == (_APART,) and max(entries.get(_BITS_PER_SAMPLE, (8,))) > 8


def _signed_or_float(pillow: Image.Image | None) -> np.ndarray:
    """Pixels of a TIFF below zero or between whole numbers, which OpenCV would take for unsigned ones."""
    if pillow is None or pillow.mode not in ("F", "I", "I;16S"):
        raise Unreadable("a TIFF of signed or floating-point colours: save it as a grey one, or with 8 bits")
    return np.array(ImageOps.exif_transpose(pillow))[..., None]


def _entries(tiff: bytes) -> dict[int, tuple[int, ...]]:
    """Tags of a TIFF's first page, as numbers; those that cannot be read are left out, and the decoder says why."""
    wanted = (_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT)
    found: dict[int, tuple[int, ...]] = {}
    with suppress(Exception):  # damage of any kind
        entries = ImageFileDirectory_v2(tiff[: 16 if b"+" in tiff[2:4] else 8])
        file = io.BytesIO(tiff)
        file.seek(entries.next)
        entries.load(file)
        for tag in wanted:
            value = entries.get(tag, ())
            value = value if isinstance(value, tuple) else (value,)
            if value and all(isinstance(number, int) for number in value):
                found[tag] = value
    return found


def _bare(png: bytes) -> bytes:
    """A checked PNG without metadata, on which libpng remarks, but with its orientation."""
    kept, at, kind = [png[:8]], 8, b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", png, at)
        kind, end = png[at + 4 : at + 8], at + 12 + length
        if kind[:1].isupper() or kind == b"eXIf":
            kept.append(png[at:end])
        at = end
    return b"".join(kept)


def _is_deep(png: bytes) -> bool:
    """Whether a PNG has 16 bits and more than grey, of which Pillow would drop 8."""
    depth, colour = png[24:26]
    return depth == 16 and colour != 0


def _pixels(image: Image.Image) -> np.ndarray:
    """A loaded JPEG or PNG as `decode` returns it."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata of a whole picture; Pillow raises whatever the damage provokes
        orientation = 1
    if orientation in range(2, 9):  # not for 1: it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.uint16)[:, :, None]
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):  # a palette, CMYK
        image = image.convert("RGB")
    pixels = np.array(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels[..., : 1 if image.mode == "LA" else 3]


def _check_png(data: bytes) -> None:
    """Every critical chunk has its checksum, and the last one is IEND."""
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise Unreadable("truncated PNG: it ends before its end marker")
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if end + 4 > len(data):
            raise Unreadable("truncated PNG: it ends before its end marker")
        critical = kind[:1].isupper()
        if critical and (kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND") or (kind == b"IHDR") != (at == 8)):
            raise Unreadable(f"damaged PNG: a chunk {kind.decode('latin-1')} where it cannot be")
        if critical and zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Unreadable(f"damaged PNG: the checksum of its {kind.decode('latin-1')} chunk is wrong")
        at = end + 4


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
