"""NIfTI slices: the right side up, with a range that is stated; volumes and damaged files give a reason."""

import cv2
import numpy as np
import pytest

from medvitlib.audit import audit
from medvitlib.data import open_dataset
from medvitlib.data.decode import Unreadable
from medvitlib.data.read_image import read_image
from medvitlib.errors import DataError

nibabel = pytest.importorskip("nibabel")
PICTURE = np.arange(12 * 9, dtype=np.int16).reshape(12, 9) * 10 - 300  # as it is to be shown: (rows, columns)


def written(path, values: np.ndarray, affine=None) -> bytes:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("flip", [False, True])
def test_a_slice_is_shown_the_right_side_up(tmp_path, name, flip):
    """The first axis runs to the patient's right, the second to the front, unless the affine turns them."""
    values, affine = PICTURE[::-1].T, np.eye(4)
    if flip:
        values, affine[0, 0] = values[::-1], -1
    data = written(tmp_path / name, np.ascontiguousarray(values)[..., None], affine)
    shown = read_image(data, name, (-300, 770)).pixels
    np.testing.assert_allclose(shown[..., 0], (PICTURE + 300) / 1070 * 255, atol=0.51)


def test_a_set_of_slices_opens_with_a_window_and_is_refused_without(tmp_path):
    for k in range(8):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        written(tmp_path / "ab"[k % 2] / f"{k}.nii{'.gz' if k > 3 else ''}", PICTURE + np.int16(k))
    with pytest.raises(DataError, match=r"int16 pixels, -300 to 770: .*Pass window="):
        open_dataset(tmp_path, image_size=9)
    ds = open_dataset(tmp_path, image_size=9, window=(-300, 800))
    assert len(ds) == 8
    assert audit(ds, weights=None, n_boot=50).files.loc["a", "modes"] == "4 NIfTI"


def test_what_is_no_slice_gives_a_reason(tmp_path):
    whole = written(tmp_path / "v.nii", np.zeros((8, 9, 10), np.float32))
    with pytest.raises(Unreadable, match="a NIfTI volume of 8 x 9 x 10: save single slices"):
        read_image(whole)
    slices = written(tmp_path / "s.nii.gz", PICTURE)
    for data in (slices[:-30], slices[:200], written(tmp_path / "s.nii", PICTURE)[:400]):
        with pytest.raises(Unreadable):
            read_image(data, "s.nii.gz")


def test_a_mask_beside_a_picture_is_evidence(tmp_path):
    for k in range(8):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "ab"[k % 2] / f"{k}.png"), np.full((12, 9), 20 * k, np.uint8))
        mask = np.zeros((9, 12), np.int16)
        mask[2:4, 8:] = 1  # columns 2 and 3, the upper rows
        written(tmp_path / "ab"[k % 2] / f"{k}_mask.nii.gz", mask)
    ds = open_dataset(tmp_path, image_size=(12, 9))
    assert len(ds) == 8
    expected = np.zeros((12, 9), bool)
    expected[:4, 2:4] = True
    assert (ds.mask(0) == expected).all()
