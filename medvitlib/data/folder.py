"""What lies in a folder or a manifest, as a list of samples: nothing is decoded here.

Layouts, tried in this order:
    FOLDER/{train,val,test}/CLASS/...    split folders, in any case (also training, valid, dev, testing, eval ...)
    FOLDER/CLASS/...                     class folders; folders below a class belong to it
    FOLDER/CLASS/{train,val,test}/...    the other way round
    either of them one or two folders further down, as Kaggle's doubled folders have it
    MANIFEST.csv                         columns `path` and `class` (or `label`), optionally `split` and `group` (or
                                         `patient_id`, `subject` and the like: `medvitlib.data.tables`);
                                         paths are absolute or relative to the manifest's folder
Files and folders that start with a dot, and __MACOSX, are left out.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from medvitlib.data.decode import DICOM, SUFFIXES, is_image
from medvitlib.data.masks import IMAGE_FOLDERS, MASK_FOLDERS, masks_among
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
from medvitlib.errors import DataError, one_of, printable

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Names of split folders and of manifest splits (in any case), and the split each one means."""

UNUSUAL = ("dev", "development", "eval", "evaluation")
"""Of these it is said how they were read."""
LAYOUTS = ("CLASS", "*/CLASS")
"""What folders can be: classes, with anything below; or anything, with classes below."""
NO_CLASS = re.compile(
    r"(?i)(?:.*(?:part|chunk|batch|fold)|p|pat|patient|subj|subject|case|person|sub|images?)[ _-]?\d+"
)
"""Names that folders of parts of a set, or of patients, have."""
OTHER_IMAGES = {"", ".avif", ".heic", ".nii", ".tga", *DICOM}
"""Further endings that images have: such files are counted, and quarantined if they cannot be read. So is one with any
other ending that is an image by its first bytes; the rest are side files, which are passed over."""


@dataclass(frozen=True)
class Sample:
    """One image file: where it is, its id (path within the set), class name, official split and group ("" = none), and
    what else is known about it, by name."""

    path: Path
    id: str
    label: str
    split: str = ""
    group: str = ""
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """What `scan` found: samples, files beside them that are no images, remarks, the mask of an image by its id; and in
    words, how the layout was read and how patients are known."""

    folder: Path
    samples: list[Sample]
    side_files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    how: str = ""
    patients: str = ""


def scan(source: Path, layout: str | None = None) -> Listing:
    """List the samples of a folder or of a CSV manifest.

    Args:
        layout: where class folders could be read in two ways (folds, hospitals or patients above them): one of
            `LAYOUTS`. None refuses, naming both.

    Raises:
        DataError: if there is no such path, no image, no class to tell apart, or two that could be meant.
    """
    if layout is not None:
        one_of("layout", layout, LAYOUTS, DataError)
    if not os.path.exists(source):  # unlike Path.exists, False for what may not be looked at
        raise DataError(f"{source} does not exist, or may not be read.{_neighbours(source)}")
    if source.is_file():
        if source.suffix.lower() != ".csv":
            raise DataError(
                f"{source} is a file, not a folder of images or a CSV manifest with columns path and class."
            )
        return _manifest(source)
    folder, notes = _descend(source)
    listing = _read(folder, layout)
    _check(source, listing)
    if hidden := _hidden(source):
        notes.append(f"{hidden} hidden files (a dot in front, or in __MACOSX) passed over.")
    below = "" if folder == source else f" below {readable(folder.relative_to(source).as_posix())}"
    return replace(listing, notes=notes + listing.notes, how=listing.how + below)


def _read(folder: Path, layout: str | None) -> Listing:
    """A folder in the one of the layouts that it has."""
    tops = _folders(folder)
    parts = {top: split for top in tops if layout != LAYOUTS[0] and (split := SPLITS.get(top.name.lower()))}
    if layout is None and len(tops) > 1 and all(map(_holds_parts, tops)):
        places = [(part, readable(top.name), SPLITS[part.name.lower()]) for top in tops for part in _folders(top)]
        listing = _listed(folder, places, sum(map(_loose, (folder, *tops))))
        return replace(listing, how="a folder for each class, with folders of its official parts in it")
    if not parts:
        how = "a folder for each class" if layout != LAYOUTS[1] else f"class folders in each folder (layout={layout!r})"
        return replace(_classes(folder, _class_parents(folder, layout)), how=how)
    if len(parts) > 1 or len(tops) > 1:
        _refuse_flat(folder, list(parts))
    notes = []
    if beside := [top.name for top in tops if top not in parts]:
        notes.append(f"{', '.join(beside)}: folders beside the split folders of {folder}, not read.")
    if other := [f"{part.name} for {split}" for part, split in parts.items() if part.name.lower() in UNUSUAL]:
        notes.append(f"folders were taken as parts: {', '.join(other)}.")
    listing = _classes(folder, parts)
    how = f"class folders in {', '.join(part.name for part in parts)}, which are its official parts"
    return replace(listing, notes=notes + listing.notes, how=how)


