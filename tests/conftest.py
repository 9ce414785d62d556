"""Where tests find real data and weights, and what keeps every other test away from the user's folders; small sets.

Under CI with `$MEDVIT_DATA` set, a skipped `real_data` or `pretrained` test counts as a failure.
"""

import os
import signal
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from medvitlib import paths
from medvitlib.paths import cache_dir

WEIGHTS_FILE = "vit_small_patch14_dinov2.safetensors"
GUARDED = ("real_data", "pretrained", "postgresql")
# read before `isolated` points the variables elsewhere
DATA = [Path(p).expanduser().absolute() for p in os.environ.get("MEDVIT_DATA", "").split(os.pathsep) if p]
WEIGHTS = cache_dir() / "weights"
SKIP_IS_FAILURE = bool(DATA) and os.environ.get("CI", "").lower() not in ("", "0", "false")


@pytest.fixture(scope="session", autouse=True)
def answering():
    """Ctrl-C means what it always means, also where a shell started the tests in the background and switched it off."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory):
    """Each test session has its own cache and runs, sees no data or weights of the user, and shows no progress."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDVIT_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("MEDVIT_PROGRESS", os.devnull)
        patch.delenv("MEDVIT_DATA", raising=False)
        patch.delenv("MEDVIT_WEIGHTS", raising=False)
        patch.delenv("MEDVIT_STORAGE", raising=False)
        yield


def absent(marker: str) -> str:
    """Why a test with this marker cannot run here, or an empty string."""
    if marker == "real_data" and not any(folder.is_dir() for folder in DATA):
        return "real data: MEDVIT_DATA names no existing folder"
    if marker == "pretrained" and not (WEIGHTS / WEIGHTS_FILE).is_file():
        return f"pretrained: no {WEIGHTS_FILE} in the cache; run `medvit weights fetch`"
    return ""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder that holds the real data sets."""
    if reason := absent("real_data"):
        pytest.skip(reason)
    return next(folder for folder in DATA if folder.is_dir())


@pytest.fixture(scope="session")
def pretrained_weights() -> Path:
    """The folder of converted pretrained weights in the user's own cache."""
    if reason := absent("pretrained"):
        pytest.skip(reason)
    return WEIGHTS


@pytest.fixture
def write_image():
    """Write one noise image, the same for the same seed: (path, seed=0, size=(24, 20), colour=False) -> path."""

    def write(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20), colour: bool = False) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (*size, 3) if colour else size
        cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
        return path

    return write


@pytest.fixture
def write_classes(write_image):
    """Write FOLDER/CLASS/prefix_N.png: (folder, {"a": 3, "b": 4}, prefix="img") -> folder."""

    def write(folder: Path, counts: dict[str, int], prefix: str = "img", **options) -> Path:
        for number, (name, count) in enumerate(counts.items()):
            for k in range(count):
                seed = zlib.crc32(f"{folder.name} {number} {k}".encode())
                write_image(folder / name / f"{prefix}_{k}.png", seed, **options)
        return folder

    return write


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("MEDVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own_roots(tmp_path, monkeypatch) -> Path:
    """One empty data root and nothing else to search."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("MEDVIT_DATA", str(root))
    monkeypatch.setattr(paths, "KAGGLE_INPUT", tmp_path / "kaggle")
    os.makedirs(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return root


def pytest_runtest_setup(item):
    for marker in GUARDED:
        if item.get_closest_marker(marker) and (reason := absent(marker)):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    guarded = any(item.get_closest_marker(marker) for marker in GUARDED)
    if SKIP_IS_FAILURE and guarded and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"may not be skipped under CI: {reason}"
    return report


@pytest.fixture
def redraw():
    """Draw a model's weights anew, so far from its initial ones that every path through it matters."""

    def draw(model: nn.Module, seed: int = 0) -> nn.Module:
        """Every parameter of order 0.1 to 1; weight matrices scaled so that the signal neither dies nor explodes."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.3 * noise)
                elif parameter.ndim in (2, 4):
                    parameter.copy_(noise * parameter[0].numel() ** -0.5)
                else:
                    parameter.copy_(0.3 * noise)
        return model.eval()

    return draw
