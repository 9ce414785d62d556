"""Several processes, one training: what they tell each other. In one process nothing here does anything.

torchrun starts the processes and tells each which one of how many it is. Small things are told over gloo, from CPU to
CPU, so that a process whose device is full can still say so; gradients go over NCCL where they lie on CUDA devices.
A process that ends takes its connections along, so that the others, which wait for it, end as well.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from medvitlib.errors import TrainingError
from medvitlib.machine import cores

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # a process may be decoding; one that has died is noticed at once
_STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_store: dist.Store | None = None


def join() -> None:
    """Meet the other processes that torchrun has started, once; without torchrun, nothing."""
    global _store
    if dist.is_initialized() or not all(name in os.environ for name in _STARTED) or os.environ["WORLD_SIZE"] == "1":
        return
    _store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(store=_store, rank=rank, world_size=world, timeout=PATIENCE)
    if torch.cuda.is_available():  # "cuda" without a number is this process's own from here on
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    if dist.is_torchelastic_launched() and os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's own caution
        torch.set_num_threads(max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; number 0 prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def own_device(device: torch.device) -> torch.device:
    """Of several CUDA devices, this process's; any other device as it is.

    Raises:
        TrainingError: this machine has fewer CUDA devices than processes, or a device that several cannot share.
    """
    if world() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise TrainingError(f"{world()} processes on device {device}: they can train on CUDA devices or on the CPU.")
    number, here = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device.index is None and number >= here:
        asked = os.environ.get("LOCAL_WORLD_SIZE", "more")
        raise TrainingError(f"{asked} processes on a machine with {here} CUDA devices: use --nproc-per-node={here}.")
    return torch.device("cuda", number) if device.index is None else device


def share(n: int, least: int = 1) -> slice:
    """This process's rows of n: as many as the others', none if fewer than `least` would be left for each."""
    busy = min(world(), max(1, n // least))
    size, more = divmod(n, busy)
    first, last = (min(n, k * size + min(k, more)) for k in (rank(), rank() + 1))
    return slice(first, last)


def highest(*values: int) -> list[int]:
    """The largest that any process gives, place by place."""
    if world() == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    with _together():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; the others wait for it."""
    if world() == 1:
        return make()
    made = [make() if rank() == 0 else None]
    with _together():
        dist.broadcast_object_list(made)
    return made[0]


def gather(value: Any) -> list:
    """Every process's value, in their order."""
    if world() == 1:
        return [value]
    values = [None] * world()
    with _together():
        dist.all_gather_object(values, value)
    return values


def add_up(tensors: Sequence[torch.Tensor]) -> None:
    """Replace tensors of one dtype by their sums over the processes."""
    if world() > 1:
        _as_one(tensors, dist.all_reduce)


def align(*modules: nn.Module) -> None:
    """Give parameters and buffers the values that they have in the first process."""
    if world() == 1:
        return
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        _as_one([tensor for tensor in tensors if tensor.dtype == dtype], lambda flat: dist.broadcast(flat, src=0))


def first_to_fail() -> bool:
    """Whether no other process has failed before this one, which then speaks for all."""
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # whoever held the store is gone
        return False


@torch.no_grad()
def _as_one(tensors: Sequence[torch.Tensor], operation: Callable[[torch.Tensor], Any]) -> None:
    """One message instead of hundreds."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _together():
        operation(flat)
    for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(values.view(tensor.shape))


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "Another process of this training has ended; it may have said why. What was saved before stands: "
            "resume=True goes on."
        ) from error
