"""A DICOM file as a viewer shows it: rescaled, windowed, bright as bright; anything else refused in words."""

import io

import numpy as np
import pytest

from medvitlib.data import dicom
from medvitlib.data.decode import Unreadable
from medvitlib.data.dicom import decode_dicom, is_dicom, save_dicom, window

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402 (after the check that it is there)
from pydicom.uid import ExplicitVRLittleEndian  # noqa: E402

RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def written(pixels: np.ndarray, **more) -> bytes:
    """A file of these pixels, 12 bits in 16 unless said otherwise."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns = pixels.shape[:2]
    colour, wide = pixels.ndim == 3, pixels.dtype.itemsize > 1
    file.SamplesPerPixel = 3 if colour else 1
    file.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    file.BitsAllocated, file.BitsStored = (16, 12) if wide else (8, 8)
    file.HighBit, file.PixelRepresentation = file.BitsStored - 1, int(pixels.dtype.kind == "i")
    if colour:
        file.PlanarConfiguration = 0
    file.PixelData = pixels.tobytes()
    for name, value in more.items():
        setattr(file, name, value)
    target = io.BytesIO()
    pydicom.dcmwrite(target, file, enforce_file_format=True)
    return target.getvalue()


@pytest.mark.parametrize("inverted", [False, True])
def test_what_is_saved_looks_the_same_when_read(inverted, tmp_path):
    image = np.arange(40, 184, dtype=np.uint8).reshape(12, 12, 1)  # a range that stretching would change
    save_dicom(tmp_path / "slice.dcm", image, inverted=inverted)
    data = (tmp_path / "slice.dcm").read_bytes()
    assert is_dicom(data)
    np.testing.assert_array_equal(decode_dicom(data), image)


def test_a_file_is_known_by_its_bytes():
    assert is_dicom(written(RAMP)) and not is_dicom(b"\x89PNG\r\n\x1a\n" + bytes(200)) and not is_dicom(b"")


def test_without_a_window_all_values_are_shown():
    image = decode_dicom(written(RAMP))
    assert image.shape == (16, 16, 1) and image.dtype == np.uint8
    assert image[0, 0, 0] == 0 and image[-1, -1, 0] == 255
    np.testing.assert_allclose(image[..., 0], RAMP / RAMP.max() * 255, atol=0.51)


def test_rescaled_before_it_is_windowed():
    """CT: stored 0 is -1024 HU; a window of 400 around 40 shows -160 to 240."""
    image = decode_dicom(written(RAMP, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400))[
        ..., 0
    ]
    hounsfield = RAMP.astype(float) - 1024
    assert (image[hounsfield <= -160] == 0).all() and (image[hounsfield >= 239] == 255).all()
    middle = np.abs(hounsfield - 40) < 150
    np.testing.assert_allclose(image[middle], ((hounsfield[middle] - 39.5) / 399 + 0.5) * 255, atol=0.51)


def test_the_first_of_several_windows_is_used():
    two = written(RAMP, WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    assert np.array_equal(decode_dicom(two), decode_dicom(written(RAMP, WindowCenter=1000, WindowWidth=500)))


def test_monochrome1_is_turned_round():
    plain, inverse = (decode_dicom(written(RAMP, PhotometricInterpretation=f"MONOCHROME{k}")) for k in (2, 1))
    assert np.array_equal(plain, 255 - inverse)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_is_outside_the_field_of_view_does_not_set_the_scale_and_is_dark(photometric):
    padded = RAMP.copy() + 100
    padded[:4] = 0
    image = decode_dicom(written(padded, PixelPaddingValue=0, PhotometricInterpretation=photometric))[..., 0]
    inside = image[4:]
    assert inside.min() == 0 and inside.max() == 255
    assert (image[:4] == 0).all()


def test_colour_stays_colour_and_signed_values_are_signed():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(decode_dicom(written(pixels)), pixels)
    signed = np.linspace(-1000, 1000, 64).astype(np.int16).reshape(8, 8)
    image = decode_dicom(written(signed))[..., 0]
    assert image[0, 0] == 0 and image[-1, -1] == 255


def test_windows_are_those_of_the_standard():
    values = np.array([[-1000.0, 0.0, 50.0, 99.0, 1000.0]])
    assert window(values, 50, 100).tolist() == [[0, 0, 129, 255, 255]]
    assert window(values, 50, 100, "LINEAR_EXACT").tolist() == [[0, 0, 128, 252, 255]]
    assert window(values, 50, 100, "SIGMOID")[0, 2] == 128 and window(values, 50, 1).tolist() == [[0, 0, 255, 255, 255]]
    for bad in ((50, 0, "LINEAR"), (50, 0, "SIGMOID"), (50, 100, "CUBIC")):
        with pytest.raises(Unreadable, match="window"):
            window(values, *bad)


def test_what_is_no_single_picture_is_refused():
    whole = written(RAMP)
    for data, words in (
        (whole[:200], "damaged DICOM file"),
        (whole[:-100], "cannot be decoded"),
        (written(np.concatenate([RAMP, RAMP]), Rows=16, NumberOfFrames=2), "of 2 frames"),
    ):
        with pytest.raises(Unreadable, match=words):
            decode_dicom(data)


def palette(tables, bits):
    names = dict(zip(("Red", "Green", "Blue"), tables, strict=True))
    kind = "<u2" if bits == 16 else "u1"
    return (
        {"PhotometricInterpretation": "PALETTE COLOR"}
        | {f"{name}PaletteColorLookupTableDescriptor": [256, 0, bits] for name in names}
        | {f"{name}PaletteColorLookupTableData": table.astype(kind).tobytes() for name, table in names.items()}
    )


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("ends", [(0, 255), (60, 180), (200, 200)])
def test_a_palettes_colours_are_taken_as_they_are_not_stretched(bits, ends):
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    table = np.linspace(*ends, 256).astype(np.uint16)
    tables = [table, table[::-1], np.full(256, 50, np.uint16)]
    image = decode_dicom(written(index, **palette([t * 257 if bits == 16 else t for t in tables], bits)))
    np.testing.assert_array_equal(image, np.stack([t[index] for t in tables], -1))


def test_eight_bits_in_sixteen_and_bits_that_start_higher_up_are_not_stretched():
    low = (np.arange(256, dtype=np.uint16) // 4 + 60).reshape(16, 16)
    np.testing.assert_array_equal(decode_dicom(written(low, BitsStored=8, HighBit=7))[..., 0], low)
    shifted = written((low << 4) | 3, BitsStored=8, HighBit=11)
    np.testing.assert_array_equal(decode_dicom(shifted)[..., 0], low)


def test_colours_of_sixteen_bits_keep_their_scale():
    rgb = np.random.default_rng(0).integers(60, 200, (16, 16, 3)).astype(np.uint16)
    image = decode_dicom(written(rgb * 257, BitsStored=16, HighBit=15))
    np.testing.assert_array_equal(image, rgb)


def test_an_intercept_alone_is_used_with_a_slope_of_one():
    moved = written(RAMP, RescaleIntercept=-1024, WindowCenter=1024, WindowWidth=4096)
    np.testing.assert_array_equal(decode_dicom(moved), decode_dicom(written(RAMP, WindowCenter=2048, WindowWidth=4096)))


def test_what_inflates_to_gigabytes_is_refused(monkeypatch):
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    pixels = np.zeros((64, 64), np.uint8)
    file = pydicom.dcmread(io.BytesIO(written(pixels)))
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(target := io.BytesIO(), file, enforce_file_format=True)
    np.testing.assert_array_equal(decode_dicom(target.getvalue())[..., 0], pixels)
    monkeypatch.setattr(dicom, "MAX_BYTES", 4000)
    with pytest.raises(Unreadable, match="inflates to more than"):
        decode_dicom(target.getvalue())
    with pytest.raises(Unreadable, match="claims 64x64"):
        decode_dicom(written(pixels))
