"""Reads that overlap decoding, where storage is slow to answer: threads of a reader fetch what it will decode next.

Owned by `ImageSource`, in readers. It does nothing, and starts no thread, until the reads that the reader itself waits
for are found slow; then it says so (`read_s`), the daemon gives the reader more work in hand, and what is in hand is
fetched by threads while the reader decodes. Fast again, it is as before.

What comes from a thread is what the reader would have read: the same bytes, or the same fault, told of the same sample.
Whoever waits for a read that never ends is the reader, as without threads, so that the daemon finds it hung. The
threads die with the process. What they hold is bounded, and counts as the reader's working memory.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial

from prefetchd.file_bytes import FileBuffer
from prefetchd.sample import Sample
from prefetchd.sources.base import ReserveMemory
from prefetchd.sources.records import Records

N_THREADS = 24  # and so many samples are on their way, or wait for the reader, at most
MAX_BYTES = 6 << 20  # within a reader's allowance
_BUFFER_BYTES = 192 << 10  # at first: buffers that grow one by one leave holes behind
SLOW_S, FAST_S = 0.002, 0.001
_WEIGHT = 0.1  # of the last read in the average
_STACK_BYTES = 256 << 10

Fetched = Future[tuple[FileBuffer, memoryview, float]]  # the buffer, the bytes in it, the seconds that it took


class _NoRoomError(Exception):
    """What is held would be more than `MAX_BYTES`: the reader reads it itself, when its turn comes."""


class ReadAhead:
    """Reads samples of some records, ahead of time once that pays. For one thread.

    Args:
        records: where the bytes come from; borrowed.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._average_s = 0.0
        self._is_on = False
        self._wanted: queue.SimpleQueue[tuple[Sample, Fetched]] = queue.SimpleQueue()
        self._coming: dict[int, deque[Fetched]] = {}
        self._later: deque[tuple[Sample, Fetched]] = deque()
        self._n_begun = 0
        self._threads: list[threading.Thread] = []
        self._free: deque[FileBuffer] = deque()
        self._lock = threading.Lock()  # of this process alone
        self._lent: FileBuffer | None = None  # whose bytes the caller looks at
        self.held_bytes = 0

    @property
    def read_s(self) -> float:
        """How long a read takes, in seconds, where that is worth reading ahead; 0 where reads are fast."""
        return self._average_s if self._is_on else 0.0

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Fetch these samples, which will be read in this order. Does nothing while reads are fast.

        Raises:
            ManifestError: if the records have changed.
        """
        if not self._is_on:
            return
        if not self._threads:
            self._start()
        numbers = [int(sample_id) for sample_id in sample_ids]
        for number, sample in zip(numbers, self._records.samples(numbers), strict=True):
            future: Fetched = Future()
            self._coming.setdefault(number, deque()).append(future)
            self._later.append((sample, future))
        self._begin()

    def read(self, sample_id: int, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return a sample's bytes as `Records.read` does, in `buffer` or in one of its own, until the next read."""
        if self._lent is not None:
            self._give_back(self._lent)
            self._lent = None
        future = self._take(sample_id) if self._coming else None
        if future is not None:
            try:
                self._lent, data, took_s = future.result()
            except (_NoRoomError, MemoryError):
                pass
            else:
                self._learn(took_s)
                return data
        started_s = time.perf_counter()
        data = self._records.read(sample, buffer, reserve)
        self._learn(time.perf_counter() - started_s)
        return data

    def pass_over(self, sample_ids: Iterable[int]) -> None:
        """Forget what was fetched of samples that had come from elsewhere when their turn came."""
        if not self._coming:
            return
        for sample_id in sample_ids:
            future = self._take(int(sample_id))
            if future is not None:
                future.add_done_callback(self._drop)

    def _drop(self, future: Fetched) -> None:
        if future.exception() is None:
            self._give_back(future.result()[0])

    def _take(self, sample_id: int) -> Fetched | None:
        """Return the read of a sample that has begun, if there is one; forget one that has not."""
        futures = self._coming.get(sample_id)
        if futures is None:
            return None
        future = futures.popleft()
        if not futures:
            del self._coming[sample_id]
        if future.running() or future.done():
            self._n_begun -= 1
            self._begin()
            return future
        # Asked for out of its turn, as a sample that is tried again: it might wait for others that wait for the reader.
        self._later = deque(each for each in self._later if each[1] is not future)
        return None

    def _begin(self) -> None:
        """Let threads begin as many as there may be at once."""
        while self._later and self._n_begun < N_THREADS:
            sample, future = self._later.popleft()
            future.set_running_or_notify_cancel()
            self._wanted.put((sample, future))
            self._n_begun += 1

    def _learn(self, took_s: float) -> None:
        self._average_s += _WEIGHT * (took_s - self._average_s)
        if self._records.reads_apart:
            self._is_on = self._average_s > (FAST_S if self._is_on else SLOW_S)

    def _start(self) -> None:
        before = threading.stack_size(_STACK_BYTES)
        self._threads = [threading.Thread(target=self._fetch, daemon=True) for _ in range(N_THREADS)]
        for thread in self._threads:
            thread.start()
        threading.stack_size(before)

    def _fetch(self) -> None:
        """Read what is wanted, for ever; in a thread."""
        while True:
            self._fetch_one(*self._wanted.get())

    def _fetch_one(self, sample: Sample, future: Fetched) -> None:
        try:
            buffer = self._free.popleft()
        except IndexError:
            buffer = FileBuffer(0)  # empty, and at once as large as most files need, if there is room
            with contextlib.suppress(_NoRoomError):
                self._admit(buffer, _BUFFER_BYTES)
                buffer.view(_BUFFER_BYTES)
        started_s = time.perf_counter()
        try:
            data = self._records.read(sample, buffer, partial(self._admit, buffer))
        except BaseException as error:
            self._give_back(buffer)
            # Without the traceback, whose frames would keep buffers alive in a ring of references.
            future.set_exception(error.with_traceback(None))
        else:
            future.set_result((buffer, data, time.perf_counter() - started_s))

    def _give_back(self, buffer: FileBuffer) -> None:
        """Keep a buffer for another file, unless a large one made it grow."""
        if buffer.capacity_bytes <= FileBuffer.rounded(_BUFFER_BYTES):
            self._free.append(buffer)
            return
        with self._lock:
            self.held_bytes -= buffer.capacity_bytes

    def _admit(self, buffer: FileBuffer, n_bytes: int) -> None:
        """Let `buffer` grow to `n_bytes`, rounded up as it rounds, if what is held stays within bounds."""
        more = FileBuffer.rounded(n_bytes) - buffer.capacity_bytes
        with self._lock:
            while self.held_bytes + more > MAX_BYTES:
                try:
                    self.held_bytes -= self._free.popleft().capacity_bytes
                except IndexError:
                    raise _NoRoomError from None
            self.held_bytes += more
