"""One DICOM file to one uint8 image, as a viewer would show it: rescaled, windowed, and with bright as bright.

The order is that of DICOM PS3.3 C.11: stored values, modality (rescale), values of interest (a window or a table),
then the photometric interpretation. A training set of exported PNGs had these applied when it was exported.
"""

import io
import zlib
from pathlib import Path

import numpy as np

from medvitlib.data.decode import MAX_BYTES, MAX_PIXELS, Unreadable, Window, silence, to_8_bit
from medvitlib.data.tables import known_group

MAGIC = b"DICM"  # at byte 128
LONGEST = 120
"""Characters of another library's message that are shown."""
DEFLATED = b"1.2.840.10008.1.2.1.99"
HEADER = {
    **dict.fromkeys(("PatientID", "StudyInstanceUID", "SeriesInstanceUID"), True),
    **dict.fromkeys(("Modality", "ViewPosition", "Laterality", "ImageLaterality", "BodyPartExamined"), False),
    **dict.fromkeys(("Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName"), False),
    **dict.fromkeys(("PatientSex", "PhotometricInterpretation", "BurnedInAnnotation"), False),
}
"""Fields that are read of each file, and whether they only name what belongs together."""


def is_dicom(data: bytes) -> bool:
    """Whether a file's bytes are DICOM's, whatever it is called (it often has no ending)."""
    return data[128:132] == MAGIC


def decode_dicom(data: bytes, window: Window = None) -> np.ndarray:
    """The picture of a DICOM file.

    Without a window, the first window (or table) of the file is used. A file without any is taken as it is where its
    values have 8 bits, as those of exported pictures, and else stretched from its smallest value to its largest.
    MONOCHROME1, in which small values are bright, is inverted. Padding outside the field of view is shown as the
    smallest value of the rest.

    Args:
        data: the whole file.
        window: lower and upper end of the rescaled values (in a CT, Hounsfield units), used instead of the file's own.

    Returns:
        uint8, (H, W, 1) if monochrome, else (H, W, 3) in RGB order.

    Raises:
        Unreadable: damaged, without pixels, with several frames, or compressed in a way that no decoder is at hand for.
    """
    try:
        import pydicom
    except ImportError:
        raise Unreadable("a DICOM file, and pydicom is not installed: pip install pydicom") from None
    silence()
    _check_inflation(data)
    try:
        file = pydicom.dcmread(io.BytesIO(data))
        frames, size = int(file.get("NumberOfFrames") or 1), int(file.Rows) * int(file.Columns)
        kind = str(file.PhotometricInterpretation)
        samples = int(file.get("SamplesPerPixel") or 1) * int(file.get("BitsAllocated") or 8)
    except Exception as error:  # its parser raises whatever the damage provokes
        raise Unreadable(f"damaged DICOM file, or one without pixels: {_first_line(error)}") from None
    if frames > 1:
        raise Unreadable(f"a DICOM file of {frames} frames: save the one that is meant as a file of its own")
    if size > MAX_PIXELS or size * samples > 8 * MAX_BYTES:
        raise Unreadable(f"claims {file.Columns}x{file.Rows} px, more than {MAX_PIXELS / 1e6:.0f} million pixels")
    try:
        return _shown(file, kind, window)
    except Unreadable:
        raise
    except Exception as error:  # as above; or a compression that needs another package, which pydicom then names
        raise Unreadable(f"the pixels of this DICOM file cannot be decoded: {_first_line(error)}") from None


