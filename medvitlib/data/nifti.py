"""One 2-D NIfTI file to its values, by nibabel, where it is installed."""

import zlib

import numpy as np

from medvitlib.data.decode import MAX_BYTES, Unreadable, content_kind


def is_nifti(data: bytes) -> bool:
    """Whether a file's bytes are NIfTI's, compressed or not."""
    return content_kind(data) == "NIfTI"


def nifti_values(data: bytes) -> np.ndarray:
    """The rescaled values of one slice, (H, W, 1): from above (a sagittal one from the side), the patient's left on the
    left.

    Raises:
        Unreadable: nibabel is not installed; damaged; too large; several slices.
    """
    try:
        import nibabel
    except ImportError:
        raise Unreadable("a NIfTI file, and nibabel is not installed: pip install nibabel") from None
    try:
        if data[:2] == b"\x1f\x8b":
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, MAX_BYTES)  # and no more than that
        image = nibabel.Nifti1Image.from_bytes(data)
        sides = [side for side in image.shape if side > 1]
        if len(sides) > 2:
            raise Unreadable(f"a NIfTI volume of {' x '.join(map(str, image.shape))}: save single slices of it")
        if int(np.prod(image.shape)) * 8 > MAX_BYTES:
            raise Unreadable(f"claims {image.shape} values, more than {MAX_BYTES / 2**20:.0f} MB: cut it into tiles")
        values = np.asarray(nibabel.as_closest_canonical(image).dataobj).squeeze()
    except Unreadable:
        raise
    except Exception as error:  # nibabel raises whatever the damage provokes
        raise Unreadable(f"damaged NIfTI file ({type(error).__name__})") from None
    if values.ndim != 2 or values.dtype.kind not in "uif":
        raise Unreadable(f"a NIfTI file of {values.shape} {values.dtype}: expected one slice of numbers")
    return np.ascontiguousarray(values.T[::-1])[..., None]
