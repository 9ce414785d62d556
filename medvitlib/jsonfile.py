"""JSON files: written whole, and checked whole when they are read.

A file is described by a dictionary of rules, one for each field; `read_json` checks them all before anything is used:

    FIELDS = {"classes": listing(text(), least=2), "temperature": number(0.05, 20), "note?": text()}
    info = read_json(folder / "model.json", FIELDS)
"""

import csv
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

Rule = Callable[[str, Any], None]
"""Raises `BadJson` for a value that is not as it should be; the first argument is the field's name, for the message."""


DEEPEST = 40  # levels of objects and lists in a file; what is read must be writable again, which is recursive


class BadJson(ValueError):
    """What is wrong with a JSON file: the field, the value given and what was expected, without a full stop."""


def read_json(path: Path, fields: Mapping[str, Rule]) -> dict[str, Any]:
    """Read a JSON file and check its fields as `parse_json` does; OSError if it cannot be read."""
    return parse_json(path.name, path.read_bytes(), fields)


def parse_json(where: str, content: bytes | str, fields: Mapping[str, Rule]) -> dict[str, Any]:
    """Parse a JSON object and check these fields; others are kept unchecked.

    Args:
        where: the file's name, for messages.

    Raises:
        BadJson: it is not strict JSON (NaN, infinity and lone surrogates are not), or a field is not as it should be.
    """
    try:
        found = json.loads(content if isinstance(content, str) else content.decode())  # UTF-8, and no guesses
        if not _shallow(found):
            raise ValueError(f"objects and lists are nested more than {DEEPEST} deep")
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadJson(f"{where} is not valid JSON: {error}") from None
    record(fields, others=anything)(f"{where}:", found)
    return found


def record(fields: Mapping[str, Rule], *, others: Rule | None = None) -> Rule:
    """Accept an object with these fields; a field whose name ends in "?" is optional.

    Args:
        others: the rule for any other field; None refuses them.
    """
    rules = {name.removesuffix("?"): rule for name, rule in fields.items()}

    def check(where: str, value: Any) -> None:
        place = where.removesuffix(":")  # of a whole file
        _expect(isinstance(value, dict), place, value, f"an object with {', '.join(rules) or 'any fields'}")
        for name, item in value.items():
            rule = rules.get(name, others)
            if rule is None:
                raise BadJson(f"{place} has an unknown field {_shown(name)}; expected {', '.join(rules)}")
            rule(f"{where}{' ' if where.endswith(':') else '.'}{_shown(name)[1:-1]}", item)
        if missing := [name for name in fields if name in rules and name not in value]:
            raise BadJson(f"{place} has no field {missing[0]!r}")

    return check


def mapping(rule: Rule) -> Rule:
    """Accept an object with any names, whose values follow one rule."""
    return record({}, others=rule)


def listing(rule: Rule, least: int = 0, most: float = math.inf) -> Rule:
    """Accept a list of `least` to `most` items that follow one rule."""

    def check(where: str, value: Any) -> None:
        count = f"{least}" if least == most else f"{least} or more" if most == math.inf else f"{least} to {most}"
        _expect(isinstance(value, list) and least <= len(value) <= most, where, value, f"a list of {count} items")
        for index, item in enumerate(value):
            rule(f"{where}[{index}]", item)

    return check


def number(low: float = -sys.float_info.max, high: float = sys.float_info.max, *, whole: bool = False) -> Rule:
    """Accept a finite number from `low` to `high`; true and false are no numbers."""
    kinds, word = ((int,), "a whole number") if whole else ((int, float), "a number")
    between = f"{low:g}" if low == high else f"{word} from {low:g} to {high:g}"
    words = between if high < 1e300 else f"{word}, {low:g} or more" if low > -1e300 else word
    return _rule(lambda value: type(value) in kinds and low <= value <= high, words)  # type: bool is an int


def text(*choices: str, least: int = 1) -> Rule:
    """Accept a string of `least` characters or more, or one of the choices if any are given."""
    words = "one of " + ", ".join(map(repr, choices)) if choices else "a text" + " that is not empty" * (least > 0)
    return _rule(lambda value: isinstance(value, str) and len(value) >= least and value in (choices or [value]), words)


def maybe(rule: Rule) -> Rule:
    """Accept null, or a value that follows the rule."""
    return lambda where, value: None if value is None else rule(where, value)


def anything(where: str, value: Any) -> None:
    """Accept any value."""


def flag(where: str, value: Any) -> None:
    """Accept true or false."""
    _expect(isinstance(value, bool), where, value, "true or false")


def _shallow(value: Any, levels: int = DEEPEST) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_shallow(item, levels - 1) for item in inner)


def _rule(test: Callable[[Any], bool], words: str) -> Rule:
    return lambda where, value: _expect(test(value), where, value, words)


def _expect(good: bool, where: str, value: Any, words: str) -> None:
    if not good:
        raise BadJson(f"{where} is {_shown(value)}; expected {words}")


def _shown(value: Any) -> str:
    """A value as JSON, cut to one short line."""
    try:
        words = json.dumps(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, thousands of lists in one another
        words = f"a {type(value).__name__}"
    return words if len(words) <= 60 else f"{words[:56]} ..."


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