def _refuse_flat(folder: Path, parts: list[Path]) -> None:
    """Say what train/ and test/ without class folders can be; a table beside them says which class is which."""
    if any(map(_folders, parts)) or not any(map(_loose, parts)) or list(folder.glob("*.csv")):
        return
    names = ", ".join(part.name for part in parts)
    raise DataError(
        f"{printable(folder)}: {names} {'holds' if len(parts) == 1 else 'hold'} images and no class folders. Pass "
        f'layout="CLASS" (--layout) if {names} {"is a class" if len(parts) == 1 else "are classes"}; put a folder for '
        "each class into each part otherwise."
    )


def _class_parents(folder: Path, layout: str | None) -> dict[Path, str]:
    """The folders that hold class folders: this one, or those in it."""
    tops = _folders(folder)
    for top in tops:
        again = {child.name for child in _folders(top)} & {other.name for other in tops} - {top.name}
        if len(again) == len(tops) - 1 > 1:
            raise DataError(
                f"{printable(top)} holds folders of the same names as those beside it "
                f"({', '.join(sorted(again)[:4])}): a copy of the set in itself, as unpacking twice leaves. Remove it, "
                "or open it alone."
            )
    if layout is None and (doubt := _doubt(tops)):
        raise DataError(f"{printable(folder)}: {doubt}")
    return {top: "" for top in tops} if layout == "*/CLASS" else {folder: ""}


def _doubt(tops: list[Path]) -> str:
    """Why folders may be no classes, and how to say what they are; "" where there is no doubt."""
    names = [top.name for top in tops]
    if len(tops) < 2:
        return ""
    below = {top: {child.name for child in _folders(top)} for top in tops}
    shared = Counter(name for inner in below.values() for name in inner)
    listed = printable(", ".join(names[:4]) + (", ..." if len(names) > 4 else ""))
    choose = f"Pass layout={LAYOUTS[0]!r} (--layout) if {listed} are the classes"
    usual = all(name.lower() in SPLITS.keys() | MASK_FOLDERS | IMAGE_FOLDERS for name in shared)
    if len(tops) >= len(shared) >= 2 and min(shared.values()) > 1 and not usual and not any(map(_loose, tops)):
        inner = printable(", ".join(sorted(shared)[:4]))
        return (
            f"two readings. Each of {listed} holds folders of the same names ({inner}). {choose}, "
            f"layout={LAYOUTS[1]!r} if {inner} are (folds, hospitals or patients above them)."
        )
    if all(map(NO_CLASS.fullmatch, names)):
        return (
            f"{listed} look like parts or patients, not classes. {choose}; else put one folder a class "
            "above or below them, or list the images in a CSV with columns path and class."
        )
    return ""


def _holds_parts(top: Path) -> bool:
    """Whether a folder is a class, cut in official parts: train/ and test/ that hold images, and nothing else."""
    inner = _folders(top)
    return bool(inner) and all(one.name.lower() in SPLITS and _loose(one) and not _folders(one) for one in inner)


def _folders(folder: Path) -> list[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)} cannot be read: {error.strerror}.") from None
    return [Path(entry.path) for entry in entries if entry.is_dir() and not _is_hidden(entry.name)]


