"""Small folders of real files, each image different."""

import os
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from medvitlib import paths


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
