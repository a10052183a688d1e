"""The files of the folder `keep`: which are prefetchd's, made and removed. No other file is ever touched.

    DIR/CACHEDIR.TAG            so that backups leave it out; made where no other file is in DIR
    DIR/prefetchd-keep.size     what all entries take on the disk (`keep_size`)
    DIR/prefetchd-keep.lock     held while one thread removes entries
    DIR/<2 digits>/<30 more>    an entry: magic, length, checksum, the bytes
    DIR/<2 digits>/tmp.<16>     an entry that is being written, which begins with the magic too

A file is an entry by its name *and* by its first bytes, or without data. So a user's own file in this folder stays,
under any name, and neither a link nor another user's file is followed or removed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from prefetchd.data.cache.directory import is_trusted
from prefetchd.data.files import read_into, write_all

HEAD = struct.Struct("=8sQ16s")
MAGIC = b"pfkeep1\n"
_FOLDER = re.compile(r"[0-9a-f]{2}")
_ENTRY = re.compile(r"[0-9a-f]{30}")
_TEMPORARY = re.compile(r"tmp\.[0-9a-f]{16}")
TAG = "CACHEDIR.TAG"
SIZE = "prefetchd-keep.size"
LOCK = "prefetchd-keep.lock"
_BLOCK_BYTES = 512  # of `st_blocks`


class KeptFile(NamedTuple):
    """A file that has the name of an entry.

    Attributes:
        path: where it is.
        n_bytes: what it takes on the disk.
        time_s: when it is needed, or when it was written if it is not whole.
        is_whole: whether it is an entry, and not one that is being written.
        inode: its number.
    """

    path: str
    n_bytes: int
    time_s: float
    is_whole: bool
    inode: int


def has_others(folder: Path) -> bool:
    """Return whether there is a file or folder that has no name of prefetchd's."""
    return any(name not in (TAG, SIZE, LOCK) and not _FOLDER.fullmatch(name) for name in os.listdir(folder))


def on_disk(found: os.stat_result) -> int:
    """Return what a file takes on the disk."""
    return max(found.st_blocks * _BLOCK_BYTES, -(-found.st_size // _BLOCK_BYTES) * _BLOCK_BYTES)


def files_of(folder: str) -> Iterator[KeptFile]:
    """Yield the files with names of entries in one of the folders of two digits; none if it is gone."""
    if not _FOLDER.fullmatch(os.path.basename(folder)) or os.path.islink(folder):
        return
    try:
        entries = os.scandir(folder)
    except OSError:
        return
    with entries:
        for entry in entries:
            is_whole = _ENTRY.fullmatch(entry.name) is not None
            if not is_whole and not _TEMPORARY.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid():
                    yield KeptFile(entry.path, on_disk(found), found.st_mtime, is_whole, found.st_ino)


def open_entry(path: str) -> int:
    """Return a descriptor, the caller's, of a file that this user or the administrator wrote, and that is an entry.

    One without any data is one too: a kill or a loss of power leaves such.

    Raises:
        OSError: if it is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or not is_trusted(found) or not _is_own(fd):
            raise OSError(0, "no entry", path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _is_own(fd: int) -> bool:
    if os.pread(fd, len(MAGIC), 0) == MAGIC:
        return True
    try:
        os.lseek(fd, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def checked(fd: int, n_bytes: int) -> memoryview | None:
    """Return the content of an entry of `n_bytes`; `None` if it is torn or damaged."""
    size = os.fstat(fd).st_size
    if size != HEAD.size + n_bytes:  # before memory is taken for it
        return None
    view = memoryview(bytearray(size))
    if read_into(fd, view, 0) < len(view):
        return None
    content = view[HEAD.size :]
    return content if HEAD.unpack(view[: HEAD.size]) == (MAGIC, n_bytes, _checksum(content)) else None


def write_entry(
    folder: str, name: str, content: memoryview, time_s: float, take: Callable[[int, int], bool]
) -> tuple[int, int]:
    """Write an entry, whole or not at all; return what was taken for it, and what it takes on the disk.

    Both are 0 if `take`, which is asked before it is written, refuses. The latter is 0 if there is a file of that name.

    Args:
        folder: of two digits; made if it is not there.
        name: of the entry in it.
        content: the bytes.
        time_s: its time of modification.
        take: takes what it will take on the disk; also gets what the file takes that is there already.

    Raises:
        OSError: if there is no such folder. KeepError: if it cannot be written; no file is left then.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    path = os.path.join(folder, f"tmp.{os.urandom(8).hex()}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    taken = 0
    try:
        # With its whole size from the start: one who counts all files now sees what will be taken.
        os.ftruncate(fd, HEAD.size + len(content))
        step = os.fstatvfs(fd).f_frsize
        wanted = -(-(HEAD.size + len(content)) // step) * step
        if not take(wanted, on_disk(os.fstat(fd))):
            return 0, 0
        taken = wanted
        write_all(fd, HEAD.pack(MAGIC, len(content), _checksum(content)))
        write_all(fd, content)
        os.utime(fd, (time_s, time_s))
        n_bytes = on_disk(os.fstat(fd))
        try:
            _publish(path, os.path.join(folder, name))
        except FileExistsError:
            return taken, 0
        return taken, n_bytes
    except OSError as error:
        raise KeepError(error, taken) from None
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path)


class KeepError(OSError):
    """An entry could not be written; `taken_bytes` were taken for it."""

    def __init__(self, error: OSError, taken_bytes: int) -> None:
        super().__init__(error.errno, error.strerror)
        self.taken_bytes = taken_bytes


def _publish(path: str, to: str) -> None:
    """Give a file its name; raises `FileExistsError` if that is taken, so that no file is ever replaced."""
    try:
        os.link(path, to)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(to):
            raise FileExistsError from None
        os.rename(path, to)


def remove(file: KeptFile) -> bool:
    """Remove an entry; return whether it is gone by this call. A file that is no entry stays."""
    try:
        fd = open_entry(file.path)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_ino != file.inode:  # it was removed, and kept again
            return False
        os.unlink(file.path)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _checksum(content: memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
