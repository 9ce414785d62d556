"""What is on disk, as samples with labels, groups and splits. Names load when first used: importing is cheap."""

import importlib

_HOME = {
    "Augmented": "augment",
    "RECIPES": "recipes",
    "augmented": "augment",
    "recipe": "recipes",
    "recipe_table": "recipes",
    "open_dataset": "catalog",
    "fetch": "sources.fetching",
    "find": "sources.finding",
    "KNOWN": "sources.known",
    "save_npz": "sources.arrays",
    "Dataset": "dataset",
    "Quarantined": "dataset",
    "batches": "loading",
    "PhantomOptions": "phantoms",
    "mix": "mixing",
    "FAMILIES": "phantoms",
    "Split": "splits",
    "same_split": "splits",
    "split": "splits",
    "duplicates": "splits",
    "HALF": "transforms",
    "IMAGENET": "transforms",
    "Preprocessing": "transforms",
    "normalise": "transforms",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
