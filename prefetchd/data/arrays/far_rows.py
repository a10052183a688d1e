"""Runs of rows of array files that are objects, in a reader: each by one request, ahead of time.

Rows that follow one another, in the order as in the file, are one request: an order without a shuffle, or by blocks,
takes few. `ReadAhead` has the threads and the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prefetchd.data.faults import UnreadableFile
from prefetchd.data.files import FileBuffer
from prefetchd.data.read_ahead import ReadAhead
from prefetchd.data.records import Sample
from prefetchd.data.stores.client import read
from prefetchd.data.stores.faults import lost

if TYPE_CHECKING:
    from prefetchd.data.arrays.npy import ArrayFile
    from prefetchd.data.source import ReserveMemory

_MOST_BYTES = 256 << 10  # of rows together; one that is larger is alone
_MOST_KNOWN = 1 << 16

Span = tuple[int, int, int]  # number of the file, where in it, bytes


class FarRows:
    """Reads rows of `files`. For one thread.

    Args:
        files: the objects.
        span: returns where the bytes of a row are.
        span_of_run: returns where those of so many rows from one on are.
    """

    is_far = reads_apart = True

    def __init__(
        self, files: Sequence[ArrayFile], span: Callable[[int], Span], span_of_run: Callable[[int, int], Span]
    ) -> None:
        self._files = files
        self._span = span
        self._span_of_run = span_of_run
        self._counts: dict[int, int] = {}  # rows of each run that is expected, by its first
        self._buffer = FileBuffer()
        self._current: tuple[int, int, int, memoryview] | None = None  # file, from and to which byte, and the bytes
        self._ahead = ReadAhead(self)

    @property
    def read_s(self) -> float:
        """How long a request takes, in seconds."""
        return self._ahead.read_s

    @property
    def waited_s(self) -> float:
        """For requests, all together."""
        return self._ahead.waited_s

    def expect(self, rows: Iterable[int]) -> None:
        """Begin to fetch rows that will be read in this order."""
        if len(self._counts) > _MOST_KNOWN:
            self._counts.clear()
        firsts = []
        for first, count in self._runs([int(row) for row in rows]):
            self._counts[first] = count
            firsts.append(first)
        self._ahead.expect(firsts)

    def _runs(self, rows: Sequence[int]) -> Iterable[tuple[int, int]]:
        first, count, end = -1, 0, (-1, -1)
        n_bytes = 0
        for row in rows:
            file, at, size = self._span(row)
            if not size:  # it is not read, and no run may begin with it
                continue
            if count and row == first + count and (file, at) == end and n_bytes + size <= _MOST_BYTES:
                count, n_bytes, end = count + 1, n_bytes + size, (file, at + size)
                continue
            if count:
                yield first, count
            first, count, n_bytes, end = row, 1, size, (file, at + size)
        if count:
            yield first, count

    def samples(self, firsts: Iterable[int]) -> list[Sample]:
        """Return runs as samples, by their first rows; for `ReadAhead`."""
        return [self._sample(first, self._counts.get(first, 1)) for first in firsts]

    def _sample(self, first: int, count: int) -> Sample:
        return Sample("", None, place=self._span_of_run(first, count))

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of a run; for `ReadAhead`."""
        file, at, n_bytes = sample.place
        found = self._files[file]
        try:
            return read(found.path, found.identity, at, n_bytes, buffer, reserve)
        except UnreadableFile as fault:  # it has other rows too
            raise lost(found.path, fault) from None

    def row(self, row: int, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of a row, valid until the next call.

        Raises:
            SampleFault: if they cannot be read.
            ManifestError: if the object is another one, or gone.
        """
        file, at, n_bytes = self._span(row)
        if not n_bytes:
            return memoryview(b"")
        held = self._current
        if held is None or held[0] != file or not held[1] <= at <= at + n_bytes <= held[2]:
            self._current = None
            sample = self._sample(row, self._counts.get(row, 1))
            view = self._ahead.read(row, sample, self._buffer, reserve)
            start = sample.place[1]
            held = self._current = file, start, start + len(view), view
        return held[3][at - held[1] : at - held[1] + n_bytes]
