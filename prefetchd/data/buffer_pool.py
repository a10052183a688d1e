"""What `read_ahead` is made of: one read, on its way from the reader to a thread and back, and memory for its bytes.

Used by `read_ahead` alone, in readers; dies with the process.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

import numpy as np

from prefetchd.data.files import FileBuffer
from prefetchd.data.source import ReserveMemory

Fetch = Callable[[FileBuffer, ReserveMemory], memoryview]  # reads one file's bytes, as `Records.read` does


class MappedBuffer(FileBuffer):
    """A buffer in a map of its own, which goes back to the kernel with its last view."""

    def __init__(self) -> None:
        super().__init__(0)

    def view(self, n_bytes: int) -> memoryview:
        """The first `n_bytes`, writable; grows to hold them."""
        if n_bytes > self.capacity_bytes:
            own = mmap.mmap(-1, self.rounded(n_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._memory = np.frombuffer(own, np.uint8)
        return super().view(n_bytes)

    def take_from(self, other: FileBuffer) -> None:
        """Have the memory of another one in place of one's own."""
        self._memory = other._memory


class AheadRead:
    """One file's read: expected, then begun, then done. A `Future` would take a tenth of a decode's time.

    Attributes:
        fetch: what reads it.
        begun: whether it was given to a thread; written by the reader.
        dropped: whether nobody wants it any more.
        buffer: where the bytes are.
        data: the bytes, once it is done; `None` if there was an error.
        error: what was raised instead.
        began_ns: when it began, by the clock of files.
        took_s: how long it took, in seconds.
    """

    __slots__ = ("_pending", "began_ns", "begun", "buffer", "data", "dropped", "error", "fetch", "took_s")

    def __init__(self, fetch: Fetch) -> None:
        self.fetch = fetch
        self.begun = self.dropped = False
        self.buffer = MappedBuffer()  # without memory until the file's size is known: opening it needs none
        self.data: memoryview | None = None
        self.error: BaseException | None = None
        self.began_ns = 0
        self.took_s = 0.0
        self._pending = threading.Lock()
        self._pending.acquire()

    @property
    def done(self) -> bool:
        """Whether there are bytes, or an error."""
        return not self._pending.locked()

    def end(self) -> None:
        """It is done."""
        self._pending.release()

    def wait(self) -> None:
        """Wait until it is done."""
        with self._pending:
            return
