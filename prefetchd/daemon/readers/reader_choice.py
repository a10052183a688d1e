"""Which reader of this machine gets a chunk: the least busy one that may take it.

A sample in doubt is looked at again by a fresh reader, one that has decoded nothing yet, so that no other sample can be
to blame for what happens. Where there is none, a reader makes way for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.daemon.readers.reader_handle import ReaderHandle


class ReaderChoice:
    """Chooses among the readers of a pool.

    Args:
        readers: those of the pool, by number; borrowed.
        clock: the loop's.

    Attributes:
        start_s: that the last reader took to start, in seconds.
    """

    def __init__(self, readers: Mapping[int, ReaderHandle], clock: Callable[[], float]) -> None:
        self._readers, self._clock = readers, clock
        self.start_s = 0.05
        self._wanted_s = 0.0  # since when a fresh one is wanted

    def pick(self, chunk: Chunk) -> ReaderHandle | None:
        """Return the least busy reader that can take `chunk`; if it needs a fresh one, see that there will be one."""
        least_busy, n_least = None, math.inf
        for reader in self._readers.values():
            # Of many readers all but the first few have too much in hand, so that is what is looked at first.
            n_in_hand = len(reader.chunks)
            if n_in_hand < n_least and reader.can_take and self._suits(reader, chunk):
                least_busy, n_least = reader, n_in_hand
        if least_busy is None and chunk.fresh:
            self._make_way()
        return least_busy

    @property
    def wants_more(self) -> bool:
        """Whether some reader is about to run out of work."""
        return any(reader.wants_more and not self._is_kept(reader) for reader in self._readers.values())

    def _suits(self, reader: ReaderHandle, chunk: Chunk) -> bool:
        return reader.fresh if chunk.fresh else not self._is_kept(reader)

    def _is_kept(self, reader: ReaderHandle) -> bool:
        """Return whether to keep a fresh reader that has confirmed some samples, as long as another takes to start."""
        if not reader.n_confirmed or not reader.fresh or len(self._readers) < 2:
            return False
        return self._clock() - reader.since < self.start_s

    def _make_way(self) -> None:
        """Let the least busy reader go for a fresh one, unless one is about to come."""
        here = [reader for reader in self._readers.values() if not reader.stuck]
        if not here or any(reader.retiring or not reader.ready or reader.fresh for reader in here):
            return
        least = min(here, key=lambda reader: len(reader.chunks))
        # It first works as long as another takes to start: that one then finds more samples in doubt.
        self._wanted_s = self._wanted_s or self._clock()
        if not least.chunks or self._clock() - self._wanted_s >= self.start_s:
            self._wanted_s = 0.0
            least.retire()
