"""One builder a library: this one's models, timm's, torchvision's.

timm and torchvision take seconds to import: they are where a model of theirs is meant.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from medvitlib.data.transforms import HALF, IMAGENET, Preprocessing
from medvitlib.errors import MedvitError, WeightsError
from medvitlib.models.attention_classifier import TransformerClassifier
from medvitlib.models.checkpoint import load_into_vit
from medvitlib.models.named import MODELS, OPTIONS
from medvitlib.models.npz import Checkpoint
from medvitlib.models.sources import Source, source_of
from medvitlib.models.vit import VisionTransformer

OWN = {**MODELS, "transformer_classifier": TransformerClassifier}
SIZES = ("image_size", "in_channels", "num_classes")


def library_of(name: str) -> str:
    """Which of "medvitlib", "timm" and "torchvision" has this model; MedvitError names the nearest known ones."""
    if name in OWN:
        return "medvitlib"
    import timm
    import torchvision

    if timm.is_model(name):
        architecture, _, tag = name.partition(".")
        if tag and tag not in (tags := [full.partition(".")[2] for full in timm.list_pretrained(architecture)]):
            raise MedvitError(f"timm has no weights {tag!r} of {architecture}; it has: {', '.join(tags) or 'none'}.")
        return "timm"
    torchvisions = torchvision.models.list_models(module=torchvision.models)
    if name in torchvisions:
        return "torchvision"
    known = dict.fromkeys([*OWN, *timm.list_models(), *torchvisions])
    nearest = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    raise MedvitError(
        f"no model is called {name!r}. Nearest: {', '.join(nearest) or 'none'}. "
        f"This library's own: {', '.join(OWN)}; timm's: timm.list_models()."
    )


def published(name: str) -> tuple[Source, Preprocessing]:
    """Where the weights of a name are published, and the input that they expect."""
    library = library_of(name)
    if library == "medvitlib":
        size = inspect.signature(OWN[name]).parameters["image_size"].default
        return source_of(name) or Source(), Preprocessing((size, size), *(IMAGENET if "dinov2" in name else HALF))
    local = tuple(f"{name}{suffix}" for suffix in (".safetensors", ".pth", ".npz"))
    if library == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        repository = config.hf_hub_id or ""
        source = Source(local, config.license or "unknown", hub=repository, url="" if repository else config.url or "")
        return source, Preprocessing(config.input_size[1:], config.mean, config.std)
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    recipe = weights.transforms()
    source = Source(local, "BSD-3-Clause (torchvision)", url=weights.url)
    return source, Preprocessing((recipe.crop_size[0],) * 2, recipe.mean, recipe.std)


def channels_of(name: str) -> int:
    """Channels that a model takes unless told otherwise: 3, or 1 for one that is drawn for grey images."""
    return inspect.signature(OWN[name]).parameters["in_channels"].default if name in OWN else 3


def head_name(model: nn.Module) -> str:
    """Path of the final classifier inside the model, whatever module stands there now."""
    if isinstance(model, VisionTransformer):
        return "head"
    if hasattr(model, "get_classifier"):  # timm
        head = model.get_classifier()
        if isinstance(head, tuple):
            raise MedvitError(f"{type(model).__name__} has {len(head)} heads; take the model without distillation.")
        for name, module in model.named_modules():
            if module is head:
                return name
    for name in ("fc", "heads.head", "head", "classifier"):  # TransformerClassifier, torchvision
        try:
            module = model.get_submodule(name)
        except AttributeError:
            continue
        if not isinstance(module, nn.Sequential):
            return name
        if not isinstance(module[-1], nn.AdaptiveAvgPool2d):  # SqueezeNet classifies before it pools
            return f"{name}.{len(module) - 1}"
    raise MedvitError(f"{type(model).__name__} has no single final classifier that this library knows of.")


def put_head(model: nn.Module, new: nn.Module) -> None:
    """Set the module at the place of the final classifier."""
    parent, _, attribute = head_name(model).rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _build_own(architecture: dict[str, Any], checkpoint: Checkpoint | None) -> tuple[nn.Module, list[str]]:
    name, options = architecture["name"], architecture["options"]
    known = {*inspect.signature(OWN[name]).parameters, *(OPTIONS if name in MODELS else ())}
    known -= {"pool", "options", *SIZES}
    for key in options.keys() - known:
        raise _unknown(name, key, known)
    sizes = tuple(architecture["image_size"]), architecture["in_channels"], architecture["num_classes"]
    if name in MODELS:
        model = MODELS[name](*sizes, pool=architecture["pool"] or "token", **options)
        return model, load_into_vit(model, checkpoint) if checkpoint else []

    _no_pool(architecture)
    model = OWN[name](*sizes, **options)
    if checkpoint is None:
        return model, []
    state = {key: torch.as_tensor(value) for key, value in checkpoint.state.items()}
    fits = len(state.get("fc.weight", ())) == architecture["num_classes"]
    if not fits:
        state |= {key: model.state_dict()[key] for key in ("fc.weight", "fc.bias")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"these weights do not fit {name}: {error}") from error
    return model, [] if fits else ["head new, not pretrained"]


def _build_timm(architecture: dict[str, Any], checkpoint: Checkpoint | None) -> tuple[nn.Module, list[str]]:
    import timm

    name, classes = architecture["name"], architecture["num_classes"]
    _no_pool(architecture)
    config = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"in_chans": architecture["in_channels"]}
    if config.fixed_input_size:
        options["img_size"] = tuple(architecture["image_size"])
    if checkpoint is None:
        return _create(timm.create_model, architecture, num_classes=classes, **options), []

    # timm loads strictly only where the classes agree: build with the file's head, load, then change it
    state = {key: torch.as_tensor(value) for key, value in checkpoint.state.items()}
    head = config.classifier[0] if isinstance(config.classifier, tuple) else config.classifier
    in_file = len(state[f"{head}.weight"]) if f"{head}.weight" in state else 0
    overlay = {"state_dict": state, "num_classes": in_file, "label_offset": 0}
    try:
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
        model = _create(timm.create_model, architecture, num_classes=in_file, **options)
    except (RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(f"these weights do not fit timm's {name}: {error}") from error
    model.pretrained_cfg.pop("state_dict", None)  # a second copy of all weights
    if in_file == classes:
        return model, []
    model.reset_classifier(classes)
    return model, ["head new, not pretrained"]


def _build_torchvision(architecture: dict[str, Any], checkpoint: Checkpoint | None) -> tuple[nn.Module, list[str]]:
    import torchvision

    name, classes = architecture["name"], architecture["num_classes"]
    _no_pool(architecture)
    if architecture["in_channels"] != 3:
        raise MedvitError(
            f"torchvision's {name} takes 3 channels, {architecture['in_channels']} asked for; try a model of timm."
        )
    if name.startswith("vit_") and tuple(architecture["image_size"]) != published(name)[1].image_size:
        raise MedvitError(f"torchvision's {name} takes its published image size only; try timm's, or this library's.")
    if checkpoint is None:
        return _create(torchvision.models.get_model, architecture, num_classes=classes), []

    state = {key: torch.as_tensor(value) for key, value in checkpoint.state.items()}
    model = torchvision.models.get_model(name, weights=None)
    head = f"{head_name(model)}.weight"
    in_file = len(state[head]) if head in state else 0
    model = _create(torchvision.models.get_model, architecture, num_classes=in_file)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"these weights do not fit torchvision's {name}: {error}") from error
    if in_file == classes:
        return model, []
    put_head(model, nn.Linear(model.get_submodule(head_name(model)).in_features, classes))
    return model, ["head new, not pretrained"]


def _create(make: Callable[..., nn.Module], architecture: dict[str, Any], **arguments) -> nn.Module:
    """A model of timm or torchvision with the architecture's options, which only its constructor can judge."""
    name, options = architecture["name"], architecture["options"]
    for key in options.keys() & _set_by_build():
        raise MedvitError(f"{key!r} is no option: weights, image_size, in_channels and num_classes say all of that.")
    try:
        return make(name, **arguments, **options)
    except TypeError as error:
        if not options:
            raise
        known = inspect.signature(type(make(name))).parameters.keys()
        for key in options.keys() - known:
            raise _unknown(name, key, known) from error
        raise MedvitError(f"{name} cannot be built with the options {options}: {error}.") from error


def _set_by_build() -> set[str]:
    """Arguments of timm's and torchvision's constructors that are no options."""
    import timm

    in_timm = inspect.signature(timm.create_model).parameters  # checkpoint_path among them: it would read any file
    return {*in_timm, "in_chans", "img_size", "num_classes", "weights", "weights_backbone"}


BUILDERS = {"medvitlib": _build_own, "timm": _build_timm, "torchvision": _build_torchvision}


def _unknown(name: str, key: str, known: Iterable[str]) -> MedvitError:
    nearest = difflib.get_close_matches(key, known, n=3)
    return MedvitError(f"{name} has no option {key!r}. Nearest: {', '.join(nearest or sorted(known))}.")


def _no_pool(architecture: dict[str, Any]) -> None:
    if architecture["pool"] is not None:
        raise MedvitError(
            f"pool={architecture['pool']!r} is for this library's Vision Transformers ({', '.join(MODELS)}) only."
        )


def of_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """The same for RGB, the averages of the constants for grey."""
    if channels == preprocessing.channels:
        return preprocessing
    mean, std = (sum(values) / len(values) for values in (preprocessing.mean, preprocessing.std))
    return replace(preprocessing, mean=(mean,), std=(std,), channels=1)
