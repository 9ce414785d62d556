"""Which parameters of a model are trained: all of them, some of its own, or a few that are added."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medvitlib.errors import AdaptationError, one_of
from medvitlib.models.adapters import adapters_of
from medvitlib.models.lora import add_lora
from medvitlib.models.rlrr import add_rlrr
from medvitlib.models.zoo import count_parameters, head_of


def adapt(model: nn.Module, method: str = "lora", *, seed: int = 0, **options) -> nn.Module:
    """Make a model, in place, ready for one way of training it; `fit` then trains what requires a gradient.

    The classifier is trained in any case. `fit` merges what was added into the model it saves, which is a plain one.

    Args:
        model: from `build`.
        method: "full" (everything), "head" (nothing else), "bitfit" (all biases: Ben Zaken et al., ACL 2022), "lora"
            (see `lora.add_lora`) or "rlrr" (see `rlrr.add_rlrr`).
        seed: of the parameters that are added.
        options: of that method.

    Returns:
        the same model; its `.adaptation` says method, seed and options.

    Raises:
        AdaptationError: an unknown method, option or target, or a model that is adapted already; it is left as it was.
    """
    one_of("method", method, METHODS, AdaptationError)
    options = options_of(method, METHODS[method], options)
    if adapters_of(model):
        raise AdaptationError(
            f"This model is adapted already ({getattr(model, 'adaptation', 'by hand')}): `merge_and_unload` keeps what "
            "that learned, `unload` drops it."
        )
    before = {id(parameter) for parameter in model.parameters()}
    METHODS[method](model, torch.Generator().manual_seed(seed), **options)
    head = {id(parameter) for parameter in head_of(model).parameters()}
    for name, parameter in model.named_parameters():
        own = method == "full" or (method == "bitfit" and name.endswith(".bias"))
        parameter.requires_grad_(own or id(parameter) in head or id(parameter) not in before)
    model.adaptation = {"method": method, "seed": seed, **options}
    return model


def options_of(method: str, function: Callable[..., object], given: dict[str, Any]) -> dict[str, Any]:
    """Every option of a function that changes a model, as given or by default.

    Raises:
        AdaptationError: one that it has not, or one that it needs.
    """
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p.default for p in parameters if p.name not in ("model", "generator")}
    for name in given:
        if not known:
            raise AdaptationError(f"{method} has no options; {name!r} was given.")
        one_of(f"{method}'s option", name, known, AdaptationError)
    options = {**known, **given}
    if missing := [name for name, value in options.items() if value is inspect.Parameter.empty]:
        raise AdaptationError(f"{method} needs {' and '.join(missing)}: pass options={{{missing[0]!r}: ...}}.")
    return options


def trained_share(model: nn.Module) -> str:
    """ "LoRA: 222,723 of 22,279,686 parameters are trained (1.00%).", for a model that went through `adapt`."""
    trained, total = count_parameters(model, trainable=True), count_parameters(model)
    name = {"lora": "LoRA", "rlrr": "RLRR", "bitfit": "BitFit", "full": "Full fine-tuning"}
    method = model.adaptation["method"]
    share = f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})."
    return f"{name.get(method, 'The head alone')}: {share}"


def _add_nothing(model: nn.Module, generator: torch.Generator) -> None:
    """These methods train what is there."""


METHODS: dict[str, Callable[..., None]] = {
    "full": _add_nothing,
    "head": _add_nothing,
    "bitfit": _add_nothing,
    "lora": add_lora,
    "rlrr": add_rlrr,
}
