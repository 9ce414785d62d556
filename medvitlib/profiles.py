"""What the parameters of a notebook mean: its profile for the machine it runs on, its data for how they are opened."""

import os
from pathlib import Path

from medvitlib.errors import MedvitError, plain_warnings

PROFILES = ("quick", "real", "full")


def start(profile: str, seed: int = 0) -> dict:
    """Seed torch, choose the hardware of a profile, and show warnings without source code.

    `quick` always computes in float32 on the CPU, so that its figures are near those of another machine, and on two
    threads unless `OMP_NUM_THREADS` is set; `real` and `full` take whatever is fastest.

    Returns:
        Keyword arguments for `fit_probe` and `evaluate`: `device` and `precision`.
    """
    if profile not in PROFILES:
        raise MedvitError(f"profile is one of {', '.join(PROFILES)}; {profile!r} was given.")
    plain_warnings()
    import torch  # not at the top: the batch runner reads PROFILES and should start at once

    torch.manual_seed(seed)
    if profile != "quick":
        return {"device": None, "precision": "auto"}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 2))
    return {"device": "cpu", "precision": None}


def opening(source: str, groups: str, max_bad: float, metadata: str = "", **rendering) -> dict:
    """Return the options of `open_dataset` that go with a source.

    Args:
        source: a rendered family ("phantom/..."), or anything else that `open_dataset` takes.
        groups, max_bad, metadata: for anything else; "" finds out by itself who belongs together, and what is known.
        rendering: for a rendered family.
    """
    rendered = source.lower().startswith("phantom/")
    own = {"groups": groups or None, "max_bad": max_bad, "metadata": metadata or None}
    return rendering if rendered else own


def label(source: str) -> str:
    """Return a source as a part of a run's name: a folder's or file's own name, without the folders above it."""
    return (Path(source).stem if os.path.exists(source) else source).replace("/", "-").replace(" ", "-")
