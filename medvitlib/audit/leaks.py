"""Who stands on both sides: pairs of images, groups and clusters, within and across splits and classes."""

from itertools import combinations

import numpy as np
import pandas as pd

from medvitlib.data import Dataset
from medvitlib.data.near import KINDS, Pairs

TRAIN_SHARE = 0.8  # of the random split that an audit imagines where there is no official one


def pair_table(ds: Dataset, pairs: Pairs) -> pd.DataFrame:
    """One row a pair, the most telling first: across splits, then classes, then groups; then by what is the same.

    Columns: image_a, image_b, how, points, and class, split and group of both; `across` names what they differ in.
    """
    i, j = pairs.i, pairs.j
    classes = np.array(ds.classes)[ds.labels]
    differs = {
        "splits": ds.splits[i] != ds.splits[j],
        "classes": ds.labels[i] != ds.labels[j],
        "groups": (ds.groups[i] != ds.groups[j]) & ds.groups_known,
    }
    table = pd.DataFrame({"a": i, "b": j, "image_a": ds.ids[i], "image_b": ds.ids[j], "how": pairs.how})
    table["points"] = pairs.points
    for name, values in (("class", classes), ("split", ds.splits), ("group", ds.groups)):
        table[f"{name}_a"], table[f"{name}_b"] = values[i], values[j]
    rows = zip(*differs.values(), strict=True)
    across = [", ".join(name for name, yes in zip(differs, row, strict=True) if yes) for row in rows]
    table["across"] = np.array(across, dtype=str)
    weight = 4 * differs["splits"] + 2 * differs["classes"] + differs["groups"]
    kind = [KINDS.index(how) for how in pairs.how]
    return table.iloc[np.lexsort((-pairs.points, kind, -weight))].reset_index(drop=True)


def overlap(splits: np.ndarray, keys: np.ndarray) -> pd.DataFrame:
    """What two official parts share: a row a pair of parts, (one, other, shared keys, images of the other with one).

    Args:
        splits, keys: (N,), the part and the group (or cluster) of each image.
    """
    rows = []
    for one, other in combinations([name for name in ("train", "val", "test") if (splits == name).any()], 2):
        shared = np.intersect1d(keys[splits == one], keys[splits == other])
        there = splits == other
        rows.append((one, other, len(shared), int(np.isin(keys[there], shared).sum()), int(there.sum())))
    return pd.DataFrame(rows, columns=["one", "other", "shared", "images", "of"])


def exposed(keys: np.ndarray) -> float:
    """The share of test images that a random split would put beside another of the same key in train.

    An image of a cluster of m meets one with probability 1 - (1 - TRAIN_SHARE)^(m - 1).
    """
    _, member, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    return float(np.mean(1 - (1 - TRAIN_SHARE) ** (sizes[member] - 1)))


def agreement(clusters: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """How well clusters (N,) recover groups (N,): of the pairs of images in one cluster the share that is of one group
    (precision; nan without such a pair), and of the pairs of one group the share that is in one cluster (recall)."""

    def pairs(keys: np.ndarray) -> int:
        sizes = np.unique(keys, return_counts=True)[1]
        return int((sizes * (sizes - 1) // 2).sum())

    keys = [np.unique(values, return_inverse=True)[1] for values in (clusters, groups)]
    both = pairs(keys[0] * (keys[1].max() + 1) + keys[1])
    precision, recall = (both / n if n else float("nan") for n in map(pairs, keys))
    return precision, recall


def counts(ds: Dataset, units: np.ndarray) -> pd.DataFrame:
    """Images and independent units a class and official part, and the images of the largest unit."""
    table = pd.DataFrame({"split": ds.splits, "class": np.array(ds.classes)[ds.labels], "unit": units})
    if not (ds.splits != "").any():
        table = table.drop(columns="split")
    keys = [name for name in ("split", "class") if name in table]
    rows = table.groupby(keys, sort=False).unit.agg(
        images="size", units="nunique", largest=lambda unit: unit.value_counts().iloc[0]
    )
    return rows.reset_index()


def suspects(ds: Dataset, probabilities: np.ndarray) -> pd.DataFrame:
    """Images that look like another class to classifiers that never saw them: candidates for a wrong label.

    Confident learning (Northcutt, Jiang and Chuang, JAIR 2021): the probability of another class reaches what that
    class's own images get on average, and exceeds that of the label.

    Args:
        probabilities: (N, K), out of fold.

    Returns:
        image, label, looks_like, p_label, p_other and the position `i`, the clearest first.
    """
    n, own = np.arange(len(ds)), probabilities[np.arange(len(ds)), ds.labels]
    usual = np.array([own[ds.labels == k].mean() if (ds.labels == k).any() else np.inf for k in range(len(ds.classes))])
    other = np.where(probabilities >= usual, probabilities, 0.0)
    other[n, ds.labels] = 0.0
    best = other.argmax(1)
    found = np.flatnonzero(other[n, best] > own)
    found = found[np.argsort(own[found] - other[found, best[found]], kind="stable")]
    names = np.array(ds.classes)
    return pd.DataFrame(
        {
            "i": found,
            "image": ds.ids[found],
            "label": names[ds.labels[found]],
            "looks_like": names[best[found]],
            "p_label": own[found].round(4),
            "p_other": other[found, best[found]].round(4),
        }
    )
