"""A foreign PyTorch checkpoint as a clean state dict in safetensors, or what stands in the way."""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from medvitlib.errors import MedvitError, WeightsError
from medvitlib.models.builders import BUILDERS, OWN, head_name, library_of, published
from medvitlib.models.checkpoint import read_checkpoint
from medvitlib.models.foreign import few, read_foreign
from medvitlib.models.named import MODELS
from medvitlib.models.npz import META_KEY, Checkpoint
from medvitlib.models.sources import SHORT_NAMES
from medvitlib.models.zoo import build, build_from, without_values

SUFFIX = ".safetensors"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of batch norms, not parameters


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        path: the new file.
        notes: sentences: where the weights lay, what was renamed, dropped, copied.
        tensors, parameters: how many; the statistics of batch norms are tensors, but no parameters.
        fits: name of a model -> classes of the file's head, None where it has none.
    """

    path: Path
    notes: list[str]
    tensors: int
    parameters: int
    fits: dict[str, int | None]

    def __str__(self) -> str:
        lines = [*self.notes, f"{self.tensors} tensors, {self.parameters:,} parameters: {self.path}"]
        for name, classes in self.fits.items():
            head = "no head" if classes is None else f"a head of {classes} classes"
            lines.append(
                f"Fits {name}, with {head}: build({name!r}, {classes or 'num_classes'}, weights={str(self.path)!r})"
            )
        if len(self.fits) == 1 and classes:
            lines.append(
                f"medvit predict {self.path} IMAGES --classes A,B (in the order of its outputs) answers with it."
            )
        if not self.fits:
            lines.append(
                "Fits none of this library's own models; --as NAME compares it with one of timm or torchvision."
            )
        return "\n".join(lines)


def convert(
    old: str | Path,
    new: str | Path | None = None,
    *,
    force: bool = False,
    name: str | None = None,
    take: str | None = None,
) -> Conversion:
    """Turn a file of torch.save into safetensors that `build(name, ..., weights=new)` loads; no code of it is run.

    Half precision stays as it is. Tensors that share memory, which safetensors cannot hold, are copied.

    Args:
        old: a state dict, or a checkpoint of a training script, with one in it.
        new: the file to write; None for the old name ending in .safetensors. Written aside, then renamed.
        force: replace an existing file.
        name: a model of timm, torchvision or this library that it must fit; None tries this library's own.
        take: key of the state dict, where the file holds several (such as "state_dict_ema").

    Raises:
        WeightsError: what blocks it, in one sentence; nothing is written then.
        MedvitError: no model has this name.
    """
    old = Path(old).expanduser()
    new = Path(new).expanduser() if new is not None else _default(old)
    _check_target(old, new, force)
    if name is not None:
        library_of(name)  # before a large file is read
    foreign = read_foreign(old, take)
    notes = list(foreign.notes)
    state = _clean(foreign.state, old, notes)
    if name is not None:
        fits = {name: _must_fit(state, name, old)}
    else:
        found = {own: _compare(state, own) for own in OWN if own not in SHORT_NAMES.values()}
        fits = {own: classes for own, (classes, problems) in found.items() if not problems}
    meta = {"source": old.name} | ({"note": "averaged weights (EMA)"} if foreign.ema else {})
    if len(fits) == 1:
        meta["model"] = next(iter(fits))
    _write(state, new, meta)
    parameters = sum(v.numel() for k, v in state.items() if v.is_floating_point() and not k.endswith(STATISTICS))
    return Conversion(new, notes, len(state), parameters, fits)


def load_converted(
    path: str | Path, classes: Sequence[str], positive: str | None = None, *, quiet: bool = False
) -> tuple[nn.Module, dict]:
    """Load a file of `convert` as a classifier, and say how images are prepared for it: as for the published weights.

    Args:
        classes: names in the order of the head's outputs, which no checkpoint tells.
        positive: of two classes, the one that is looked for.

    Returns:
        the model in evaluation mode, and what a model.json would say of it.

    Raises:
        WeightsError: the file cannot be read, does not say which model it is of, or has another number of classes.
        MedvitError: class names that are none, or no positive one of two.
    """
    path, classes = Path(path), list(classes)
    if len(set(classes)) != len(classes) or len(classes) < 2 or not all(classes):
        raise MedvitError(f"classes {', '.join(classes)!r}: expected two names or more, each once.")
    if (positive in classes) != (len(classes) == 2) or (positive and positive not in classes):
        several = "of more than two classes none is the positive one: leave it out"
        wanted = f"name the positive one of the two, {' or '.join(classes)}" if len(classes) == 2 else several
        raise MedvitError(f"positive={positive!r}: {wanted}.")
    checkpoint = read_checkpoint(path)
    name = checkpoint.meta.get("model")
    if not isinstance(name, str):
        raise WeightsError(f"{path} does not say which model it is of: medvit convert OLD {path.name} --as NAME.")
    found, problems = _compare(checkpoint.state, name)
    if found != len(classes):
        head = "no last layer" if found is None else f"a last layer of {found} classes"
        raise WeightsError(f"{path} has {head}; {len(classes)} were named: {', '.join(classes)}.")
    if problems:
        raise WeightsError("\n  ".join([f"{path} does not fit {name}:", *problems]))
    channels = _architecture(checkpoint.state, name, found)["in_channels"]
    model = build(name, found, weights=path, in_channels=channels, quiet=True).eval()
    if not quiet:
        how = model.preprocessing
        size = " × ".join(map(str, how.image_size))
        mean, std = (", ".join(f"{value:.3f}" for value in values) for values in (how.mean, how.std))
        print(
            f"{path.name}: {name}, its outputs taken as {', '.join(classes)}. Images are prepared as for the published "
            f"{name} ({size} px, mean {mean}, std {std}): if it was trained otherwise, its answers mean nothing."
        )
    why = "A converted file brings no validation images to set it by."
    unprepared = {"sets": None, "refused": [why], "familiar": None, "unchecked": why}
    info = {"classes": classes, "positive": positive, "preprocessing": vars(model.preprocessing)}
    return model, info | {"prediction": unprepared}


def _default(old: Path) -> Path:
    return old.with_name(old.name.removesuffix(".tar")).with_suffix(SUFFIX)


def _check_target(old: Path, new: Path, force: bool) -> None:
    if old.suffix in (SUFFIX, ".npz"):
        raise WeightsError(f"{old} needs no conversion: build(..., weights={str(old)!r}) reads it as it is.")
    if new.suffix != SUFFIX:
        raise WeightsError(f"the new file is {new}: expected a name that ends in {SUFFIX}.")
    if not new.parent.is_dir():
        raise WeightsError(f"there is no folder {new.parent} to write {new.name} into: make it first.")
    if new.is_dir():
        raise WeightsError(f"{new} is a folder: give the name of a file.")
    if os.path.exists(new) and os.path.exists(old) and os.path.samefile(old, new):
        raise WeightsError(f"{new} is the old file itself: give another name.")
    if os.path.lexists(new) and not force:
        raise WeightsError(f"{new} exists already: give another name, or force=True (--force) to replace it.")


def _clean(foreign: dict[str, torch.Tensor], path: Path, notes: list[str]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that own their memory; what was shared or is not finite goes into the notes."""
    for name, value in foreign.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantised" if value.is_quantized else "without values" if value.is_meta else "sparse"
            raise WeightsError(f"{path}: {name} is {kind}, which safetensors cannot hold; save a dense model instead.")
    if not foreign:
        raise WeightsError(f"{path} holds no tensors in its state dict.")
    owners = defaultdict(list)
    for name, value in foreign.items():
        if value.numel():
            owners[value.untyped_storage().data_ptr()].append(name)
    if shared := [" = ".join(names) for names in owners.values() if len(names) > 1]:
        notes.append(f"Shared memory, now copies: {few(shared)}.")
    if broken := [name for name, value in foreign.items() if value.is_floating_point() and not value.isfinite().all()]:
        notes.append(f"Not finite (nan or infinite) in {few(broken)}: such a model predicts nothing.")
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in foreign.items()}


