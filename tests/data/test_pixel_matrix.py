"""Every combination of how a DICOM or TIFF file can hold the same pixels shows the same picture."""

import io
import itertools

import numpy as np
import pytest

from medvitlib.data.decode import Unreadable, decode
from medvitlib.data.dicom import decode_dicom, save_dicom

pydicom, tifffile = pytest.importorskip("pydicom"), pytest.importorskip("tifffile")
Y, X = np.mgrid[:24, :20]
GREY = (X * 11 + Y) % 256
RGB = np.stack([GREY, (Y * 10) % 256, (X + Y) * 5 % 256], -1)
SYNTAXES = {
    "explicit": pydicom.uid.ExplicitVRLittleEndian,
    "implicit": pydicom.uid.ImplicitVRLittleEndian,
    "deflated": pydicom.uid.DeflatedExplicitVRLittleEndian,
    "RLE": pydicom.uid.RLELossless,
}


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.rint((values - low) / (high - low) * 255)


def dicom(pixels: np.ndarray, syntax: str, **tags) -> bytes:
    buffer = io.BytesIO()
    save_dicom(buffer, np.zeros((2, 2), np.uint8))
    file = pydicom.dcmread(io.BytesIO(buffer.getvalue()))
    planar = tags.get("PlanarConfiguration")
    stored = np.moveaxis(pixels, -1, 0) if planar else pixels
    file.Rows, file.Columns = pixels.shape[:2]
    file.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    file.BitsAllocated = 8 * pixels.itemsize
    file.BitsStored = tags.pop("BitsStored", file.BitsAllocated)
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(file, name, value)
    file.PixelData = np.ascontiguousarray(stored).tobytes()
    if syntax == "RLE":
        file.compress(SYNTAXES[syntax])
    else:
        file.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    target = io.BytesIO()
    written = {"implicit_vr": True, "little_endian": True} if syntax == "implicit" else {}
    file.save_as(target, enforce_file_format=True, **written)
    return target.getvalue()


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_monochrome(syntax, kind):
    """Of 8, 12 and 16 bits, signed or not; shown by a window, by the file's own, and by neither."""
    for bits, signed in itertools.product((8, 12, 16), (False, True)):
        values = GREY * 2 ** (bits - 8) - (2 ** (bits - 1) if signed else 0)
        pixels = values.astype(f"{'i' if signed else 'u'}{1 if bits == 8 else 2}")
        turn = (lambda shown: 255 - shown) if kind == "MONOCHROME1" else (lambda shown: shown)
        plain = GREY if bits == 8 and not signed else stretched(values)
        data = dicom(pixels, syntax, PhotometricInterpretation=kind, BitsStored=bits)
        np.testing.assert_allclose(decode_dicom(data)[..., 0], turn(plain), atol=1, err_msg=f"{bits} {signed}")
        low, high = values.min() + 3, values.max() - 40
        by_hand = turn(np.rint(((values - low) / (high - low)).clip(0, 1) * 255))
        np.testing.assert_allclose(decode_dicom(data, (low, high))[..., 0], by_hand, atol=1)
        rescaled = dicom(
            pixels, syntax, PhotometricInterpretation=kind, BitsStored=bits, RescaleSlope=2, RescaleIntercept=-7
        )
        np.testing.assert_allclose(decode_dicom(rescaled, (2 * low - 7, 2 * high - 7))[..., 0], by_hand, atol=1)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("planar", [0, 1])
def test_colours(syntax, planar):
    if planar and syntax == "RLE":
        pytest.skip("RLE has planes of its own")
    for bits in (8, 16):
        pixels = (RGB * (257 if bits == 16 else 1)).astype(f"u{bits // 8}")
        data = dicom(pixels, syntax, PhotometricInterpretation="RGB", PlanarConfiguration=planar)
        np.testing.assert_allclose(decode_dicom(data), RGB, atol=1, err_msg=str(bits))
    stored = pydicom.pixels.convert_color_space(RGB.astype(np.uint8), "RGB", "YBR_FULL")
    data = dicom(stored, syntax, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
    expected = pydicom.pixels.convert_color_space(stored, "YBR_FULL", "RGB")
    np.testing.assert_allclose(decode_dicom(data), expected, atol=1)


TURNED = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1), 8: lambda a: np.rot90(a)}


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiffs(kind, channels):
    """Stripes or tiles, planes together or apart, compressed or not, turned; what is refused says so."""
    refused = 0
    for apart, packed, tiles, turn in itertools.product((False, True), (None, "zlib"), (False, True), TURNED):
        if channels == 1 and apart:
            continue
        values = (GREY if channels == 1 else RGB).astype(kind) * kind(1 if kind == np.uint8 else 200)
        stored = values
        if channels == 4:
            stored = np.dstack([values, np.full(GREY.shape, np.iinfo(kind).max, kind)])
        buffer = io.BytesIO()
        tifffile.imwrite(
            buffer,
            np.moveaxis(stored, -1, 0) if apart else stored,
            photometric="minisblack" if channels == 1 else "rgb",
            planarconfig=None if channels == 1 else ("separate" if apart else "contig"),
            compression=packed,
            tile=(16, 16) if tiles else None,
            extratags=[(274, 3, 1, turn, True)],
            **({"extrasamples": ["unassalpha"]} if channels == 4 else {}),
        )
        try:
            shown = decode(buffer.getvalue(), "a.tif")
        except Unreadable as reason:
            assert "save it" in str(reason)
            refused += 1
            continue
        expected = TURNED[turn](values if kind == np.uint8 else stretched(values.astype(float)))
        expected = expected[..., None] if channels == 1 else expected
        assert shown.shape == expected.shape, (apart, packed, tiles, turn)
        np.testing.assert_allclose(shown, expected, atol=1, err_msg=f"{apart} {packed} {tiles} {turn}")
    assert refused == (0 if kind == np.uint8 else {1: 0, 3: 16, 4: 16}[channels]), refused


def test_of_several_pages_the_first_is_taken_and_said(tmp_path, capsys):
    from medvitlib.data import open_dataset

    for k in range(6):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        pages = np.stack([np.full((8, 8), 10 * k + page, np.uint8) for page in range(3)])
        tifffile.imwrite(tmp_path / "ab"[k % 2] / f"{k}.tif", pages if k else pages[0], photometric="minisblack")
    ds = open_dataset(tmp_path, image_size=8)
    assert sorted(ds.images[i].max() for i in range(6)) == [0, 10, 20, 30, 40, 50]
    assert "pages: 5 files have several (up to 3): the first was taken" in capsys.readouterr().out