def _shown(file, kind: str, limits: Window) -> np.ndarray:
    """The pixels of a parsed file, as `decode_dicom` returns them."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

    stored = _stored(file)  # YBR comes as RGB
    if kind == "PALETTE COLOR":
        colours = apply_color_lut(stored, file)
        return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)  # entries fill 16 bits
    if stored.ndim == 3:
        return np.rint(stored * (255 / (2 ** int(file.BitsStored) - 1))).astype(np.uint8)
    if file.get("RescaleIntercept") is not None and file.get("RescaleSlope") is None:
        file.RescaleSlope = 1
    padding = _padding(file, stored)
    values = np.asarray(apply_modality_lut(stored, file), np.float64)
    if limits is not None:
        image = to_8_bit(values, limits)
    elif file.get("VOILUTSequence"):
        table = file.VOILUTSequence[0]
        shown = np.asarray(apply_voi(values.astype(np.int64), file), np.float64) / (
            2 ** int(table.LUTDescriptor[2]) - 1
        )
        image = np.rint(255 * shown.clip(0, 1)).astype(np.uint8)
    elif file.get("WindowWidth") not in (None, ""):
        image = window(
            values, _first(file.WindowCenter), _first(file.WindowWidth), file.get("VOILUTFunction", "LINEAR")
        )
    elif int(file.BitsStored) == 8 and np.array_equal(values, stored) and stored.min() >= 0:
        image = stored.astype(np.uint8)
    else:
        image = _stretched(values, values[~padding])
    if padding.any():
        image[padding] = image[~padding].min() if kind != "MONOCHROME1" else image[~padding].max()
    return (255 - image if kind == "MONOCHROME1" else image)[:, :, None]


def _check_inflation(data: bytes) -> None:
    """Refuse a deflated file (PS3.5 A.5) that grows beyond `MAX_BYTES`: pydicom inflates all of it at once."""
    head = data[132:4096]
    if DEFLATED not in head or head[:4] != b"\x02\0\0\0":
        return
    start = 144 + int.from_bytes(head[8:12], "little")  # behind the meta information, whose length comes first
    inflating = zlib.decompressobj(-zlib.MAX_WBITS)
    grown, rest = 0, data[start:]
    try:
        while rest:
            grown += len(inflating.decompress(rest, 2**24))
            if grown > MAX_BYTES:
                raise Unreadable(f"a DICOM file that inflates to more than {MAX_BYTES / 2**20:.0f} MB")
            rest = inflating.unconsumed_tail
    except zlib.error:
        return  # pydicom says what is wrong


def _stored(file) -> np.ndarray:
    """The stored values; those that do not start at the lowest bit are moved there, without what lies below."""
    above = int(file.HighBit) + 1 - int(file.BitsStored)
    if above <= 0 or int(file.SamplesPerPixel) > 1:
        return file.pixel_array
    bits = file.BitsStored
    file.BitsStored = int(file.HighBit) + 1
    try:
        return file.pixel_array >> above
    finally:
        file.BitsStored = bits


def save_dicom(path: str | Path, image: np.ndarray, *, inverted: bool = False) -> None:
    """Write a grey picture as a DICOM file without a patient (a secondary capture): for lessons and tests.

    Args:
        image: uint8 (H, W) or (H, W, 1).
        inverted: store it as MONOCHROME1, in which small values are bright; it looks the same.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    pixels = np.ascontiguousarray(image, np.uint8).reshape(image.shape[:2])
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=[pixels.tobytes().hex()]
    )
    file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    file.PixelData = (255 - pixels if inverted else pixels).tobytes()
    file.save_as(path, enforce_file_format=True)


def window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values (H, W) through a window to uint8 (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Raises:
        Unreadable: a width below what the function takes, or an unknown function.
    """
    function = function or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise Unreadable(f"a window of the kind {function}, which this library does not know")
    if width < (1 if function == "LINEAR" else 1e-9):
        raise Unreadable(f"a window of width {width:g}")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values - centre) / width))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif width == 1:
        share = (values > centre - 0.5).astype(np.float64)
    else:
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(255 * share.clip(0, 1)).astype(np.uint8)


def header_of(path: Path) -> dict[str, str]:
    """The fields `HEADER` of a DICOM file, without those that it leaves empty; nothing where the file is no DICOM."""
    try:
        with open(path, "rb") as file:
            if not is_dicom(file.read(132)):
                return {}
            import pydicom

            file.seek(0)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(HEADER))
            found = {name: known_group(header.get(name)) for name in HEADER}
            return {name: value for name, value in found.items() if value}
    except Exception:  # its parser raises whatever the damage provokes; the pixels say what is wrong
        return {}


def _padding(file, stored: np.ndarray) -> np.ndarray:
    """Bool (H, W): what is outside of the field of view, as the file says (PS3.3 C.7.5.1.1.2)."""
    if file.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    ends = [int(file.PixelPaddingValue), int(file.get("PixelPaddingRangeLimit", file.PixelPaddingValue))]
    found = (stored >= min(ends)) & (stored <= max(ends))
    return found if not found.all() else np.zeros(stored.shape, bool)


def _stretched(values: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """From the smallest value to the largest, to uint8; a plain image is black."""
    of = values if of is None else of
    low, high = of.min(), of.max()
    return np.rint(255 * ((values - low) / max(high - low, 1e-12)).clip(0, 1)).astype(np.uint8)


def _first(value) -> float:
    """The first of several windows."""
    return float(value[0] if isinstance(value, list | tuple) or hasattr(value, "append") else value)


def _first_line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."  # pydicom quotes whole values, of patients too
