"""What is known of each image beside its class: columns of a table, and fields of DICOM headers."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from medvitlib.data.dicom import HEADER, header_of
from medvitlib.data.folder import Listing, Sample
from medvitlib.data.tables import (
    CLASS,
    GROUP,
    PATH,
    SPLIT,
    find_column,
    find_files,
    known_group,
    need_column,
    read_table,
)
from medvitlib.errors import DataError
from medvitlib.progress import track

Value = TypeVar("Value")


def with_metadata(listing: Listing, path: str | Path | None) -> Listing:
    """Give every sample what its DICOM header, and its line in a CSV file, say of it.

    Args:
        path: a CSV file with a column that names the file (`medvitlib.data.tables.PATH`) and any others; None for
            headers alone. Where it has a column that names the patient, and nothing else does, that is the group.

    Raises:
        DataError: the file cannot be read, or lacks a line for some images.
    """
    read = track(listing.samples, "reading headers", unit="file")
    samples = [replace(sample, about=sample.about | header_of(sample.path)) for sample in read]
    listing = replace(listing, samples=samples)
    if path is None:
        return listing
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"metadata={str(path)!r}: no such file. Expected a CSV with a column path, and others.")
    table = read_table(path)
    file, group = need_column(table, path, PATH), find_column(table.columns, GROUP)
    own = {file, group}
    for names in (CLASS, SPLIT):
        with suppress(DataError):  # several that could be meant: of images whose class is known, no matter
            own.add(find_column(table.columns, names))
    columns = [column for column in table.columns if column not in own]
    if not columns and not group:
        raise DataError(f"{path} has columns {table.columns}: nothing beside the file's name.")
    rows = [({c: row[c] for c in columns}, known_group(row.get(group))) for row in table.rows]
    found, missing = rows_of(listing, path, [row[file] for row in table.rows], rows, "lines")
    if missing:
        raise DataError(f"{path} has no line for {len(missing)} of {len(samples)} images, the first {missing[:3]}.")
    named = any(sample.group for sample in samples)
    samples = [
        replace(sample, about=sample.about | about, group=sample.group if named else patient)
        for sample, (about, patient) in zip(samples, found, strict=True)
    ]
    how = f"column {group!r} of {path.name}" if group and not named else listing.patients
    return replace(listing, samples=samples, patients=how)


def rows_of(
    listing: Listing, path: Path, names: Sequence[str], values: Sequence[Value], what: str
) -> tuple[list[Value | None], list[str]]:
    """The value of each sample, by the file that a table's row names; and the ids of those without a row.

    Args:
        path: of the table; names are relative to its folder or to the data set's.
        names, values: one each a row.
        what: the values are, for the error.

    Raises:
        DataError: two rows of one file with different values.
    """
    files, missing = [os.path.abspath(sample.path) for sample in listing.samples], []
    for folder in (path.parent, listing.folder):
        listed: dict[str, Value] = {}
        for name, place, value in zip(names, find_files(folder, list(names), most_dropped=0)[0], values, strict=True):
            if listed.setdefault(os.path.abspath(place), value) != value:
                raise DataError(f"{path} gives {name} two {what}, {listed[os.path.abspath(place)]!r} and {value!r}.")
        missing = [sample.id for sample, file in zip(listing.samples, files, strict=True) if file not in listed]
        if len(missing) < len(files):
            break
    return [listed.get(file) for file in files], missing


def columns_of(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Each column of what is known of the samples, "" where nothing is; without what only names them (`HEADER`)."""
    names = dict.fromkeys(name for sample in samples for name in sample.about if not HEADER.get(name, False))
    columns = {name: [sample.about.get(name, "") for sample in samples] for name in names}
    return {name: values for name, values in columns.items() if any(values)}
