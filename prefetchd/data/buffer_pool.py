"""Memory for files that are read ahead: buffers under one limit, which are kept from file to file.

`ReadAhead` owns the pool, in a reader, and its threads take buffers from it. It dies with the process.
Each buffer is a map of its own. In the heap, buffers would lie between those of decodes and keep their pages.
"""

from __future__ import annotations

import mmap
import threading
from collections import deque

import numpy as np

from prefetchd.data.files import FileBuffer

SMALLEST_BUFFER_BYTES = 128 << 10  # as large as most files need
_LARGEST_FREE_BUFFER_BYTES = 512 << 10  # larger buffers are not kept for other files


class PoolExhaustedError(Exception):
    """The limit leaves no memory for a file. The reader reads it itself, in its turn."""


class MappedBuffer(FileBuffer):
    """A buffer in a map of its own. The kernel gets the map back with the buffer's last view."""

    def __init__(self) -> None:
        super().__init__(0)

    def view(self, n_bytes: int) -> memoryview:
        """Return the first `n_bytes`, writable; grow to hold them."""
        if n_bytes > self.capacity_bytes:
            own = mmap.mmap(-1, self.rounded(n_bytes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._memory = np.frombuffer(own, np.uint8)
        return super().view(n_bytes)

    def take_from(self, other: FileBuffer) -> None:
        """Replace the memory by that of another buffer."""
        self._memory = other._memory


class BufferPool:
    """The buffers and their limit. Several threads may use it.

    Attributes:
        limit_bytes: the most that all buffers hold together. A lower limit holds once buffers come back.
        held_bytes: what all buffers hold, free ones included.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._free: deque[MappedBuffer] = deque()
        self._lock = threading.Lock()

    def grow(self, buffer: MappedBuffer, n_bytes: int) -> None:
        """Give `buffer` memory for `n_bytes`: that of a free buffer, or new pages.

        Raises:
            PoolExhaustedError: if the limit, or the process, does not allow it.
        """
        with self._lock:
            fitting = [each for each in reversed(self._free) if each.capacity_bytes >= n_bytes]
            if fitting:
                # The last used among the smallest: it is still in the processor's caches.
                chosen = min(fitting, key=lambda each: each.capacity_bytes)
                self._free.remove(chosen)
                self.held_bytes -= buffer.capacity_bytes
                buffer.take_from(chosen)
                return
            wanted_bytes = max(n_bytes, SMALLEST_BUFFER_BYTES)
            more_bytes = FileBuffer.rounded(wanted_bytes) - buffer.capacity_bytes
            self._release_free(self.limit_bytes - more_bytes)
            if self.held_bytes + more_bytes > self.limit_bytes:
                raise PoolExhaustedError
            self.held_bytes += more_bytes
        try:
            buffer.view(wanted_bytes)
        except OSError:  # the process may not have that much
            with self._lock:
                self.held_bytes -= more_bytes
            raise PoolExhaustedError from None

    def give_back(self, buffer: MappedBuffer) -> None:
        """Keep a buffer for another file, unless it is far larger than most files need."""
        with self._lock:
            # New pages cost more than reading a small file, so small buffers are kept.
            if 0 < buffer.capacity_bytes <= _LARGEST_FREE_BUFFER_BYTES and self.held_bytes <= self.limit_bytes:
                self._free.append(buffer)
            else:
                self.held_bytes -= buffer.capacity_bytes

    def trim(self, most_bytes: int) -> None:
        """Release free buffers until all buffers hold at most `most_bytes`, or none is free."""
        with self._lock:
            self._release_free(most_bytes)

    def _release_free(self, most_bytes: int) -> None:
        while self.held_bytes > most_bytes and self._free:
            self.held_bytes -= self._free.popleft().capacity_bytes
