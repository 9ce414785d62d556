"""Train, validation and test without a patient on two sides."""

import warnings
from dataclasses import dataclass, field, replace

import numpy as np

from medvitlib.data.dataset import Dataset, unlike
from medvitlib.data.describe import cut
from medvitlib.errors import DataError

MIN_VAL = 20
"""Images a class, on average, below which an official validation part is too small to choose anything by (Kermany's has
8); a class with fewer in a larger part is named in a note."""
TOLERANCE = 0.05
"""How far a part's share may be from what was asked before a note says so; patients cannot be cut in two."""


@dataclass(frozen=True)
class Split:
    """Three parts of a data set and, in `notes`, how they came about."""

    train: Dataset
    val: Dataset
    test: Dataset
    notes: list[str] = field(default_factory=list)

    def table(self):
        """One row a part: images, patients (if known), images and, for up to three classes, patients a class."""
        import pandas as pd

        rows = {}
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            row = {"images": len(part)}
            if part.groups_known:
                row["patients"] = len(np.unique(part.groups))
            named = unlike("images", "patients", *(f"{name} patients" for name in part.classes))
            for label, class_name in enumerate(map(named, part.classes)):
                groups = part.groups[part.labels == label]
                row[class_name] = len(groups)
                if part.groups_known and len(part.classes) <= 3:
                    row[f"{class_name} patients"] = len(np.unique(groups))
            rows[name] = row
        return pd.DataFrame.from_dict(rows, orient="index")


BY = ("groups", "clusters", "images")


def split(
    ds: Dataset, *, val: float = 0.2, test: float = 0.2, seed: int = 0, by: str = "groups", quiet: bool = False
) -> Split:
    """Cut a data set in three: every class in the same share, every group (patient) on one side.

    Official parts are used where they exist: the test part always, the validation part if it has at least 20 images
    for each class there is (else it joins train, and a new one is cut). Byte-identical files count as one group even if
    they are filed under two.

    Args:
        val: share of the images for validation: of all of them, or of those outside the official test.
        test: share of all images for the test part; ignored where there is an official one.
        seed: another seed, another cut.
        by: what stays together. "groups": patients, as the data set has them. "clusters": images that show the same
            thing too (`medvitlib.data.near`; open the set at 224 pixels); where patients are not known, clusters take
            their place, a lower bound on who belongs together. "images": nothing, to show what that does to a score.
        quiet: do not print how large the parts are, as of a set that is not rendered.

    Raises:
        DataError: for shares that leave nothing over, a class with too few groups to go round, or a positive class of
            three.
    """
    if not len(ds):
        raise DataError(f"{ds.name!r} has no images to split.")
    if ds.positive is not None and len(ds.classes) != 2:
        raise DataError(
            f"positive={ds.positive!r} was given, and {ds.name!r} has {len(ds.classes)} classes "
            f"({', '.join(ds.classes)}): a positive class is one of two. Leave it out, or keep two of them with "
            "ds.of_classes([...])."
        )
    if by not in BY:
        raise DataError(f"by={by!r}: expected one of {', '.join(BY)}.")
    in_test, in_val = ds.splits == "test", ds.splits == "val"
    official = in_test.any()
    if not (0 < val < 1 and (official or (test > 0 and val + test < 1))):
        raise DataError(f"val={val}, test={test}: expected shares above 0 that together stay below 1.")
    if (in_test | in_val).all():
        raise DataError(
            f"{ds.name!r} has no training images: {in_val.sum()} lie in val and {in_test.sum()} in test, 0 elsewhere."
        )
    notes = list(ds.notes)
    if by == "clusters":
        ds, units = _clustered(ds, notes)
    else:
        units = np.arange(len(ds)) if by == "images" else joined(ds.groups, ds.hashes)
        if not ds.groups_known:
            notes.append("patients are not known for all images: images of one patient may stand on both sides.")
        if by == "groups" and (more := len(np.unique(ds.groups)) - len(np.unique(units))):
            notes.append(f"identical files are filed under different groups: {more} more joined to keep them together.")

    if in_val.any() and in_val.sum() < MIN_VAL * len(ds.classes):
        counts = ", ".join(f"{n} {name}" for n, name in zip(_counts(ds, in_val), ds.classes, strict=True))
        notes.append(
            f"the official validation part has {in_val.sum()} images ({counts}); nothing can be chosen by so few, so "
            "it was joined with train and a new one cut from both."
        )
        in_val = np.zeros(len(ds), bool)
    origin = np.where(in_test, "test", np.where(in_val, "val", "train"))
    pool = ~in_test & ~in_val
    if official:
        notes.append(f"the official test part is used ({in_test.sum()} images).")
        if lacking := [name for name, n in zip(ds.classes, _counts(ds, in_test), strict=True) if not n]:
            notes.append(f"the official test part has no image of {', '.join(lacking)}: it cannot say how they fare.")
    else:
        pool &= ~np.isin(units, units[in_val])  # whoever is in both official parts stays out of ours
        in_test = _cut(ds, units, pool, test * len(ds) / pool.sum(), seed, "test")
    if in_val.any():
        notes.append(f"the official validation part is used ({in_val.sum()} images).")
        few = [f"{n} of {name}" for n, name in zip(_counts(ds, in_val), ds.classes, strict=True) if n < MIN_VAL]
        if few:
            notes.append(f"it has only {', '.join(few)}: nothing that concerns them alone can be chosen by it.")
    else:
        pool &= ~in_test
        base = pool.sum() if official else len(ds)
        in_val = _cut(ds, units, pool, val * base / pool.sum(), seed, "val")
        _note_share(notes, "val", in_val.sum() / base, val)
    if not official:
        _note_share(notes, "test", in_test.sum() / len(ds), test)
    parts = {"train": ~in_test & ~in_val, "val": in_val, "test": in_test}
    _check_disjoint(ds, units, parts, origin, notes)
    if by == "images" and ds.groups_known:
        sides = [set(ds.groups[chosen]) for chosen in parts.values()]
        torn = sum(len(side) for side in sides) - len(set().union(*sides))
        notes.append(f"split by image, on purpose: {torn} groups stand in more than one part. Scores are too good.")
    found = {name: ds.subset(chosen) for name, chosen in parts.items()}
    if ds.about:
        line = cut(by, found)
        if not quiet:
            print(line)
        found = {name: replace(part, about=(*part.about, line)) for name, part in found.items()}
    return Split(**found, notes=notes)


