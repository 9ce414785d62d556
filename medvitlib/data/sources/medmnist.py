"""MedMNIST's 2-D sets by name (`medmnist/breastmnist`, `medmnist/pathmnist@64`), with what its package says of them."""

import ast
import difflib
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

from medvitlib.data.sources.arrays import Facts, Opened, read_npz
from medvitlib.data.sources.known import UNKNOWN
from medvitlib.data.sources.listing import Row
from medvitlib.errors import DataError
from medvitlib.paths import cache_dir, data_roots

PREFIX = "medmnist/"
PAGE = "https://medmnist.com"
CITATION = "Yang et al., MedMNIST v2, Scientific Data 10, 41 (2023), and the source of the set"
POSITIVE = {"breastmnist": "malignant", "pneumoniamnist": "pneumonia"}
NOTES = {
    "breastmnist": "label 0 is malignant and is the positive class here; recall of label 1 would be that of the rest.",
    "dermamnist": "non-commercial use only (CC BY-NC 4.0); images of one lesion can lie in different parts.",
    "pathmnist": "test is from another centre than train and val: a drop from val to test is to be expected.",
    "pneumoniamnist": "val was cut from Kermany's train image by image: a child can have images in both.",
    "retinamnist": "grades 0 to 4 are ordered: report the quadratic kappa beside accuracy.",
}
"""What to know of a set before its figures are compared with others'."""


@lru_cache(maxsize=1)
def sets() -> dict[str, dict]:
    """The package's own table of its 2-D sets: addresses, MD5, class names, counts, licence.

    Read as text: importing the package would load torch and scikit-learn, and make a folder in the user's home.

    Raises:
        DataError: the package is not installed, or has no such table.
    """
    spec = importlib.util.find_spec("medmnist")
    try:
        tree = ast.parse(Path(spec.origin).with_name("info.py").read_text(encoding="utf-8"))
        assigned = {
            getattr(node.targets[0], "id", ""): node.value for node in tree.body if isinstance(node, ast.Assign)
        }
        table = ast.literal_eval(assigned["INFO"])
    except (AttributeError, TypeError, OSError, SyntaxError, ValueError, KeyError):
        raise DataError("the names of MedMNIST's sets need the package medmnist: `pip install medmnist`.") from None
    return {flag: info for flag, info in table.items() if not flag.endswith("3d")}


def full_name(name: str) -> str:
    """`medmnist/pathmnist@64` for `pathmnist@64`; any other name, or a path, as it is."""
    return PREFIX + name.lower() if name.lower().partition("@")[0] in sets() else name


def sizes(flag: str) -> list[int]:
    """Sides in pixels that the set is published in."""
    return [28, *sorted(int(key.removeprefix("url_")) for key in sets()[flag] if key.startswith("url_"))]


def parse(source: str) -> tuple[str, int]:
    """Flag and side in pixels of a name such as `medmnist/pathmnist@64`, in any case; 28 where none is given.

    Raises:
        DataError: no such set, or not in this size.
    """
    flag, _, side = source.lower().removeprefix(PREFIX).partition("@")
    if flag not in sets():
        meant = f" Did you mean {near!r}?" if (near := nearest(source)) else ""
        raise DataError(f"no 2-D set {source!r}.{meant} There are: {', '.join(PREFIX + name for name in sets())}.")
    if (side or "28") not in map(str, sizes(flag)):
        raise DataError(
            f"{source!r}: {flag} has sides of {', '.join(map(str, sizes(flag)))} px: write {PREFIX}{flag}@64."
        )
    return flag, int(side or 28)


def nearest(source: str) -> str | None:
    """What was meant by a name that is spelled a little wrong, or lacks `medmnist/`; None where that is not clear."""
    flag, at, side = source.lower().removeprefix(PREFIX).partition("@")
    try:
        near = difflib.get_close_matches(flag, sets(), n=1, cutoff=0.8)
    except DataError:  # without the package nothing is known
        return None
    return PREFIX + near[0] + at + side if near else None


def open_medmnist(source: str, size: tuple[int, int], root: str | Path | None, positive: str | None) -> Opened:
    """A set by name, from a data root; see `medvitlib.data.open_dataset`.

    Raises:
        DataError: it is in no root (the message says how to get it), or `read_npz`'s.
    """
    flag, side = parse(source)
    path = find(flag, side, root)
    if path is None:
        raise DataError(_missing(flag, side, root))
    return read_npz(path, size, name=_name(flag, side), positive=positive, facts=facts(flag, side))


