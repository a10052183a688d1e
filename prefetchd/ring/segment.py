"""Shared memory: the only module that creates segments and maps them.

The daemon creates a segment for each slot, reserves all its pages at once (a full `/dev/shm` is an error now, not a
SIGBUS later), removes its name at once, and passes the descriptor on. From then on the kernel frees the memory when the
last descriptor and map are gone: no kill of any party leaves anything behind, and no consumer's exit can unlink a ring
that is in use. Consumers get a descriptor that was opened for reading only, so they cannot write, nor truncate.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import sys
import time
import weakref
from multiprocessing import shared_memory
from typing import Any

from prefetchd.config.units import format_bytes
from prefetchd.errors import BudgetError

SHM_FOLDER = "/dev/shm"
_NAME = "prefetchd-"
_STALE_S = 60.0
_LEFT_IN_SHM = 2  # a slot is made there if it holds so many: other programs need it, and cannot do without


class Segment:
    """Owns the descriptor of an unnamed segment of `n_bytes`, all of whose pages are reserved."""

    def __init__(self, fd: int, n_bytes: int, *, is_memfd: bool = False) -> None:
        self.fd = fd
        self.n_bytes = n_bytes
        self.is_memfd = is_memfd

    @classmethod
    def create(cls, n_bytes: int) -> Segment:
        """Make and reserve a segment: POSIX shared memory, or a memfd where `/dev/shm` has no room for it.

        Raises:
            BudgetError: if the machine cannot give `n_bytes`.
        """
        free_bytes = shm_free_bytes()
        if free_bytes is None or free_bytes >= _LEFT_IN_SHM * n_bytes:
            try:
                return cls(_posix_segment(n_bytes), n_bytes)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.ENOENT, errno.EACCES, errno.EROFS):
                    raise
        fd = os.memfd_create("prefetchd-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, n_bytes)
        except OSError as error:
            os.close(fd)
            raise BudgetError(
                f"cannot reserve a slot: the machine has no {format_bytes(n_bytes)} of memory left ({error.strerror}); "
                "lower --batch-size, --image-size or --memory-budget, or free memory"
            ) from None
        _seal_length(fd)
        os.fchmod(fd, 0o600)
        return cls(fd, n_bytes, is_memfd=True)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages that the segment occupies now."""
        return os.fstat(self.fd).st_blocks * 512

    def read_only_fd(self) -> int:
        """Return a new descriptor, the caller's own, through which nothing can be written."""
        return read_only(self.fd)

    def discard(self) -> None:
        """Give the pages back now, also those that consumers still map (nobody may hold a view), and close."""
        memory = map_writable(self.fd, self.n_bytes)
        memory.madvise(mmap.MADV_REMOVE)
        memory.close()
        self.close()

    def close(self) -> None:
        """Drop the daemon's hold; maps of other processes live on."""
        os.close(self.fd)


def shm_free_bytes() -> int | None:
    """Return the free bytes of `/dev/shm`; `None` if it has no bound, or is not there."""
    try:
        state = os.statvfs(SHM_FOLDER)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize if state.f_blocks else None


def _posix_segment(n_bytes: int) -> int:
    name = f"{_NAME}{os.getpid()}-{secrets.token_hex(4)}"
    memory = _untracked(name, n_bytes)
    try:
        fd = os.open(f"{SHM_FOLDER}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    finally:
        # Before its pages are reserved, which takes a while: whatever kills us then leaves no name behind.
        with contextlib.suppress(FileNotFoundError):  # taken for a dead daemon's while we were stopped
            os.unlink(f"{SHM_FOLDER}/{name}")  # `memory.unlink()` would tell the tracker
        memory.close()
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def anonymous_file(label: str, n_bytes: int) -> int:
    """Return the descriptor, the caller's own, of `n_bytes` of memory, no more and no less, that has no name."""
    fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, n_bytes)
    _seal_length(fd)
    return fd


def _seal_length(fd: int) -> None:
    """See that who has a descriptor for writing cannot cut the file: that would make every map of it a SIGBUS."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def read_only(fd: int) -> int:
    """Return a new descriptor, the caller's own, of the same memory, through which nothing can be written."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class _NoTracker:
    """Stands in for the resource tracker: a process that could itself be stopped or killed, and then stops us."""

    @staticmethod
    def register(name: str, kind: str) -> None:
        """Track nothing."""

    unregister = register


def _untracked(name: str, n_bytes: int) -> shared_memory.SharedMemory:
    """Return a new named segment that no resource tracker knows of: its name is gone in an instant.

    Before Python 3.13 that is no option of `SharedMemory`. It would start a tracker process and write to its pipe: one
    that is stopped makes the daemon wait for ever once the pipe is full. The daemon has one thread: a patch is sound.
    """
    if sys.version_info >= (3, 13):
        return shared_memory.SharedMemory(name, create=True, size=n_bytes, track=False)
    module: Any = shared_memory
    tracker, module.resource_tracker = module.resource_tracker, _NoTracker
    try:
        return shared_memory.SharedMemory(name, create=True, size=n_bytes)
    finally:
        module.resource_tracker = tracker


def remove_stale_names() -> None:
    """Remove the names of segments whose daemons were killed in the midst of making them; they have no memory yet.

    A name exists for microseconds, so an old one is nobody's. Called as a daemon starts, for those before it.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM_FOLDER):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                is_ours = entry.name.startswith(_NAME) and found.st_uid == os.getuid()
                if is_ours and time.time() - found.st_mtime > _STALE_S:
                    os.unlink(entry.path)


def map_writable(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a shared map to write through."""
    return mmap.mmap(fd, n_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_read_only(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a shared map with its page table filled, that cannot be written and that forked children do not get.

    Raises:
        ValueError: if the segment is shorter than `n_bytes`.
    """
    check_length(fd, n_bytes)
    memory = mmap.mmap(fd, n_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    keep_from_children(memory)
    return memory


def map_copy_on_write(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a private map: what is written stays with this map; forked children do not get it.

    Raises:
        ValueError: if the segment is shorter than `n_bytes`.
    """
    check_length(fd, n_bytes)
    memory = mmap.mmap(fd, n_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    keep_from_children(memory)
    return memory


_kept_from_children: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def keep_from_children(memory: mmap.mmap) -> None:
    """Let children that this process forks have nothing of a map."""
    memory.madvise(mmap.MADV_DONTFORK)
    _kept_from_children.add(memory)


def _never_unmap_in_child() -> None:
    """Keep a forked child's copies of the map objects for ever.

    Where the maps were, the child has nothing; what the kernel puts there next is the child's own, arrays and stacks. A
    map object that was dropped would unmap that.
    """
    if _kept_from_children:
        import ctypes  # numpy has imported it

        for memory in list(_kept_from_children):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))


os.register_at_fork(after_in_child=_never_unmap_in_child)


def check_length(fd: int, n_bytes: int) -> None:
    """Raise `ValueError` if the segment is shorter than `n_bytes`."""
    length = os.fstat(fd).st_size
    if length < n_bytes:
        raise ValueError(f"the segment has {length} bytes, {n_bytes} were announced")