def duplicates(ds: Dataset):
    """Byte-identical files: a pandas DataFrame (cluster, id, class, split, group), one row a file, empty if none."""
    import pandas as pd

    _, clusters, sizes = np.unique(ds.hashes, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(sizes[clusters] > 1)
    order = rows[np.argsort(clusters[rows], kind="stable")]
    number = np.unique(clusters[order], return_inverse=True)[1]
    columns = {"id": ds.ids, "class": np.array(ds.classes)[ds.labels], "split": ds.splits, "group": ds.groups}
    return pd.DataFrame({"cluster": number} | {name: values[order] for name, values in columns.items()})


def joined(*keys: np.ndarray) -> np.ndarray:
    """What must not be cut apart, int (N,): connected components of images that share a value in any of the (N,) keys.

    For instance `joined(ds.groups, ds.hashes)`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = np.unique(keys[0], return_inverse=True)[1]
    for key in keys[1:]:
        other = np.unique(key, return_inverse=True)[1] + first.max() + 1
        n = other.max() + 1
        graph = coo_array((np.ones(len(first)), (first, other)), shape=(n, n))
        first = connected_components(graph, directed=False)[1][first]
    return first


def _clustered(ds: Dataset, notes: list[str]) -> tuple[Dataset, np.ndarray]:
    """The data set and its units when near-duplicates stay together; unknown groups are replaced by clusters."""
    from medvitlib.data.near import near_duplicates

    clusters = near_duplicates(ds).clusters(len(ds))
    units = joined(clusters, ds.hashes, ds.groups)
    if ds.groups_known:
        if more := len(np.unique(ds.groups)) - len(np.unique(units)):
            notes.append(f"near-duplicates join groups that were separate: {more} fewer.")
        return ds, units
    notes.append(
        f"patients are not known: {units.max() + 1} clusters of near-duplicates among {len(ds)} images take their "
        "place, a lower bound on who belongs together."
    )
    names = np.array([f"cluster{number:05d}" for number in units])
    return replace(ds, groups=names, groups_known=True), units


def _cut(ds: Dataset, units: np.ndarray, pool: np.ndarray, share: float, seed: int, name: str) -> np.ndarray:
    """Bool (N,): about `share` of the images in `pool`, stratified by class, whole units only."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds, taken = _folds(share)
    for label, class_name in enumerate(ds.classes):
        there = len(np.unique(units[pool & (ds.labels == label)]))
        if there < folds:
            raise DataError(
                f"class {class_name!r} has {there} {'patients' if ds.groups_known else 'images'} to cut a {name} part "
                f"from, and {folds} are needed for {share:.0%}: ask for a larger share, or collect more."
            )
    rows = np.flatnonzero(pool)
    cutter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    chosen = np.zeros(len(ds), bool)
    for fold, (_, inside) in enumerate(cutter.split(rows, ds.labels[rows], units[rows])):
        if fold < taken:
            chosen[rows[inside]] = True
    if min(_smallest_class(ds, chosen), _smallest_class(ds, pool & ~chosen)) == 0:
        raise DataError(f"the {name} part would lack a class, because its images lie in too few large groups.")
    return chosen


def _folds(share: float) -> tuple[int, int]:
    """(folds, how many of them to take): the fewest folds that come within two points of the share."""
    for folds in range(2, 51):
        taken = round(share * folds)
        if 0 < taken < folds and abs(taken / folds - share) <= min(0.02, share / 4, (1 - share) / 4):
            return folds, taken
    raise DataError(f"a share of {share:.3f} is too small or too large to cut: expected 0.02 to 0.98.")


def _check_disjoint(
    ds: Dataset, units: np.ndarray, parts: dict[str, np.ndarray], origin: np.ndarray, notes: list[str]
) -> None:
    """No unit in two parts. Where the official parts share some, that is their authors' doing: say so, loudly."""
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        ours = [set(zip(units[parts[name]], origin[parts[name]], strict=True)) for name in (one, other)]
        if broken := ours[0] & ours[1]:
            raise AssertionError(f"{len(broken)} groups were cut in two, between {one} and {other}")
        shared = np.intersect1d(units[parts[one]], units[parts[other]])
        if not len(shared):
            continue
        images = int((np.isin(units, shared) & (parts[one] | parts[other])).sum())
        same_files = len(np.intersect1d(ds.hashes[parts[one]], ds.hashes[parts[other]]))
        same_groups = len(np.intersect1d(ds.groups[parts[one]], ds.groups[parts[other]]))
        what = f"{same_groups} groups and {same_files} identical files"
        if not (same_groups or same_files):  # units are clusters
            what = f"{len(shared)} clusters of near-duplicates"
        note = (
            f"LEAK in the official split: {one} and {other} share {what} ({images} images). "
            f"Figures on {other} are too good by an unknown amount."
        )
        notes.append(note)
        warnings.warn(note, stacklevel=3)


def _counts(ds: Dataset, chosen: np.ndarray) -> np.ndarray:
    return np.bincount(ds.labels[chosen], minlength=len(ds.classes))


def _smallest_class(ds: Dataset, chosen: np.ndarray) -> int:
    return int(_counts(ds, chosen).min())


def _note_share(notes: list[str], name: str, achieved: float, asked: float) -> None:
    if abs(achieved - asked) > TOLERANCE:
        notes.append(
            f"{name} has {achieved:.0%} of the images, not {asked:.0%}: the groups are too large to come closer."
        )


def same_split(parts: Split, ds: Dataset) -> Split:
    """The same images in the same parts, from the same set opened in another way, for instance at another size.

    Groups are those of `parts`: clusters are found at one size, and hold at all.

    Raises:
        DataError: if `ds` lacks an image of `parts`.
    """
    row = {name: i for i, name in enumerate(ds.ids)}
    found = {}
    for name in ("train", "val", "test"):
        part = getattr(parts, name)
        if absent := [i for i in part.ids if i not in row]:
            raise DataError(
                f"{ds.name!r} lacks {len(absent)} images of the {name} part of {part.name!r} ({absent[0]}, ...): open "
                "the same set, with the same options but for its size."
            )
        images = ds.subset([row[i] for i in part.ids])
        found[name] = replace(images, groups=part.groups, groups_known=part.groups_known, splits=part.splits)
    return Split(**found, notes=list(parts.notes))
