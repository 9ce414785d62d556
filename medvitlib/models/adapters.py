"""Small trainable additions to a frozen model: what LoRA, RLRR and the like have in common.

An adapter is a layer of the model with a few parameters more. The layer's own weight and bias keep their names and stay
frozen; `effective` says which weight and bias the layer acts with, so that every kind can be merged into a plain layer.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real

import torch
from torch import nn

from medvitlib.errors import AdaptationError, one_of
from medvitlib.models.builders import head_name
from medvitlib.models.modes import in_mode

ATTENTION = ("attn.qkv", "attn.proj")
MLP = ("mlp.fc1", "mlp.fc2")


class Adapter(nn.Module):
    """Mixed into a kind of layer, before it: `class LoRALinear(Adapter, nn.Linear)`.

    Args:
        layer: the layer whose place this takes; its settings, weight and bias are taken over, not copied.
    """

    is_adapter = True

    def __init__(self, layer: nn.Module):
        nn.Module.__init__(self)
        self.__dict__.update({key: value for key, value in layer.__dict__.items() if key not in self.__dict__})
        self.training = layer.training
        self._parameters |= {"weight": layer.weight, "bias": layer.bias}
        self._layer = (layer,)  # in a tuple, it is no part of this module
        self._kept: dict[str, torch.Tensor | None] | None = None  # weight and bias as they were before merging

    @property
    def own(self) -> tuple[nn.Parameter, nn.Parameter | None]:
        """The layer's weight and bias, frozen or, after `merge`, with the adapter's effect."""
        return self._parameters["weight"], self._parameters["bias"]

    def effective(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias that the layer acts with while it is not merged."""
        raise NotImplementedError

    @property
    def added(self) -> set[str]:
        """Names of the parameters that the layer had not."""
        return self._parameters.keys() - {"weight", "bias"}

    @property
    def merged(self) -> bool:
        """Whether weight and bias hold the effect of the adapter already."""
        return self._kept is not None

    @torch.no_grad()
    def merge(self, keep_zeros: bool = False) -> None:
        """Write the effective weight and bias into `weight` and `bias`; see `merge`."""
        weight, bias = self.effective()
        own_weight, own_bias = self.own
        if keep_zeros:
            weight = weight * (own_weight != 0)
        self._kept = {"weight": own_weight.data, "bias": None if own_bias is None else own_bias.data}
        own_weight.data = weight.detach()
        if own_bias is not None:
            own_bias.data = bias.detach()
        elif bias is not None:
            self._parameters["bias"] = nn.Parameter(bias.detach(), requires_grad=False)

    def unmerge(self) -> None:
        """Put back the very numbers that were there before."""
        if self._kept is None:
            return
        weight, bias = self.own
        weight.data = self._kept["weight"].to(weight.device)
        if self._kept["bias"] is None:
            self._parameters["bias"] = None
        else:
            bias.data = self._kept["bias"].to(weight.device)
        self._kept = None

    def plain(self) -> nn.Module:
        """A layer without the adapter, with weight and bias as they stand."""
        layer = copy.copy(self._layer[0])
        layer._parameters = dict(zip(("weight", "bias"), self.own, strict=True))
        layer.training = self.training
        return layer

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Adapter and frozen weight, merged or not: what is loaded is then never counted twice."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, value in (self._kept or {}).items():
            destination.pop(prefix + name, None)
            if value is not None:
                destination[prefix + name] = value

    def _load_from_state_dict(self, *args):
        self.unmerge()
        super()._load_from_state_dict(*args)


class ReadPast:
    """Mixed into an adapter, before it, where a model reads `layer.weight` and never calls the layer.

    BEiT, EVA and SwinV2 of timm do so with q, k and v. What they read is the weight with the adapter's effect; the bias
    likewise, where the layer has one.
    """

    @property
    def weight(self) -> torch.Tensor:
        return self.own[0] if self.merged else self.effective()[0]

    @property
    def bias(self) -> torch.Tensor | None:
        return self.own[1] if self.merged or self.own[1] is None else self.effective()[1]


