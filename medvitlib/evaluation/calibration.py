"""Temperature scaling (Guo et al. 2017): one number that makes probabilities honest."""

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_labels, check_numbers

BOUNDS = (0.05, 20.0)  # a fit at either end says that the validation data cannot tell
SMALLEST = float(np.finfo(np.float32).tiny)  # a float32 softmax that gives 0 means less than this


def fit_temperature(y_true: np.ndarray, logits: np.ndarray) -> float:
    """The T in [0.05, 20] with the smallest NLL of softmax(logits / T); fit it on validation, never on test.

    Args:
        y_true: (N,) integers in [0, K).
        logits: (N, K) logits or log-probabilities, which differ by a constant a row and give the same T.
    """
    from scipy.optimize import minimize_scalar

    z = _logits(logits)
    y = check_labels(y_true, [str(k) for k in range(z.shape[1])])
    if len(y) != len(z):
        raise EvaluationError(f"{len(y)} labels but {len(z)} rows of logits: give one row for each label.")
    rows = np.arange(len(y))

    def loss(log_t: float) -> float:
        return -_log_softmax(z / np.exp(log_t))[rows, y].mean()

    # NLL is convex in 1 / T, so it has one minimum in log T.
    return float(np.exp(minimize_scalar(loss, bounds=np.log(BOUNDS), method="bounded", options={"xatol": 1e-7}).x))


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature): (N, K) logits or log-probabilities to (N, K) float64 probabilities."""
    if not (np.isfinite(temperature) and temperature > 0):
        raise EvaluationError(f"temperature is {temperature}; expected a positive number: fit_temperature gives one.")
    return np.exp(_log_softmax(_logits(logits) / temperature))


def log_probabilities(probabilities: np.ndarray) -> np.ndarray:
    """(N, K) probabilities as logits; an exact 0 becomes the smallest float32, about exp(-87)."""
    return np.log(np.maximum(probabilities, SMALLEST))


def _logits(logits: np.ndarray) -> np.ndarray:
    z = check_numbers(logits, "logits")
    if z.ndim != 2 or z.shape[1] < 2:
        raise EvaluationError(
            f"logits have shape {z.shape}; expected (N, K), a column for each class. "
            "From one probability p of two classes: log_probabilities(np.stack([1 - p, p], axis=1))."
        )
    return z


def _log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
