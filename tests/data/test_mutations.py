"""A thousand and more damaged files: each is set aside with a reason or read as an image; nothing else may happen."""

import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from medvitlib.data import open_dataset
from medvitlib.data.decode import Unreadable, decode, fit
from medvitlib.data.incoming import read
from medvitlib.data.transforms import Preprocessing
from medvitlib.errors import DataError

ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif"}


def picture(kind: str, mode: str, rng: random.Random) -> bytes:
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (23, 31, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def truncated(data, rng):
    return data[: rng.randrange(1, len(data))]


def flipped(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def flipped_head(data, rng):
    data = bytearray(data)
    data[rng.randrange(min(60, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)


def spliced(data, rng):
    other = picture(*rng.choice(PICTURES), rng)
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def overwritten(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(200) + data[at + 200 :]


def huge(data, rng):
    """A header that claims more pixels than any memory holds."""
    side = rng.choice((2**15, 2**16 - 1, 2**31 - 1))
    if data[:4] == b"\x89PNG":
        head = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
        return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    if data[:2] == b"BM":
        return data[:18] + struct.pack("<ii", side, side) + data[26:]
    if data[:2] == b"\xff\xd8":
        at = data.index(b"\xff\xc0") + 5
        return data[:at] + struct.pack(">HH", 65535, 65535) + data[at + 4 :]
    at = struct.unpack_from("<I", data, 4)[0] + 2  # TIFF: width and height are the first two entries, 12 bytes each
    return (
        data[: at + 2]
        + struct.pack("<HII", 4, 1, side)
        + data[at + 12 : at + 14]
        + struct.pack("<HII", 4, 1, side)
        + (data[at + 24 :])
    )


PICTURES = [(kind, mode) for kind in ENDINGS for mode in ("L", "RGB")]
PICTURES += [("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "P"), ("TIFF", "RGBA"), ("TIFF", "I;16"), ("BMP", "1")]
MUTATIONS = [truncated, flipped, flipped_head, spliced, overwritten, huge]


@pytest.mark.filterwarnings("ignore")  # the one that sums them up, and Pillow's own
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_damaged_image_is_set_aside_or_read(tmp_path, mutation):
    rng, originals = random.Random(mutation.__name__), {}
    for k in range(84):
        kind, mode = PICTURES[k % len(PICTURES)]
        path = tmp_path / "set" / "ab"[k % 2] / f"{k:03d}{ENDINGS[kind]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        original = picture(kind, mode, rng)
        path.write_bytes(mutation(original, rng) if k >= 4 else original)  # some are whole, or nothing would open
        originals[path.relative_to(tmp_path / "set").as_posix()] = original
    ds = open_dataset(tmp_path / "set", image_size=16, max_bad=1.0)
    aside = {"/".join(q.path.split("/")[-2:]): q.reason for q in ds.quarantine}
    assert set(aside) | set(ds.ids) == set(originals) and not set(aside) & set(ds.ids)
    assert all(reason.strip() and "\n" not in reason for reason in aside.values())
    assert len(aside) > 20 and sorted(ds.ids)[0] == "a/000.png"
    if mutation is huge:
        assert len(aside) == 80
    for i, ident in enumerate(ds.ids):
        image = decode((tmp_path / "set" / ident).read_bytes(), ident)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3) and image.size
        assert (ds.images[i] == fit(image, (16, 16))).all()
        if ident.endswith(".png"):  # what has a checksum is never read wrongly
            assert (image == decode(originals[ident], ident)).all()


def dicom(rng: random.Random) -> bytes:
    """One of the forms that DICOM files have, compressed or not, with or without what says how it is shown."""
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    from medvitlib.data.dicom import save_dicom

    buffer = io.BytesIO()
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (17, 23), dtype=np.uint8)
    save_dicom(buffer, pixels, inverted=rng.random() < 0.3)
    file = dcmread(io.BytesIO(buffer.getvalue()))
    if rng.random() < 0.5:
        file.PixelData = (pixels.astype(np.int16) * 12 - 900).tobytes()
        file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 1
        file.RescaleSlope, file.RescaleIntercept = rng.choice((1, 2.5)), rng.choice((0, -1024))
    if rng.random() < 0.5:
        file.WindowCenter, file.WindowWidth = rng.choice(((40, 400), ([40, 80], [400, 800]), ("", ""), (0, 1)))
    if rng.random() < 0.3:
        file.add_new("PixelPaddingValue", "SS" if file.PixelRepresentation else "US", int(pixels[0, 0]))
    syntax = rng.choice((None, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless))
    if syntax == RLELossless:
        file.compress(syntax)
    elif syntax:
        file.file_meta.TransferSyntaxUID = syntax
    target = io.BytesIO()
    implicit = {"implicit_vr": True, "little_endian": True} if syntax == ImplicitVRLittleEndian else {}
    file.save_as(target, enforce_file_format=True, **implicit)
    return target.getvalue()


def tiff(rng: random.Random) -> bytes:
    """A TIFF of more than 8 bits, signed, floating, or compressed."""
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 4096, (17, 23, 3))
    kind = rng.choice((np.uint16, np.int16, np.int32, np.float32))
    pixels = pixels[..., 0] if rng.random() < 0.6 or kind == np.int32 else pixels
    flags = [cv2.IMWRITE_TIFF_COMPRESSION, rng.choice((1, 5, 8, 32946))]
    return cv2.imencode(".tiff", pixels.astype(kind), flags)[1].tobytes()


def header_changed(data: bytes, rng: random.Random) -> bytes:
    """A value in the first or last part, where DICOM and TIFF keep what describes the pixels."""
    data, at = bytearray(data), rng.randrange(132, min(len(data), 900))
    at = at if rng.random() < 0.6 else rng.randrange(max(0, len(data) - 200), len(data))
    for k in range(rng.choice((1, 2, 4))):
        if at + k < len(data):
            data[at + k] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(data)


SCANS = 250  # of each kind


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("window", [None, (0.0, 4095.0)])
@pytest.mark.parametrize("make", [dicom, tiff])
def test_a_damaged_scan_is_a_picture_or_a_reason(tmp_path, make, window):
    """As a set and as something to answer on: nothing but a reason may come of one."""
    rng = random.Random(f"{make.__name__}{window}")
    ways, good = (truncated, flipped, overwritten, header_changed, header_changed, header_changed), 0
    for k in range(SCANS):
        path = tmp_path / "set" / "ab"[k % 2] / f"{k:03d}{'.tif' if make is tiff else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        original = make(rng)
        path.write_bytes(original if k < 6 else rng.choice(ways)(original, rng))
        try:
            image = read(str(path), None, Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3, window=window)).pixels
            assert image.dtype == np.uint8 and image.shape[:2] == (16, 16)
            good += 1
        except Unreadable as reason:
            assert str(reason).strip() and len(str(reason)) < 400
    ds = open_dataset(tmp_path / "set", image_size=16, max_bad=1.0, window=window, quiet=True)
    assert len(ds) == good and len(ds) + len(ds.quarantine) == SCANS and 0.05 * SCANS < good < 0.95 * SCANS


def test_renamed_emptied_and_foreign_files_are_set_aside(tmp_path):
    rng, expected = random.Random(0), 0
    foreign = [
        b"",
        b" ",
        b"\0" * 500,
        b"GIF89a" + bytes(50),
        b"PK\x03\x04",
        b"<html>",
        b"text, not pixels",
        b"\xff\xd8\xff",
    ]
    for kind in ENDINGS:
        for name in ENDINGS:
            path = tmp_path / "set" / "ab"[len(name) % 2] / f"{kind}{ENDINGS[name]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(kind, "RGB", rng))  # read as what it is, whatever it is called
        for k, content in enumerate(foreign):
            (tmp_path / "set" / "a" / f"{k}{ENDINGS[kind]}").write_bytes(content)
            expected += 1
    with pytest.warns(UserWarning, match=f"{expected} of"):
        ds = open_dataset(tmp_path / "set", image_size=16, max_bad=1.0)
    assert {ident[2:] for ident in ds.ids} == {f"{kind}{ending}" for kind in ENDINGS for ending in ENDINGS.values()}
    assert len(ds.quarantine) == expected and all(q.reason for q in ds.quarantine)


TABLE = ["path,class,split,group"] + [
    f"{c}/img_{k}.png,{c},{'test' if k else 'train'},p{k}" for c in "ab" for k in range(5)
]


def damaged(text: str, rng: random.Random) -> bytes:
    data, at = bytearray(text.encode()), rng.randrange(len(text))
    ways = [
        lambda: data[:at],
        lambda: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        lambda: (
            data[:at]
            + rng.choice((b"\0", b'"', b"\r", b"\xff\xfe", b",,,,", b"\n\n", b"../../", b"x" * 200_000))
            + data[at:]
        ),
        lambda: data[:at] + rng.randbytes(30) + data[at:],
        lambda: data[at:],
        lambda: data.replace(b",", rng.choice((b";", b"\t", b", ", b"")), rng.randrange(1, 20)),
        lambda: data.decode().encode("utf-16"),
        lambda: data.upper(),
    ]
    return bytes(rng.choice(ways)())


@pytest.mark.filterwarnings("ignore")  # of missing images
@pytest.mark.parametrize("file", ["list.csv", "groups.csv", "source_groups.csv"])
def test_a_damaged_table_is_read_or_is_one_error(tmp_path, write_classes, file):
    folder = write_classes(tmp_path / "set", {"a": 5, "b": 5})
    rng, refused = random.Random(file), 0
    lines = TABLE
    if file == "source_groups.csv":
        lines = ["split,class,file,source"] + [f",{c},img_{k}.png,p{k}" for c in "ab" for k in range(5)]
    for _ in range(120):
        (folder / file).write_bytes(damaged("\n".join(lines), rng))
        try:
            ds = open_dataset(folder / file if file == "list.csv" else folder, image_size=16, max_bad=1.0)
        except DataError as error:
            refused += 1
            assert str(error)
        else:
            assert len(ds) + len(ds.quarantine) <= 10 and len(ds.classes) >= 2
    assert refused > 20
