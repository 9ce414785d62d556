"""Files that are read by others while they are written, and settings as they stand in them."""

import csv
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def flat(settings: dict, prefix: str = "") -> dict:
    """Nested dictionaries as one, keys joined by dots."""
    found = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differences(before: dict, now: dict) -> dict[str, tuple]:
    """What stands otherwise in two settings, by dotted key: what it was, and what it is."""
    one, other = flat(before), flat(json.loads(json.dumps(now, default=str)))
    keys = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return {key: (one.get(key), other.get(key)) for key in keys}


def write_json(path: Path, content: dict) -> None:
    """Strict JSON, as `write_text`."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, default=str) + "\n")


def csv_line(values: Iterable) -> str:
    """Return one line of a CSV file, which ends in "\\n"; a value with a comma, quote or line break is quoted."""
    line = io.StringIO(newline="")
    csv.writer(line).writerow(values)  # before Python 3.13, a line that ends in "\n" leaves a "\r" unquoted
    return line.getvalue().removesuffix("\r\n") + "\n"


def csv_text(table: "pd.DataFrame", index: bool = False) -> str:
    """Return a table as the content of a CSV file, in lines as `csv_line` makes them."""
    options = {"index": index, "lineterminator": "\n"}
    text = table.to_csv(**options)
    return table.to_csv(**options, quoting=csv.QUOTE_NONNUMERIC) if "\r" in text else text  # see `csv_line`


def write_text(path: Path, content: str) -> None:
    """Written aside, then renamed: whoever reads the file sees all of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8", newline="")
    os.replace(part, path)
