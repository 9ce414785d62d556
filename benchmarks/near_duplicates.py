"""How alike are altered copies, and how alike are pictures that are none? What `medvitlib.data.near` calls what.

    MEDVIT_DATA=... python benchmarks/near_duplicates.py [--images 2500]

Of each set some images are altered in eight ways (saved again, other contrast, turned, cropped, mirrored, noise, half
the size, several at once) and compared with the original; beside them all pairs that the search proposes, by whether
their patient, smear or photograph is the same. Sets whose groups are not known only show the copies.
"""

import argparse
import tempfile
from collections import defaultdict, namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from medvitlib.data import near, open_dataset
from medvitlib.data.keypoints import Points, matched

SETS = ("chest_xray", "blood_cells", "chula_rbc12", "sarscov2_ct", "medmnist/breastmnist")
COPIES = 160


def jpeg(image, rng):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 80))])[1], -1)


def contrast(image, rng):
    changed = (image.astype(float) - 128) * rng.uniform(0.6, 1.4) + 128 + rng.uniform(-40, 40)
    return np.clip(changed, 0, 255).astype(np.uint8)


def turned(image, rng):
    h, w = image.shape[:2]
    return cv2.warpAffine(image, cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-25, 25), 1), (w, h))


def cropped(image, rng):
    h, w = image.shape[:2]
    side = rng.uniform(0.75, 0.95)
    top, left = rng.integers(h - int(h * side) + 1), rng.integers(w - int(w * side) + 1)
    return cv2.resize(image[top : top + int(h * side), left : left + int(w * side)], (w, h))


def smaller(image, rng):
    h, w = image.shape[:2]
    return cv2.resize(cv2.resize(image, (w // 2, h // 2), interpolation=cv2.INTER_AREA), (w, h))


ALTERATIONS = {
    "saved again": jpeg,
    "contrast": contrast,
    "turned": turned,
    "cropped": cropped,
    "mirrored": lambda image, rng: image[:, ::-1],
    "noise": lambda image, rng: np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8),
    "half the size": smaller,
    "turned, contrast, saved": lambda image, rng: jpeg(contrast(turned(image, rng), rng), rng),
}


class Labelled(namedtuple("Labelled", "images labels")):
    """As much of a data set as the search reads."""

    def __len__(self) -> int:
        return len(self.images)


def measure(name: str, most: int) -> dict[str, list]:
    """For every kind of pair the matches that were proven."""
    ds, rng = open_dataset(name, image_size=224), np.random.default_rng(0)
    ds = ds.subset(np.sort(rng.permutation(len(ds))[:most]))
    images, n = [np.ascontiguousarray(ds.images[i]) for i in range(len(ds))], len(ds)
    altered = rng.permutation(n)[:COPIES].tolist()
    ways = [list(ALTERATIONS)[k % len(ALTERATIONS)] for k in range(len(altered))]
    for i, way in zip(altered, ways, strict=True):
        images.append(np.ascontiguousarray(ALTERATIONS[way](images[i], rng).reshape(images[i].shape)))
    copies = {(i, n + k): f"copy, {way}" for k, (i, way) in enumerate(zip(altered, ways, strict=True))}
    both = Labelled(images, np.concatenate([ds.labels, ds.labels[altered]]))
    with tempfile.TemporaryDirectory() as scratch, near.one_opencv_thread(), ThreadPoolExecutor(near.WORKERS) as pool:
        points = Points.create(Path(scratch), len(images))
        rows = list(pool.map(partial(near._look, both, points), range(len(images))))
        _, perceptual, texture = (np.array(column) for column in zip(*rows, strict=True))
        proposed = near._neighbours(2 * perceptual.astype(np.float32) - 1) | near._neighbours(texture)
        enough = near._enough(both, points, proposed)
        todo = sorted({pair for pair in proposed if pair[1] < n} | set(copies))
        matches = list(pool.map(lambda pair: matched(points, *pair, enough, images.__getitem__), todo))
    found = defaultdict(list)
    for pair, match in zip(todo, matches, strict=True):
        if kind := copies.get(pair):
            pass
        elif not ds.groups_known:
            kind = "not known"
        else:
            kind = "same group" if ds.groups[pair[0]] == ds.groups[pair[1]] else "other group"
        found[kind].append(match if match.points and match.spread >= near.MIN_SPREAD else None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2500, help="of each set at most")
    images = parser.parse_args().images
    print("| set | pairs | compared | proven | detail: 5 %, median, highest | altered copy | very alike | same scene |")
    print("|---|---|---|---|---|---|---|---|")
    for name in SETS:
        for kind, matches in sorted(measure(name, images).items()):
            details = [match.detail for match in matches if match]
            called = [near._kind(detail) for detail in details]
            shown = ", ".join(f"{v:.3f}" for v in np.quantile(details, [0.05, 0.5, 1])) if details else ""
            counts = " | ".join(str(called.count(how)) for how in (near.COPY, near.ALIKE, near.SCENE))
            print(f"| {name} | {kind} | {len(matches)} | {len(details)} | {shown} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
