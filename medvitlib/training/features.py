"""One pass of a model over a data set: logits, or the features that its last layer sees, kept between runs."""

import hashlib
import json
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from medvitlib.data import Dataset, batches, normalise
from medvitlib.data.decode import DECODER_VERSION
from medvitlib.errors import DataError, MedvitError
from medvitlib.models.base import digest
from medvitlib.models.modes import in_mode
from medvitlib.models.zoo import head_of, replace_head
from medvitlib.paths import cache_dir
from medvitlib.precision import autocast_dtype
from medvitlib.progress import track

Item, Result = TypeVar("Item"), TypeVar("Result")
MOST_SIDE_BY_SIDE = 8  # batches whose activations are in memory at a time


def default_device() -> torch.device:
    """The first CUDA device, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hardware(
    device: str | torch.device | None, precision: torch.dtype | str | None
) -> tuple[torch.device, torch.dtype | None]:
    """Where to compute, and the reduced precision to do it in: None for the best device, "auto" for what pays there.

    A precision's name ("bfloat16") will do, too.

    Raises:
        MedvitError: a device that is not here, or a precision that is none.
    """
    try:
        device = default_device() if device is None else torch.device(device)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a PyTorch without CUDA asserts
        raise MedvitError(
            f"device={str(device)!r} is not here ({str(error).splitlines()[0]}). device=None takes the best there is: "
            f"{default_device()}."
        ) from error
    known = ("auto", None, torch.float32, torch.bfloat16, torch.float16)
    precision = {str(dtype).removeprefix("torch."): dtype for dtype in known[2:]}.get(precision, precision)
    if precision not in known:
        raise MedvitError(f"precision={precision!r}: expected 'auto', None (float32), torch.bfloat16 or torch.float16.")
    if precision == "auto":
        return device, autocast_dtype(device)
    return device, None if precision == torch.float32 else precision


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, dtypes, shapes and values of every parameter and buffer."""
    return digest(model.state_dict())


def forward(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
    description: str = "Predicting",
) -> np.ndarray:
    """Run `model` over every image, in order, in evaluation mode; it stays on the device it ran on.

    Args:
        device: None takes the best there is.
        precision: "auto" takes reduced precision where the hardware gains from it; None means float32.

    Returns:
        (N, D) float32, the model's outputs.
    """
    device, dtype = hardware(device, precision)
    return np.concatenate([out for _, out in _outputs(model, dataset, batch_size, device, dtype, description)])


def extract_features(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    precision: torch.dtype | str | None = "auto",
) -> np.ndarray:
    """What the model's last linear layer sees, for every image; computed once and kept in the cache folder.

    The cache is keyed by the weights, the architecture, the preprocessing and the precision; inside it each row is
    keyed by the image's content, so that another split, another seed or a few new images cost only what is new, and
    a run that was interrupted goes on where it stopped. Arguments as `forward`.

    Returns:
        (N, D) float32.

    Raises:
        DataError: if the data set is augmented: the cache would take its rows for those of the images as they are.
    """
    from medvitlib.data import Augmented  # it brings torchvision, which an answer for one image does not need

    if isinstance(dataset, Augmented):
        raise DataError(f"features of {dataset!r}: they are kept by image, not by draw. Pass the data set as it is.")
    device, dtype = hardware(device, precision)
    head = head_of(model)
    replace_head(model, nn.Identity())
    try:
        # The pooling is no parameter, so the architecture belongs to the key; how many classes follow does not.
        parts = {k: v for k, v in getattr(model, "architecture", {}).items() if k != "num_classes"}
        architecture = json.dumps(parts, sort_keys=True, default=str)  # their order is not that of a loaded model's
        pixels = f"{model.preprocessing} {dataset.channels} {dataset.window} {DECODER_VERSION}"
        settings = f"{fingerprint(model)} {architecture} {pixels} {dtype} {device.type}"
        store = cache_dir() / "features" / f"{hashlib.sha256(settings.encode()).hexdigest()[:24]}.npz"
        known = _load(store)
        missing = np.array([i for i, h in enumerate(dataset.hashes) if h not in known], dtype=int)
        computed: dict[str, np.ndarray] = {}
        try:
            if len(missing):
                for part, out in _outputs(model, dataset.subset(missing), batch_size, device, dtype, "Features"):
                    computed.update(zip(dataset.hashes[missing[part]], out, strict=True))
        finally:
            if computed:
                _save(store, {**_load(store), **computed})
    finally:
        replace_head(model, head)
    known.update(computed)
    return np.stack([known[h] for h in dataset.hashes])


def _outputs(model, dataset, batch_size, device, dtype, description) -> Iterator[tuple[slice, np.ndarray]]:
    """The rows of each batch and the model's outputs for them; training flags are put back at the end."""

    @torch.inference_mode()
    def run(images: torch.Tensor) -> np.ndarray:
        x = normalise(images.to(device, non_blocking=True), model.preprocessing)  # (B, C, H, W)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return model(x).float().cpu().numpy()

    with in_mode(model.to(device), training=False):
        loader = (images for images, _ in batches(dataset, batch_size))
        several = device.type == "cpu" and dtype is not None and len(dataset) > batch_size
        found = side_by_side(run, loader) if several else map(run, loader)
        for number, out in enumerate(track(found, description, total=len(dataset), step=batch_size)):
            yield slice(number * batch_size, number * batch_size + len(out)), out


def side_by_side(run: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map`, in order, with a batch on each core, and so `run` in several threads, instead of every core on one batch.

    In reduced precision the products are short, and what lies between them is not shared out well: two cores gave
    1.4 times the images a second.
    """
    threads = torch.get_num_threads()
    workers = min(threads, MOST_SIDE_BY_SIDE)
    waiting: deque[Future] = deque()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            for item in items:
                waiting.append(pool.submit(run, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)  # the workers' number is otherwise that of every thread to come


def _load(store: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(store, allow_pickle=False) as saved:
            return dict(zip(saved["hashes"].tolist(), saved["features"], strict=True))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: the features are computed again
        store.unlink(missing_ok=True)
        return {}


def _save(store: Path, rows: dict[str, np.ndarray]) -> None:
    """Written aside, then renamed: a reader sees the old file or the new one."""
    store.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=store.parent, suffix=".part", delete=False) as part:
        np.savez(part, hashes=np.array(list(rows)), features=np.stack(list(rows.values())))
    os.replace(part.name, store)
