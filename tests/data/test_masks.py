"""Masks beside images: left out by name and content, kept as evidence where they pair one to one."""

import numpy as np
import pytest
from PIL import Image

from medvitlib.data import open_dataset, split
from medvitlib.data.masks import masks_among

RNG = np.random.default_rng(0)


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (40, 48), dtype=np.uint8)).save(path)


def mask(path, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((40, 48), np.uint8)
    pixels[5:20, 10:30] = 255
    Image.fromarray(pixels).convert(mode).save(path)


LAYOUTS = {
    "a name": ("{kind}/{kind} ({i}).png", "{kind}/{kind} ({i})_mask.png"),
    "another name": ("{kind}/{i}.png", "{kind}/{i}_Segmentation.png"),
    "a short name": ("{kind}/{i}.png", "{kind}/{i}-seg.png"),
    "a JPEG": ("{kind}/{i}.jpg", "{kind}/{i}_mask.jpg"),
    "folders in a class": ("{kind}/images/{i}.png", "{kind}/masks/{i}.png"),
    "classes in folders": ("images/{kind}/{i}.png", "masks/{kind}/{i}.png"),
    "a folder below": ("{kind}/{i}.png", "{kind}/masks/{i}.png"),
    "parts": ("train/{kind}/{i}.png", "train/{kind}/{i}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_left_out_said_and_kept_as_evidence(tmp_path, layout):
    of_image, of_mask = LAYOUTS[layout]
    for kind in ("benign", "malignant"):
        for i in range(8):
            image(tmp_path / "set" / of_image.format(kind=kind, i=i))
            mask(tmp_path / "set" / of_mask.format(kind=kind, i=i))
    ds = open_dataset(tmp_path / "set", image_size=24)
    assert len(ds) == 16 and ds.classes == ["benign", "malignant"]
    if layout == "classes in folders":
        assert any("masks: folders beside" in note for note in ds.notes)
        return
    assert any("16 files are segmentation masks by name and content" in note for note in ds.notes)
    assert ds.mask(3).shape == (24, 24) and 0.1 < ds.mask(3).mean() < 0.25
    assert split(ds).test.mask(0) is not None


def test_two_masks_of_an_image_are_left_out_and_none_is_its_evidence(tmp_path):
    for kind in "ab":
        image(tmp_path / kind / "1.png")
        mask(tmp_path / kind / "1_mask.png")
        image(tmp_path / kind / "2.png")
    mask(tmp_path / "a" / "1_mask_1.png", "1")
    ds = open_dataset(tmp_path, image_size=24)
    assert len(ds) == 4 and [ds.mask(i) is None for i in range(4)] == [True, True, False, True]


def test_what_is_only_called_a_mask_or_only_looks_like_one_stays(tmp_path):
    image(tmp_path / "1.png")
    image(tmp_path / "1_mask.png")  # a photograph
    mask(tmp_path / "2_mask.png")  # of no image
    mask(tmp_path / "3.png")
    mask(tmp_path / "4.png")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "4_mask.png")  # of another size
    assert masks_among(sorted(tmp_path.iterdir())) == {}