def find(flag: str, side: int, root: str | Path | None = None) -> Path | None:
    """The set's file in a data root or the medmnist package's own folder, in any case; None if it is in none."""
    files = _files(root)
    return files.get(_file(flag, side)) or files.get(f"{flag}_{side}.npz")


def fetch(source: str) -> Path:
    """The set's file; downloaded into the cache folder and held to its MD5 if no data root has it."""
    from medvitlib.data.sources.download import download

    flag, side = parse(source)
    if path := find(flag, side):
        return path
    url, md5 = (sets()[flag][key if side == 28 else f"{key}_{side}"] for key in ("url", "MD5"))
    target = cache_dir() / "data" / "medmnist" / _file(flag, side)
    return download(url, target, digest=f"md5:{md5}", description=_name(flag, side))


def known_rows() -> list[Row]:
    """One row a set for `medvit data`; `place` names the files of all sizes that are here."""
    try:
        table, files = sets(), _files(None)
    except DataError:
        return [Row(f"{PREFIX}...", "", 0, UNKNOWN, CITATION, f"{PAGE}, with the package medmnist")]
    return [
        Row(
            name=PREFIX + flag,
            place=", ".join(str(files[file]) for side in sizes(flag) if (file := _file(flag, side)) in files),
            images=sum(info["n_samples"].values()),
            licence=info["license"],
            citation=CITATION,
            origin=f"{PAGE}, in 28, 64, 128 and 224 px (name@64)",
        )
        for flag, info in table.items()
    ]


def facts(flag: str, side: int) -> Facts:
    """What the package and we know of a set."""
    info = sets()[flag]
    return Facts(
        classes=list(info["label"].values()),
        positive=POSITIVE.get(flag),
        md5=info["MD5" if side == 28 else f"MD5_{side}"],
        counts=info["n_samples"],
        notes=[NOTES[flag]] if flag in NOTES else [],
    )


def is_ordered(source: str | Path) -> bool:
    """Whether the classes of a set, by its name or its file's, are grades (its package: ordinal regression)."""
    flag = re.split("[@_]", Path(str(source).lower()).name.removesuffix(".npz"))[0]
    try:
        return sets().get(flag, {}).get("task") == "ordinal-regression"
    except DataError:  # the package is not installed
        return False


def facts_of_file(path: Path) -> Facts | None:
    """Facts of the set whose published name the file has, such as `breastmnist_64.npz`; None for any other file."""
    match = re.fullmatch(r"(\w+?mnist)(?:_(28|64|128|224))?", path.stem.lower())
    try:
        return facts(match[1], int(match[2] or 28)) if match and match[1] in sets() else None
    except DataError:  # the package is not installed: the file opens without
        return None


def _files(root: str | Path | None) -> dict[str, Path]:
    """.npz files by lower-case name: the first of each; Kaggle mounts sets as NAME/ and as datasets/OWNER/NAME/."""
    files: dict[str, Path] = {}
    for top in (*data_roots(root), Path.home() / ".medmnist"):
        for pattern in ("medmnist/*.npz", "*.npz", "*/*.npz", "datasets/*/*/*.npz"):
            for path in sorted(top.glob(pattern)):
                files.setdefault(path.name.lower(), path)
    return files


def _file(flag: str, side: int) -> str:
    return f"{flag}.npz" if side == 28 else f"{flag}_{side}.npz"


def _name(flag: str, side: int) -> str:
    return PREFIX + flag if side == 28 else f"{PREFIX}{flag}@{side}"


def _missing(flag: str, side: int, root: str | Path | None) -> str:
    info, name = sets()[flag], _name(flag, side)
    count, files = sum(info["n_samples"].values()), _files(root)
    others = [_name(flag, other) for other in sizes(flag) if _file(flag, other) in files]
    searched = ", ".join(map(str, (*data_roots(root), Path.home() / ".medmnist")))
    return "\n".join(
        [
            f"{name} is in no data root{f' (there is {others[0]})' if others else ''}.",
            f"It is {count:,} images of {side}x{side} px, {info['license']} ({PAGE}), at most "
            f"{count * side**2 * info['n_channels'] / 1e6:,.0f} MB. Three ways to have it:",
            f"  1. fetch it: `medvit fetch {name}`;",
            f"  2. download {info['url'] if side == 28 else info[f'url_{side}']} as data/medmnist/{_file(flag, side)}, "
            "or into a folder that MEDVIT_DATA names;",
            "  3. do without: open 'phantom/cxr', which is rendered.",
            f"Folders searched: {searched}.",
        ]
    )
