"""Rendered sets in MedMNIST's own .npz layout: a benchmark is taught and tested with them where nothing real is."""

from pathlib import Path

import numpy as np

from medvitlib.data.catalog import open_dataset
from medvitlib.data.splits import split
from medvitlib.errors import DataError, one_of

KINDS = {
    "cells": ["eosinophil", "lymphocyte", "monocyte", "neutrophil"],
    "slices": ["COVID", "non-COVID"],
    "grades": ["none", "faint", "plain"],
}
"""Four kinds of white cells, as in BloodMNIST; two classes in grey, as in BreastMNIST; a consolidation that is not
there, faint, or plain: ordered, as RetinaMNIST's grades."""
NOTE = "rendered images: no real patients, and figures measured on them say nothing about real ones."


def stand_in(kind: str, folder: str | Path, *, side: int = 64, n_patients: int = 60, seed: int = 0) -> Path:
    """Render a set, cut it by patient into official parts, and write it as `standin_KIND.npz`.

    Args:
        kind: one of `KINDS`.
        side: pixels.
        n_patients: of grades, half of them have plain evidence where they have any, the others faint.

    Returns:
        the file, which `open_dataset` opens as any archive of MedMNIST's.

    Raises:
        DataError: an unknown kind, or too few patients to cut three parts from.
    """
    one_of("stand-in", kind, KINDS, DataError)
    chosen = {"image_size": side, "n_patients": n_patients, "seed": seed, "difficulty": 0.0}
    if kind == "grades":
        half = {**chosen, "n_patients": n_patients // 2}
        sources = [
            ("phantom/cxr", half, [0, 2]),
            ("phantom/cxr", {**half, "seed": seed + 1, "difficulty": 0.5}, [0, 1]),
        ]
    else:
        name = {"cells": "phantom/wbc4", "slices": "phantom/ct"}[kind]
        sources = [(name, chosen, range(len(KINDS[kind])))]
    arrays: dict[str, list[np.ndarray]] = {}
    for number, (name, options, label) in enumerate(sources):
        parts = split(open_dataset(name, **options), seed=seed)
        for part in ("train", "val", "test"):
            ds = getattr(parts, part)
            images = np.asarray(ds.images)
            arrays.setdefault(f"{part}_images", []).append(images[..., 0] if ds.channels == 1 else images)
            arrays.setdefault(f"{part}_labels", []).append(np.array(label, np.uint8)[ds.labels][:, None])  # (N, 1)
            arrays.setdefault(f"{part}_groups", []).append(np.array([f"{number}/{group}" for group in ds.groups]))
    path = Path(folder) / f"standin_{kind}.npz"
    about = {"classes": KINDS[kind], "notes": [NOTE]} | ({"positive": ["COVID"]} if kind == "slices" else {})
    np.savez(path, **{key: np.concatenate(rows) for key, rows in arrays.items()}, **about)
    return path
