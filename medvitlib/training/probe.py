"""The first classifier: a frozen backbone and a regularised logistic regression on its features.

It trains in seconds once the features are there, has one setting, and is the floor that anything
fine-tuned has to beat. The result is exported as one ordinary module (backbone + linear layer).
"""

import time
import warnings

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from medvitlib.data import Split
from medvitlib.errors import MedvitError
from medvitlib.models.zoo import count_parameters, head_of, replace_head
from medvitlib.progress import track
from medvitlib.training.features import extract_features
from medvitlib.training.run import Run, choices, need_every_class, start_run

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C, the inverse of the penalty, on standardised features


def fit_probe(
    model: nn.Module,
    parts: Split,
    *,
    name: str,
    strengths: tuple[float, ...] = STRENGTHS,
    compared: int = 1,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
    settings: dict | None = None,
) -> Run:
    """Fit one logistic regression per strength on the training part, keep the one with the lowest validation loss.

    The validation loss is the negative log-likelihood, a proper score. The test part is not touched.

    Args:
        model: a backbone from `build`; its parameters stay as they are, its last layer is replaced.
        name: of the run folder, under `runs_dir()`; an earlier run of this name is replaced once this one is complete.
        strengths: values of C to compare; as many are counted in the certificate's correction for choosing.
        compared: how many models or image sizes, this one included, were tried on this same validation part before
            this one was kept; the correction counts `strengths` for each of them.
        settings: whatever else `config.json` should remember.

    Raises:
        DataError: a class is absent from the training or the validation part, or nobody said which is positive.
        MedvitError: the model's last layer is not an `nn.Linear`; `compared` is less than 1.
    """
    if compared < 1:
        raise MedvitError(f"compared={compared}: expected 1 or more, the model that is being fitted included.")
    if not isinstance(head := head_of(model), nn.Linear):
        raise MedvitError(
            f"a logistic regression takes the place of a linear last layer; this model ends in {type(head).__name__}. "
            "Take another one, such as vit_small_patch14_dinov2 or resnet50."
        )
    classes = parts.train.classes
    need_every_class(parts)
    numbers = {"total": count_parameters(model), "trained": count_parameters(head)}
    asked = {"method": "probe", "strengths": list(strengths), "compared": compared, "parameters": numbers}
    settings = {**asked, **(settings or {})}
    with start_run(name, model, parts, settings) as run:
        hardware = {"batch_size": batch_size, "device": device, "precision": precision}
        x_train, x_val = (extract_features(model, part, **hardware) for part in (parts.train, parts.val))
        mean, std = x_train.mean(0), x_train.std(0)
        std[std < 1e-6] = 1.0  # a feature that never varies says nothing; dividing by its spread would say a lot
        best = None
        for strength in track(strengths, "Logistic regression", unit="fit"):
            start = time.perf_counter()
            weight, bias = _fit((x_train - mean) / std, parts.train.labels, strength, len(classes))
            weight, bias = weight / std, bias - (weight / std) @ mean  # the scaling, folded in
            logits = x_val @ weight.T + bias
            train_nll, val_nll = _nll(x_train @ weight.T + bias, parts.train.labels), _nll(logits, parts.val.labels)
            run.log({"C": strength, "train_nll": train_nll, "val_nll": val_nll, "seconds": time.perf_counter() - start})
            if best is None or val_nll < best[0]:
                best = (val_nll, weight, bias, logits, strength)

        _, weight, bias, logits, strength = best
        head = nn.Linear(weight.shape[1], weight.shape[0])
        head.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        replace_head(model, head)
        tried = choices(compared, len(strengths), "penalties")
        return run.finish(model, parts.val, logits, chosen={"C": strength}, **tried)


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()


def _fit(x: np.ndarray, y: np.ndarray, strength: float, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and bias (K,), float32; two classes get logits -z/2 and z/2, so that softmax gives sigmoid(z)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # one thread: the products are small, and two spend their time on waiting for each other (ten times as long)
    with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
        # a weak penalty on few images never quite converges; validation judges it
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=strength, max_iter=500).fit(x, y)
    weight, bias = fitted.coef_, fitted.intercept_
    if num_classes == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight.astype(np.float32), bias.astype(np.float32)
