"""What an audit computes from the pictures: features, and how well a simple classifier does on them.

Every score here is out of fold: each image is judged by a classifier that has seen neither it nor any image of its
unit (patient, or cluster of near-duplicates).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from medvitlib.data import Dataset
from medvitlib.data.cache import WORKERS, one_opencv_thread
from medvitlib.data.decode import silence
from medvitlib.data.dicom import is_dicom
from medvitlib.data.nifti import is_nifti, nifti_values
from medvitlib.errors import DataError, WeightsError, printable
from medvitlib.evaluation import Estimate, score
from medvitlib.evaluation.inputs import check
from medvitlib.evaluation.intervals import bootstrap, percentiles
from medvitlib.evaluation.metrics import score_metrics
from medvitlib.progress import track

GRID = 20
"""Cells a side of the thumbnails that the baselines see."""
RING, CENTRE = 2, 10
"""Cells of the border ring (10 % of the side), and side of the masked centre (half of it)."""
FOLDS = 5
NETWORK, NETWORK_SIZE = "vit_small_patch14_dinov2", 70
"""Whose features serve as an embedding, at 25 patches an image: half the time of a pass over a large set goes there."""
MOST_VALUES = 20
"""Of a column of text."""
_COMPONENTS = 128  # more cost time and change little


@dataclass(frozen=True)
class Header:
    """What a file says of itself: height and width in pixels, Pillow's mode ("L", "RGB", ...), bytes."""

    height: int
    width: int
    mode: str
    size: int


def headers(ds: Dataset) -> list[Header] | None:
    """Of each file, without decoding it; None where the images are not files."""
    if ds.files is None:
        return None
    silence()
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(track(pool.map(_header, ds.files), "reading headers", total=len(ds)))


def _header(path: str) -> Header:
    from PIL import Image

    try:
        with open(path, "rb") as file:
            dicom = is_dicom(file.read(132))
        if dicom:
            import pydicom

            tags = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns", "BitsStored"])
            return Header(int(tags.Rows), int(tags.Columns), f"DICOM {tags.get('BitsStored')}", os.path.getsize(path))
        with Image.open(path) as image:
            return Header(image.height, image.width, image.mode, os.path.getsize(path))
    except OSError:  # Pillow cannot identify some TIFFs that OpenCV reads, nor NIfTI
        if os.path.exists(path) and is_nifti(data := Path(path).read_bytes()):
            height, width, _ = nifti_values(data).shape
            return Header(height, width, "NIfTI", os.path.getsize(path))
        image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if image is None:
            raise DataError(
                f"{printable(path)} cannot be read any more: it has changed. Open the data set again."
            ) from None
        return Header(*image.shape[:2], "?", os.path.getsize(path))


