"""A rendered set as published ones often are: what an audit must find, with the truth known.

Three faults, each common in public sets (`leaky="shortcut"` has the first, `"patients"` the others, True all):
- a shortcut: a black label in the lower right corner with white bars, as many as the number of the class (from 1), in
  nine images of ten; in the tenth as many as a class drawn at random. A model can read them and never look at the rest;
- a patient leak: official parts drawn by image, so that nearly every patient stands in train and in test, and all
  images of a patient are of one class;
- copies: the last image of each patient with several is the first one again, a little brighter, shifted, and (where
  it has no upright) turned: no hash of the file tells.
"""

import numpy as np

VERSION = 2
"""Part of the cache key of every leaky set: raise it when the pictures change."""
HONEST = 0.1
"""Share of images whose bars say nothing about the class."""
NOTES = {
    "True": "leaky=True: a shortcut, a patient leak and altered copies were put in on purpose.",
    "shortcut": "leaky='shortcut': bars that tell the class were put in on purpose.",
    "patients": "leaky='patients': a patient leak and altered copies were put in on purpose.",
}

_PARTS = ("train", "train", "train", "val", "test")


def split_of(seed: int, patient: int, k: int) -> str:
    """The official part of an image, drawn without regard to its patient: 60, 20 and 20 %."""
    return _PARTS[np.random.default_rng((seed, patient, 6, k)).integers(len(_PARTS))]


def is_copy(k: int, images: int) -> bool:
    """Whether image k of a patient with so many is the first one again."""
    return images > 1 and k == images - 1


def copied(image: np.ndarray, mask: np.ndarray, any_way_up: bool, rng: np.random.Generator):
    """The image (H, W, C) and its mask (H, W), shifted by up to 2 %, brighter or darker by up to 8 %, maybe turned.

    A picture that is not square is turned by 180 degrees only.
    """
    down, right = (int(pixels) for pixels in np.rint(rng.uniform(-0.02, 0.02, 2) * mask.shape))
    turns = int(rng.integers(1, 4)) if any_way_up else 0
    turns = turns if mask.shape[0] == mask.shape[1] or turns == 0 else 2
    gain = rng.uniform(0.92, 1.08)
    image, mask = (np.rot90(_shifted(plane, down, right), turns) for plane in (image, mask))
    return np.clip(np.rint(image * gain), 0, 255).astype(np.uint8), np.ascontiguousarray(mask)


def tagged(image: np.ndarray, label: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """The image with its label, as large for every class, and the bars in it, each 2.5 % of the side wide."""
    h, w = image.shape[:2]
    bars = 1 + (label if rng.random() > HONEST else int(rng.integers(classes)))
    image = image.copy()
    width, step = max(1, round(0.025 * w)), max(2, round(0.045 * w))
    top, bottom, edge = h - max(4, round(0.12 * h)), h - 1 - round(0.01 * h), w - 1 - round(0.01 * w)
    image[top:bottom, max(0, edge - classes * step - 1) : edge] = 5
    for bar in range(bars):
        right = edge - 1 - bar * step
        image[top + 1 : bottom - 1, max(0, right - width) : right] = 250
    return image


def _shifted(plane: np.ndarray, down: int, right: int) -> np.ndarray:
    """Moved by whole pixels; what is uncovered repeats the border."""
    h, w = plane.shape[:2]
    rows, columns = np.clip(np.arange(h) - down, 0, h - 1), np.clip(np.arange(w) - right, 0, w - 1)
    return plane[rows][:, columns]
