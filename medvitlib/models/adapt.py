"""Which parameters of a model are trained: all of them, some of its own, or a few that are added."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medvitlib.errors import AdaptationError, one_of
from medvitlib.models.adapters import adapters_of, examinable, random_images, read_past, unload, whole
from medvitlib.models.lora import add_lora
from medvitlib.models.modes import in_mode
from medvitlib.models.rlrr import add_rlrr
from medvitlib.models.zoo import count_parameters, head_of


def adapt(model: nn.Module, method: str = "lora", *, seed: int = 0, **options) -> nn.Module:
    """Make a model, in place, ready for one way of training it; `fit` then trains what requires a gradient.

    The classifier is trained in any case. `fit` keeps what was trained, and merges what was added when it is loaded.
    Two random images are passed through it: what is trained must have a gradient. Of the model's own parameters those
    that the output does not depend on stay frozen; an adapter that it does not depend on is refused.

    Args:
        model: from `build`.
        method: "full" (everything), "head" (nothing else), "bitfit" (all biases: Ben Zaken et al., ACL 2022), "partial"
            (the last blocks and the norm after them, see `last_blocks`), "lora" (see `lora.add_lora`) or "rlrr" (see
            `rlrr.add_rlrr`).
        seed: of the parameters that are added.
        options: of that method.

    Returns:
        the same model; its `.adaptation` says method, seed and options.

    Raises:
        AdaptationError: an unknown method, option or target, a model that is adapted already, or an adapter that could
            not learn; the model is left as it was.
    """
    one_of("method", method, METHODS, AdaptationError)
    options = options_of(method, METHODS[method], options)
    if adapters_of(model):
        raise AdaptationError(
            f"This model is adapted already ({getattr(model, 'adaptation', 'by hand')}): `merge_and_unload` keeps what "
            "that learned, `unload` drops it."
        )
    if options.get("past") == ():
        options["past"] = read_past(model)
    before = {id(parameter): parameter.requires_grad for parameter in model.parameters()}
    trained = METHODS[method](model, torch.Generator().manual_seed(seed), **options) or []
    chosen = {id(parameter) for parameter in (*trained, *head_of(model).parameters())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen or id(parameter) not in before)
    without = without_gradient(model)
    if deaf := sorted({".".join(name.split(".")[-3:-1]) for name, p in without.items() if id(p) not in before}):
        unload(model)
        for parameter in model.parameters():
            parameter.requires_grad_(before[id(parameter)])
        raise AdaptationError(
            f"The output of {type(model).__name__} does not depend on what {method} adds to {', '.join(deaf)}: it "
            "would learn nothing. Name other layers (targets=[...]), or take another method."
        )
    for parameter in without.values():
        parameter.requires_grad_(False)
    model.adaptation = {"method": method, "seed": seed, **options}
    return model


def without_gradient(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters that the output for two random images does not depend on.

    Gradients and modes stay as they are. A model without values (on the meta device), or not from `build`, is not
    examined.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not examinable(model):
        return {}
    with torch.enable_grad(), in_mode(model, training=False):
        output = model(random_images(model)).square().sum()
        gradients = torch.autograd.grad(output, list(trained.values()), allow_unused=True)
    return {name: trained[name] for name, found in zip(trained, gradients, strict=True) if found is None}


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
    name = {"lora": "LoRA", "rlrr": "RLRR", "bitfit": "BitFit", "full": "Full fine-tuning", "partial": "Last blocks"}
    method = model.adaptation["method"]
    share = f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})."
    return f"{name.get(method, 'The head alone')}: {share}"


def last_blocks(model: nn.Module, generator: torch.Generator, *, blocks: int = 2) -> list[nn.Parameter]:
    """Parameters of the last blocks of a Vision Transformer and of the norm after them.

    Partial fine-tuning: He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, section 4.3. What
    comes before them needs no gradient, so that a training step keeps no activations of it.

    Args:
        blocks: how many.

    Raises:
        AdaptationError: more blocks than the model has, or a model that is not a sequence of equal blocks, a norm and
            a classifier.
    """
    whole("blocks", blocks)
    children, sequence = dict(model.named_children()), getattr(model, "blocks", None)
    names = list(children)
    equal = isinstance(sequence, nn.ModuleList | nn.Sequential) and len({type(block) for block in sequence}) == 1
    after = [name for name in names[names.index("blocks") + 1 :] if count_parameters(children[name])] if equal else []
    norms = [name for name in after if children[name] is not head_of(model)]
    if not equal or isinstance(sequence[0], nn.ModuleList | nn.Sequential) or set(norms) - {"norm", "fc_norm"}:
        raise AdaptationError(
            f"{type(model).__name__} is not a sequence of equal blocks, a norm and a classifier, so that its last "
            "blocks are not defined: expected a Vision Transformer of this library, or timm's ViT, DeiT, BEiT or EVA."
        )
    if blocks > len(sequence):
        raise AdaptationError(f"blocks={blocks}: {type(model).__name__} has {len(sequence)} blocks.")
    trained = (*list(sequence)[-blocks:], *(children[name] for name in norms))
    return [parameter for module in trained for parameter in module.parameters()]


METHODS: dict[str, Callable[..., list[nn.Parameter] | None]] = {
    "full": lambda model, generator: list(model.parameters()),
    "head": lambda model, generator: [],
    "bitfit": lambda model, generator: [p for name, p in model.named_parameters() if name.endswith("bias")],
    "partial": last_blocks,
    "lora": add_lora,
    "rlrr": add_rlrr,
}
"""Each changes a model, and returns those of its own parameters that are trained beside the classifier's."""
