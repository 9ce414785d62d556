"""Where a set lies: a path in any case, a folder's name in a data root, or a folder that holds a known set's classes.

Kaggle and archive tools rename and nest folders at will, so a known set is recognised by its class folders: those, and
no others, lie in one folder, or in its train and test folders.
"""

import difflib
import functools
import os
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from medvitlib.data.folder import SPLITS
from medvitlib.data.sources.known import KNOWN, how_to_get, known_name, plain
from medvitlib.errors import DataError
from medvitlib.paths import data_roots, project_root

DEPTH = 6  # folders below a root: datasets/OWNER/NAME/dataset2-master/dataset2-master/images on Kaggle
ENTRIES = 500  # of a folder that are looked at: class folders have few neighbours, images have thousands
FOLDERS = 5000  # that are looked into, of one root
SECONDS = 3.0  # of looking, in one root


def find(source: str | Path, root: str | Path | None = None) -> tuple[Path, str]:
    """Where a set lies, and its name.

    Args:
        source: a path; a known set's name (`medvit data` lists them), with or without Kaggle's owner; the name of a
            folder in a data root. Case makes no difference.
        root: a folder searched before the data roots.

    Raises:
        DataError: naming what is missing, the ways to get it, and the folders searched; or the candidates, where
            there are several.
    """
    if not str(source):
        raise DataError("the data set's name is empty: pass a path or a name (`medvit data` lists them).")
    known = None if isinstance(source, Path) else known_name(str(source))
    path = on_disk(source)
    if known is None and (isinstance(source, Path) or "/" in str(source) or path.suffix.lower() == ".csv"):
        return _given(path)
    here = os.path.exists(path)  # a folder of that name where the user stands
    if here and "/" not in str(source):
        return _given(path)
    name, roots = known or str(source), data_roots(root)
    if place := where(name, roots):
        return place, name
    if here:
        return _given(path)
    raise DataError(_missing(name, roots))


def where(name: str, roots: list[Path], look=None) -> Path | None:
    """The folder of that name in the data roots, or the one that holds a known set's classes; None if in none.

    Of a known set, a folder that bears its name but holds other classes is taken only where there is no better one.

    Args:
        look: `recognise`, or one that remembers what it has seen.
    """
    look = look or recognise
    bears = [place for root in roots for place in _candidates(root) if _bears(name, place)]
    if name not in KNOWN or not KNOWN[name].classes:
        return bears[0] if bears else None
    inside = next((places[0] for place in bears if (places := look(place).get(name))), None)
    # an empty one, or one of an archive alone, is no set; of one that may not be read, who opens it hears that
    other = (place for place in bears if _subfolders(place) or not os.access(place, os.R_OK))
    return inside or _recognised(name, roots, look) or next(other, None)


def known_places(roots: list[Path]) -> dict[str, str]:
    """Where each known set lies, "" if in none of these folders, and the candidates where there are several."""
    look, places = functools.cache(recognise), {}
    for name in KNOWN:
        try:
            places[name] = str(where(name, roots, look) or "")
        except DataError as error:
            places[name] = str(error)
    return places


def recognise(folder: Path) -> dict[str, list[Path]]:
    """Folders at or below `folder` that hold a known set's classes, by the set's name; nearer ones first."""
    found: dict[str, list[Path]] = {}
    level, looked, end = [folder], 0, time.monotonic() + SECONDS
    for _ in range(DEPTH + 1):
        below = []
        for place in level:
            looked += 1
            if looked > FOLDERS or time.monotonic() > end:
                return found
            inner = _subfolders(place)
            if name := _signature(place, inner):
                found.setdefault(name, []).append(place)
            else:  # a split folder alone is not the set
                below += [place / one for one in inner if one.lower() not in SPLITS]
        level = below
    return found


def _signature(place: Path, inner: list[str]) -> str | None:
    """The known set whose class folders `place`, or each of its split folders, holds."""
    parts = [one for one in inner if one.lower() in SPLITS]
    groups = [_subfolders(place / part) for part in parts] if parts else [inner]
    for name, facts in KNOWN.items():
        wanted = {plain(label) for label in facts.classes}
        if wanted and all({plain(one) for one in group} == wanted for group in groups):
            return name
    return None


