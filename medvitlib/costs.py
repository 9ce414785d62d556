"""What a model costs, measured: bytes of its file, bytes that a training step holds, images a second."""

import time
import zlib
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import nn

from medvitlib.errors import MedvitError, TrainingError
from medvitlib.models.modes import in_mode

CHUNK = 1 << 20  # bytes that are compressed at once
WARM_UP = 3  # calls that are not timed: the first ones allocate, pack and choose kernels
GZIP = 16 + zlib.MAX_WBITS  # the container that gzip writes, header and checksum included


def model_sizes(model: nn.Module) -> dict[str, int]:
    """Bytes of all tensors of a model as one file, and of that file gzipped: only there do zeros among them save any.

    About 20 MB a second.

    Returns:
        `dense`, as `save_whole` would write it, and `compressed`, at gzip's level 6.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    content = memoryview(save(state, metadata={"format": "pt"}))
    compressor, compressed = zlib.compressobj(6, wbits=GZIP), 0
    for start in range(0, len(content), CHUNK):  # compressed as it comes, and not kept
        compressed += len(compressor.compress(content[start : start + CHUNK]))
    return {"dense": len(content), "compressed": compressed + len(compressor.flush())}


def training_memory(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that one step of AdamW holds on the way from forward to backward: counted, and the same each time.

    Parameters and buffers; of each trainable parameter the gradient and two moments; and what the forward pass and the
    cross-entropy keep for the backward pass, each block of memory once and whole: a view of the class token keeps every
    token. The precision is that of the context: under `torch.autocast`, activations are counted as they are then kept.

    Not counted are the images and labels, and what lives for a moment only, a layer's workspace or a gradient on its
    way: where little is trained, that is the larger part. Gradients come as activations go, so that of a large model
    with few activations the real peak is lower by some of its gradients. What an allocator wastes is its own.

    Args:
        model: on one device; its flags, buffers, gradients and the state of random numbers are left as they were.
        images: (B, C, H, W) floats as the model takes them (see `normalise`).
        labels: (B,) int64.

    Raises:
        TrainingError: no parameter requires a gradient.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("No parameter of this model requires a gradient: there is no training step to measure.")
    device = _device(model)
    images, labels = images.to(device), labels.to(device)
    own = {_place(t): _bytes(t) for t in chain(model.parameters(), model.buffers())}
    known = {*own, _place(images), _place(labels)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _place(tensor) not in known:
            kept[_place(tensor)] = _bytes(tensor)
        return tensor.detach()  # itself would be a circle: an output that its own history holds

    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), in_mode(model, training=True), torch.enable_grad():
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = F.cross_entropy(model(images), labels)  # alive until all is counted: no address comes twice
        finally:
            with torch.no_grad():
                for buffer, before in buffers:  # the averages of batch normalisation
                    buffer.copy_(before)
    del loss
    return sum(own.values()) + 3 * sum(p.numel() * p.element_size() for p in trained) + sum(kept.values())


def speed(
    model: nn.Module,
    image_size: int | tuple[int, int],
    channels: int,
    *,
    batch_size: int = 32,
    seconds: float = 2.0,
) -> dict[str, float]:
    """Time a model in evaluation mode on the device where it is, and in the precision of the context.

    Medians, so that a pause of the machine does not count; nothing else should run on it meanwhile. The images are
    random numbers: decoding and normalising them is not part of this.

    Args:
        image_size: pixels, one number or (height, width).
        channels: of an image.
        batch_size: images at a time, for the throughput.
        seconds: to measure each of the two for, after a warm-up.

    Returns:
        `images_per_second` at that batch size, and `latency_ms`, of one image alone.

    Raises:
        MedvitError: no image, or no time.
    """
    if batch_size < 1 or not seconds > 0:
        raise MedvitError(f"batch_size={batch_size}, seconds={seconds}: expected 1 or more, and some time above 0.")
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    device = _device(model)
    images = torch.randn(batch_size, channels, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with in_mode(model, training=False), torch.inference_mode():
        batch = _median(lambda: model(images), device, seconds)
        alone = _median(lambda: model(images[:1]), device, seconds)
    return {"images_per_second": batch_size / batch, "latency_ms": 1000 * alone}


def _median(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of a call; three at least are timed."""
    for _ in range(WARM_UP):
        call()
    _wait(device)
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _wait(device: torch.device) -> None:
    """Until a device that computes in the background has done so."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def _device(model: nn.Module) -> torch.device:
    tensors: Iterable[torch.Tensor] = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _place(tensor: torch.Tensor) -> int:
    """Where a tensor's memory begins: views of one another share it."""
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()
