"""Where things are, the same from JupyterLab, papermill, nbval and a shell (their working directories differ)."""

import os
from pathlib import Path

from medvitlib.errors import DataError

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
