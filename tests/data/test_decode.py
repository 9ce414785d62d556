import io
import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medvitlib.data import decode as module
from medvitlib.data.decode import Unreadable, decode, fit, is_grey
from medvitlib.data.read_image import read_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # its remarks on damaged metadata

RNG = np.random.default_rng(0)
GREY = cv2.GaussianBlur(RNG.integers(0, 256, (40, 56), dtype=np.uint8), (5, 5), 0)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (40, 56, 3), dtype=np.uint8), (5, 5), 0)
RGBA = np.dstack([RGB, RNG.integers(0, 256, (40, 56), dtype=np.uint8)])
LOSSLESS = {"PNG": "a.png", "BMP": "a.bmp", "TIFF": "a.tiff"}
FORMATS = LOSSLESS | {"JPEG": "a.jpg"}


def saved(image, kind: str, **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels_that_were_saved(kind):
    assert (decode(saved(GREY, kind), LOSSLESS[kind]) == GREY[..., None]).all()
    assert (decode(saved(RGB, kind), LOSSLESS[kind]) == RGB).all()
    assert (decode(saved(RGBA, kind), LOSSLESS[kind]) == RGB).all()  # alpha is dropped, not multiplied in


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg_is_close_to_what_pillow_reads(options):
    for image in (GREY, RGB):
        data = saved(image, "JPEG", quality=95, subsampling=0, **options)
        expected = np.array(Image.open(io.BytesIO(data))).reshape(40, 56, -1)
        assert np.abs(decode(data, "a.jpeg").astype(int) - expected).max() <= 2


def test_palette_one_bit_cmyk_and_grey_alpha():
    palette, bits, cmyk = Image.fromarray(RGB).convert("P"), Image.fromarray(GREY).convert("1"), Image.fromarray(RGB)
    for kind in ("PNG", "BMP"):
        assert (decode(saved(palette, kind), "a") == np.array(palette.convert("RGB"))).all()
    for kind in LOSSLESS:
        assert (decode(saved(bits, kind), "a")[..., 0] == np.array(bits.convert("L"))).all()
    data = saved(cmyk.convert("CMYK"), "JPEG", quality=100, subsampling=0)
    assert np.abs(decode(data, "a.jpg").astype(int) - np.array(Image.open(io.BytesIO(data)).convert("RGB"))).max() <= 2
    assert (decode(saved(RGBA[..., :2], "PNG"), "a.png") == RGBA[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "pixels"), [("JPEG", RGB), ("PNG", RGB), ("PNG", RGBA), ("TIFF", RGB), ("TIFF", RGBA)]
)
def test_exif_orientation_is_applied(kind, pixels, orientation):
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x112] = orientation
    data = saved(image, kind, exif=exif)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))[..., :3]
    assert np.abs(decode(data, FORMATS[kind]).astype(int) - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_is_stretched_over_its_own_range(suffix):
    twelve_bits = np.linspace(1000, 4095, 40 * 56).reshape(40, 56).astype(np.uint16)
    for image in (twelve_bits, np.dstack([twelve_bits] * 3)):
        out = decode(cv2.imencode(suffix, image)[1].tobytes(), "a" + suffix)[..., 0]
        assert (out.min(), out.max()) == (0, 255)
        assert np.abs(out - (twelve_bits - 1000.0) * 255 / 3095).max() <= 0.51
    flat = np.full((4, 4), 777, np.uint16)
    assert (decode(cv2.imencode(suffix, flat)[1].tobytes(), "a" + suffix) == 0).all()


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "a.png", "empty file"),
        (b"id,label\n1,2\n", "a.png", "text"),
        (b"<!DOCTYPE html><html>404", "a.jpg", "web page"),
        (b"GIF89a" + bytes(40), "a.png", r"GIF.*\(the name says PNG\)"),
        (b"%PDF-1.4", "a.png", "it is a PDF file"),
        (bytes(128) + b"DICM" + bytes(40), "scan", "DICOM"),
        (b"\x00\x01\x02\x03", "a.tif", "starts with 00 01 02 03"),
        (saved(RGB, "JPEG")[:-40], "a.png", r"truncated or damaged JPEG.*\(the name says PNG\)"),
        (cv2.imencode(".tiff", GREY.astype(np.float32))[1].tobytes(), "a.tif", "float32 pixels"),
        (cv2.imencode(".tiff", RGB.astype(np.float32))[1].tobytes(), "a.tif", "floating-point colours"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, name, says):
    with pytest.raises(Unreadable, match=says):
        decode(data, name)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_truncation_passes(kind):
    for image in (GREY, RGB):
        data = saved(image, kind)
        for end in [*range(1, len(data), 97), len(data) - 3, len(data) - 1]:
            with pytest.raises(Unreadable):
                decode(data[:end], FORMATS[kind])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_padding_after_the_end_is_harmless(kind):
    data = saved(RGB, kind)
    assert (decode(data + bytes(3000), FORMATS[kind]) == decode(data, FORMATS[kind])).all()


def test_a_flipped_bit_in_a_png_is_noticed():
    data = bytearray(saved(RGB, "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(Unreadable, match="checksum"):
        decode(bytes(data), "a.png")


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 40 * 56 - 1)
    with pytest.raises(Unreadable, match="million pixels"):
        decode(saved(RGB, "PNG"), "a.png")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.booleans(), st.data())
