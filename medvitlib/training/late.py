"""What need not be waited for: numbers that a device is still computing, files that are still being written."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class Late:
    """Numbers of an update, on their way from the device; reading them waits for that update and no later one.

    Read one update later, they keep no GPU waiting for the next.
    """

    def __init__(self, values: torch.Tensor):
        self._values, self._event = values.detach(), None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._event:
            self._event.synchronize()
        return self._values.tolist()


class Writer:
    """Writes files one after the other, while the training goes on if `behind`; what fails is raised later.

    Call it with a function of what is to be written, and that: tensors are copied first, so that they may change.
    """

    def __init__(self, behind: bool):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer") if behind else None
        self._pending: list[Future] = []
        self._last: Future | None = None  # of those that may be left out

    def __call__(self, write: Callable[[Any], None], content: Any, *, unless_busy: bool = False) -> None:
        """Write, or begin to.

        Args:
            unless_busy: leave it out while the one before of this kind is still being written.

        Raises:
            TrainingError: one of those before could not be written; or this one, where nothing is behind.
        """
        if self._pool is None:
            write(content)
            return
        if unless_busy and self._last and not self._last.done():
            return
        while len(self._pending) > 2:  # copies at most, so that memory stays the same
            self._pending.pop(0).result()
        copy = _Copy(content)
        self._pending.append(self._pool.submit(lambda: write(copy.on_cpu())))
        self._last = self._pending[-1] if unless_busy else self._last

    def wait(self) -> None:
        """Until everything is on the disk.

        Raises:
            TrainingError: it could not be written.
        """
        while self._pending:
            self._pending.pop(0).result()

    def close(self) -> None:
        """Wait, and raise nothing."""
        if self._pool:
            self._pool.shutdown()


class _Copy:
    """Tensors as they are now: copied within the device where there is room, which takes a hundredth of the time."""

    def __init__(self, content: Any):
        there: list[torch.Tensor] = []
        mapped(content, lambda tensor: there.append(tensor) if tensor.is_cuda else None)
        self._device = there[0].device if there else None
        needed = 2 * sum(tensor.numel() * tensor.element_size() for tensor in there)
        room = self._device is None or torch.cuda.mem_get_info(self._device)[0] > needed
        self._content = mapped(content, lambda tensor: tensor.detach().clone() if room else tensor.cpu())
        self._made = torch.cuda.current_stream(self._device).record_event() if self._device else None

    def on_cpu(self) -> Any:
        """On a stream of its own: on the usual one it would wait for all updates that were begun since."""
        if self._made is None:
            return self._content
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            torch.cuda.current_stream(self._device).wait_event(self._made)
            return mapped(self._content, lambda tensor: tensor.cpu())


def mapped(content: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Dictionaries, lists and tuples with every tensor in them changed."""
    if isinstance(content, torch.Tensor):
        return change(content)
    if isinstance(content, dict):
        return {key: mapped(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(mapped(value, change) for value in content)
    return content
