"""Images that show the same thing: byte for byte, pixel for pixel, or turned, mirrored, shifted and re-saved.

Two steps. Cheap descriptors propose pairs: a perceptual hash, which survives re-saving and changes of exposure, and a
histogram of colour and texture, which survives any rotation, reflection and shift. Then each pair has to prove itself:
enough keypoints of one image must lie where one similarity transform puts those of the other (or of its mirror image).
A proposal alone says that two images look alike; the proof says that they are views of one object.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from medvitlib.data.cache import WORKERS, one_opencv_thread
from medvitlib.data.dataset import Dataset
from medvitlib.data.decode import is_grey
from medvitlib.data.keypoints import COUNT, FEWEST, Match, Points, agreeing, describe, matched, working_copy
from medvitlib.paths import cache_dir
from medvitlib.progress import track

VERSION = 3
"""Part of the cache key of found pairs: raise it when the same images would give other pairs."""
NEIGHBOURS = 3
"""Proposals an image and descriptor; a larger cluster is connected by the proposals of all its images."""
MIN_POINTS, MIN_SPREAD = 15, 0.05
"""Keypoints that must agree at least (more where unrelated images agree on many, as chests do: `_enough`), and the
share of the image that they must span (a burnt-in letter agrees with its like)."""
_STRANGERS = 2000  # pairs that tell how many keypoints unrelated images agree on
MIN_COPY, MIN_ALIKE = 0.985, 0.8
"""Correlation of fine detail from which a pair is one picture, altered, and below which two pictures of one scene. In
between it is not known: two photographs of the same cells reach 0.984, radiographs of two patients 0.93, while copies
that were turned, cropped, brightened and saved again have 0.99 (`benchmarks/near_duplicates.py`)."""
FILES, PIXELS, COPY, ALIKE, SCENE = "identical files", "identical pixels", "altered copy", "very alike", "same scene"
KINDS = (FILES, PIXELS, COPY, ALIKE, SCENE)
CERTAIN = (FILES, PIXELS, COPY)
"""Kinds of pairs that are one picture; the others may be of two patients."""
_BLOCK = 2**24  # similarities held at once: 64 MB
_COLOUR_BINS, _COLOUR_RANGE = (8, 12, 12), (0, 256, 96, 200, 96, 200)  # of L, a, b, where tissue and stains lie
_GREY_BINS, _GREY_RANGE = (16, 8, 9), (0, 256, 0, 64, -48, 48)  # of grey level, gradient and blob response


@dataclass(frozen=True)
class Pairs:
    """Pairs of one data set, i < j.

    Args:
        i, j: int (P,), positions in the data set.
        how: str (P,): "identical files", "identical pixels", "altered copy" (one picture, turned, cropped or re-saved),
            "very alike" (two pictures with the same detail: of one thing, or of two patients) or "same scene" (two
            pictures that partly agree: neighbouring slices, overlapping fields of view).
        points: int (P,): keypoints that agree; 0 where none were needed.
    """

    i: np.ndarray
    j: np.ndarray
    how: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        return len(self.i)

    def take(self, chosen: np.ndarray) -> "Pairs":
        """The pairs at `chosen`, positions or a bool mask."""
        return Pairs(*(values[chosen] for values in vars(self).values()))

    def clusters(self, n: int) -> np.ndarray:
        """Connected components, int (n,), numbered in the order of their first image; an image alone is one too."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        graph = coo_array((np.ones(len(self)), (self.i, self.j)), shape=(n, n))
        return connected_components(graph, directed=False)[1]


def near_duplicates(ds: Dataset) -> Pairs:
    """Pairs of images of the same thing; kept in the cache, so that asking again costs nothing.

    Only pairs that some descriptor proposes are examined, each image's nearest few: of a large cluster not every pair
    is listed, but the pairs connect it (`Pairs.clusters`).

    Args:
        ds: opened at 112 pixels or more, better 224: keypoints need detail.
    """
    if len(ds) < 2:
        return Pairs(*(np.zeros(0, int),) * 2, np.zeros(0, "<U16"), np.zeros(0, int))
    names = hashlib.sha256("\n".join(map("{} {}".format, ds.hashes, ds.labels)).encode())
    names.update(f"{VERSION} {ds.images.shape}".encode())
    store = cache_dir() / "near" / f"{names.hexdigest()[:32]}.npz"
    if (found := _load(store)) is None:
        found = _find(ds)
        _save(store, found)
    return found


def _find(ds: Dataset) -> Pairs:
    with tempfile.TemporaryDirectory() as scratch, one_opencv_thread(), ThreadPoolExecutor(WORKERS) as pool:
        points = Points.create(Path(scratch), len(ds))
        look = partial(_look, ds, points)
        rows = list(track(_in_order(pool, look, range(len(ds))), "looking for copies", total=len(ds)))
        hashes, perceptual, texture = (np.array(column) for column in zip(*rows, strict=True))
        same = _chains(hashes, PIXELS) | _chains(ds.hashes, FILES)
        proposed = _neighbours(2 * perceptual.astype(np.float32) - 1) | _neighbours(texture)
        todo = sorted(proposed - set(same))
        enough = _enough(ds, points, proposed)
        agree = _in_order(pool, lambda pair: matched(points, *pair, enough, ds.images.__getitem__), todo)
        matches = list(track(agree, "comparing pairs", total=len(todo), unit="pair"))
    proven = {
        pair: match for pair, match in zip(todo, matches, strict=True) if match.points and match.spread >= MIN_SPREAD
    }
    pairs = sorted({**proven, **same})
    i, j = np.array(pairs, int).reshape(-1, 2).T
    how = [same.get(pair) or _kind(proven[pair].detail) for pair in pairs]
    return Pairs(i, j, np.array(how, dtype="<U16"), np.array([proven.get(pair, Match()).points for pair in pairs], int))