def test_damaged_bytes_end_in_an_image_or_a_reason(kind, colour, draw):
    data = bytearray(saved(RGB if colour else GREY, kind))
    for _ in range(draw.draw(st.integers(0, 8))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    try:
        image = decode(bytes(data[:cut]), FORMATS[kind])
    except Unreadable as reason:
        assert str(reason)
    else:
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["a.png", "a.jpg", "a.tif", "a.bmp", "a"]))
def test_any_bytes_end_in_an_image_or_a_reason(data, name):
    try:
        assert decode(data, name).dtype == np.uint8
    except Unreadable as reason:
        assert str(reason)


def test_fit_leaves_the_right_size_alone_and_averages_when_shrinking():
    assert fit(RGB, (40, 56)) is RGB
    blocks = np.kron(np.arange(16, dtype=np.uint8).reshape(4, 4) * 9, np.ones((5, 5), np.uint8))[..., None]
    assert (fit(blocks, (4, 4))[..., 0] == np.arange(16).reshape(4, 4) * 9).all()
    assert fit(GREY[..., None], (80, 30)).shape == (80, 30, 1) and fit(RGB, (80, 100)).shape == (80, 100, 3)


def test_is_grey_looks_at_every_pixel():
    image = np.repeat(GREY[..., None], 3, axis=2)
    assert is_grey(image) and is_grey(image[..., :1])
    image[39, 55, 2] ^= 1
    assert not is_grey(image)


def tiff16(pixels, photometric, alpha=False) -> bytes:
    """An uncompressed 16-bit TIFF, written out by hand: Pillow and OpenCV write no such kinds."""
    height, width = pixels.shape[:2]
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    bits, data = struct.pack(f"<{samples}H", *[16] * samples), pixels.astype("<u2").tobytes()
    entries = {256: width, 257: height, 258: None, 259: 1, 262: photometric, 273: None, 277: samples, 278: height}
    entries |= {279: len(data)} | ({338: 2} if alpha else {})
    end = 8 + 2 + 12 * len(entries) + 4
    table = b""
    for tag, value in sorted(entries.items()):
        if tag == 258:
            table += struct.pack("<HHI", tag, 3, samples)
            table += bits.ljust(4, b"\0") if samples <= 2 else struct.pack("<I", end)
        else:
            table += struct.pack("<HHII", tag, 4, 1, end + len(bits) if tag == 273 else value)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + table + b"\0" * 4 + bits + data


DEEP = np.linspace(0, 4095, 40 * 56).reshape(40, 56).astype(np.uint16)


def test_16_bit_tiffs_where_white_is_zero_are_turned_round():
    black, white = decode(tiff16(DEEP, 1), "a.tif"), decode(tiff16(DEEP, 0), "a.tif")
    assert black[0, 0] == 0 and black[-1, -1] == 255
    assert (white == 255 - black).all()


def test_16_bit_tiffs_with_alpha_keep_their_depth_or_are_refused():
    colours = np.dstack([DEEP, DEEP // 2, 4095 - DEEP])
    faint = np.dstack([colours, np.full_like(DEEP, 7)])
    assert (decode(tiff16(faint, 2, alpha=True), "a.tif") == decode(tiff16(colours, 2), "a.tif")).all()
    with pytest.raises(Unreadable, match="lose its depth"):
        decode(tiff16(faint[..., 2:], 1, alpha=True), "a.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.jpg.1", "a.png~", "a"])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "WebP"])
def test_a_file_is_what_its_content_says(kind, name):
    options = {"lossless": True} if kind == "WebP" else {}
    grey = saved(GREY, kind, **options)
    np.testing.assert_array_equal(decode(grey, name)[..., 0], GREY)


@pytest.mark.parametrize("kind", ["GIF", "WebP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken_and_said(kind):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY), Image.fromarray(GREY // 2)]
    data = io.BytesIO()
    options = {"lossless": True} if kind == "WebP" else {}
    frames[0].save(data, kind, save_all=True, append_images=frames[1:], **options)
    picture = read_image(data.getvalue())
    assert picture.pages == 3 and picture.ends is None
    np.testing.assert_array_equal(picture.pixels[..., 0], GREY)


def test_colours_of_16_bits_in_planes_apart_are_refused_for_opencv_reads_unset_memory():
    header = struct.pack("<2sHI", b"II", 42, 8)
    height, width = 8, 16
    plane, entries = height * width * 2, 11
    extra = 8 + 2 + 12 * entries + 4
    bits, offsets, counts, pixels = extra, extra + 6, extra + 18, extra + 30
    rows = [
        (256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, offsets), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 3, counts), (284, 3, 1, 2), (339, 3, 1, 1),
    ]  # fmt: skip
    ifd = struct.pack("<H", entries) + b"".join(struct.pack("<HHII", *row) for row in rows) + bytes(4)
    tail = struct.pack("<3H", 16, 16, 16) + struct.pack("<3I", *(pixels + k * plane for k in range(3)))
    tail += struct.pack("<3I", plane, plane, plane)
    data = header + ifd + tail + np.random.default_rng(0).integers(0, 2**16, 3 * plane // 2, np.uint16).tobytes()
    with pytest.raises(Unreadable, match="planes apart: save it as a PNG"):
        decode(data, "a.tif")


def test_a_header_that_promises_gigabytes_is_refused_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(module, "_check_whole", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(module, "MAX_BYTES", 40 * 56 * 6 - 1)
    deep = np.zeros((40, 56, 3), np.uint16)
    for suffix in (".png", ".tiff"):
        with pytest.raises(Unreadable, match=r"claims 56x40 px of 48 bits, more than"):
            decode(cv2.imencode(suffix, deep)[1].tobytes())
    with pytest.raises(Unreadable, match=r"of 96 bits"):
        decode(cv2.imencode(".tiff", deep.astype(np.float32))[1].tobytes())
