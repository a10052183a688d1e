"""How much more may be written to a cache: up to its size limit, or up to what the disk can spare.

Every writer keeps its own account. Several writers, of several daemons too, share the limit without a lock: each looks
at the whole cache, takes a small part of what is left, and looks again when that is used up. So `_WRITERS` of them
cannot exceed the limit together, and the last rows before it stay unwritten. What is over the limit is not written and
nothing is removed for it: with a uniformly random order, any fixed part of the samples serves as well as any other.
"""

from __future__ import annotations

import os
from pathlib import Path

from prefetchd.data.cache.directory import used_bytes

_WRITERS = 32
_KEPT_FREE = 0.05  # of the disk, where no limit was given


class Room:
    """One writer's account.

    Args:
        cache: the cache's folder.
        limit_bytes: most bytes of all files in it; `None` for all but a twentieth of the disk.
    """

    def __init__(self, cache: Path, limit_bytes: int | None) -> None:
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._may_write_bytes = 0

    def take(self, n_bytes: int) -> bool:
        """Take the room for a row; whether there is any."""
        if n_bytes > self._may_write_bytes:
            self._may_write_bytes = self._left_bytes() // _WRITERS
        self._may_write_bytes -= n_bytes
        return self._may_write_bytes >= 0

    def _left_bytes(self) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes - used_bytes(self._cache)
        disk = os.statvfs(self._cache)
        return int((disk.f_bavail - _KEPT_FREE * disk.f_blocks) * disk.f_frsize)