def _subfolders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            near = islice(entries, ENTRIES)
            return sorted(e.name for e in near if e.name[0] != "." and e.name != "__MACOSX" and e.is_dir())
    except OSError:  # not ours to read, so not ours to open
        return []


def _given(place: Path) -> tuple[Path, str]:
    stem = place.stem if place.suffix.lower() == ".csv" else place.name
    known = known_name(stem)
    if known and os.path.isdir(place):
        inside = recognise(place).get(known, [])
        return (inside[0] if len(inside) == 1 else place), known
    return place, known or stem


def on_disk(source: str | Path) -> Path:
    """An absolute path in any case; a relative one starts at the working directory, or else at the project."""
    path = Path(os.path.expanduser(source))  # which leaves a user who does not exist as it is
    here, there = (any_case(start / path) for start in (Path.cwd(), project_root()))
    return there if os.path.exists(there) and not os.path.exists(here) else here


def any_case(path: Path) -> Path:
    """The path as it is spelled on disk; as given, where nothing or more than one thing is spelled like it."""
    if os.path.exists(path):
        return path
    place = Path(path.anchor)
    for part in path.parts[1:]:
        if not os.path.exists(place / part):
            try:
                alike = [entry.name for entry in os.scandir(place) if entry.name.casefold() == part.casefold()]
            except OSError:
                return path
            if len(alike) != 1:
                return path
            part = alike[0]
        place /= part
    return place


def _bears(name: str, place: Path) -> bool:
    return bool(place.name) and (known_name(place.name) or plain(place.name)) in (name, plain(name))


def _candidates(root: Path) -> list[Path]:
    """The root itself and its folders; Kaggle also mounts sets as datasets/OWNER/NAME."""
    below = [path for pattern in ("*", "datasets/*/*") for path in sorted(root.glob(pattern)) if os.path.isdir(path)]
    return [root, *below]


def _recognised(name: str, roots: list[Path], look) -> Path | None:
    for root in roots:
        places = look(root).get(name, [])
        named = [place for place in places if any(known_name(part) == name for part in place.relative_to(root).parts)]
        if len(chosen := named or places) == 1:
            return chosen[0]
        if chosen:
            listed = ", ".join(map(str, chosen[:5]))
            raise DataError(
                f"{len(chosen)} folders in {root} look like {name} (folders {', '.join(KNOWN[name].classes)}): "
                f"{listed}. Pass the path of the one you mean, or call its folder {name}."
            )
    return None


def did_you_mean(name: str, others: Iterable[str] = ()) -> str:
    """A question with the nearest of the known names and these, "" where none is near."""
    from medvitlib.data.sources import medmnist  # which needs this module

    near = difflib.get_close_matches(plain(name), [*KNOWN, *others], n=1, cutoff=0.6)
    meant = medmnist.nearest(name) or next(iter(near), None)
    return f"Did you mean {meant!r}?" if meant else ""


def _missing(name: str, roots: list[Path]) -> str:
    from medvitlib.data import phantoms  # imports torch, which `medvit data` must not wait for

    present = sorted({path.name for root in roots for path in root.glob("[!.]*") if os.path.isdir(path)})
    searched = ", ".join(map(str, roots)) or "none exists (MEDVIT_DATA is not set, and there is no data/)"
    lines = [f"no data set called {name!r} was found."]
    if name in KNOWN:
        what, get = how_to_get(name, f"data/{name}")
        fetch = f"run `medvit fetch {name}`; or on Kaggle, add it as an input. By hand: "
        lines += [
            f"{what} Three ways to have it:",
            f"  1. get it: {fetch if KNOWN[name].page else ''}{get}",
            f"  2. have it elsewhere: set MEDVIT_DATA to the folder that holds {name}/, or pass its path;",
            f"  3. do without: open {KNOWN[name].rendered!r}, which is rendered.",
        ]
    else:
        lines += [meant] if (meant := did_you_mean(name, [*phantoms.FAMILIES, *map(plain, present)])) else []
        lines.append(f"Known names: {', '.join([*KNOWN, *phantoms.FAMILIES])}; found: {', '.join(present) or 'none'}.")
        lines.append(
            "For a folder of your own, pass its path, or put it into data/ or a folder that MEDVIT_DATA names."
        )
    return "\n".join([*lines, f"Folders searched: {searched}."])
