"""Which images belong together (one patient, one photograph): from a side-car CSV, a pattern, or not known.

What file names look like is proposed, never applied: numbers in names can be series, sessions or a running count.
"""

import re
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

from medvitlib.data.folder import Listing, Sample
from medvitlib.data.metadata import rows_of
from medvitlib.data.tables import GROUP, PATH, known_group, need_column, read_table
from medvitlib.errors import DataError, printable

PATTERNS = {"kermany": r"(?:^|/)(person\d+|(?:NORMAL2-)?IM-\d+)[_-][^/]*$"}
"""Named patterns, searched in the id; the one bracketed group is the patient's id."""
KERMANY = {
    "normal": re.compile(r"(?:^|/)(?:NORMAL2-)?IM-\d{4}-\d{4}(?:-\d{4})?\.jpe?g$", re.IGNORECASE),
    "pneumonia": re.compile(r"(?:^|/)person\d+_(?:bacteria|virus)_[\d_]+\.jpe?g$", re.IGNORECASE),
}
"""How the files of Kermany's chest X-rays are named in each of its two classes, by which the set is recognised."""
PROPOSED = {
    "a folder a patient": r"([^/]+)/[^/]+$",
    "a patient's number": r"(?i)(?:^|[/_-])((?:pat|patient|person|subj|subject|sub|case|pid|p)[-_ ]?\d+)[^/\d][^/]*$",
    "PATIENT and a number": r"([^/]+?)[-_ ]+\(?\d+\)?\.[^./]+$",
}
"""What file names can look like, and the expression that reads the patient from them."""
FEWEST = 5
"""Groups below which nothing is proposed."""
SIDE_CARS = ("groups.csv", "source_groups.csv", "manifest.csv")
"""Files looked for, in any case, in the set's folder and the two above it, with columns path and group; of
source_groups.csv they are split, class, file and source: the photograph that a file was made from."""


def assign_groups(listing: Listing, groups: str | Path | None) -> tuple[Listing, bool]:
    """Give every sample its group.

    Args:
        groups: a CSV file with columns path (absolute, or relative to the CSV's folder or to the data set's) and
            group; the name of a pattern (`PATTERNS`); a regular expression with one bracketed group, searched in the
            id; or None: a manifest's own column, a side-car, DICOM headers, in that order; and the names of Kermany's
            chest X-rays, where folder and files are called as theirs. A note proposes an expression for other names
            that look like patients', and does not use it.

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
        path = Path(groups).expanduser()
        return _finish(listing, _from_csv(listing, path, must_match=True), path.name)
    pattern = PATTERNS.get(str(groups), str(groups))
    found = _from_pattern(listing.samples, pattern, f"groups={str(groups)!r}")
    found = _restarting(listing.samples, found) if str(groups) in PATTERNS else found
    return _finish(listing, found, f"file names, by {groups}")


def _automatic(listing: Listing) -> tuple[Listing, bool]:
    if any(sample.group for sample in listing.samples):
        return _finish(listing, [sample.group for sample in listing.samples], listing.patients or "the set itself")
    for folder in (listing.folder, listing.folder.parent, listing.folder.parent.parent):
        for path in _side_cars(folder):
            # A groups.csv beside the images was put there to be used; others may belong to something else.
            meant = folder == listing.folder and path.name.lower() == SIDE_CARS[0]
            if (found := _from_csv(listing, path, must_match=meant)) is not None:
                return _finish(listing, found, path.name)
    if any(found := [sample.about.get("PatientID", "") for sample in listing.samples]):
        note = "patients were read from the DICOM headers (PatientID)."
        return _finish(replace(listing, notes=[*listing.notes, note]), found, "DICOM headers, PatientID")
    if any(found := [sample.about.get("StudyInstanceUID", "") for sample in listing.samples]):
        note = "the DICOM headers name no patients: the images of one study are kept together."
        listing, _ = _finish(replace(listing, notes=[*listing.notes, note]), found, "")
        return listing, False  # a patient may have several studies
    if _is_kermany(listing.samples):
        note = "folders and files are named as those of chest_xray (Kermany): patients were read from the file names."
        found = _restarting(listing.samples, _from_pattern(listing.samples, PATTERNS["kermany"], "kermany"))
        return _finish(replace(listing, notes=[*listing.notes, note]), found, "file names, as in chest_xray (Kermany)")
    if proposal := propose(listing.samples):
        listing = replace(listing, notes=[*listing.notes, proposal])
        warnings.warn(printable(proposal), stacklevel=4)
    return _finish(listing, [""] * len(listing.samples), "")


def _is_kermany(samples: list[Sample]) -> bool:
    """Whether at least 95 % of the images of each class are named as those of Kermany's set."""
    fitting, total = Counter(), Counter(sample.label.lower() for sample in samples)
    for sample in samples:
        pattern = KERMANY.get(sample.label.lower())
        fitting[sample.label.lower()] += pattern is not None and pattern.search(sample.id) is not None
    return set(total) == set(KERMANY) and all(fitting[label] >= 0.95 * n for label, n in total.items())


def propose(samples: list[Sample]) -> str:
    """Return a sentence on what in the names could be the patient, with the expression to pass; "" where nothing could.

    It must fit 95 % of the images, and give groups of which no one has a fifth of the images and half have several.
    """
    for words, pattern in PROPOSED.items():
        pattern = re.compile(pattern)
        found = [pattern.search(sample.id) for sample in samples]
        names = [match[1] if match else "" for match in found]
        if words == "a folder a patient":  # below the class, or the class itself would be one
            names = ["" if name == sample.label else name for name, sample in zip(names, samples, strict=True)]
        sizes = Counter(filter(None, names))
        several = sum(n > 1 for n in sizes.values())
        if len(sizes) < FEWEST or sum(sizes.values()) < 0.95 * len(samples) or 2 * several < len(sizes):
            continue
        if max(sizes.values()) > max(2, 0.2 * len(samples)):
            continue
        return (
            f"patients are not known. The names look like {words}: {len(sizes)} groups of {min(sizes.values())} to "
            f"{max(sizes.values())} images, such as {next(iter(sizes))!r}. If these are the patients, pass "
            f"groups={pattern.pattern!r}; nothing was assumed."
        )
    return ""


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
        table = read_table(path)
        file = need_column(table, path, (("file",),) if sources else PATH)
        column = need_column(table, path, (("source",),) if sources else GROUP)
    except DataError:
        if must_match:
            raise
        return None  # some other CSV that happens to be called manifest.csv
    names = [row[file] for row in table.rows]
    if sources:
        names = ["/".join(filter(None, (row.get("split"), row.get("class"), row[file]))) for row in table.rows]
    groups = [known_group(row[column]) for row in table.rows]
    found, missing = rows_of(listing, path, names, groups, "groups")
    if len(missing) == len(found) and not must_match:
        return None
    if missing:
        raise DataError(
            f"{path} has no line for {len(missing)} of {len(found)} images, the first {missing[:3]}; its own first is "
            f"{names[0] if names else 'none'!r}. Add them (an empty group means unknown), or name other groups. "
            f"Paths count from {path.parent} or {listing.folder}, with / between folders."
        )
    return found


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


def _finish(listing: Listing, groups: list[str], how: str) -> tuple[Listing, bool]:
    unknown = sum(group == "" for group in groups)
    notes = list(listing.notes)
    if 0 < unknown < len(groups):
        notes.append(f"the group of {unknown} of {len(groups)} images is not known; each stands for itself.")
    samples = [replace(s, group=group or s.id) for s, group in zip(listing.samples, groups, strict=True)]
    return replace(listing, samples=samples, notes=notes, patients=how), unknown == 0
