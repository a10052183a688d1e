"""How much more a reader may write into a cache, whose limit it shares with other readers and daemons."""

from __future__ import annotations

import os
from pathlib import Path

from prefetchd.data.cache.directory import used_bytes

_WRITERS = 32
_KEPT_FREE = 0.05  # of the disk, where no limit was given


class WriteAllowance:
    """How much more one writer may write: its part of the size limit, or of what the disk can spare.

    Several writers, of several daemons too, share the limit without a lock: each looks at the whole cache, takes a
    small part of what is left, and looks again when that is used up. So `_WRITERS` of them cannot exceed the limit
    together, and the last rows before it stay unwritten. No row is removed for others: with a uniformly random order,
    any fixed part of the samples serves as well as any other.

    Args:
        cache: the cache's folder.
        limit_bytes: of `limit_of`.
    """

    def __init__(self, cache: Path, limit_bytes: int | None) -> None:
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._may_write_bytes = 0

    def take(self, n_bytes: int) -> bool:
        """Take `n_bytes` for a row; return whether it may be written."""
        if n_bytes > self._may_write_bytes:
            self._may_write_bytes = self._left_bytes() // _WRITERS
        self._may_write_bytes -= n_bytes
        return self._may_write_bytes >= 0

    def allows(self, n_bytes: int) -> bool:
        """Return whether a row of `n_bytes` could be written now; False if the folder is gone."""
        try:
            disk = os.statvfs(self._cache)
            return disk.f_bavail * disk.f_frsize > n_bytes and self.take(n_bytes)
        except OSError:
            return False

    def _left_bytes(self) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes - used_bytes(self._cache)
        disk = os.statvfs(self._cache)
        return int((disk.f_bavail - _KEPT_FREE * disk.f_blocks) * disk.f_frsize)