def _descend(source: Path) -> tuple[Path, list[str]]:
    """Follow Kaggle's wrapping folders down to the one that holds split or class folders."""
    folder, notes = source, []
    for _ in range(3):
        children = _folders(folder)
        if any(child.name.lower() in SPLITS for child in children):
            break
        if len(children) > 1 and all(map(_holds_parts, children)):
            break
        inner = [child for child in children if any(f.name.lower() in SPLITS for f in _folders(child))]
        if inner and len(sets := [child.name for child in children if child in inner or _folders(child)]) > 1:
            raise DataError(f"{folder} holds {len(sets)} data sets ({printable(', '.join(sets))}): open one of them.")
        if not inner and any(child.name.lower() in MASK_FOLDERS for child in children):
            inner = [child for child in children if child.name.lower() in IMAGE_FOLDERS and _folders(child)]
        if len(children) == 1 and _folders(children[0]) and not _loose(children[0]):
            inner = children
        if not inner:
            break
        beside = [child.name for child in children if child not in inner]
        if beside:
            notes.append(f"{', '.join(beside)}: folders beside {inner[0]}, not read.")
        folder = inner[0]
    return folder, notes


def _classes(folder: Path, parts: dict[Path, str]) -> Listing:
    """Samples of every class folder in each of `parts`."""
    places = [(one, readable(one.name), split) for part, split in parts.items() for one in _folders(part)]
    return _listed(folder, places, sum(map(_loose, parts)))


def _listed(folder: Path, places: list[tuple[Path, str, str]], loose: int) -> Listing:
    """Samples of folders, of each of which the class and the official part are known.

    Args:
        loose: images outside of them.
    """
    samples, side_files, empty = [], [], []
    for place, label, split in places:
        before = len(samples)
        for path in walk(place):
            if path.name.upper() == "DICOMDIR":  # the index of a disc, which has no picture
                side_files.append(path)
            elif (suffix := path.suffix.lower()) in SUFFIXES or suffix in OTHER_IMAGES or is_image(path):
                samples.append(Sample(path, readable(path.relative_to(folder).as_posix()), label, split))
            else:
                side_files.append(path)
        if len(samples) == before:
            empty.append(readable(place.relative_to(folder).as_posix()))
    notes = [f"{loose} images lie outside any class folder and were not read."] if loose and samples else []
    notes += [f"no image in {', '.join(empty)}: not taken for a class."] if empty and samples else []
    return _without_masks(Listing(folder, samples, side_files, notes))


def _without_masks(listing: Listing) -> Listing:
    """Leave segmentation masks out, and keep those that belong to one image each as its evidence."""
    masks = masks_among([sample.path for sample in listing.samples])
    if not masks:
        return listing
    counts = Counter(masks.values())
    alone = {image: mask for mask, image in masks.items() if counts[image] == 1}
    first = next(iter(masks))
    note = (
        f"{len(masks)} files are segmentation masks by name and content, such as {printable(first.name)} of "
        f"{printable(masks[first].name)}: they were left out as images."
    )
    samples = [sample for sample in listing.samples if sample.path not in masks]
    kept = {sample.id: alone[sample.path] for sample in samples if sample.path in alone}
    return replace(listing, samples=samples, notes=[*listing.notes, note], masks=kept)


def _loose(folder: Path) -> int:
    """How many images lie in a folder itself, not in one below."""
    return sum(path.suffix.lower() in SUFFIXES and not _is_hidden(path.name) for path in folder.iterdir())


