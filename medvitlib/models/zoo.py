"""Models by name: this library's own, timm's and torchvision's behind one call."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from medvitlib.errors import MedvitError, WeightsError
from medvitlib.models.builders import BUILDERS, channels_of, head_name, library_of, of_channels, published, put_head
from medvitlib.models.int8 import Int8Linear, replace_linears
from medvitlib.models.weights import load_weights, locate


def build(
    name: str,
    num_classes: int,
    *,
    weights: str | Path | None = "auto",
    image_size: int | tuple[int, int] | None = None,
    pool: str | None = None,
    in_channels: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    **options,
) -> nn.Module:
    """Build a classifier, pretrained unless asked otherwise, and print one line on where its weights came from.

    The module carries `.architecture` (a dictionary for `build_from`), `.preprocessing` (what its input must
    look like) and `.weights_info` (None after random initialisation).

    Args:
        name: looked up among this library's models, then timm's, then torchvision's.
        weights: "auto" (in this order: local file, cache, hub, package index), a file, or None for random numbers.
        image_size: pixels, one number or (height, width); None for the model's own.
        pool: "token", "mean" or "token_mean", for this library's Vision Transformers only; None for "token".
        in_channels: 3, or 1 for grey images; None for the model's own: 3, but 1 for `transformer_classifier`.
        seed: of the parameters that are not loaded; the global generator is left as it was.
        options: settings of that one model: `dropout`, `drop_path` and such for this library's, or what timm's
            (`drop_rate`, `drop_path_rate`) or torchvision's (`dropout`) constructor takes. Numbers, words, lists.

    Raises:
        MedvitError: unknown name or option, naming the nearest known ones, or settings that this model cannot have.
        WeightsError: no weights found, or they do not fit; never replaced by random ones.
    """
    library = library_of(name)
    source, preprocessing = published(name)
    if image_size is None:
        image_size = preprocessing.image_size
    if in_channels is None:
        in_channels = channels_of(name)
    if in_channels not in (1, 3):
        raise MedvitError(f"in_channels is 3 (RGB) or 1 (grey); {in_channels} was given.")
    size = [int(side) for side in (image_size if isinstance(image_size, Sequence) else (image_size, image_size))]
    architecture = {
        "library": library,
        "name": name,
        "num_classes": num_classes,
        "image_size": size,
        "pool": pool,
        "in_channels": in_channels,
        "options": _plain(options),
    }
    if weights is None:
        return build_from(architecture, seed=seed)
    checkpoint, info = load_weights(name, weights, source, replace(preprocessing, image_size=size), in_channels)
    with _seeded(seed):
        model, notes = BUILDERS[library](architecture, checkpoint)
    info = replace(info, note="; ".join(filter(None, (info.note, *notes))))
    model.architecture, model.preprocessing, model.weights_info = architecture, info.preprocessing, info
    if not quiet:
        print(info.message())
    return model


def first_at_hand(names: Sequence[str]) -> tuple[str, str]:
    """The first of these models whose weights can be had, and why not of those before it ("" where it is the first).

    Raises:
        WeightsError: of none of them.
    """
    reasons = []
    for name in names:
        try:
            locate(name, published(name)[0])
            return name, "; ".join(reasons)
        except WeightsError as error:
            reasons.append(str(error).splitlines()[0].rstrip(":"))
    raise WeightsError(f"{'; '.join(reasons)}. One that needs only a package index: medvit weights fetch")


def without_values(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that `make` builds, on the meta device where it can be: names and shapes at no cost."""
    try:
        with torch.device("meta"), _Undrawn():
            return make()
    except (RuntimeError, NotImplementedError):  # some models compute with values while they are built
        return make()


class _Undrawn(TorchFunctionMode):
    """Draws no initial values: on the meta device there are none, and drawing them takes an import of two seconds."""

    drawing = (torch.Tensor.normal_, torch.Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in self.drawing:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_from(architecture: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """Rebuild a model from the `.architecture` of another, with random numbers: `load_state_dict` follows.

    Its `.preprocessing` is the published one of that name; what was saved with the weights takes precedence.
    """
    with _seeded(seed):
        model, _ = BUILDERS[architecture["library"]](architecture, None)
    if shrunk := architecture.get("shrunk"):  # fewer heads and neurons, where some were cut out
        from medvitlib.models.shrinking import reshape  # it brings timm

        reshape(model, shrunk)
    if architecture.get("int8"):
        replace_linears(model)
        model.requires_grad_(False)
    preprocessing = of_channels(published(architecture["name"])[1], architecture["in_channels"])
    model.preprocessing = replace(preprocessing, image_size=architecture["image_size"])
    model.architecture, model.weights_info = architecture, None
    return model


def head_of(model: nn.Module) -> nn.Module:
    """The final classifier of a model of ours, timm's or torchvision's, usually an `nn.Linear`."""
    return model.get_submodule(head_name(model))


def replace_head(model: nn.Module, new: nn.Module) -> None:
    """Put another module in the place of the final classifier; `.architecture` follows the number of classes.

    Raises:
        MedvitError: a linear head for another number of features, or for a model in int8.
    """
    old = head_of(model)
    if isinstance(new, nn.Linear) and getattr(model, "architecture", {}).get("int8"):
        raise MedvitError("this model is in int8, which is the last step: put a new head on the one it was made of.")
    if isinstance(old, nn.Linear) and isinstance(new, nn.Linear) and old.in_features != new.in_features:
        raise MedvitError(
            f"a head for {new.in_features} features given; this model's last layer sees {old.in_features}."
        )
    if isinstance(new, nn.Linear) and hasattr(model, "architecture"):
        model.architecture["num_classes"] = new.out_features
    put_head(model, new)


def count_parameters(model: nn.Module, trainable: bool = False) -> int:
    """Numbers in the parameters, a shared one counted once; with `trainable`, in those that require a gradient.

    Counts the parameters that belong to no layer too (class token, positions), which torchsummary leaves out, and the
    weights and biases that became bytes in an `Int8Linear`: as many as before, none of them trainable.
    """
    bytes_too = [] if trainable else [m for m in model.modules() if isinstance(m, Int8Linear)]
    rounded = sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in bytes_too)
    return rounded + sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """As they come back from model.json: what is built now is built again from there."""
    try:
        return json.loads(json.dumps(options))
    except TypeError as error:
        raise MedvitError(
            f"options are kept as JSON: numbers, words, lists and None; {options} was given ({error})."
        ) from None


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Parameters are drawn from `seed` whatever was drawn before; the global generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield
