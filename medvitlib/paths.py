"""Where things are, the same from JupyterLab, papermill, nbval and a shell (their working directories differ)."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from medvitlib.errors import DataError, MedvitError

KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_WORKING = Path("/kaggle/working")


def project_root() -> Path:
    """The nearest folder from the working directory upwards with `notebooks/` and a `pyproject.toml`, else that one."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            return folder
    return here


def cache_dir() -> Path:
    """Converted weights, decoded images and features: `$MEDVIT_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("MEDVIT_CACHE"):
        return Path(chosen).expanduser().absolute()
    if KAGGLE_WORKING.is_dir():
        return KAGGLE_WORKING / "medvitlib-cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medvitlib"


def runs_dir() -> Path:
    """Where run folders go: `$MEDVIT_RUNS`, else `runs/` in the project."""
    chosen = os.environ.get("MEDVIT_RUNS")
    return Path(chosen).expanduser().absolute() if chosen else project_root() / "runs"


def search_path(variable: str, *places: str) -> list[Path]:
    """Existing folders: those an environment variable lists, then `places` in the project, then Kaggle's inputs."""
    listed = [Path(p).expanduser().absolute() for p in os.environ.get(variable, "").split(os.pathsep) if p]
    folders = [*listed, *(project_root() / place for place in places), KAGGLE_INPUT]
    return [folder for folder in dict.fromkeys(folders) if os.path.exists(folder)]  # False where it may not be seen


def data_roots(root: str | Path | None = None) -> list[Path]:
    """Folders searched for data sets, in order: the argument, `$MEDVIT_DATA`, `data/`, `/kaggle/input`, the cache.

    Raises:
        DataError: the argument is no folder.
    """
    first = [Path(root).expanduser().absolute()] if root is not None else []
    if first and not os.path.isdir(first[0]):  # or a set of that name would come from another place without a word
        raise DataError(f"root={str(root)!r} is no folder: expected the one that holds your data sets.")
    cache = cache_dir() / "data"
    return [*first, *search_path("MEDVIT_DATA", "data"), *([cache] if os.path.isdir(cache) else [])]


def weight_roots() -> list[Path]:
    """Folders searched for weights, in order: `$MEDVIT_WEIGHTS`, `weights/`, `notebooks/weights/`, `/kaggle/input`."""
    return search_path("MEDVIT_WEIGHTS", "weights", "notebooks/weights")


WORKING = (".unfinished", ".old")
"""Endings of the folders that a run in the making uses; no run may be called so."""
CACHES = {"images": "decoded images", "features": "features", "near": "near-duplicate pairs", "weights": "weights"}
"""Folders of the cache that are made again when they are needed (weights are fetched again), and what they hold."""
FRESH = 3600.0  # seconds in which a file that is being written has changed
_LOCKS, _BEING_WRITTEN = (".lock",), (".part", ".tmp", ".building")


@dataclass(frozen=True)
class Removable:
    """A folder of the cache or of an interrupted run, which can be made again; `size` in bytes."""

    kind: str
    path: Path
    size: int


def size_of(path: Path) -> int:
    """Sum the bytes of all files in a folder; 0 if it does not exist."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with suppress(OSError):  # removed meanwhile
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def run_folders() -> list[Path]:
    """List the folders in `runs_dir()` that are runs, finished or not: NAME or STUDY/NAME."""
    found = []
    for pattern in ("*", "*/*"):
        folders = (path for path in runs_dir().glob(pattern) if path.is_dir() and not path.is_symlink())
        found += [path for path in folders if path.name.endswith(WORKING) or (path / "model.json").is_file()]
    return sorted(path for path in found if not path.parent.name.endswith(WORKING))


def removable(weights: bool = False) -> list[Removable]:
    """List what `medvit clean` removes: caches and interrupted runs, and no finished run.

    Args:
        weights: include the fetched pretrained weights.
    """
    kinds = {name: kind for name, kind in CACHES.items() if weights or name != "weights"}
    found = [(kind, cache_dir() / name) for name, kind in kinds.items()]
    for folder in run_folders():
        if folder.suffix == ".unfinished":
            found.append(("interrupted run", folder))
        elif folder.suffix == ".old" and (folder.with_suffix("") / "model.json").is_file():  # else it is the only copy
            found.append(("replaced run", folder))
        elif folder.suffix != ".old" and (folder / "last").is_dir():
            found.append(("state of a complete run", folder / "last"))
    sized = (Removable(kind, path, size_of(path)) for kind, path in found)
    return [one for one in sized if one.size or one.kind not in CACHES.values()]


def remove(one: Removable) -> str:
    """Remove one entry of `removable`, unless another process is using it.

    Returns:
        why some of it was left; empty if nothing was.

    Raises:
        MedvitError: it cannot be removed.
    """
    from filelock import FileLock, Timeout

    try:
        if one.kind in CACHES.values():
            return "" if all([_unlinked(file) for file in _files(one.path)]) else "what is being written was left"
        run = one.path.parent if one.path.name == "last" else one.path.with_suffix("")
        with FileLock(run.with_name(f".{run.name}.lock")).acquire(timeout=0):
            shutil.rmtree(one.path)
    except Timeout:
        return "another process is training it"
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise MedvitError(f"{error.filename or one.path} cannot be removed ({error.strerror or error}).") from error
    return ""


def cache_content() -> str:
    """Describe the size of the cache, by kind."""
    kinds = {**CACHES, "data": "data sets"}
    sizes = {kind: size_of(cache_dir() / name) for name, kind in kinds.items()}
    return ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in sizes.items() if size)


def runs_content() -> str:
    """Describe the size of the run folders: models, other files of finished runs, and interrupted runs."""
    left = [one for one in removable() if one.kind not in CACHES.values()]
    runs = [folder for folder in run_folders() if not folder.name.endswith(WORKING)]
    models = [file for run in runs for kind in ("*.safetensors", "*.onnx") for file in run.glob(kind)]
    sizes = {
        f"models of {len(runs)} runs": sum(file.stat().st_size for file in models),
        "interrupted runs": sum(one.size for one in left),
    }
    sizes["other files"] = size_of(runs_dir()) - sum(sizes.values())
    return ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in sizes.items() if size > 0)


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names if not name.endswith(_LOCKS))  # a lock may have a waiter


def _unlinked(file: Path) -> bool:
    """Remove a file of the cache, unless it is being written."""
    from filelock import FileLock, Timeout

    lock = file.with_suffix(".lock")
    try:
        if file.suffix in _BEING_WRITTEN and time.time() - file.stat().st_mtime < FRESH:
            return False
        if lock.exists():
            with FileLock(lock).acquire(timeout=0):
                file.unlink()
        else:
            file.unlink()
    except FileNotFoundError:
        pass
    except Timeout:
        return False
    return True
