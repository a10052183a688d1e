"""Looking after the pages of caches, in the daemon's tick: dropped where a control group is short of memory.

Pages of files are the kernel's to drop, and it drops them when a control group reaches its limit. But it does so page
by page, while somebody waits for memory, and it cannot know that a cache's pages are the cheapest to have again. So
when what a group cannot give up (all but the pages of files) comes near its limit, the caches' pages go at once. One
that is merely full of pages of files is as it should be: nothing is dropped then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from prefetchd.cache.in_daemon import CacheInDaemon
from prefetchd.limits import CgroupMemory, cgroups

_NEAR = 0.9
_EVERY_S = 5.0  # dropped pages are read again soon, so dropping them at every tick would be worse than either


class CachePages:
    """The caches of one daemon, borrowed.

    Args:
        caches: all of them.
        read: how groups are read.
        clock: seconds.
    """

    def __init__(
        self,
        caches: Sequence[CacheInDaemon],
        read: Callable[[], Iterable[CgroupMemory]] = cgroups,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caches = caches
        self._read = read
        self._clock = clock
        self._dropped_s = -_EVERY_S

    def tick(self) -> None:
        """Drop the caches' pages if memory is short; have each cache say what it has to say."""
        for cache in self._caches:
            cache.tick()
        if not self._caches or self._clock() - self._dropped_s < _EVERY_S:
            return
        if any(group.used_bytes > _NEAR * group.limit_bytes for group in self._read()):
            self._dropped_s = self._clock()
            for cache in self._caches:
                cache.drop_pages()
