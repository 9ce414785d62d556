"""What it does to a figure when the epoch is chosen on one part of a test set and reported on the rest.

Images of one photograph look alike. Cut by image, both parts show the same photographs, so that every cut says the same
and an interval that counts images looks narrow; cut by photograph, they say how little so few photographs can tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medvitlib.errors import EvaluationError
from medvitlib.evaluation.inputs import check_share, group_names
from medvitlib.evaluation.intervals import Estimate, proportion

BY = ("images", "groups")


@dataclass(frozen=True)
class Choice:
    """The epoch that is best on one part, and what it is worth on the other.

    Attributes:
        epoch: counted from 1.
        chosen: its accuracy on the part that it was chosen on.
        by_images: its accuracy on the other part, with the interval of images as if each were independent.
        by_groups: the same figure with the interval of its groups.
        shared: groups that stand in both parts.
    """

    epoch: int
    chosen: float
    by_images: Estimate
    by_groups: Estimate
    shared: int


def cut(labels: np.ndarray, groups: np.ndarray, share: float = 0.3, by: str = "groups", seed: int = 0) -> np.ndarray:
    """Bool (N,): a part with about `share` of each class, of its images or of its groups, and one of them at least.

    A class with a single image or group has none in that part.

    Args:
        labels, groups: (N,), class and group (photograph, patient) of each image.

    Raises:
        EvaluationError: a share that is none, an unknown `by`, or no class with two images or groups.
    """
    check_share(share, "share")
    if by not in BY:
        raise EvaluationError(f"by={by!r}: expected one of {', '.join(BY)}.")
    labels = np.asarray(labels)
    names = group_names(groups) if by == "groups" else np.arange(len(labels))
    units, first = np.unique(names, return_index=True)  # a group of several classes counts for that of its first image
    rng, chosen = np.random.default_rng(seed), np.zeros(len(labels), bool)
    for label in np.unique(labels[first]):
        those = units[labels[first] == label]
        count = min(max(1, round(share * len(those))), len(those) - 1)
        chosen |= np.isin(names, rng.permutation(those)[:count])
    if not chosen.any():
        raise EvaluationError(f"no class has 2 or more {by}: there is nothing to cut in two.")
    return chosen


def choose_epoch(labels: np.ndarray, predicted: np.ndarray, chosen_on: np.ndarray, groups: np.ndarray) -> Choice:
    """The first of the epochs with the highest accuracy on one part, and its accuracy on the other.

    Args:
        labels: (N,) integers.
        predicted: (E, N) integers, the class that each epoch's model gives.
        chosen_on: bool (N,), the part to choose on.
        groups: (N,) group of each image.

    Raises:
        EvaluationError: arrays that do not fit, or an empty part.
    """
    labels, predicted, chosen_on = np.asarray(labels), np.asarray(predicted), np.asarray(chosen_on)
    names = group_names(groups)
    if predicted.ndim != 2 or not len(predicted) or not predicted.shape[1] == len(labels) == len(names):
        raise EvaluationError(
            f"predicted {predicted.shape}, labels {labels.shape}, groups {names.shape}: expected (E, N), (N,), (N,)."
        )
    if chosen_on.dtype != bool or chosen_on.shape != labels.shape or chosen_on.all() or not chosen_on.any():
        raise EvaluationError("chosen_on: expected a bool (N,) with images in both parts.")
    right = predicted == labels
    epoch = int(right[:, chosen_on].mean(1).argmax())
    rest = ~chosen_on
    codes = np.unique(names, return_inverse=True)[1]
    hits = right[epoch, rest]
    return Choice(
        epoch=epoch + 1,
        chosen=float(right[epoch, chosen_on].mean()),
        by_images=proportion(hits, np.arange(len(hits)), False),
        by_groups=proportion(hits, codes[rest], True),
        shared=len(np.intersect1d(codes[chosen_on], codes[rest])),
    )


def choice_table(choices: Mapping[str, Choice]):
    """A row a choice, as a pandas DataFrame: epoch, groups in both parts, files and groups tested, the accuracy and its
    two intervals."""
    import pandas as pd

    rows = {
        name: {
            "epoch": choice.epoch,
            "on both sides": choice.shared,
            "files": choice.by_groups.n_images,
            "groups": choice.by_groups.n_groups,
            "accuracy": f"{choice.by_images.value:.3f}",
            "interval: files": choice.by_images.interval(),
            "interval: groups": choice.by_groups.interval(),
        }
        for name, choice in choices.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracy_over_cuts(
    labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, by: str, share: float = 0.3, cuts: int = 200
) -> np.ndarray:
    """(cuts,) accuracies that `choose_epoch` reports when the test set is cut in so many other ways."""
    found = [
        choose_epoch(labels, predicted, cut(labels, groups, share, by, seed), groups).by_images for seed in range(cuts)
    ]
    return np.array([estimate.value for estimate in found])


def by_group(labels: np.ndarray, predicted: np.ndarray, groups: np.ndarray, classes: list[str]):
    """A row a group and class, the worst first: images, how many are called right, and the share.

    Args:
        labels, predicted: (N,) integers, positions in `classes`.

    Returns:
        a pandas DataFrame with columns group, class, images, right, share.
    """
    import pandas as pd

    table = pd.DataFrame(
        {
            "group": group_names(groups),
            "class": np.array(classes)[np.asarray(labels)],
            "right": np.asarray(predicted) == np.asarray(labels),
        }
    )
    rows = table.groupby(["group", "class"]).right.agg(images="size", right="sum").reset_index()
    return rows.assign(share=rows.right / rows.images).sort_values(["share", "group"], ignore_index=True)
