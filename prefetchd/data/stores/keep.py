"""What was downloaded, kept on disk: ranges of objects, each in a file of its own. For `keep=DIR`.

    DIR/CACHEDIR.TAG         so that backups leave it out
    DIR/evict.lock           held while one process removes entries
    DIR/<2 digits>/<30 more> an entry: magic, length, checksum, the bytes
    DIR/<2 digits>/tmp.*     an entry that is being written

The name of an entry follows from the object's URL, ETag and size, and from the range. So an object that was replaced
has other entries. Daemons and readers share a folder without a lock: an entry appears whole, by a rename, and one that
is torn or damaged has a wrong checksum. It is removed then, and downloaded again. Any party may die at any time.

An epoch needs each range once. So a range that is kept is needed sooner than one that was just read, and no range that
is in use makes place for a new one. Only what nobody has read for a day is removed, the longest unread first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefetchd.config.units import format_bytes
from prefetchd.data.cache.directory import open_regular
from prefetchd.data.files import read_into, write_all
from prefetchd.data.stores.urls import shown
from prefetchd.errors import ConfigError, one_line

log = logging.getLogger("prefetchd")

_HEAD = struct.Struct("=8sQ16s")
_MAGIC = b"pfkeep1\n"
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Objects that prefetchd downloaded. They may be removed.\n"
_WRITERS = 32  # that share what is left without a lock: each takes a small part, then looks again
_LEAST_PART = 64  # of the limit: with less left, entries are removed or nothing more is kept
_KEPT_FREE = 0.05  # of the disk, where no limit was given
_UNREAD_S = 86_400
_TORN_S = 3600  # after which a `tmp.` file is one of a process that died
_USE_STEP_S = 3600  # how exactly the last use is known


def entry_name(url: str, identity: Sequence[Any], start: int, n_bytes: int) -> str:
    """Return the name of a range of an object with this identity (size, ETag)."""
    what = repr((shown(url), [*identity], start, n_bytes))
    return hashlib.blake2b(what.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


class KeptRanges:
    """The folder, in one process. Holds no descriptors.

    Args:
        folder: made if it is not there.
        limit_bytes: of all entries; `None` for all but a twentieth of the disk.

    Raises:
        ConfigError: if the folder cannot be used, or another user may write to it.
    """

    def __init__(self, folder: Path, limit_bytes: int | None) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._may_write_bytes = 0
        self._stopped = False
        self._warning_fd = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.stat()
        except OSError as error:
            raise ConfigError(
                f"cannot keep objects in {one_line(str(folder))}: {error.strerror}; give another folder as keep"
            ) from None
        if found.st_uid != os.geteuid() or found.st_mode & 0o002:
            raise ConfigError(
                f"cannot keep objects in {one_line(str(folder))}: another user owns it or may write to it; give a "
                "folder of your own as keep"
            )
        with contextlib.suppress(OSError):
            (folder / "CACHEDIR.TAG").write_bytes(_TAG)

    def find(self, name: str, n_bytes: int) -> memoryview | None:
        """Return the bytes of an entry; `None` if there is none, or it is damaged: it is removed then."""
        path = self._folder / name[:2] / name[2:]
        try:
            fd = open_regular(path)
        except OSError:
            return None
        try:
            content = self._checked(fd, n_bytes)
        except OSError:
            content = None
        finally:
            os.close(fd)
        if content is None:
            with contextlib.suppress(OSError):
                path.unlink()
        return content

    def _checked(self, fd: int, n_bytes: int) -> memoryview | None:
        found = os.fstat(fd)
        if found.st_size != _HEAD.size + n_bytes:  # before memory is taken for it
            return None
        view = memoryview(bytearray(found.st_size))
        if read_into(fd, view, 0) < len(view):
            return None
        content = view[_HEAD.size :]
        if _HEAD.unpack(view[: _HEAD.size]) != (_MAGIC, n_bytes, _checksum(content)):
            return None
        if time.time() - found.st_mtime > _USE_STEP_S:
            with contextlib.suppress(OSError):
                os.utime(fd)
        return content

    def store(self, name: str, content: memoryview) -> None:
        """Keep an entry, if there is room; what fails is logged once, and nothing more is kept in this run."""
        if self._stopped:
            return
        try:
            if not self._take(_HEAD.size + len(content)):
                limit = self._limit_bytes
                reason = "a twentieth of its disk is kept free" if limit is None else f"keep_size={format_bytes(limit)}"
                self._stop(f"it is full ({reason}), and all of it was read within a day")
                return
            self._write(name, content)
        except OSError as error:
            self._stop(f"it cannot be written to ({error.strerror})")

    def _write(self, name: str, content: memoryview) -> None:
        folder = self._folder / name[:2]
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / f"tmp.{os.urandom(8).hex()}"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, _HEAD.pack(_MAGIC, len(content), _checksum(content)))
            write_all(fd, content)
            os.rename(path, folder / name[2:])
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        finally:
            os.close(fd)

    def _take(self, n_bytes: int) -> bool:
        """Take bytes of what is left; return whether they may be written."""
        if n_bytes > self._may_write_bytes:
            left = self._left_bytes()
            if left < max(self._whole_bytes() // _LEAST_PART, n_bytes * _WRITERS):
                self._evict()
                left = self._left_bytes()
            self._may_write_bytes = left // _WRITERS
        if n_bytes > self._may_write_bytes:
            return False
        self._may_write_bytes -= n_bytes
        return True

    def _whole_bytes(self) -> int:
        disk = os.statvfs(self._folder)
        return self._limit_bytes or disk.f_blocks * disk.f_frsize

    def _left_bytes(self) -> int:
        disk = os.statvfs(self._folder)
        free = int((disk.f_bavail - _KEPT_FREE * disk.f_blocks) * disk.f_frsize)
        if self._limit_bytes is None:
            return free
        return self._limit_bytes - sum(found.st_size for _, found in self._entries())

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield path and state of each file of ours."""
        for folder in os.scandir(self._folder):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for entry in os.scandir(folder.path):
                with contextlib.suppress(FileNotFoundError):
                    yield entry.path, entry.stat(follow_symlinks=False)

    def _evict(self) -> None:
        """Remove what nobody has read for a day, the longest unread first, until an eighth is free."""
        lock_fd = os.open(self._folder / "evict.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                wanted = self._whole_bytes() // 8 - self._left_bytes()
                now = time.time()
                ages = sorted((found.st_mtime, found.st_size, path) for path, found in self._entries())
                for used_s, n_bytes, path in ages:
                    is_torn = os.path.basename(path).startswith("tmp.")
                    if wanted <= 0 or now - used_s < (_TORN_S if is_torn else _UNREAD_S):
                        continue
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                        wanted -= n_bytes
        finally:
            os.close(lock_fd)

    def _stop(self, why: str) -> None:
        """Keep nothing more in this run; the first process that stops says so, for as long as it lives."""
        self._stopped = True
        with contextlib.suppress(OSError):
            self._warning_fd = os.open(self._folder, os.O_RDONLY | os.O_CLOEXEC)
            fcntl.flock(self._warning_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.warning("no more objects are kept in %s: %s; what is in it is used", self._folder, why)


def _checksum(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
