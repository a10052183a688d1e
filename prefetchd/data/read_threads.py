"""The threads that read files ahead of the reader, and one such read.

`ReadAhead` owns them, in a reader. They die with the process. A thread that waits for storage for ever holds its own
read alone: the reader waits for that read in its turn, and the daemon finds the reader hung, as without threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
import time
from collections.abc import Callable
from functools import partial

from prefetchd.data.buffer_pool import BufferPool, MappedBuffer
from prefetchd.data.files import FileBuffer
from prefetchd.data.source import ReserveMemory

N_THREADS = 32
FAR_THREADS = 160  # for objects: a request is a wait and little work
_STACK_BYTES = 128 << 10
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8  # mallopt's
_HEAP_KEPT_BYTES = 4 << 20

Fetch = Callable[[FileBuffer, ReserveMemory], memoryview]  # reads one file's bytes, as `Records.read` does


class AheadRead:
    """One file's read: expected, then begun, then done. A `Future` would take a tenth of a decode's time.

    Attributes:
        fetch: the function that reads it.
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
        self.buffer = MappedBuffer()  # without memory until the file's size is known
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
        """Mark it done."""
        self._pending.release()

    def wait(self) -> None:
        """Wait until it is done."""
        with self._pending:
            return


class ReadThreads:
    """Threads that read files into buffers of `pool`. `start` starts them.

    Attributes:
        started: whether `start` was called.
        n_threads: how many there are; fewer than `most_threads`, or none, where the process may not have more.
    """

    def __init__(self, pool: BufferPool, most_threads: int = N_THREADS) -> None:
        self.started = False
        self.n_threads = 0
        self._pool = pool
        self._most_threads = most_threads
        self._wanted: queue.SimpleQueue[AheadRead] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of `done` and `dropped`: either side gives the buffer back, never both

    def start(self) -> None:
        """Start as many threads as there may be. The heap of this process keeps less between two decodes then."""
        self.started = True
        # What the heap keeps between two decodes is part of the reader's allowance too.
        with contextlib.suppress(AttributeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)
            library.mallopt(_M_ARENA_MAX, 1)  # or each thread would begin a heap of its own
        before = threading.stack_size(_STACK_BYTES)
        # Where memory or processes run short, fewer threads read, or none: that is no fault of a sample.
        with contextlib.suppress(RuntimeError, MemoryError):
            for _ in range(self._most_threads):
                threading.Thread(target=self._run, daemon=True).start()
                self.n_threads += 1
        threading.stack_size(before)

    def submit(self, read: AheadRead) -> None:
        """Have a thread do `read`."""
        self._wanted.put(read)

    def drop(self, read: AheadRead) -> None:
        """Give back the buffer of a read that nobody wants, now or when it is done."""
        with self._lock:
            read.dropped = True
            is_done = read.done
        if is_done:
            self._pool.give_back(read.buffer)

    def _run(self) -> None:
        # Not with the reader's policy: a thread whose file is open must not wait for the end of a decode's turn.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        while True:
            self._do(self._wanted.get())

    def _do(self, read: AheadRead) -> None:
        read.began_ns, started_s = time.time_ns(), time.perf_counter()
        try:
            read.data = read.fetch(read.buffer, partial(self._pool.grow, read.buffer))
        except BaseException as error:
            # Without the traceback: its frames would keep buffers alive in a cycle of references.
            read.error = error.with_traceback(None)
            self._pool.give_back(read.buffer)
            read.buffer = MappedBuffer()
        read.took_s = time.perf_counter() - started_s
        with self._lock:
            is_dropped = read.dropped
            read.end()
        if is_dropped:
            self._pool.give_back(read.buffer)