def readable(name: str) -> str:
    """A file name as text that can be printed and saved; bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def walk(folder: Path, unlisted: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Every file below `folder` that is not hidden, in a fixed order; linked folders are followed, each once.

    Args:
        unlisted: told of a folder that cannot be listed; None raises.

    Raises:
        DataError: a folder that cannot be listed: its images would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{printable(error.filename)} cannot be read: {error.strerror}.") from None

    seen = {os.path.realpath(folder)}
    for parent, folders, files in os.walk(folder, onerror=unlisted or refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders)}
        folders[:] = [name for name, place in real.items() if not _is_hidden(name) and place not in seen]
        seen.update(real.values())
        yield from (Path(parent, name) for name in sorted(files) if not _is_hidden(name))


def _hidden(folder: Path) -> int:
    """How many files `walk` and `_folders` pass over."""
    count, below = 0, set()
    for parent, folders, files in os.walk(folder):
        if parent in below:
            count += len(files)
            below.update(os.path.join(parent, name) for name in folders)
        else:
            count += sum(_is_hidden(name) for name in files)
            below.update(os.path.join(parent, name) for name in folders if _is_hidden(name))
    return count


def _check(source: Path, listing: Listing) -> None:
    """Say what is wrong with a folder from which no classifier can be learnt."""
    found = {}
    for sample in listing.samples:
        found.setdefault(sample.split, set()).add(sample.label)
    classes = set().union(*found.values()) if found else set()
    layout = "one folder a class (FOLDER/CLASS/image.png), or train/val/test folders that hold such class folders"
    manifests = sorted(path.name for path in source.glob("*.csv"))
    hint = f" It holds {', '.join(manifests)}: if one lists path and class, open that file." if manifests else ""
    if arrays := sorted(path.name for path in source.glob("*.npz")):
        hint += f" It holds {', '.join(arrays[:5])}: open such a file by its own path."
    if not classes:
        loose = sum(map(_loose, (listing.folder, *_folders(listing.folder))))
        what = f"holds {loose} images but no class folders" if loose else "holds no images"
        raise DataError(f"{source} {what}. Expected {layout}, or a CSV manifest.{hint}")
    plain = Counter(" ".join(name.casefold().split()) for name in classes)
    if alike := sorted(name for name in classes if plain[" ".join(name.casefold().split())] > 1):
        raise DataError(
            f"{source}: classes {', '.join(map(repr, alike))} differ in case or spaces alone. Give one class one name."
        )
    if len(classes) == 1:
        raise DataError(
            f"{source} has one class only, {classes.pop()!r} ({len(listing.samples)} images); a classifier needs two. "
            f"Expected {layout}.{hint}"
        )
    if "train" in found and (unseen := classes - found["train"]):
        raise DataError(
            f"{source}: {sorted(unseen)} occur outside train only, which has {sorted(found['train'])}. "
            "Give a class the same name, in the same case, in every split."
        )


def _manifest(path: Path) -> Listing:
    table = read_table(path)
    of = {names[0][0]: need_column(table, path, names) for names in (PATH, CLASS)}
    of["group"], of["split"] = find_column(table.columns, GROUP), find_column(table.columns, SPLIT)
    other = [f"{column!r} as the {what}" for what, column in of.items() if column and column != what]
    notes = [*table.notes, *([f"{path.name}: read {', '.join(other)}."] if other else [])]
    for number, row in zip(table.lines, table.rows, strict=True):
        if not row[of["path"]] or not row[of["class"]] or "\0" in row[of["path"]]:
            raise DataError(f"{path}, line {number}: path and class must be text, and not empty.")
        if (split := row.get(of["split"], "").lower()) and split not in SPLITS:
            raise DataError(
                f"{path}, line {number}: split {row[of['split']]!r}; expected one of {sorted(SPLITS)} or nothing."
            )
    names = [row[of["path"]] for row in table.rows]
    files, said = find_files(path.parent, names)
    labels = [row[of["class"]] for row in table.rows]
    if all(re.fullmatch(r"-?\d+\.0+", label) for label in labels):  # as pandas writes a column with a gap
        labels = [label.partition(".")[0] for label in labels]
    samples = [
        Sample(
            file,
            Path(name if os.path.exists(path.parent / name) else name.replace("\\", "/")).as_posix(),
            label,
            SPLITS.get(row.get(of["split"], "").lower(), ""),
            known_group(row.get(of["group"])),
            {column: value for column, value in row.items() if column not in of.values()},
        )
        for file, name, label, row in zip(files, names, labels, table.rows, strict=True)
    ]
    counted = Counter(os.path.abspath(sample.path) for sample in samples)
    if twice := [file for file, times in counted.items() if times > 1]:
        raise DataError(f"{path} lists {twice[0]} more than once: keep one line an image.")
    how = f"{path.name}, a line an image: {', '.join(f'{what} from {c!r}' for what, c in of.items() if c)}"
    patients = f"column {of['group']!r} of {path.name}" if of["group"] else ""
    listing = Listing(path.parent, samples, notes=[*notes, *said], how=how, patients=patients)
    _check(path, listing)
    return listing


def _neighbours(path: Path) -> str:
    parent = next((folder for folder in path.parents if os.access(folder, os.R_OK | os.X_OK)), None)
    names = sorted(p.name for p in parent.iterdir() if os.path.isdir(p) and p.name[0] != ".") if parent else []
    return f" {parent} holds: {', '.join(names[:12]) or 'no folders'}." if parent else ""