def thumbnails(ds: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours of a `GRID` x `GRID` raster, float32 (N, GRID, GRID, C), and mean and deviation of each colour
    over the whole image, float32 (N, 2 C)."""
    cells = np.empty((len(ds), GRID, GRID, ds.channels), np.float32)
    colours = np.empty((len(ds), 2 * ds.channels), np.float32)

    def look(i: int) -> None:
        image = np.ascontiguousarray(ds.images[i])
        cells[i] = cv2.resize(image, (GRID, GRID), interpolation=cv2.INTER_AREA).reshape(GRID, GRID, -1)
        mean, deviation = cv2.meanStdDev(image)
        colours[i] = np.concatenate([mean, deviation])[:, 0]

    with one_opencv_thread(), ThreadPoolExecutor(WORKERS) as pool:
        for _ in track(pool.map(look, range(len(ds))), "thumbnails", total=len(ds)):
            pass
    return cells, colours


def embedding(ds: Dataset, weights: str | None = "auto") -> tuple[np.ndarray | None, str]:
    """Features of a frozen pretrained network (N, D) and what they are; None, with the reason, without weights."""
    if weights is None:
        return None, "no pretrained network was asked for"
    from medvitlib.models.zoo import build
    from medvitlib.training.features import extract_features

    try:
        model = build(NETWORK, len(ds.classes), image_size=NETWORK_SIZE, pool="token_mean", weights=weights, quiet=True)
    except WeightsError as error:
        return None, f"no pretrained weights: {str(error).splitlines()[0]}"
    return extract_features(model, _shrunk(ds)), f"{NETWORK} at {NETWORK_SIZE} px"


class _Shrunk:
    """Stored images seen at `NETWORK_SIZE`, so that a set need not be decoded twice."""

    def __init__(self, images):
        self.images, (n, _, _, c) = images, images.shape
        self.shape, self.dtype, self.ndim = (n, NETWORK_SIZE, NETWORK_SIZE, c), images.dtype, 4

    def __len__(self) -> int:
        return len(self.images)

    def planes(self, index) -> np.ndarray:
        rows = np.atleast_1d(index)
        out = np.empty((len(rows), self.shape[3], *self.shape[1:3]), np.uint8)
        for row, image in zip(out, self.images.planes(rows), strict=True):
            for target, plane in zip(row, image, strict=True):
                cv2.resize(plane, self.shape[1:3], dst=target, interpolation=cv2.INTER_AREA)
        return out

    def take(self, index) -> "_Shrunk":
        return _Shrunk(self.images.take(index))


def _shrunk(ds: Dataset) -> Dataset:
    """Its hashes say from what size, for features are kept under them."""
    h, w = ds.image_size
    hashes = np.array([f"{digest} from {h}x{w}" for digest in ds.hashes])
    return replace(ds, images=_Shrunk(ds.images), hashes=hashes)


def reduced(features: np.ndarray) -> np.ndarray:
    """The leading principal components of standardised features, at most `_COMPONENTS`: (N, D) to (N, d).

    They are found without labels, so that no fold learns from another what it is tested on.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    scaled = StandardScaler().fit_transform(features)
    if scaled.shape[1] <= _COMPONENTS:
        return scaled
    return PCA(min(_COMPONENTS, len(scaled) - 1), random_state=0).fit_transform(scaled).astype(np.float32)


def shortcut_features(
    cells: np.ndarray, colours: np.ndarray, files: list[Header] | None
) -> dict[str, np.ndarray | str]:
    """What each baseline may look at, (N, D); a sentence instead where there is nothing to look at."""
    n, at = len(cells), (GRID - CENTRE) // 2
    ring, centre = np.ones((GRID, GRID), bool), np.zeros((GRID, GRID), bool)
    ring[RING:-RING, RING:-RING] = False
    centre[at : at + CENTRE, at : at + CENTRE] = True
    return {
        "mean colour": colours,
        "image and file size": _sizes(files),
        "border ring": cells[:, ring].reshape(n, -1),
        "centre masked": cells[:, ~centre].reshape(n, -1),
    }


def metadata_features(ds: Dataset) -> dict[str, np.ndarray]:
    """Each column of the metadata as something to classify by, (N, D): numbers with what is missing at their mean, or
    one column for each of at most `MOST_VALUES` values. Columns that say the same of all images are left out."""
    found = {}
    for name, values in ds.metadata.items():
        distinct = np.unique(values)
        if len(distinct) < 2:
            continue
        if len(distinct) <= MOST_VALUES:
            found[f"metadata: {name}"] = (values[:, None] == distinct[1:]).astype(float)
        else:
            with suppress(ValueError):  # text of many kinds: names, dates, remarks
                numbers = np.array([float(value or "nan") for value in values])
                known = np.isfinite(numbers)
                found[f"metadata: {name}"] = np.where(known, numbers, numbers[known].mean())[:, None]
    return found


def _sizes(files: list[Header] | None) -> np.ndarray | str:
    if files is None:
        return "the images are not files"
    h, w = (np.array([getattr(f, side) for f in files], float).clip(1) for side in ("height", "width"))
    modes = sorted({f.mode for f in files})
    columns = [h, w, np.log(h * w), np.log(w / h), np.log([max(f.size, 1) for f in files])]
    columns += [np.array([f.mode == mode for f in files], float) for mode in modes[1:]]
    table = np.stack(columns, axis=1)
    return table if (table.std(0) > 0).any() else "all files have the same size"


def folds(labels: np.ndarray, units: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Positions to learn from and to judge, `FOLDS` times, no unit in both; None where a class has fewer units."""
    from sklearn.model_selection import StratifiedGroupKFold

    if min(len(np.unique(units[labels == k])) for k in np.unique(labels)) < FOLDS:
        return None
    cut = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return list(cut.split(np.zeros(len(labels)), labels, units))


def out_of_fold(
    x: np.ndarray, labels: np.ndarray, cut: list[tuple[np.ndarray, np.ndarray]] | None, strength: float = 0.01
) -> np.ndarray | None:
    """Probabilities (N, K) of a logistic regression, each from the `folds` without the image's unit; None without."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    if cut is None:
        return None
    # to the end and in double precision: stopped earlier, processors and threads differ in figures that are shown
    model = LogisticRegression(C=strength, tol=1e-7, max_iter=1000)
    with threadpool_limits(1, user_api="blas"):  # the products are small: threads would wait for each other
        x = reduced(x).astype(np.float64)
        return cross_val_predict(model, x, labels, cv=cut, method="predict_proba")


def figures(ds: Dataset, probabilities: np.ndarray, units: np.ndarray, n_boot: int) -> dict[str, Estimate]:
    """ "auroc" (for more than two classes the macro mean of one against the rest) and "accuracy"; whole units are drawn
    for their intervals."""
    found = score(ds.labels, probabilities, classes=ds.classes, positive=_positive(ds), groups=units, n_boot=n_boot)
    return {"auroc": found[_name(ds)], "accuracy": found["accuracy"]}


def difference(ds: Dataset, one: np.ndarray, other: np.ndarray, units: np.ndarray, n_boot: int) -> Estimate:
    """AUROC of the probabilities `one` (N, K) less that of `other`: the same units are drawn for both, so that what
    makes an image easy or hard cancels out."""
    both = [check(ds.labels, p, ds.classes, _positive(ds), units) for p in (one, other)]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        first, second = (score_metrics(data, weights)[_name(ds)] for data in both)
        return {"difference": first - second}

    (value,) = statistic(np.ones((1, len(ds))))["difference"]
    low, high, _ = percentiles(bootstrap(statistic, both[0].groups, n_boot, 0)["difference"], 0.95)
    return Estimate(float(value), low, high, "paired unit bootstrap", len(ds), int(units.max()) + 1)


def _positive(ds: Dataset) -> str | None:
    return (ds.positive or ds.classes[1]) if len(ds.classes) == 2 else None


def _name(ds: Dataset) -> str:
    return "auroc" if len(ds.classes) == 2 else "auroc_macro"
