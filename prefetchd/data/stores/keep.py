"""What was downloaded, kept on disk: ranges of objects, each in a file of its own. For `keep=DIR`.

The name of an entry follows from the object's URL and store (`places`), its ETag and size, and the range. So an object
that was replaced has other entries. A whole object that a list names has one, which says its ETag within (`objects`).
Daemons and readers share a folder: an entry appears whole, and one that is torn or damaged has a wrong checksum. It is
removed then, and downloaded again. Any party may die at any time.

What all entries take on the disk stays within the limit (`keep_size`). Where a new one finds no room, entries that are
needed later than it are removed, those needed last first. An entry's time of modification says when it is needed next
(`next_use`), and each read sets it anew. Entries whose time passed unread, an epoch ago or more, are of another run,
and go before all others. That counts from the start of this process: what an earlier run kept may be needed by this
one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefetchd.config.units import format_bytes
from prefetchd.data.cache.directory import is_trusted
from prefetchd.data.stores.keep_files import (
    HEAD,
    LOCK,
    TAG,
    KeepError,
    KeptFile,
    checked,
    files_of,
    has_others,
    open_entry,
    remove,
    write_entry,
)
from prefetchd.data.stores.keep_size import KeptSize
from prefetchd.data.stores.next_use import UNKNOWN_S, overdue_s
from prefetchd.data.stores.places import disk_name
from prefetchd.errors import ConfigError, one_line

log = logging.getLogger("prefetchd")

_TAG_TEXT = b"Signature: 8a477f597d28d172789f06886806bc55\n# Objects that prefetchd downloaded. They may be removed.\n"
_KEPT_FREE = 0.05  # of the disk, where no limit was given
_TORN_S = 3600  # after which one that is not whole is of a process that died
_RECOUNT_S = 600
_COMPARED = 4096  # entries of which those needed last go: some of many, chosen by chance
_PART = 64  # the part of those compared that goes at once, as looking costs as much as some hundred reads
_PAUSE_S = 1.0  # after a look where nothing could go


def entry_name(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> str:
    """Return the name of a range of an object with this identity (size, ETag)."""
    what = repr((disk_name(url), [*identity], start, n_bytes))
    return hashlib.blake2b(what.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class KeptRanges:
    """The folder, in one process. For any number of threads; holds no descriptors.

    Args:
        folder: made if it is not there.
        limit_bytes: of all entries on the disk; `None` for all but a twentieth of the disk.
        started_s: when this process began to use it, in seconds since 1970; now, if not given.

    Raises:
        ConfigError: if the folder cannot be used, or another user may write to it.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, started_s: float | None = None) -> None:
        self.folder = folder
        self._started_s = time.time() if started_s is None else started_s
        self.limit_bytes = limit_bytes
        self._size = KeptSize(folder, lambda: sum(file.n_bytes for file in self._files()))
        self._stopped = False
        self._warning_fd = -1
        self._look_again_s = 0.0  # if what is to be kept is needed no sooner than
        self._last_s = 0.0
        self._next_folder = random.randrange(256)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise ConfigError(
                f"cannot keep objects in {one_line(str(folder))}: {error.strerror}; give another folder: keep="
            ) from None
        if not is_trusted(found):
            raise ConfigError(
                f"cannot keep objects in {one_line(str(folder))}: another user owns it or may write to it; give a "
                "folder of your own: keep="
            )
        self._size.check()
        with contextlib.suppress(OSError):  # the folder is read-only
            self._size.begin()
        with contextlib.suppress(OSError):  # there is one, or the folder is read-only
            if has_others(folder):  # which backups would leave out too
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(folder / TAG, flags, 0o644)
            try:
                os.write(fd, _TAG_TEXT)
            finally:
                os.close(fd)

    def find(self, name: str, n_bytes: int, needed_s: float | None = None) -> memoryview | None:
        """Return the bytes of an entry; `None` if there is none, or it is damaged: it is removed then.

        Args:
            name: of the entry.
            n_bytes: how many it must have.
            needed_s: when it is needed next after now, in seconds since 1970; `None` where that is not known.
        """
        path = os.path.join(self.folder, name[:2], name[2:])
        try:
            fd = open_entry(path)
        except OSError:
            return None
        try:
            content = checked(fd, n_bytes)
            if content is None:
                # While this one is open, no other that was kept again in its place has its inode.
                self._discard(path, os.fstat(fd).st_ino)
                return None
            with contextlib.suppress(OSError):  # the folder may be read-only
                when_s = _time_of(needed_s)
                os.utime(fd, (when_s, when_s))
            return content
        except OSError:
            return None
        finally:
            os.close(fd)

    def size_of(self, name: str) -> int | None:
        """Return how many bytes an entry has, which may be damaged; `None` if there is none."""
        try:
            return max(0, os.stat(os.path.join(self.folder, name[:2], name[2:])).st_size - HEAD.size)
        except OSError:
            return None

    def discard(self, name: str) -> None:
        """Remove an entry, so that another one can have its name."""
        path = os.path.join(self.folder, name[:2], name[2:])
        with contextlib.suppress(OSError):
            self._discard(path, os.stat(path).st_ino)

    def _discard(self, path: str, inode: int) -> None:
        for file in files_of(os.path.dirname(path)):
            if file.path == path and file.inode == inode:
                self._remove(file)

    def store(self, name: str, content: memoryview, needed_s: float | None = None) -> None:
        """Keep an entry, if there is room or it is needed sooner than others; `needed_s` as in `find`.

        What fails is logged once, and nothing more is kept in this run.
        """
        if self._stopped:
            return
        when_s = _time_of(needed_s)

        def take(n_bytes: int, own_bytes: int) -> bool:
            if self._take(n_bytes):
                return True
            self._say_full()
            return self._make_room(n_bytes, own_bytes, when_s) and self._take(n_bytes)

        folder = os.path.join(self.folder, name[:2])
        try:
            try:
                taken, n_bytes = write_entry(folder, name[2:], content, when_s, take)
            except KeepError as error:
                self._count(-error.taken_bytes)
                raise
            if n_bytes != taken:
                self._count(n_bytes - taken)
        except OSError as error:
            self._stopped = True
            self._say(
                f"no more objects are kept in {self.folder}: it cannot be written to ({error.strerror}); what is in "
                "it is used"
            )

    def _take(self, n_bytes: int) -> bool:
        if self.limit_bytes is not None:
            return self._size.take(n_bytes, self.limit_bytes)
        disk = os.statvfs(self.folder)
        return n_bytes <= (disk.f_bavail - _KEPT_FREE * disk.f_blocks) * disk.f_frsize

    def _count(self, n_bytes: int) -> None:
        if self.limit_bytes is not None and n_bytes:
            self._size.add(n_bytes)

    def _remove(self, file: KeptFile) -> int:
        """Remove an entry; return the bytes that it took, 0 if it is not gone by this call."""
        if not remove(file):
            return 0
        with contextlib.suppress(OSError):
            self._count(-file.n_bytes)
        return file.n_bytes

    def _files(self) -> Iterator[KeptFile]:
        for number in range(256):
            yield from files_of(os.path.join(self.folder, f"{number:02x}"))

    def _make_room(self, n_bytes: int, own_bytes: int, when_s: float) -> bool:
        """Remove entries that are needed later than `when_s`; return whether any are gone."""
        now = time.time()
        if now < self._look_again_s and when_s >= self._last_s:
            return False
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock_fd = os.open(self.folder / LOCK, flags, 0o600)
        try:
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False  # another thread makes room
            compared = self._compare()
            wanted = max(n_bytes, sum(file.n_bytes for file in compared if file.is_whole) // _PART)
            turns = [(turn, file) for file in compared if (turn := self._turn(file, when_s, now)) is not None]
            freed = 0
            for _, file in sorted(turns):
                freed += self._remove(file)
                if freed >= wanted:
                    break
            is_counted = self.limit_bytes is not None
            if freed < n_bytes and is_counted and self._size.recount(now - _RECOUNT_S, own_bytes):
                return True
            if not freed:
                self._look_again_s = now + _PAUSE_S
                self._last_s = max((file.time_s for file in compared if file.is_whole), default=0.0)
            return freed > 0
        finally:
            os.close(lock_fd)

    def _turn(self, file: KeptFile, when_s: float, now: float) -> tuple[bool, float] | None:
        """Return what sorts those that go first to the front; `None` for one that stays."""
        if not file.is_whole:
            return (False, file.time_s) if now - file.time_s > _TORN_S else None
        if now - max(file.time_s, self._started_s) > overdue_s():
            return False, file.time_s
        return (True, -file.time_s) if file.time_s > when_s else None

    def _compare(self) -> list[KeptFile]:
        """Return all entries, or of many those of some folders: names are hashes, so they are there by chance."""
        found: list[KeptFile] = []
        for _ in range(256):
            found += files_of(os.path.join(self.folder, f"{self._next_folder:02x}"))
            self._next_folder = (self._next_folder + 1) % 256
            if len(found) >= _COMPARED:
                break
        return found

    def _say_full(self) -> None:
        limit = self.limit_bytes
        why = "a twentieth of its disk is kept free" if limit is None else f"keep_size={format_bytes(limit)}"
        self._say(
            f"the folder {self.folder} is full ({why}): of objects that are read from now on, those are kept that are "
            "needed again sooner than others"
        )

    def _say(self, text: str) -> None:
        """Log a line, if no other process has logged one, for as long as it lives."""
        if self._warning_fd >= 0:
            return
        with contextlib.suppress(OSError):
            self._warning_fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._warning_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.warning("%s", text)


def _time_of(needed_s: float | None) -> float:
    return time.time() + UNKNOWN_S if needed_s is None else needed_s
