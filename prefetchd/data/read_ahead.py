"""Which files are read ahead, and when: reads overlap decoding where storage is slow to answer.

`ImageSource` owns it, in a reader. While the reader's own reads are fast it does nothing and starts no thread. Once
they are slow, `read_s` says so, the daemon gives the reader more work in hand, and threads (`read_threads`) fetch that
work while the reader decodes. Fast again, it stops. Objects of a store are read ahead from the first to the last.

A thread gives what the reader would have read: the same bytes, or the same fault of the same sample. The threads die
with the process.

Memory (`buffer_pool`) is bounded, and is part of the reader's allowance. A decode that needs more of the allowance gets
it (`make_room`), so that whether a sample can be decoded does not depend on how fast the storage is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from prefetchd.data.buffer_pool import SMALLEST_BUFFER_BYTES, BufferPool, MappedBuffer, PoolExhaustedError
from prefetchd.data.files import FileBuffer
from prefetchd.data.read_threads import FAR_THREADS, N_THREADS, AheadRead, Fetch, ReadThreads
from prefetchd.data.records import ReadableSamples, Sample
from prefetchd.data.source import ALLOWANCE_BYTES, ReserveMemory

MAX_BYTES = 9 << 19  # the most that is read ahead, within a reader's allowance
FAR_BYTES = 34 << 20  # of objects: 160 requests for images of 110 KB in flight
_FAR_S = 0.05  # what a request is taken to wait before the first has told
SLOW_S, FAST_S = 0.002, 0.001
_WEIGHT = 0.1  # of the last read in the average
_RECOVERY_BYTES = 64 << 10  # by which the limit grows with each decode after a large one

_Key = tuple[int, int]  # the sample's number, and that of the part
Fetcher = Callable[[Sample, FileBuffer, ReserveMemory], memoryview]
MASK_PART = 1  # where a label is the path of a mask; the image is part 0


def _unless(skip: Callable[[], bool], fetch: Fetch, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
    """Fetch, unless it need not be; it is read in its turn if it must be after all."""
    if skip():
        raise PoolExhaustedError
    return fetch(buffer, reserve)


class ReadAhead:
    """Reads samples of some records, ahead of time once that pays. For one thread.

    Args:
        records: where the bytes come from; borrowed.
        fetchers: how to read the parts of a sample, by their numbers, in the order in which they are read; if not
            given, a sample has one part, 0, which the records read.

    Attributes:
        known: for a part, says whether that of a sample need not be read, as a cache has it.
        skips: the same where finding out takes long, by the threads.
    """

    def __init__(self, records: ReadableSamples, fetchers: Mapping[int, Fetcher] | None = None) -> None:
        self._records = records
        self._fetchers = {0: records.read} if fetchers is None else fetchers
        self.known: dict[int, Callable[[int], bool]] = {}
        self.skips: dict[int, Callable[[Sample], bool]] = {}
        self._is_far = records.is_far
        self._most_bytes = FAR_BYTES if self._is_far else MAX_BYTES
        # The plan of a reader of objects has memory for what is read ahead (`shards.STORE_BYTES`).
        self._allowance_bytes = ALLOWANCE_BYTES + (FAR_BYTES if self._is_far else 0)
        self._average_s = _FAR_S if self._is_far else 0.0
        self._average_bytes = float(SMALLEST_BUFFER_BYTES)
        self._is_on = self._is_far
        self._pool = BufferPool(self._most_bytes)
        self._threads = ReadThreads(self._pool, FAR_THREADS if self._is_far else N_THREADS)
        self._coming: dict[_Key, deque[AheadRead]] = {}
        self._later: deque[AheadRead] = deque()  # those of `_coming` that have not begun
        self._n_begun = 0  # those of `_coming` that have
        self._read_lately: set[_Key] = set()
        self._lent: MappedBuffer | None = None  # whose bytes the caller looks at
        self.waited_s = 0.0  # for reads, all together
        self.began_ns = 0  # when the latest read began, by the clock of files

    @property
    def read_s(self) -> float:
        """How long a read takes, in seconds, where reading ahead pays; 0 where reads are fast."""
        return self._average_s if self._is_on else 0.0

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Fetch these samples, which will be read in this order. Does nothing while reads are fast, or without threads.

        Raises:
            ManifestError: if the records have changed.
        """
        numbers = [int(sample_id) for sample_id in sample_ids] if self._is_on else []
        if not numbers:
            return
        if not self._threads.started:
            self._threads.start()
        if not self._threads.n_threads:
            return
        for number, sample in zip(numbers, self._records.samples(numbers), strict=True):
            for part, fetcher in self._fetchers.items():
                if (is_known := self.known.get(part)) is not None and is_known(number):
                    continue
                fetch = partial(fetcher, sample)
                if (skip := self.skips.get(part)) is not None:
                    fetch = partial(_unless, partial(skip, sample), fetch)
                read = AheadRead(self._fetch(number, fetch))
                self._coming.setdefault((number, part), deque()).append(read)
                self._later.append(read)
        self._begin()

    def read(
        self, sample_id: int, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory, part: int = 0
    ) -> memoryview:
        """Return the bytes of a part of a sample, in `buffer` or another one, until the next read.

        Raises:
            SampleFault, ManifestError: as `ReadableSamples.read` does.
        """
        self._end_loan()
        started_s = time.perf_counter()
        if self._coming:
            key = sample_id, part
            self._read_lately.add(key)
            ahead = self._take(key)
            if ahead is not None:
                ahead.wait()
                self.waited_s += time.perf_counter() - started_s
                if ahead.data is not None:
                    self._lent, self.began_ns = ahead.buffer, ahead.began_ns
                    self._learn(ahead.took_s, ahead.buffer.capacity_bytes)
                    return ahead.data
                if ahead.error is not None and not isinstance(ahead.error, (PoolExhaustedError, MemoryError)):
                    raise ahead.error
        started_s = time.perf_counter()
        self.began_ns = time.time_ns()
        fetch = self._fetch(sample_id, partial(self._fetchers[part], sample))
        data = fetch(buffer, partial(self._reserve, reserve))
        took_s = time.perf_counter() - started_s
        self.waited_s += took_s
        self._learn(took_s, len(data))
        return data

    def _fetch(self, sample_id: int, fetch: Fetch) -> Fetch:
        """Return what reads a sample; of an object it is known meanwhile when the sample is needed next."""
        if not self._is_far:
            return fetch
        from prefetchd.data.stores.next_use import reading

        return reading(sample_id, fetch)

    def _reserve(self, reserve: ReserveMemory, n_bytes: int) -> None:
        self.make_room(n_bytes)
        reserve(n_bytes)

    def pass_over(self, sample_ids: Iterable[int]) -> None:
        """Forget those of a task's samples that were not read: a cache had them, or the task was given up."""
        if not self._coming and not self._read_lately:
            return
        for sample_id in sample_ids:
            for part in self._fetchers:
                key = int(sample_id), part
                read = None if key in self._read_lately else self._take(key)
                if read is not None:
                    self._threads.drop(read)
        self._read_lately.clear()

    def make_room(self, working_bytes: int) -> None:
        """Leave a decode `working_bytes` of the reader's allowance. May wait for reads that have begun.

        Reads that are given up are done again in their turn. A decode that needs more than the whole allowance asks the
        daemon for memory, and nothing is given up for it.
        """
        if working_bytes > self._allowance_bytes:
            return
        room_bytes = self._allowance_bytes - working_bytes
        pool = self._pool
        if room_bytes >= pool.limit_bytes:
            pool.limit_bytes = min(room_bytes, self._most_bytes, pool.limit_bytes + _RECOVERY_BYTES)
            return
        pool.limit_bytes = room_bytes  # for a while: the next images are probably as large
        # The decode's working memory includes its file, which is in the lent buffer.
        most_bytes = room_bytes + (0 if self._lent is None else self._lent.capacity_bytes)
        pool.trim(most_bytes)
        begun = [(key, read) for key, reads in self._coming.items() for read in reads if read.begun]
        begun.reverse()  # what is needed last goes first
        begun.sort(key=lambda each: not each[1].done)
        for key, read in begun:
            if pool.held_bytes <= most_bytes:
                return
            self._forget(key, read)
            read.wait()
            self._threads.drop(read)

    def _end_loan(self) -> None:
        if self._lent is not None:
            self._pool.give_back(self._lent)
            self._lent = None

    def _take(self, key: _Key) -> AheadRead | None:
        """Return the read of a file if it has begun; forget one that has not."""
        reads = self._coming.get(key)
        if reads is None:
            return None
        read = reads[0]
        has_begun = self._forget(key, read)
        if not has_begun:
            # Asked for out of its turn, as a sample that is tried again. Waiting for it could wait for reads that
            # themselves wait until the reader takes them.
            self._later.remove(read)
        self._begin()
        return read if has_begun else None

    def _forget(self, key: _Key, read: AheadRead) -> bool:
        """Remove a read from those that are coming; return whether it has begun."""
        reads = self._coming[key]
        reads.remove(read)
        if not reads:
            del self._coming[key]
        self._n_begun -= read.begun
        return read.begun

    def _begin(self) -> None:
        """Submit as many reads as the pool has memory for: a read beyond that would be done twice.

        A quarter of them together: waking a thread for a single read takes a twentieth of a decode's time.
        """
        # Sizes vary, and a read that finds no memory is done again in its turn. That takes a whole wait for an object.
        room_bytes = self._pool.limit_bytes * 3 // 5 if self._is_far else self._pool.limit_bytes
        most = min(self._threads.n_threads, room_bytes // int(self._average_bytes))
        if self._n_begun > most - most // 4:
            return
        while self._later and self._n_begun < most:
            read = self._later.popleft()
            read.begun = True
            self._n_begun += 1
            self._threads.submit(read)

    def _learn(self, took_s: float, n_bytes: int) -> None:
        self._average_bytes += _WEIGHT * (max(n_bytes, SMALLEST_BUFFER_BYTES) - self._average_bytes)
        self._average_s += _WEIGHT * (took_s - self._average_s)
        if self._records.reads_apart and not self._is_far:
            was_on, self._is_on = self._is_on, self._average_s > (FAST_S if self._is_on else SLOW_S)
            if was_on and not self._is_on:
                self._pool.trim(0)
