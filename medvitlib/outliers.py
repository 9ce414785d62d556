"""Is this image like those that the model was trained on? A distance between features, with its false-alarm rate.

A classifier answers for any picture. What it says of one unlike all it has seen is worth nothing, and its probability
does not tell. Here the distance is that of probabilistic principal components (Tipping & Bishop 1999) of the features
that the last layer sees: within the main directions in units of their spread, outside them in units of the rest.
"""

import base64
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from medvitlib.errors import MedvitError
from medvitlib.evaluation.intervals import Estimate, proportion

COMPONENTS = 32
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Familiar:
    """What features (D,) of the training images are like.

    Attributes:
        mean: (D,) float32.
        basis: (C, D) float32, the main directions divided by their standard deviation.
        rest: standard deviation of what is outside them, in each direction.
        limit: distance above which an image is called unlike; on training images held out, that is one in `alarms`.
        alarms: share of images of the training set's kind for which the limit was chosen.
        measured: that share on the validation images, with its interval.
    """

    mean: np.ndarray
    basis: np.ndarray
    rest: float
    limit: float
    alarms: float
    measured: Estimate

    def distance(self, features: np.ndarray) -> np.ndarray:
        """(N,) of features (N, D); in the mean of the training set's kind about 1."""
        return _distance(*(np.asarray(values, np.float64) for values in (features, self.mean, self.basis)), self.rest)

    def to_dict(self) -> dict:
        """Plain values for JSON; arrays as base64 of little-endian float32."""
        arrays = {name: _text(getattr(self, name)) for name in ("mean", "basis")}
        numbers = {name: getattr(self, name) for name in ("rest", "limit", "alarms")}
        return {**arrays, "shape": list(self.basis.shape), **numbers, "measured": self.measured.to_dict()}

    @classmethod
    def from_dict(cls, values: dict) -> "Familiar":
        """Back from `to_dict`; `medvitlib.models.model_json` has checked the values when a model is loaded."""
        basis = _array(values["basis"]).reshape(values["shape"])
        numbers = {name: float(values[name]) for name in ("rest", "limit", "alarms")}
        return cls(_array(values["mean"]), basis, **numbers, measured=Estimate(**values["measured"]))


def familiar(
    training: np.ndarray,
    training_groups: np.ndarray,
    validation: np.ndarray,
    validation_groups: np.ndarray,
    *,
    groups_known: bool = True,
    alarms: float = 0.05,
    seed: int = 0,
) -> Familiar:
    """Fit on the features of the training images; choose the limit on folds of them, by patient; measure on validation.

    Args:
        training, validation: (N, D) features.
        training_groups, validation_groups: (N,) patient of each image.
        alarms: share of images like these that may be called unlike.

    Raises:
        MedvitError: fewer than 20 training images or 2 patients, or features that are not finite.
    """
    from sklearn.model_selection import GroupKFold

    x, y = (np.asarray(values, np.float64) for values in (training, validation))
    patients = len(np.unique(training_groups))
    if len(x) < 20 or patients < 2:
        raise MedvitError(
            f"{len(x)} training images of {patients} patients; at least 20 images of 2 patients are needed."
        )
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise MedvitError("The model's features contain NaN or infinite values.")
    parts = [outside for _, outside in GroupKFold(min(FOLDS, patients)).split(x, groups=training_groups)]
    centre = x.mean(0)
    held_out = np.empty(len(x))
    with threadpool_limits(1, user_api="blas"):  # several spend their time on waiting for each other
        moments = [_Moments.of(x[part] - centre) for part in parts]
        every = sum(moments, start=_Moments())
        for part, own in zip(parts, moments, strict=True):
            held_out[part] = _distance(x[part], *_fit(every - own, centre))
        mean, basis, rest = _fit(every, centre)
    limit = float(np.quantile(held_out, 1 - alarms, method="higher"))
    codes = np.unique(validation_groups, return_inverse=True)[1]
    measured = proportion(_distance(y, mean, basis, rest) > limit, codes, groups_known)
    return Familiar(mean.astype(np.float32), np.ascontiguousarray(basis, np.float32), rest, limit, alarms, measured)


class _Moments(NamedTuple):
    """Of some rows (N, D): their number, their sum (D,), the sum of their outer products (D, D)."""

    n: int = 0
    total: np.ndarray | float = 0.0
    products: np.ndarray | float = 0.0

    @classmethod
    def of(cls, rows: np.ndarray) -> "_Moments":
        return cls(len(rows), rows.sum(0), rows.T @ rows)

    def __add__(self, other: "_Moments") -> "_Moments":
        return _Moments(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: "_Moments") -> "_Moments":
        return _Moments(*(a - b for a, b in zip(self, other, strict=True)))


def _fit(moments: _Moments, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, scaled main directions and spread of the rest, of rows whose moments about `centre` these are.

    From the covariance matrix: a singular value decomposition of 4,000 x 768 rows for each fold takes 40 times as long.
    """
    n, d = moments.n, len(centre)
    mean = moments.total / n
    components = min(COMPONENTS, max(1, d // 2), max(1, n // 4))
    variances, directions = np.linalg.eigh((moments.products - n * np.outer(mean, mean)) / max(1, n - 1))
    variances, directions = variances[::-1].clip(0), directions.T[::-1]  # falling; a row for each direction
    least = max(1e-4 * variances.sum() / d, 1e-12)  # after a norm some directions do not vary at all
    rest = float(np.sqrt(max(variances[components:].sum() / (d - components), least)))
    spread = np.sqrt(np.maximum(variances[:components], rest**2))
    return centre + mean, directions[:components] / spread[:, None], rest


def _distance(x: np.ndarray, mean: np.ndarray, basis: np.ndarray, rest: float) -> np.ndarray:
    centred = x - mean
    within = centred @ basis.T  # (N, C), in standard deviations
    lengths = np.linalg.norm(basis, axis=1)  # 1 / standard deviation: the directions are unit vectors
    outside = np.maximum((centred**2).sum(1) - ((within / lengths) ** 2).sum(1), 0) / rest**2
    return np.sqrt(((within**2).sum(1) + outside) / x.shape[1])


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32)
