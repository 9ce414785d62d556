"""Which images belong together (one patient, one photograph): from a side-car CSV, a pattern, or not known."""

import os
import re
from dataclasses import replace
from pathlib import Path

from medvitlib.data.folder import Listing, Sample, read_rows
from medvitlib.errors import DataError

PATTERNS = {"kermany": r"(?:^|/)(person\d+|(?:NORMAL2-)?IM-\d+)[_-][^/]*$"}
"""Named patterns, searched in the id; the one bracketed group is the patient's id."""
SIDE_CARS = ("groups.csv", "source_groups.csv", "manifest.csv")
"""Files looked for, in any case, in the set's folder and the two above it, with columns path and group; of
source_groups.csv they are split, class, file and source: the photograph that a file was made from."""


def assign_groups(listing: Listing, groups: str | Path | None) -> tuple[Listing, bool]:
    """Give every sample its group.

    Args:
        groups: a CSV file with columns path (absolute, or relative to the CSV's folder or to the data set's) and
            group; the name of a pattern (`PATTERNS`); a regular expression with one bracketed group, searched in the
            id; or None: a manifest's own group column, a side-car, a named pattern that fits at least 95 % of the
            ids, in that order.

    Returns:
        the listing, and whether the group of every image is known. An image without a known group stands for itself.
        Groups that a named pattern reads carry the split folder they were found in, because numbers restart there
        (Kermany's do): `train/person23` (val counts as train) and `test/person23` are different patients. An
        expression of the user's is taken as it is: to tell such patients apart, let it capture the folder too.

    Raises:
        DataError: for a side-car that lists only some of the images, a `groups.csv` in the set's own folder that
            cannot be used, or a pattern that fits none.
    """
    if groups is None:
        return _automatic(listing)
    if not isinstance(groups, str | Path):
        raise DataError(f"groups={groups!r}: expected a CSV file, a pattern's name {sorted(PATTERNS)}, or a regex.")
    if Path(groups).suffix.lower() == ".csv":
        return _finish(listing, _from_csv(listing, Path(groups).expanduser(), must_match=True))
    pattern = PATTERNS.get(str(groups), str(groups))
    found = _from_pattern(listing.samples, pattern, f"groups={str(groups)!r}")
    return _finish(listing, _restarting(listing.samples, found) if str(groups) in PATTERNS else found)


def _automatic(listing: Listing) -> tuple[Listing, bool]:
    if any(sample.group for sample in listing.samples):
        return _finish(listing, [sample.group for sample in listing.samples])
    for folder in (listing.folder, listing.folder.parent, listing.folder.parent.parent):
        for path in _side_cars(folder):
            # A groups.csv beside the images was put there to be used; others may belong to something else.
            meant = folder == listing.folder and path.name.lower() == SIDE_CARS[0]
            if (found := _from_csv(listing, path, must_match=meant)) is not None:
                return _finish(listing, found)
    for name, pattern in PATTERNS.items():
        fitting = sum(re.search(pattern, sample.id) is not None for sample in listing.samples)
        if fitting >= 0.95 * len(listing.samples):
            return _finish(listing, _restarting(listing.samples, _from_pattern(listing.samples, pattern, name)))
    return _finish(listing, [""] * len(listing.samples))


def _side_cars(folder: Path) -> list[Path]:
    try:
        present = {path.name.lower(): path for path in folder.iterdir() if path.name.lower() in SIDE_CARS}
    except OSError:  # a folder above the set's that may not be listed
        return []
    return [present[name] for name in SIDE_CARS if name in present]


def _from_csv(listing: Listing, path: Path, must_match: bool) -> list[str] | None:
    if not path.is_file():
        raise DataError(f"groups={str(path)!r}: no such file. Expected a CSV with columns path and group.")
    sources = path.name.lower() == "source_groups.csv"
    try:
        rows = read_rows(path, (("file",), ("source",)) if sources else (("path",), ("group",)))
    except DataError:
        if must_match:
            raise
        return None  # some other CSV that happens to be called manifest.csv
    if sources:
        folders = [[row.get(part, "") for part in ("split", "class", "file")] for row in rows]
        rows = [
            {"path": "/".join(filter(None, f)), "group": row["source"]} for f, row in zip(folders, rows, strict=True)
        ]
    files = [os.path.abspath(sample.path) for sample in listing.samples]
    for folder in (path.parent, listing.folder):
        listed: dict[str, str] = {}
        for row in rows:
            file = os.path.abspath(os.path.join(folder, row["path"]))
            if listed.setdefault(file, row["group"]) != row["group"]:
                raise DataError(f"{path} gives {row['path']} two groups, {listed[file]!r} and {row['group']!r}.")
        missing = [sample.id for sample, file in zip(listing.samples, files, strict=True) if file not in listed]
        if len(missing) < len(files):
            break
    if len(missing) == len(files) and not must_match:
        return None
    if missing:
        raise DataError(
            f"{path} has no line for {len(missing)} of {len(files)} images, the first {missing[:3]}; its own first is "
            f"{rows[0]['path'] if rows else 'none'!r}. Add them (an empty group means unknown), or name other groups. "
            f"Paths count from {path.parent} or {listing.folder}, with / between folders."
        )
    return [listed[file] for file in files]


def _from_pattern(samples: list[Sample], pattern: str, name: str) -> list[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"{name}: not a CSV file, a pattern's name {sorted(PATTERNS)} or a regex: {error}.") from None
    if compiled.groups != 1:
        raise DataError(
            f"{name}: expected a CSV file, a pattern's name {sorted(PATTERNS)}, or a regular expression with one "
            f"bracketed group such as r'(patient\\d+)_'; this one has {compiled.groups}."
        )
    found = [compiled.search(sample.id) for sample in samples]
    if not any(found):
        raise DataError(f"{name} fits none of the {len(samples)} images; the first is {samples[0].id!r}.")
    return [(match[1] or "") if match else "" for match in found]  # a bracket may fit nothing: that is not known


def _restarting(samples: list[Sample], groups: list[str]) -> list[str]:
    space = {"train": "train/", "val": "train/", "test": "test/", "": ""}
    return [space[sample.split] + group if group else "" for sample, group in zip(samples, groups, strict=True)]


def _finish(listing: Listing, groups: list[str]) -> tuple[Listing, bool]:
    unknown = sum(group == "" for group in groups)
    notes = list(listing.notes)
    if 0 < unknown < len(groups):
        notes.append(f"the group of {unknown} of {len(groups)} images is not known; each stands for itself.")
    samples = [replace(s, group=group or s.id) for s, group in zip(listing.samples, groups, strict=True)]
    return replace(listing, samples=samples, notes=notes), unknown == 0
