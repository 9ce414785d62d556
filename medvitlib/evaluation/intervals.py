"""Intervals that know images of one patient are not independent.

Proportions get Wilson's interval on the number of images that the patients are worth; everything else is
recomputed on patients drawn with replacement.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_share
from medvitlib.progress import track

CHUNK = 250_000  # weights held at once (2 MB, a processor's cache), whatever the number of images


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval and what it rests on.

    Attributes:
        value: the figure; nan where it is undefined, with the cause in `reason`.
        low, high: ends of the interval; nan where there is none.
        method: how the interval was made.
        n_images: images the figure is over (recall: the positive ones).
        n_groups: patients among them; None where unknown.
        reason: why the value or interval is missing or unusual; empty otherwise.
    """

    value: float
    low: float
    high: float
    method: str
    n_images: int
    n_groups: int | None
    reason: str = ""

    def __format__(self, spec: str) -> str:
        """`f"{estimate}"` is "0.966 [0.951, 0.979]"; a spec such as ".2f" applies to all three numbers."""
        spec = spec or ".3f"
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:{spec}} {self.interval(spec)}"

    def __str__(self) -> str:
        return format(self)

    def interval(self, spec: str = ".3f") -> str:
        """ "[0.951, 0.979]", or "no interval"."""
        return "no interval" if np.isnan(self.low) else f"[{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self) -> dict:
        """Plain values; nan stays nan."""
        return asdict(self)


def wilson(successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a proportion; both numbers may be fractional (effective) counts."""
    check_share(confidence, "confidence")
    if not 0 <= successes <= n or n <= 0:
        raise EvaluationError(f"{successes} successes of {n}: expected 0 <= successes <= n and n > 0.")
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    # At 0 and n the ends are exactly 0 and 1; rounding must not say otherwise.
    return (0.0 if successes == 0 else float(centre - half)), (1.0 if successes == n else float(centre + half))


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval (Clopper and Pearson 1934), which covers at least `confidence`."""
    check_share(confidence, "confidence")
    if not 0 <= successes <= n or n <= 0:
        raise EvaluationError(f"{successes} successes of {n}: expected 0 <= successes <= n and n > 0.")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1, n - successes, 1 - tail))
    return low, high


def effective_size(hits: np.ndarray, groups: np.ndarray, confidence: float = 0.95) -> tuple[float, str]:
    """How many independent images these are worth (Rao and Scott 1992): n / design effect.

    The design effect is the variance of the ratio estimator sum(hits) / sum(images), by the jackknife (each patient
    left out in turn), divided by p (1 - p) / n, and at least 1. That variance is itself an estimate, from few
    patients a poor one, which the quantile of Student's t in place of the normal one allows for (Korn and Graubard
    1998). Where all hits agree nothing can be learnt about the variance and the number of patients is taken.

    Args:
        hits: (n,) bool.
        groups: (n,) integers, the patient of each image.

    Returns:
        the effective size, and its name for `Estimate.method`.
    """
    n = len(hits)
    _, member = np.unique(groups, return_inverse=True)
    images = np.bincount(member)
    patients = len(images)
    if patients == n:
        return float(n), "Wilson"
    share = hits.mean()
    if share in (0, 1) or patients == 1:
        return float(patients), "Wilson, n = patients"
    residual = np.bincount(member, hits) - share * images
    variance = (patients - 1) / patients * ((residual / (n - images)) ** 2).sum()
    design_effect = max(1.0, variance * n / (share * (1 - share)))
    z, t = ndtri((1 + confidence) / 2), stdtrit(patients - 1, (1 + confidence) / 2)
    return n / design_effect * (z / t) ** 2, f"Wilson, design effect {design_effect:.2f}"


def proportion(
    hits: np.ndarray, groups: np.ndarray, groups_known: bool, confidence: float = 0.95, empty: str = "no images"
) -> Estimate:
    """The share of True in `hits` (n,), Wilson's interval at the effective size; nan if n is 0, because `empty`."""
    n_groups = len(np.unique(groups)) if groups_known else None
    if len(hits) == 0:
        return Estimate(np.nan, np.nan, np.nan, "Wilson", 0, n_groups, empty)
    size, method = effective_size(hits, groups, confidence)
    share = float(hits.mean())
    low, high = wilson(share * size, size, confidence)
    return Estimate(share, low, high, method, len(hits), n_groups)


def resampled_weights(groups: np.ndarray, n_boot: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks (b, N) float64 of how often each image occurs when whole patients are drawn with replacement.

    Args:
        groups: (N,) integers numbered from 0; as many are drawn as there are.
    """
    rng = np.random.default_rng(seed)
    n_groups = int(groups.max()) + 1
    chunk = max(1, min(n_boot, CHUNK // len(groups)))
    for done in range(0, n_boot, chunk):
        rows = min(chunk, n_boot - done)
        drawn = rng.integers(n_groups, size=(rows, n_groups)) + np.arange(rows)[:, None] * n_groups
        counts = np.bincount(drawn.ravel(), minlength=rows * n_groups).reshape(rows, n_groups)
        yield counts[:, groups].astype(np.float64)


def bootstrap(
    statistic: Callable[[np.ndarray], dict[str, np.ndarray]], groups: np.ndarray, n_boot: int, seed: int
) -> dict[str, np.ndarray]:
    """Replicates (n_boot,) of each figure that `statistic` computes from weights (b, N)."""
    if n_boot < 100:
        raise EvaluationError(f"n_boot is {n_boot}; an interval's ends need at least 100 replicates (1000 is usual).")
    chunk = max(1, min(n_boot, CHUNK // len(groups)))
    weightings = track(resampled_weights(groups, n_boot, seed), "bootstrap", n_boot, "replicates", chunk)
    parts = [statistic(weights) for weights in weightings]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def percentiles(replicates: np.ndarray, confidence: float) -> tuple[float, float, int]:
    """The interval of the defined replicates (Efron's percentile method), and how many were undefined (nan)."""
    check_share(confidence, "confidence")
    defined = replicates[~np.isnan(replicates)]
    undefined = len(replicates) - len(defined)
    if len(defined) == 0:
        return np.nan, np.nan, undefined
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), undefined
