"""Segmentation masks that lie beside images: recognised by name and by content, never taken for images."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from medvitlib.data.decode import Unreadable, fit, silence
from medvitlib.data.read_image import read_image

MASK = re.compile(r"(?i)^(.+?)[ _-]*(?:masks?|segmentation|seg|gt|groundtruth|ground_truth|annotation)[ _-]?\d*$")
"""Stem of a mask's name; the bracket is the stem of its image."""
MASK_FOLDERS = {"mask", "masks", "segmentation", "segmentations", "seg", "gt", "groundtruth", "annotations"}
IMAGE_FOLDERS = {"image", "images", "img", "imgs"}
FEW, NEAR, MOST = 8, 12, 0.98
"""A mask has at most `FEW` grey levels; or, saved as a JPEG, `MOST` of its pixels within `NEAR` of its darkest or
brightest level."""


def masks_among(files: list[Path]) -> dict[Path, Path]:
    """Return each file that is a mask, with the image that it belongs to, which is among the files too.

    Its name must say so (`x_mask.png` beside `x.png`, `masks/x.png` beside `images/x.png` or above `x.png`), it must
    look like one (two or few grey levels), and be as large as its image.
    """
    known = {(file.parent, file.stem): file for file in files}
    found = {}
    for file in files:
        image = next((known[place] for place in _images_of(file) if place in known and known[place] != file), None)
        if image is not None and _looks_like_a_mask(file, image):
            found[file] = image
    return {mask: image for mask, image in found.items() if image not in found}


def evidence(masks: dict[str, Path], size: tuple[int, int], ident: str) -> np.ndarray | None:
    """Return an image's mask, bool (H, W) of a size: True from half of its brightest level on; None without one."""
    if ident not in masks:
        return None
    try:
        grey = fit(read_image(masks[ident].read_bytes(), window=(0, 1)).pixels.max(axis=2, keepdims=True), size)[..., 0]
    except (OSError, Unreadable):
        return None
    return grey >= max(1, int(grey.max())) / 2


def _images_of(file: Path) -> list[tuple[Path, str]]:
    """Where the image of a mask of this name could be: (folder, stem)."""
    match = MASK.match(file.stem.removesuffix(".nii"))
    stems = [match[1].rstrip(" _-")] if match else []
    places = [(file.parent, stem) for stem in stems]
    if file.parent.name.lower() in MASK_FOLDERS:
        above = file.parent.parent
        beside = [above, *(above / name for name in _spelled(IMAGE_FOLDERS))]
        places += [(folder, stem) for folder in beside for stem in (file.stem, *stems)]
    return places


def _spelled(names: set[str]) -> list[str]:
    return [spelling for name in sorted(names) for spelling in (name, name.capitalize(), name.upper())]


def _looks_like_a_mask(file: Path, image: Path) -> bool:
    silence()
    if file.name.lower().endswith((".nii", ".nii.gz")):  # beside a picture of another kind: the name is enough
        return True
    try:
        with Image.open(file) as mask, Image.open(image) as picture:
            if mask.size != picture.size:
                return False
            levels = np.asarray(mask.convert("L")).ravel()
    except Exception:  # Pillow raises whatever the damage provokes; what cannot be read is no mask
        return False
    counts = np.bincount(levels, minlength=256)
    if (counts > 0).sum() <= FEW:
        return True
    low, high = int(levels.min()), int(levels.max())
    return counts[low : low + NEAR + 1].sum() + counts[max(high - NEAR, low + NEAR + 1) :].sum() >= MOST * len(levels)
