"""Reads that overlap decoding, where storage is slow to answer: threads of a reader fetch what it will decode next.

Owned by `ImageSource`, in readers. It does nothing, and starts no thread, until the reads that the reader itself waits
for are found slow; then it says so (`read_s`), the daemon gives the reader more work in hand, and what is in hand is
fetched by threads while the reader decodes. Fast again, it is as before.

What comes from a thread is what the reader would have read: the same bytes, or the same fault, told of the same sample.
Whoever waits for a read that never ends is the reader, as without threads, so that the daemon finds it hung. The
threads die with the process. What they hold is bounded, and is part of the memory that a reader may take without
asking: a decode that needs more of it has it (`make_room`), so that whether a sample can be decoded does not depend on
how fast the storage is. Buffers are maps of their own: in the heap they would lie between those of decodes and keep
their pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from functools import partial

from prefetchd.data import files as file_bytes
from prefetchd.data.buffer_pool import AheadRead, Fetch, MappedBuffer
from prefetchd.data.files import FileBuffer
from prefetchd.data.records import Records, Sample
from prefetchd.data.source import ReserveMemory

N_THREADS = 32  # and so many samples are on their way, or wait for the reader, at most
MAX_BYTES = 9 << 19  # within a reader's allowance
ALLOWANCE_BYTES = 12 << 20  # what a reader may take without asking: the budget's, which readers know nothing of
_BUFFER_BYTES = 128 << 10  # as large as most files need
_KEPT_BUFFER_BYTES = 512 << 10  # of one that is kept for other files, at most: new pages cost more than the reading
SLOW_S, FAST_S = 0.002, 0.001
_WEIGHT = 0.1  # of the last read in the average
_STACK_BYTES = 128 << 10
_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8  # mallopt's
_HEAP_KEPT_BYTES = 4 << 20
_RECOVERY_BYTES = 64 << 10  # with each decode after one that was large

_Key = tuple[int, bool]  # the sample's number, and whether it is its mask


class _NoRoomError(Exception):
    """More would be held than may be: the reader reads it itself, when its turn comes."""


class ReadAhead:
    """Reads samples of some records, ahead of time once that pays. For one thread.

    Args:
        records: where the bytes come from; borrowed.
        with_masks: whether samples' labels are paths of masks, which are read after their images.
    """

    def __init__(self, records: Records, *, with_masks: bool = False) -> None:
        self._records = records
        self._with_masks = with_masks
        self._average_s = 0.0
        self._average_bytes = float(_BUFFER_BYTES)
        self._is_on = False
        self._wanted: queue.SimpleQueue[AheadRead] = queue.SimpleQueue()
        self._coming: dict[_Key, deque[AheadRead]] = {}
        self._later: deque[AheadRead] = deque()
        self._n_begun = 0
        self._threads: list[threading.Thread] = []
        self._read_lately: set[_Key] = set()
        self._free: deque[MappedBuffer] = deque()
        self._lock = threading.Lock()  # of this process alone
        self._lent: MappedBuffer | None = None  # whose bytes the caller looks at
        self._most_bytes = MAX_BYTES
        self.held_bytes = 0
        self.waited_s = 0.0  # for reads, all together
        self.began_ns = 0  # when the latest read began, by the clock of files

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
            for is_mask in (False, True) if self._with_masks else (False,):
                read = AheadRead(self._fetch_of(sample, is_mask))
                self._coming.setdefault((number, is_mask), deque()).append(read)
                self._later.append(read)
        self._begin()

    def _fetch_of(self, sample: Sample, is_mask: bool) -> Fetch:
        """What reads the bytes of a sample's image, or of its mask, which is always a file of its own."""
        if is_mask:
            return lambda buffer, reserve: file_bytes.read_file(str(sample.label), buffer, reserve=reserve)
        return partial(self._records.read, sample)

    def read(
        self, sample_id: int, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory, *, is_mask: bool = False
    ) -> memoryview:
        """Return the bytes of a sample, or of its mask, in `buffer` or in one of its own, until the next read.

        Raises:
            SampleFault, ManifestError: as `Records.read` does.
        """
        self._end_loan()
        started_s = time.perf_counter()
        if self._coming:
            key = sample_id, is_mask
            self._read_lately.add(key)
            ahead = self._take(key)
            if ahead is not None:
                ahead.wait()
                self.waited_s += time.perf_counter() - started_s
                if ahead.data is not None:
                    self._lent, self.began_ns = ahead.buffer, ahead.began_ns
                    self._learn(ahead.took_s, ahead.buffer.capacity_bytes)
                    return ahead.data
                if ahead.error is not None and not isinstance(ahead.error, (_NoRoomError, MemoryError)):
                    raise ahead.error
        started_s = time.perf_counter()
        self.began_ns = time.time_ns()
        data = self._fetch_of(sample, is_mask)(buffer, partial(self._reserve, reserve))
        took_s = time.perf_counter() - started_s
        self.waited_s += took_s
        self._learn(took_s, len(data))
        return data

    def _reserve(self, reserve: ReserveMemory, n_bytes: int) -> None:
        self.make_room(n_bytes)
        reserve(n_bytes)

    def pass_over(self, sample_ids: Iterable[int]) -> None:
        """Forget those of a task's samples that were not read: they came from elsewhere, or the task was given up."""
        if not self._coming and not self._read_lately:
            return
        for sample_id in sample_ids:
            for key in ((int(sample_id), False), (int(sample_id), True)):
                read = None if key in self._read_lately else self._take(key)
                if read is not None:
                    self._drop(read)
        self._read_lately.clear()

    def make_room(self, working_bytes: int) -> None:
        """Leave a decode that takes so much what it may take without asking; it may wait for reads that have begun.

        What is given up is read again in its turn. What is above the allowance is asked for, and is no matter of this.
        """
        if working_bytes > ALLOWANCE_BYTES:
            return
        room_bytes = ALLOWANCE_BYTES - working_bytes
        if room_bytes >= self._most_bytes:
            self._most_bytes = min(room_bytes, MAX_BYTES, self._most_bytes + _RECOVERY_BYTES)
            return
        with self._lock:
            self._most_bytes = room_bytes  # for a while: others are as large, probably
            self._shed_free(room_bytes)
        begun = [(key, read) for key, reads in self._coming.items() for read in reads if read.begun]
        begun.reverse()  # what is needed last goes first
        begun.sort(key=lambda each: not each[1].done)
        for key, read in begun:
            if self.held_bytes - self._lent_bytes <= room_bytes:
                return
            self._forget(key, read)
            read.wait()
            self._drop(read)

    @property
    def _lent_bytes(self) -> int:
        """Bytes of the buffer that the caller looks at; a decode's working memory has its file in it."""
        return 0 if self._lent is None else self._lent.capacity_bytes

    def _shed_free(self, most_bytes: int) -> None:
        """Give back buffers that wait for files until no more than `most_bytes` are held; with the lock held."""
        while self.held_bytes - self._lent_bytes > most_bytes and self._free:
            self.held_bytes -= self._free.popleft().capacity_bytes

    def _end_loan(self) -> None:
        if self._lent is not None:
            self._give_back(self._lent)
            self._lent = None

    def _drop(self, read: AheadRead) -> None:
        """Give back what a read that nobody wants holds, now or when it is done."""
        with self._lock:
            read.dropped = True
            is_done = read.done
        if is_done:
            self._give_back(read.buffer)

    def _take(self, key: _Key) -> AheadRead | None:
        """Return the read of a file that has begun, if there is one; forget one that has not."""
        reads = self._coming.get(key)
        if reads is None:
            return None
        read = reads[0]
        if self._forget(key, read):
            self._begin()
            return read
        # Asked for out of its turn, as a sample that is tried again: it might wait for others that wait for the reader.
        self._later.remove(read)
        self._begin()
        return None

    def _forget(self, key: _Key, read: AheadRead) -> bool:
        """Take a read off the books; return whether it has begun."""
        reads = self._coming[key]
        reads.remove(read)
        if not reads:
            del self._coming[key]
        self._n_begun -= read.begun
        return read.begun

    def _begin(self) -> None:
        """Let threads begin as many as there may be at once: more than there is room for would be read twice.

        A quarter of them together: a thread that is woken for one read alone takes a twentieth of a decode's time.
        """
        most = min(N_THREADS, self._most_bytes // int(self._average_bytes))
        if self._n_begun > most - most // 4:
            return
        while self._later and self._n_begun < most:
            read = self._later.popleft()
            read.begun = True
            self._n_begun += 1
            self._wanted.put(read)

    def _learn(self, took_s: float, n_bytes: int) -> None:
        self._average_bytes += _WEIGHT * (max(n_bytes, _BUFFER_BYTES) - self._average_bytes)
        self._average_s += _WEIGHT * (took_s - self._average_s)
        if self._records.reads_apart:
            was_on, self._is_on = self._is_on, self._average_s > (FAST_S if self._is_on else SLOW_S)
            if was_on and not self._is_on:
                with self._lock:
                    self._shed_free(0)

    def _start(self) -> None:
        # What the heap keeps between two decodes is part of the allowance, too: less of it, then.
        with contextlib.suppress(AttributeError):  # another C library
            library = ctypes.CDLL(None)
            library.mallopt(_M_TRIM_THRESHOLD, _HEAP_KEPT_BYTES)
            library.mallopt(_M_ARENA_MAX, 1)  # or each thread would begin a heap of its own
        before = threading.stack_size(_STACK_BYTES)
        self._threads = [threading.Thread(target=self._fetch, daemon=True) for _ in range(N_THREADS)]
        for thread in self._threads:
            thread.start()
        threading.stack_size(before)

    def _fetch(self) -> None:
        """Read what is wanted, for ever; in a thread."""
        # Not as the reader is: a thread that hears that its file is open must not wait for the end of a decode's turn.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        while True:
            self._fetch_one(self._wanted.get())

    def _fetch_one(self, read: AheadRead) -> None:
        read.began_ns, started_s = time.time_ns(), time.perf_counter()
        try:
            read.data = read.fetch(read.buffer, partial(self._admit, read.buffer))
        except BaseException as error:
            # Without the traceback, whose frames would keep buffers alive in a ring of references.
            read.error = error.with_traceback(None)
            self._give_back(read.buffer)
            read.buffer = MappedBuffer()
        read.took_s = time.perf_counter() - started_s
        with self._lock:
            is_dropped = read.dropped
            read.end()
        if is_dropped:
            self._give_back(read.buffer)

    def _give_back(self, buffer: MappedBuffer) -> None:
        """Keep a buffer for another file, unless it is far larger than most need."""
        with self._lock:
            if 0 < buffer.capacity_bytes <= _KEPT_BUFFER_BYTES and self.held_bytes <= self._most_bytes:
                self._free.append(buffer)
            else:
                self.held_bytes -= buffer.capacity_bytes

    def _admit(self, buffer: MappedBuffer, n_bytes: int) -> None:
        """Have `buffer` hold `n_bytes`, if what is held stays within bounds."""
        with self._lock:
            fitting = [each for each in reversed(self._free) if each.capacity_bytes >= n_bytes]
            if fitting:
                # The last one used of the smallest: it is in the processor's caches still.
                chosen = min(fitting, key=lambda each: each.capacity_bytes)
                self._free.remove(chosen)
                self.held_bytes -= buffer.capacity_bytes
                buffer.take_from(chosen)
                return
            more = FileBuffer.rounded(max(n_bytes, _BUFFER_BYTES)) - buffer.capacity_bytes
            while self.held_bytes + more > self._most_bytes:
                try:
                    self.held_bytes -= self._free.popleft().capacity_bytes
                except IndexError:
                    raise _NoRoomError from None
            self.held_bytes += more
        try:
            buffer.view(max(n_bytes, _BUFFER_BYTES))
        except OSError:  # the process may not have so much
            with self._lock:
                self.held_bytes -= more
            raise _NoRoomError from None
