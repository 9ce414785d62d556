"""Tables as spreadsheets, pandas and colleagues leave them: rows, and which column is which.

Separators, encodings and blank lines do not change what a table says. What a column means is taken from its name, and
said; where two could be meant, it is asked.
"""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from medvitlib.data.decode import SUFFIXES
from medvitlib.errors import DataError

SEPARATORS = ",;\t|"
PATH = (("path",), ("imagepath", "filepath", "filename", "file", "image", "imagefile", "imagename", "img"))
CLASS = (("class",), ("label",), ("classname", "diagnosis", "finding", "dx", "category", "target"))
GROUP = (
    ("group",),
    ("patient", "patientid", "patientname", "patientnumber", "patientno", "pid"),
    ("subject", "subjectid", "subjectname", "participant", "participantid", "person", "personid", "individual"),
    ("case", "caseid", "casename", "lesion", "lesionid", "slide", "slideid", "smear", "photograph"),
)
SPLIT = (("split",),)
"""Names of columns, letters alone in lower case: of the first row of names that a table has one of, that column."""
UNKNOWN = {"", "nan", "none", "null", "na", "n/a", "<na>", "nat", "-", "?", "unknown"}
"""How tables write that a patient is not known, in any case."""


@dataclass(frozen=True)
class Table:
    """A CSV file.

    Args:
        rows: one dictionary a line that is not blank; column names in lower case, without spaces around.
        lines: number of each row's line in the file.
        columns: their names, in order.
        notes: what a reader should know of how it was read.
    """

    rows: list[dict[str, str]]
    lines: list[int]
    columns: list[str]
    notes: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Read a CSV file: commas, semicolons, tabs or bars; UTF-8, UTF-16 or Windows-1252; comment lines in front.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    notes = []
    try:
        content = path.read_bytes()
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            text = content.decode("utf-16")
        else:
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = content.decode("cp1252")
                notes.append(f"{path.name} is not in UTF-8: it was read as Windows-1252.")
        lines = text.splitlines(keepends=True)
        comments = next((k for k, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
        header = lines[comments] if comments < len(lines) else ""
        separator = max(SEPARATORS, key=header.count)
        content = io.StringIO("".join(lines[comments:]), newline="")
        reader = csv.DictReader(content, delimiter=separator, skipinitialspace=True)
        columns = [(name or "").strip().lower() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        rows, numbers = [], []
        for row in reader:
            row = {key: (value or "").strip() for key, value in row.items() if key}
            if any(row.values()):
                rows.append(row)
                numbers.append(reader.line_num + comments)
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV file: {error}") from None
    return Table(rows, numbers, [name for name in columns if name], notes)


def find_column(columns: Iterable[str], names: tuple[tuple[str, ...], ...]) -> str | None:
    """Return the column that is called by one of these names (`PATH`, `CLASS`, `GROUP`), None where there is none.

    Raises:
        DataError: several could be meant.
    """
    plain = {column: re.sub(r"[^a-z]", "", column.lower()) for column in columns}
    for row in names:
        found = [column for column, name in plain.items() if name in row]
        if len(found) > 1:
            raise DataError(
                f"Columns {', '.join(found)}: each could be the {names[0][0]}. Call the right one {names[0][0]!r}."
            )
        if found:
            return found[0]
    return None


def need_column(table: Table, path: Path, names: tuple[tuple[str, ...], ...]) -> str:
    """`find_column`, where there must be one.

    Raises:
        DataError: there is none, or several.
    """
    try:
        found = find_column(table.columns, names)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if found is None:
        known = ", ".join(repr(name) for row in names for name in row)
        raise DataError(f"{path} has columns {table.columns}: one that names the {names[0][0]} is missing ({known}).")
    return found


def known_group(value: object) -> str:
    """Return the group that a cell names, "" where it names none (`UNKNOWN`)."""
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in UNKNOWN else text


def find_files(folder: Path, names: list[str], most_dropped: int = 3) -> tuple[list[Path], list[str]]:
    r"""Return where the files of a table are, and notes on how its names were understood.

    A name is tried as it is; with `\` as `/`; composed and decomposed (é is one or two characters); with an ending
    where it has none; and without its first folders, as many as the first name asks for. One that is not found stays.

    Args:
        most_dropped: first folders that may be left out; 0 where the table may be about another set.
    """
    notes = []
    variants = [_Names(folder, drop) for drop in range(most_dropped + 1)]
    first = names[0] if names else ""
    chosen = next((one for one in variants if one.find(first)), variants[0])
    found = [chosen.find(name) or folder / name for name in names]
    if chosen.drop:
        dropped = "/".join(first.replace("\\", "/").split("/")[: chosen.drop])
        notes.append(f"paths in the table start with {dropped}/, which is not here: they were read without it.")
    if bare := sum(
        Path(name.replace("\\", "/")).suffix.lower() not in SUFFIXES and place.suffix != Path(name).suffix
        for name, place in zip(names, found, strict=True)
    ):
        notes.append(f"{bare} paths have no ending: files of that name were taken.")
    return found, notes


class _Names:
    """Looks names up below a folder, without their first `drop` parts."""

    def __init__(self, folder: Path, drop: int):
        self.folder, self.drop = folder, drop
        self._stems: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path | None:
        for text in dict.fromkeys((name, name.replace("\\", "/"))):
            parts = text.split("/")
            if len(parts) <= self.drop:
                continue
            text = "/".join(parts[self.drop :])
            for form in dict.fromkeys((text, *(unicodedata.normalize(kind, text) for kind in ("NFC", "NFD")))):
                place = self.folder / form
                if os.path.exists(place):
                    return place
                same = self._endings(place.parent).get(place.name, ())
                if len(same) == 1:
                    return same[0]
        return None

    def _endings(self, folder: Path) -> dict[str, list[Path]]:
        """File names without their ending -> the images called so."""
        if folder not in self._stems:
            known = self._stems[folder] = {}
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.suffix.lower() in SUFFIXES:
                        known.setdefault(path.stem, []).append(path)
        return self._stems[folder]