def _must_fit(state: dict[str, torch.Tensor], name: str, path: Path) -> int | None:
    """Load the weights into a model of this name as `build` would; its builder may resize and rename."""
    classes, problems = _compare(state, name)
    try:
        BUILDERS[library_of(name)](_architecture(state, name, classes), Checkpoint(state))
    except WeightsError as error:
        text = "\n  ".join(problems) or str(error)
        raise WeightsError(f"{path} does not fit {name}:\n  {text}") from None
    return classes


def _compare(state: dict[str, torch.Tensor], name: str) -> tuple[int | None, list[str]]:
    """Classes of the file's head, None without one; and what is missing, unexpected, or of another shape.

    What `build` puts right is no problem: a missing head, another number of patches, LayerScale in our own models.
    """
    head = head_name(_blank(state, name, 2))
    weight = state.get(f"{head}.weight")
    classes = None if weight is None or not weight.ndim else len(weight)
    target = {key: tuple(value.shape) for key, value in _blank(state, name, classes or 2).state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    if name in MODELS:
        given = {key: shape for key, shape in given.items() if not key.endswith(".gamma")}
    if classes is None:
        target = {key: shape for key, shape in target.items() if not key.startswith(f"{head}.")}
    wrong = [
        f"{key} is {shape}, the model's {target[key]}"
        for key, shape in given.items()
        if key in target and shape != target[key] and not (key == "pos_embed" and shape[-1:] == target[key][-1:])
    ]
    lists = {"missing": target.keys() - given.keys(), "unexpected": given.keys() - target.keys(), "wrong shape": wrong}
    return classes, [f"{title} ({len(items)}): {few(sorted(items))}" for title, items in lists.items() if items]


def _blank(state: dict[str, torch.Tensor], name: str, classes: int) -> nn.Module:
    """A model of this name, for its names and shapes."""
    architecture = _architecture(state, name, classes)
    return without_values(lambda: build_from(architecture))


def _architecture(state: dict[str, torch.Tensor], name: str, classes: int | None) -> dict:
    first = next((value for value in state.values() if value.ndim == 4), None)
    library = library_of(name)
    grey = first is not None and first.shape[1] == 1 and library != "torchvision"
    return {
        "library": library,
        "name": name,
        "num_classes": classes or 2,
        "image_size": list(published(name)[1].image_size),
        "pool": None,
        "in_channels": 1 if grey else 3,
        "options": {},
    }


def _write(state: dict[str, torch.Tensor], path: Path, meta: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(state, aside, metadata={"format": "pt", META_KEY: json.dumps(meta)})
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path} ({error}): choose another folder, or free some space.") from None
    finally:
        aside.unlink(missing_ok=True)
