"""A model of a CUDA device, in place of `prefetchd.torch.device_copies.Cuda`: it needs PyTorch, and no device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs prefetchd[torch]")


class ModelEvent:
    def __init__(self, device: ModelDevice) -> None:
        self._device = device
        self._work, device.queue = device.queue, []

    def query(self) -> bool:
        return not self._work

    def synchronize(self) -> None:
        for work in self._work:
            work()
        self._work = []


class ModelDevice:
    """A device that is as late as it can be: a copy is done when somebody waits for it, and not before."""

    def __init__(self, *, locks: bool = True) -> None:
        self.locks = locks
        self.locked: dict[int, int] = {}
        self.n_locked = 0
        self.queue: list[Callable[[], object]] = []
        self.buffers: list[torch.Tensor] = []

    def page_lock(self, address: int, n_bytes: int) -> bool:
        assert address not in self.locked
        self.n_locked += 1
        if self.locks:
            self.locked[address] = n_bytes
        return self.locks

    def unlock(self, address: int) -> None:
        del self.locked[address]

    def page_locked_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        self.buffers.append(tensor.clone())
        return self.buffers[-1]

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        page_locked = any(first <= start and end <= first + size for first, size in self.locked.items())
        assert page_locked or any(tensor.data_ptr() == buffer.data_ptr() for buffer in self.buffers)
        arrived = torch.full_like(tensor, 77)
        self.queue.append(lambda: arrived.copy_(tensor))
        return arrived

    def mark(self) -> ModelEvent:
        return ModelEvent(self)

    def wait(self) -> None:
        self.mark().synchronize()

    def hand_over(self, event: ModelEvent, tensors: tuple[torch.Tensor, ...]) -> None:
        event.synchronize()  # the caller's stream waits; here it is the caller