def _kind(detail: float) -> str:
    return COPY if detail >= MIN_COPY else ALIKE if detail >= MIN_ALIKE else SCENE


def _enough(ds: Dataset, points: Points, proposed: set[tuple[int, int]]) -> int:
    """Keypoints on which at most one pair of the whole set would agree by chance.

    Pairs that no descriptor proposes, across two classes (where possible), are unrelated but for rare exceptions. The
    number they agree on has an exponential tail beyond its 90 % quantile, which is extended to as many pairs as there
    are. Half of all keypoints are enough in any case: else a set of copies of one picture would hide them.
    """
    rng, n, counts = np.random.default_rng(0), len(ds), []
    one_class = (ds.labels == ds.labels[0]).all()
    for i, j in rng.integers(n, size=(_STRANGERS, 2)).tolist():
        if i != j and (min(i, j), max(i, j)) not in proposed and (one_class or ds.labels[i] != ds.labels[j]):
            counts.append(len(agreeing(points, i, j, 0, 0)[0]))
    if not counts:
        return MIN_POINTS
    beyond = max(FEWEST - 1, np.quantile(counts, 0.9))
    tail = np.array([count - beyond for count in counts if count > beyond])
    if not len(tail):
        return MIN_POINTS
    expected = len(tail) / len(counts) * n * (n - 1) / 2
    return int(np.clip(np.ceil(beyond + tail.mean() * np.log(max(expected, 1))), MIN_POINTS, COUNT // 2))


def _look(ds: Dataset, points: Points, i: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The hash of an image's pixels, its perceptual hash (64,) bool and its histogram (B,) float16."""
    image = np.ascontiguousarray(ds.images[i])
    grey, inside = working_copy(image)
    describe(points, i, grey, inside)
    return hashlib.sha256(image).hexdigest(), perceptual_hash(grey), _histogram(image, grey, inside)


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """64 bits, bool: which of the 8 x 8 lowest frequencies of a 32 x 32 thumbnail exceed their median (pHash)."""
    thumbnail = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(thumbnail)[:8, :8].ravel()
    return low > np.median(low[1:])


def _histogram(image: np.ndarray, grey: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The joint histogram of three local properties, of unit length: the same however the image is turned.

    Colour images: the Lab colour. Grey ones: equalised grey level, gradient magnitude, difference of two blurs.
    """
    mask = inside.astype(np.uint8)
    if not is_grey(image):
        small = cv2.resize(image, grey.shape[::-1], interpolation=cv2.INTER_AREA)
        planes, bins, ranges = [cv2.cvtColor(small, cv2.COLOR_RGB2LAB)], _COLOUR_BINS, _COLOUR_RANGE
    else:
        even = cv2.equalizeHist(grey).astype(np.float32)  # the same for any exposure
        fine, coarse = (cv2.GaussianBlur(even, (0, 0), sigma) for sigma in (1, 4))
        slope = cv2.magnitude(cv2.Sobel(fine, -1, 1, 0) / 4, cv2.Sobel(fine, -1, 0, 1) / 4)
        planes, bins, ranges = [cv2.merge([fine, slope, fine - coarse])], _GREY_BINS, _GREY_RANGE
    counts = cv2.calcHist(planes, [0, 1, 2], mask, list(bins), list(ranges)).ravel()
    return np.sqrt(counts / max(1.0, counts.sum())).astype(np.float16)


def _neighbours(rows: np.ndarray) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of each row of (N, D) with the few whose inner product with it is largest."""
    rows = np.ascontiguousarray(rows, np.float32)
    k, pairs, step = min(NEIGHBOURS, len(rows) - 1), set(), max(1, _BLOCK // len(rows))
    for start in range(0, len(rows), step):
        likeness = rows[start : start + step] @ rows.T
        own = np.arange(start, start + len(likeness))
        likeness[own - start, own] = -np.inf
        nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
        pairs |= {
            (min(pair), max(pair)) for pair in zip(np.repeat(own, k).tolist(), nearest.ravel().tolist(), strict=True)
        }
    return pairs


def _chains(keys: np.ndarray, how: str) -> dict[tuple[int, int], str]:
    """Each image with the next one of the same key."""
    order = np.argsort(keys, kind="stable")
    alike = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
    return {(int(order[at]), int(order[at + 1])): how for at in alike}


def _in_order(pool: ThreadPoolExecutor, function, items) -> Iterator:
    """`pool.map` a block at a time: an interruption does not wait for all that was asked for."""
    items = list(items)
    for start in range(0, len(items), 64 * WORKERS):
        yield from pool.map(function, items[start : start + 64 * WORKERS])


def _load(store: Path) -> Pairs | None:
    try:
        with np.load(store, allow_pickle=False) as saved:
            return Pairs(saved["i"], saved["j"], saved["how"], saved["points"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _save(store: Path, pairs: Pairs) -> None:
    with suppress(OSError):  # without it they are looked for again
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=store.parent, suffix=".part", delete=False) as part:
            np.savez(part, **vars(pairs))
        os.replace(part.name, store)
