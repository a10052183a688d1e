"""From slots of the ring to the memory of a CUDA device: copies that run while the training step runs.

`prefetchd.torch` starts a batch's copy while its loop still works on the batch before: on a stream of its own, straight
from the slot. For that the slot must be page-locked, which is done once for each slot's map:

- The map is the consumer's shared one, which is read-only, so it is registered as read-only. Not every driver can do
  that; then each batch goes through page-locked buffers of PyTorch, at the cost of one copy by the processor.
- A copy-on-write map (`writable=True`) must never be registered. Page-locking makes a private copy of its pages as they
  are at that moment, and every later batch in that slot would be read from the stale copy.
- A map stays registered as long as the daemon keeps the slot. A slot's segment is never replaced under its map, so the
  registered pages stay the slot's own. When the daemon removes a slot, its map is unlocked at the next batch.

The lease of a slot is held until the event after its copy has come: only then may the daemon fill the slot again. When
the daemon dies the maps stay, and copies under way end as usual.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from prefetchd.ring.layout import BatchLayout

log = logging.getLogger("prefetchd")

_PORTABLE, _READ_ONLY = 0x01, 0x08  # cudaHostRegisterPortable, cudaHostRegisterReadOnly


class Cuda:
    """The CUDA runtime and PyTorch's streams, as far as copies need them. Tests use a model of a device instead."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def page_lock(self, address: int, n_bytes: int) -> bool:
        """Let the device read this memory by itself; return whether it can."""
        with torch.cuda.device(self.device):
            status = torch.cuda.cudart().cudaHostRegister(address, n_bytes, _PORTABLE | _READ_ONLY)
        if int(status) == 0:
            return True
        # The runtime keeps the failure as its last error, and PyTorch would raise it at the user's next kernel.
        with contextlib.suppress(RuntimeError):
            torch.ones(1, device=self.device)
        return False

    def unlock(self, address: int) -> None:
        """Undo `page_lock`; does nothing where the runtime has ended."""
        torch.cuda.cudart().cudaHostUnregister(address)

    def page_locked_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy in page-locked memory, which PyTorch reuses once the copy to the device is done."""
        return tensor.pin_memory()

    def beside(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which work goes to the copies' stream."""
        context: contextlib.AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Start to copy a page-locked tensor to the device."""
        return tensor.to(self.device, non_blocking=True)

    def mark(self) -> Any:
        """Return an event that comes when all work started so far on the copies' stream is done."""
        event = torch.cuda.Event(blocking=True)  # a thread that waits for it leaves the processor to others
        event.record(self._stream)
        return event

    def wait(self) -> None:
        """Wait until all work of the caller's stream is done."""
        torch.cuda.current_stream(self.device).synchronize()

    def hand_over(self, event: Any, tensors: tuple[torch.Tensor, ...]) -> None:
        """Let the caller's stream wait for `event`, and own `tensors` together with the copies' stream."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(stream)  # or their memory would be given away while that stream still reads it


class _Locked(NamedTuple):
    memory: mmap.mmap  # kept, so that it is unlocked before it is unmapped
    address: int


@dataclass(frozen=True, slots=True)
class Arriving:
    """A batch on its way: tensors of the device, not to be used before `DeviceCopies.hand_over`.

    Attributes:
        tensors: one for each array of the layout.
        event: comes when they have arrived.
    """

    tensors: tuple[torch.Tensor, ...]
    event: Any


class DeviceCopies:
    """Starts copies of batches, and holds each batch's slot until its copy is done. One thread at a time."""

    def __init__(
        self,
        cuda: Cuda,
        maps: Callable[[], Collection[mmap.mmap]],
        on_device: Callable[[list[torch.Tensor]], list[torch.Tensor]],
        n_host_arrays: int = 0,
    ) -> None:
        """Make one.

        Args:
            cuda: the device.
            maps: returns the maps of slots that exist now.
            on_device: converts a batch's tensors on the device, on the copies' stream too.
            n_host_arrays: how many arrays, the first ones, `on_device` takes from the slot itself.
        """
        self._cuda = cuda
        self._maps = maps
        self._on_device = on_device
        self._n_host_arrays = n_host_arrays
        self._locked: dict[int, _Locked] = {}  # by the map's id
        self._can_lock = True
        self._reading: deque[tuple[Any, NDArray[np.uint8]]] = deque()  # (event, root array), oldest first

    def start(self, root: NDArray[np.uint8], rows: int, layout: BatchLayout) -> Arriving:
        """Start to copy a batch of `rows` samples from the bytes of its slot, as `layout` says.

        This object holds `root` as long as the device reads from it, also if this raises.

        Raises:
            SampleError: if the device cannot decode a file.
        """
        self._unlock_closed()
        tensors = [torch.from_numpy(array) for array in layout.arrays(_writable_alias(root), rows)]
        stay, go = tensors[: self._n_host_arrays], tensors[self._n_host_arrays :]
        locked = self._lock(root)
        if not locked:
            go = [self._cuda.page_locked_copy(tensor) for tensor in go]
        with self._cuda.beside():
            try:
                tensors = self._on_device([*stay, *(self._cuda.copy(tensor) for tensor in go)])
            finally:  # also where it raises, copies are under way
                event = self._cuda.mark()
                if locked or stay:
                    self._reading.append((event, root))
        return Arriving(tuple(tensors), event)

    def hand_over(self, arriving: Arriving) -> None:
        """Let the caller's stream use the tensors from now on. The processor does not wait."""
        self._cuda.hand_over(arriving.event, arriving.tensors)
        self.make_room(len(self._reading))  # mostly the event has come, and its slot need not wait for the next batch

    def convert_now(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Convert a batch's tensors on the caller's stream; those that stay with the processor may go afterwards."""
        try:
            return self._on_device(tensors)
        finally:
            if self._n_host_arrays:
                self._cuda.wait()

    def make_room(self, n_kept: int = 1) -> None:
        """Release slots whose copies are done, and wait until at most `n_kept` are held.

        A loop is guaranteed two slots: one for the copy under way, one for the batch that it asks for now.
        """
        while self._reading and (len(self._reading) > n_kept or self._reading[0][0].query()):
            event, _ = self._reading[0]
            event.synchronize()
            self._reading.popleft()

    def close(self) -> None:
        """Wait for all copies, release the slots and unlock them."""
        self.make_room(0)
        while self._locked:
            self._cuda.unlock(self._locked.popitem()[1].address)

    def _lock(self, root: NDArray[np.uint8]) -> bool:
        """Page-lock the slot of `root` if it is not; return whether it is. A private copy of a slot is never locked."""
        memory = _map_of(root)
        if memory is None:
            return False
        if id(memory) not in self._locked and self._can_lock:
            self._can_lock = self._cuda.page_lock(root.ctypes.data, len(memory))
            if self._can_lock:
                self._locked[id(memory)] = _Locked(memory, root.ctypes.data)
            else:
                log.info("the driver registers no read-only memory: batches go through page-locked buffers")
        return id(memory) in self._locked

    def _unlock_closed(self) -> None:
        """Unlock the maps of slots that the daemon has removed, unless the device still reads from them."""
        needed = {id(memory) for memory in self._maps()} | {id(_map_of(root)) for _, root in self._reading}
        for key in self._locked.keys() - needed:
            self._cuda.unlock(self._locked.pop(key).address)


def _map_of(root: NDArray[np.uint8]) -> mmap.mmap | None:
    """Return the map that `root` is an array over; `None` for a copy."""
    memory = root.base.obj if isinstance(root.base, memoryview) else root.base
    return memory if isinstance(memory, mmap.mmap) else None


def _writable_alias(root: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the same bytes as an array that is writable to numpy; it does not keep `root` alive.

    `torch.from_numpy` warns of read-only arrays, though nothing writes here, and PyTorch has no read-only tensors.
    """
    buffer = (ctypes.c_uint8 * root.nbytes).from_address(root.ctypes.data)
    return np.frombuffer(memoryview(buffer), np.uint8)
