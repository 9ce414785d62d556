"""Cross-validation where the test part stays what it is."""

import numpy as np

from medvitlib.data.dataset import Dataset
from medvitlib.data.splits import Split, joined
from medvitlib.errors import DataError


def folds(ds: Dataset, parts: Split, k: int, *, seed: int = 0) -> list[Split]:
    """Training and validation part of a split joined, and cut in k: each fold is the validation part once.

    A validation part of a few dozen images says little about which of two models is better; over the folds every image
    outside the test part says something, and each time a model that has not seen it is asked.

    Args:
        ds: what `parts` was cut from, by `split`.
        k: 2 or more; groups and identical files stay together, classes keep their shares.

    Returns:
        k Splits, all with the same test part.

    Raises:
        DataError: a class with fewer than k groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if k < 2:
        raise DataError(f"k={k}: expected 2 folds or more.")
    row = {name: i for i, name in enumerate(ds.ids)}
    rows = np.sort([row[name] for part in (parts.train, parts.val) for name in part.ids])
    units = joined(ds.groups, ds.hashes)[rows]
    for label, name in enumerate(ds.classes):
        if (there := len(np.unique(units[ds.labels[rows] == label]))) < k:
            raise DataError(f"class {name!r} has {there} groups outside the test part, and {k} folds were asked for.")
    cutter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    note = f"train and val were joined ({len(rows)} images) and cut in {k} folds; this is one of them."
    return [
        Split(ds.subset(rows[inside]), ds.subset(rows[outside]), parts.test, [*parts.notes, note])
        for inside, outside in cutter.split(rows, ds.labels[rows], units)
    ]