def adapters_of(model: nn.Module) -> dict[str, Adapter]:
    """Every adapter in the model, by the path of its layer."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def merge(model: nn.Module, keep_zeros: bool = False) -> None:
    """Write every adapter into the weights: the same function (to rounding), at the speed of the plain model.

    Args:
        keep_zeros: weights that are exactly zero stay so. A pruned model stays as sparse as it was; without, what is
            added is dense.

    Raises:
        AdaptationError: no adapter, or merged already; merging twice would count them twice.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise AdaptationError(f"{type(model).__name__} has no adapters to merge: see `medvitlib.models.adapt.adapt`.")
    if merged := [name for name, adapter in adapters.items() if adapter.merged]:
        raise AdaptationError(f"{len(merged)} adapters ({merged[0]}, ...) are merged already: unmerge the model first.")
    for adapter in adapters.values():
        adapter.merge(keep_zeros)


def unmerge(model: nn.Module) -> None:
    """Take the adapters out of the weights again, which are then bit by bit what they were; if not merged, nothing."""
    for adapter in adapters_of(model).values():
        adapter.unmerge()


@contextmanager
def merged(model: nn.Module, keep_zeros: bool = False) -> Iterator[None]:
    """For the time of a context, as `merge`; a model without adapters, or merged already, stays as it is."""
    adapters = adapters_of(model)
    if not adapters or any(adapter.merged for adapter in adapters.values()):
        yield
        return
    merge(model, keep_zeros)
    try:
        yield
    finally:
        unmerge(model)


def unload(model: nn.Module) -> None:
    """Put plain layers in the place of all adapters, with weights as they stand: without what these learned, or, after
    `merge`, with it. Everything requires a gradient again."""
    for name, adapter in adapters_of(model).items():
        put(model, name, adapter.plain())
    model.__dict__.pop("adaptation", None)
    model.requires_grad_(True)


def merge_and_unload(model: nn.Module, keep_zeros: bool = False) -> None:
    """`merge`, then `unload`: a plain model that needs no adapter any more."""
    merge(model, keep_zeros)
    unload(model)


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Set the module at a path."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def linear_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The linear layers whose path ends in one of `targets`, component by component: "fc" is not "fc1".

    Raises:
        AdaptationError: a target that matches nothing, matches the classifier, or something that is no linear layer.
    """
    if isinstance(targets, str) or not targets:
        raise AdaptationError(f"targets={targets!r}: expected a list of names, such as {list(ATTENTION)}.")
    head, modules = head_name(model), dict(model.named_modules())
    linear = {name: module for name, module in modules.items() if type(module) is nn.Linear and name != head}
    endings = {".".join(name.split(".")[-depth:]) for name in linear for depth in (1, 2)}
    found: dict[str, nn.Linear] = {}
    for target in map(str, targets):
        matching = {name for name in modules if f".{name}".endswith(f".{target}")}
        if head in matching:
            raise AdaptationError(f"target {target!r} is the classifier {head!r}, which is trained in any case.")
        if matching and not matching & linear.keys():
            kind = type(modules[min(matching)]).__name__
            raise AdaptationError(f"target {target!r} is a {kind}: expected the name of plain linear layers.")
        if not matching:
            if not endings:
                raise AdaptationError(f"{type(model).__name__} has no linear layer but its classifier to adapt.")
            one_of("target", target, sorted(endings), AdaptationError)
        found |= {name: linear[name] for name in linear if name in matching}
    return {name: linear[name] for name in linear if name in found}


def read_past(model: nn.Module) -> list[str]:
    """Return the paths of linear layers that the model does not call: two random images are passed through it.

    A model without values (on the meta device), or that is not from `build`, is not examined.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not examinable(model):
        return []
    called: set[str] = set()
    hooks = [m.register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name, m in linear.items()]
    try:
        with torch.no_grad(), in_mode(model, training=False):
            model(random_images(model))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in linear if name not in called]


def examinable(model: nn.Module) -> bool:
    """Whether images can be passed through a model: it says what they are like, and has values."""
    return hasattr(model, "preprocessing") and not any(parameter.is_meta for parameter in model.parameters())


def random_images(model: nn.Module) -> torch.Tensor:
    """Return two images of noise, (2, C, H, W), of the model's size, device and dtype."""
    like, size = next(model.parameters()), model.preprocessing.image_size
    noise = torch.randn(2, model.architecture["in_channels"], *size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def whole(name: str, value: int) -> int:
    """The value, if it is one of 1, 2, 3, ...; AdaptationError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise AdaptationError(f"{name}={value!r}: expected a whole number, 1 or more.")
    return value


def number(name: str, value: float, low: float, below: float) -> float:
    """The value, if it is a number from `low` to less than `below`; AdaptationError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= value < below:
        raise AdaptationError(f"{name}={value!r}: expected a number from {low:g} to below {below:g}.")
    return value
