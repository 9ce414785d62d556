"""Files that are read by others while they are written, and settings as they stand in them."""

import json
import os
from pathlib import Path


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


def write_text(path: Path, content: str) -> None:
    """Written aside, then renamed: whoever reads the file sees all of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(content)
    os.replace(part, path)
