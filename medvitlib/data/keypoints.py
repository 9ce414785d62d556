"""Whether two images are views of one thing: keypoints that agree on a rotation, a shift and a scale.

ORB keypoints (Rublee et al., ICCV 2011) are compared by Hamming distance with Lowe's ratio test (IJCV 2004), and a
similarity transform is fitted by RANSAC (Fischler and Bolles 1981).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

COUNT = 200
"""Keypoints an image at most."""
SIDE = 224
"""Pixels of the longer side that keypoints are looked for at."""
FEWEST = 4
"""Agreeing keypoints below which nothing is fitted: two fix the transform."""
_RATIO, _FARTHEST, _TOLERANCE = 0.8, 64, 4.0  # of the second best match; bits of 256; pixels
_SCALES = (0.6, 1.6)
_FLAT = 8  # grey levels from black or white within which a border counts as padding


@dataclass(frozen=True)
class Points:
    """The keypoints of many images, on disk: 16 KB an image and its mirror image.

    Args:
        places: float32 (N, 2, COUNT, 2), x and y as shares of the sides.
        descriptors: uint8 (N, 2, COUNT, 32).
        counts: int (N, 2).
    """

    places: np.ndarray
    descriptors: np.ndarray
    counts: np.ndarray

    @classmethod
    def create(cls, folder: Path, images: int) -> "Points":
        """Room for the keypoints of so many images, in files of `folder`."""
        place = np.lib.format.open_memmap(folder / "places.npy", "w+", np.float32, (images, 2, COUNT, 2))
        code = np.lib.format.open_memmap(folder / "descriptors.npy", "w+", np.uint8, (images, 2, COUNT, 32))
        return cls(place, code, np.zeros((images, 2), int))


def working_copy(image: np.ndarray, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
    """Grey uint8 (h, w) with the longer side at `side` pixels, and bool (h, w): not padding.

    Padding is black or white that touches the border, as rotation and letter-boxing leave it: its corners would agree
    between images that have nothing else in common.
    """
    scale = side / max(image.shape[:2])
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.shape[2] == 3 else image[..., 0]
    if scale != 1:
        small = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        size = [max(16, round(side * scale)) for side in grey.shape[::-1]]
        grey = cv2.resize(np.ascontiguousarray(grey), size, interpolation=small)
    padding = np.zeros(grey.shape, bool)
    for flat in (grey <= _FLAT, grey >= 255 - _FLAT):
        _, parts = cv2.connectedComponents(flat.astype(np.uint8), connectivity=4)
        edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
        padding |= np.isin(parts, edge[edge > 0])
    return grey, ~padding


def describe(points: Points, i: int, grey: np.ndarray, inside: np.ndarray) -> None:
    """Find the keypoints of image i and of its mirror image, and keep them in `points`."""
    mask = cv2.erode(inside.astype(np.uint8), np.ones((13, 13), np.uint8), borderType=cv2.BORDER_REPLICATE) * 255
    orb = cv2.ORB_create(COUNT, 1.2, 6, edgeThreshold=16, fastThreshold=7)
    for mirrored in (0, 1):
        step = -1 if mirrored else 1
        found, codes = orb.detectAndCompute(*(np.ascontiguousarray(plane[:, ::step]) for plane in (grey, mask)))
        n = min(len(found), COUNT)
        points.counts[i, mirrored] = n
        if n:
            points.places[i, mirrored, :n] = np.array([p.pt for p in found[:n]]) / grey.shape[::-1]
            points.descriptors[i, mirrored, :n] = codes[:n]


@dataclass(frozen=True)
class Match:
    """What two images have in common: keypoints on one transform, the share of the first image that these span, and
    the correlation of fine detail (about 3 to 16 pixels of 224) where the aligned images overlap."""

    points: int = 0
    spread: float = 0.0
    detail: float = 0.0


def matched(points: Points, i: int, j: int, enough: int, read: Callable[[int], np.ndarray]) -> Match:
    """Compare image i, and where fewer than `enough` keypoints agree its mirror image, with image j.

    Args:
        read: gives an image as uint8 (H, W, C); called only where enough agree, to compare the detail.
    """
    for mirrored in (0, 1):
        ours, theirs = agreeing(points, i, j, mirrored, enough)
        if len(ours) >= enough:
            detail = _detail(read(i)[:, :: 1 - 2 * mirrored], read(j), ours, theirs)
            return Match(len(ours), float(np.prod(np.ptp(ours, axis=0))), detail)
    return Match()


def agreeing(points: Points, i: int, j: int, mirrored: int, least: int) -> tuple[np.ndarray, np.ndarray]:
    """The places (n, 2) in i and in j of the keypoints that agree on one similarity transform; fewer than `least`
    may be given as none at all."""
    n, m = points.counts[i, mirrored], points.counts[j, 0]
    none = np.empty((0, 2)), np.empty((0, 2))
    if min(n, m) < 8:
        return none
    distance, nearest = cv2.batchDistance(
        points.descriptors[i, mirrored, :n], points.descriptors[j, 0, :m], cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2
    )
    good = np.flatnonzero((distance[:, 0] < _RATIO * distance[:, 1]) & (distance[:, 0] < _FARTHEST))
    if len(good) < max(least, FEWEST):
        return none
    ours, theirs = points.places[i, mirrored, good], points.places[j, 0, nearest[good, 0]]
    transform, inliers = cv2.estimateAffinePartial2D(
        ours * SIDE, theirs * SIDE, method=cv2.RANSAC, ransacReprojThreshold=_TOLERANCE, maxIters=500
    )
    if transform is None or not _SCALES[0] < np.hypot(transform[0, 0], transform[1, 0]) < _SCALES[1]:
        return none
    agree = inliers[:, 0] > 0
    return ours[agree], theirs[agree]


def _detail(a: np.ndarray, b: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Correlation of what a blur of 1.5 pixels of 112 keeps and one of 8 removes; -1 where nothing overlaps."""
    (grey, inside), (target, there) = (working_copy(np.ascontiguousarray(image), SIDE // 2) for image in (a, b))
    # all six freedoms of an affine map: stretching to a square has turned rotations into shears
    affine, _ = cv2.estimateAffine2D(ours * grey.shape[::-1], theirs * target.shape[::-1], ransacReprojThreshold=2)
    if affine is None:
        return -1.0
    moved = cv2.warpAffine(grey, affine, target.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    both = cv2.warpAffine(inside.astype(np.uint8), affine, target.shape[::-1]) & there.astype(np.uint8)
    overlap = cv2.erode(both, np.ones((5, 5), np.uint8)) > 0
    x, y = (_band(grey, both)[overlap] for grey in (moved, target))
    if len(x) < 2 or min(x.std(), y.std()) == 0:
        return -1.0
    return float(np.corrcoef(x, y)[0, 1])


def _band(grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Fine detail, float32 (h, w), of what lies `inside`: the black corners of a rotation must not blur into it."""
    weight = inside.astype(np.float32)
    fine, coarse = (
        cv2.GaussianBlur(grey * weight, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 1e-6)
        for sigma in (1.5, 8)
    )
    return fine - coarse
