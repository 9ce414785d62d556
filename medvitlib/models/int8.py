"""Linear layers in eight bits, for CPUs: a quarter of the bytes, and a faster product; rounding takes time, too.

The weights are rounded once, each row with a scale of its own; what comes in is rounded in each call, each token with
a range of its own (dynamic quantisation; Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 2). Convolutions, norms and attention's own products stay as
they are. `torch.ao.quantization.quantize_dynamic` rounds a whole batch with one range, so that an image's result
depends on the others; and it is deprecated, as are the tensors that it is made of.
"""

import platform

import torch
import torch.nn.functional as F
from torch import nn

from medvitlib.errors import AdaptationError
from medvitlib.models.modes import in_mode

LARGEST = 127
"""Of a weight, either way, and of a rounded input, from 0: with 255, sums overflow on CPUs without VNNI."""


class Int8Linear(nn.Module):
    """x W' + b with W[i] = weight[i] scale[i]; what comes out has no gradient.

    With x = low + step q, low and step a token's own and q whole numbers from 0 to 127, that is
    step scale (q weight') + low scale sum(weight) + b. The product of whole numbers is exact, so that every machine
    gives the same but for the rounding of floats; one without the product of bytes computes it in floats.

    Attributes:
        weight: (out, in) int8, round(W[i] / scale[i]).
        scale: (out,) float32, max |W[i]| / 127, so that 0 is 0 and no sign is favoured.
        bias: (out,) float32, or None.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()  # (out, in)
        scale = _not_zero(weight.abs().amax(dim=1) / LARGEST)
        rounded = (weight / scale[:, None]).round().clamp(-LARGEST, LARGEST)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self._packed = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out), of the same dtype."""
        tokens = x.detach().float().reshape(-1, self.in_features)  # (N, in)
        low, high = tokens.amin(dim=1, keepdim=True), tokens.amax(dim=1, keepdim=True)  # aminmax takes longer
        step = _not_zero((high - low) / LARGEST)  # (N, 1)
        if self._packed is None:
            self._packed = self._pack()
        sums, packed = self._packed
        y = self._product((tokens - low).div_(step).round_(), packed)  # (N, out)
        y = y.mul_(step).addcmul_(low, sums)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _product(self, q: torch.Tensor, packed: torch.Tensor | None) -> torch.Tensor:
        """(N, out) float32, q weight' scale; q (N, in) are whole numbers from 0 to 127."""
        scale = self.scale.float()
        if packed is None or not len(q):
            with torch.autocast(q.device.type, enabled=False):
                return F.linear(q, self.weight.float()).mul_(scale)
        no_shift = torch.zeros(self.out_features, dtype=torch.long)
        out = (1.0, 0, torch.float32, "none", [], "")  # not rounded again, and nothing follows
        return torch.ops.onednn.qlinear_pointwise(q.to(torch.uint8), 1.0, 0, packed, scale, no_shift, None, *out)

    @torch.inference_mode(False)
    def _pack(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a call needs besides, made at the first one and kept in no file: (out,) scale sum(weight), and the
        weight as the CPU's product wants it."""
        sums = self.weight.sum(dim=1) * self.scale.float()
        bytes_here = self.weight.device.type == "cpu" and multiplies_bytes()
        return sums, torch.ops.onednn.qlinear_prepack(self.weight, None) if bytes_here else None

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._packed = None

    def _apply(self, *args, **kwargs) -> nn.Module:
        self._packed = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_packed": None}


def multiplies_bytes() -> bool:
    """Whether PyTorch has a product of bytes for this machine: oneDNN's, on x86."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def quantise(model: nn.Module) -> nn.Module:
    """Put an `Int8Linear` in the place of every `nn.Linear`, and freeze the rest; the last step, after all training.

    Classes derived from `nn.Linear` are left alone (`nn.MultiheadAttention` reads the weights of its own). Where the
    model says what its input looks like, a blank image goes through it once.

    Args:
        model: on the CPU; changed in place. `.architecture`, if it has one, says so from now on: `zoo.build_from`
            makes a model into which its state dict loads.

    Returns:
        the same model, in evaluation mode.

    Raises:
        AdaptationError: no `nn.Linear`, not on the CPU, quantised before, adapters that are not merged, weights that
            are no numbers, or a model that reads the weights of its layers past them; it is left as it was.
    """
    modules = list(model.modules())
    if any(isinstance(module, Int8Linear) for module in modules):
        raise AdaptationError("This model is quantised already: its weights would be rounded twice. Take it as it is.")
    for name, module in model.named_modules():
        if getattr(module, "is_adapter", False):
            raise AdaptationError(f"{name or 'the model'} is an adapter, {type(module).__name__}: merge first.")
    if isinstance(model, nn.Linear) or not any(type(module) is nn.Linear for module in modules):
        raise AdaptationError(
            f"{type(model).__name__} has no nn.Linear inside: there is nothing to quantise. Expected a model with "
            "linear layers, such as a Vision Transformer."
        )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise AdaptationError(f"{name} is on {tensor.device}; int8 is for CPUs: model.cpu() first.")
    for name, module in model.named_modules():
        if type(module) is nn.Linear and not module.weight.isfinite().all():
            raise AdaptationError(f"{name}.weight holds NaN or infinite values: nothing can be made of them.")
    floats = replace_linears(model)
    try:
        _try(model)
    except (RuntimeError, TypeError, AttributeError) as error:
        for path, linear in floats.items():
            model.set_submodule(path, linear)
        reason = str(error).strip().splitlines()[0]
        raise AdaptationError(
            f"{type(model).__name__} cannot do with int8 layers ({reason}): it reads their weights itself instead of "
            "calling them. Take another architecture, such as this library's or timm's Vision Transformers."
        ) from error
    if hasattr(model, "architecture"):
        model.architecture = {**model.architecture, "int8": True}
    return model.eval().requires_grad_(False)


def replace_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Put an `Int8Linear` in the place of every `nn.Linear`, and change nothing else.

    Returns:
        what stood there, by path; a layer that is used twice is still one.
    """
    modules = model.named_modules(remove_duplicate=False)
    linears = {path: module for path, module in modules if type(module) is nn.Linear}
    new = {linear: Int8Linear(linear) for linear in dict.fromkeys(linears.values())}
    for path, linear in linears.items():
        model.set_submodule(path, new[linear])
    return linears


@torch.inference_mode()
def _try(model: nn.Module) -> None:
    """One blank image, where the model says of what size."""
    preprocessing = getattr(model, "preprocessing", None)
    if preprocessing is None:
        return
    with in_mode(model, training=False):
        model(torch.zeros(1, preprocessing.channels, *preprocessing.image_size))


def _not_zero(scale: torch.Tensor) -> torch.Tensor:
    """For a row of equal numbers any scale will do, but nothing is divided by 0."""
    return torch.where(scale > 0, scale, 1.0)
