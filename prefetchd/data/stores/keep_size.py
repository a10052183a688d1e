"""What the entries of the folder `keep` take on its disk, counted by all processes that share it.

A file holds the bytes that were ever taken and given back. Each process adds to it before it writes an entry, under a
lock that is held for microseconds. A process that is killed between the two leaves a count that is too high, never one
that is too low; so does a user who removes entries. `recount` mends it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from prefetchd.data.stores.keep_files import SIZE
from prefetchd.errors import ConfigError, one_line

_COUNT = struct.Struct("=8sQQd")  # magic, taken, given back, when it was last counted
_MAGIC = b"pfsize1\n"


class KeptSize:
    """The count of one folder. For any number of threads and processes; holds no descriptor.

    Args:
        folder: the folder.
        count: returns what all files take on the disk.
    """

    def __init__(self, folder: Path, count: Callable[[], int]) -> None:
        self._path = folder / SIZE
        self._count = count

    def check(self) -> None:
        """Raise `ConfigError` if the file of the count is not prefetchd's."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refusal(str(error.strerror)) from None
        try:
            start = os.pread(fd, len(_MAGIC), 0)
        except OSError as error:
            raise self._refusal(str(error.strerror)) from None
        finally:
            os.close(fd)
        if start not in (_MAGIC, b""):
            raise self._refusal("it is not prefetchd's")

    def _refusal(self, what: str) -> ConfigError:
        return ConfigError(f"cannot use {one_line(str(self._path))}: {what}; give another folder: keep=")

    def take(self, n_bytes: int, limit_bytes: int) -> bool:
        """Count `n_bytes` more if all stays within the limit; return whether it does.

        Raises:
            OSError: if the count cannot be kept.
        """

        def change(taken: int, given: int, at_s: float) -> tuple[int, int, float] | None:
            return (taken + n_bytes, given, at_s) if taken - given + n_bytes <= limit_bytes else None

        return self._change(change)

    def add(self, n_bytes: int) -> None:
        """Count `n_bytes` more, or less if it is negative; raises as `take`."""

        def change(taken: int, given: int, at_s: float) -> tuple[int, int, float]:
            return taken + max(0, n_bytes), given + max(0, -n_bytes), at_s

        self._change(change)

    def begin(self) -> None:
        """Count all files if nobody has; raises as `take`."""
        self._change(lambda *_: None)

    def recount(self, oldest_s: float, own_bytes: int) -> bool:
        """Count all files, if that was last done before `oldest_s`; return whether it was done.

        `own_bytes` are on the disk for what the caller is to take yet, and are left out.
        What others write meanwhile is counted on top, so the result is too high, if anything.
        """
        found: list[tuple[int, int, float]] = []
        self._change(lambda *now: found.append(now))
        before, _, at_s = found[0]
        if at_s >= oldest_s:
            return False
        total = self._count()

        def change(taken: int, given: int, at_s: float) -> tuple[int, int, float]:
            del given, at_s
            return max(0, total - own_bytes + taken - before), 0, time.time()

        self._change(change)
        return True

    def _change(self, change: Callable[[int, int, float], tuple[int, int, float] | None]) -> bool:
        """Replace the count by what `change` makes of it, under the lock; return whether it changed."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            raw = os.pread(fd, _COUNT.size, 0)
            if len(raw) == _COUNT.size and raw.startswith(_MAGIC):
                _, taken, given, at_s = _COUNT.unpack(raw)
            else:
                taken, given, at_s = self._count(), 0, time.time()
                os.pwrite(fd, _COUNT.pack(_MAGIC, taken, given, at_s), 0)
            changed = change(taken, given, at_s)
            if changed is not None:
                os.pwrite(fd, _COUNT.pack(_MAGIC, *changed), 0)
            return changed is not None
        finally:
            os.close(fd)
