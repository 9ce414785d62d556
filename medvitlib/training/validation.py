"""What an epoch is judged by: every metric of the validation part."""

import numpy as np
import torch

from medvitlib.data import Dataset
from medvitlib.evaluation.inputs import check
from medvitlib.evaluation.metrics import class_counts, score_metrics, threshold_metrics
from medvitlib.evaluation.scoring import decide
from medvitlib.training.config import METRICS


def validation_metrics(val: Dataset, logits: torch.Tensor) -> dict[str, float]:
    """Every metric of `METRICS`, from logits (N, K); decided at 0.5, or by the largest probability of several."""
    data = check(val.labels, logits.double().softmax(1).numpy(), val.classes, val.positive, None)
    once = np.ones((1, len(data.y)))
    values = score_metrics(data, once)
    values |= threshold_metrics(class_counts(data.y, decide(data), len(val.classes), once), data.positive)
    flat = {name.removesuffix("_macro"): float(value[0]) for name, value in values.items()}
    return {name: flat[name.removeprefix("val_")] for name in METRICS}
