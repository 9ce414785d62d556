"""`fetch`: have a known set on disk, through kagglehub or Kaggle's command line; or say how to do it by hand."""

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from medvitlib.data.sources.archives import unpack
from medvitlib.data.sources.download import check_room
from medvitlib.data.sources.finding import did_you_mean, recognise, where
from medvitlib.data.sources.known import KNOWN, how_to_get, known_name
from medvitlib.errors import DataError
from medvitlib.paths import cache_dir, data_roots
from medvitlib.progress import megabytes, track

LOGIN = (
    "Where Kaggle asks for a login: make a token at https://www.kaggle.com/settings/api and set KAGGLE_API_TOKEN to it "
    "(or, for an older kaggle or kagglehub, put its kaggle.json into ~/.kaggle/)."
)


def fetch(name: str) -> Path:
    """Download a known set into the cache folder, unless a data root has it; a broken download is resumed.

    Args:
        name: as `open_dataset` takes it (`chest_xray`, `medmnist/pathmnist@64`); with its owner
            (`OWNER/human-dataset-transformer-models`) where that is not known.

    Raises:
        DataError: unknown name; or nothing here can fetch it, with the page, size and licence and where to unpack.
    """
    if name.lower().startswith("medmnist/"):
        from medvitlib.data.sources import medmnist

        return medmnist.fetch(name)
    known = known_name(name)
    if known is None:
        raise DataError(
            f"there is no set called {name!r} to fetch. {did_you_mean(name)}\nThere are: {', '.join(KNOWN)}, and "
            "MedMNIST's (`medvit data` lists them). Rendered sets (phantom/...) need no fetching."
        )
    place = where(known, data_roots())
    if place and (not KNOWN[known].classes or known in recognise(place)):  # a folder of its name may be another set
        return place
    slug = name if "/" in name and "/" not in KNOWN[known].kaggle else KNOWN[known].kaggle
    target = cache_dir() / "data" / known
    if "/" not in slug:
        raise _by_hand(known, target, f"its owner is not known: call it OWNER/{slug}" if slug else "no source is known")
    if not (tools := _tools()):
        raise _by_hand(known, target, "neither kagglehub nor kaggle is installed (`pip install kagglehub`)")
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{known}.lock"):
            return target if target.is_dir() else _fetch(known, slug, target, tools)  # another process may have it now
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error.strerror or error}. Free some space, or set MEDVIT_CACHE to a folder "
            f"you may write to."
        ) from error


def _tools() -> dict[str, Callable[[str, Path], Path]]:
    """What is installed that can download (slug, folder) -> where it lies."""
    tools = {"kagglehub": _by_kagglehub} if importlib.util.find_spec("kagglehub") else {}
    return tools | ({"kaggle": functools.partial(_by_command, command)} if (command := shutil.which("kaggle")) else {})


def _fetch(name: str, slug: str, target: Path, tools: dict[str, Callable[[str, Path], Path]]) -> Path:
    check_room(name, target.parent, 2 * (KNOWN[name].bytes or 0))  # packed and unpacked
    aside = target.parent / f".{name}.fetching"  # kept where something fails, so that the next call goes on from there
    failures = []
    for tool, get in tools.items():
        try:
            place = get(slug, aside)
            if KNOWN[name].classes and name not in recognise(place):
                folders = ", ".join(KNOWN[name].classes)
                raise DataError(f"what came has no folders {folders}; look at {place}")
            if not place.is_relative_to(aside):
                return place  # on Kaggle, where sets are mounted
            os.replace(place, target)
            shutil.rmtree(aside, ignore_errors=True)
            return target
        except DataError as error:
            failures.append(f"{tool}: {error}")
    raise _by_hand(name, target, "; ".join(failures), LOGIN)


def _by_hand(name: str, target: Path, why: str, *advice: str) -> DataError:
    return DataError("\n".join([f"{name} could not be fetched: {why}.", *how_to_get(name, str(target)), *advice]))


def _by_kagglehub(slug: str, aside: Path) -> Path:
    before = os.environ.get("KAGGLEHUB_CACHE")
    os.environ["KAGGLEHUB_CACHE"] = str(aside)  # its downloads resume there, and can be renamed from there
    try:
        import kagglehub

        return Path(kagglehub.dataset_download(slug))
    except Exception as error:  # of requests, of its own and of the file system, with no base class of their own
        raise DataError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    finally:
        os.environ.pop("KAGGLEHUB_CACHE")
        os.environ |= {"KAGGLEHUB_CACHE": before} if before is not None else {}


def _by_command(kaggle: str, slug: str, aside: Path) -> Path:
    aside.mkdir(exist_ok=True)
    archive, folder, log_file = aside / f"{slug.rpartition('/')[2]}.zip", aside / "unpacked", aside / "kaggle.log"
    command = [kaggle, "datasets", "download", "-d", slug, "-p", str(aside), "--quiet"]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            for _ in track(megabytes(process, aside, "*.zip"), f"fetching {slug}", unit="MB"):
                pass
        finally:
            process.kill()
            process.wait()
    said = log_file.read_text(errors="replace").strip().splitlines()
    if process.returncode or not archive.is_file():
        raise DataError(said[-1] if said else f"ended with status {process.returncode} and no message")
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not hold what it should
    try:
        return unpack(archive, folder)
    except DataError:
        archive.unlink()  # or kaggle would take it for a finished download, and it would never get better
        raise
