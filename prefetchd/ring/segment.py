"""Shared memory: this module alone creates segments and maps them.

The daemon creates a segment for each slot and reserves all its pages at once, so that a full `/dev/shm` is an error now
and not a SIGBUS later. It removes the name at once and passes the descriptor on. The kernel frees the memory with the
last descriptor and map: a killed party leaves nothing behind, and no consumer's exit unlinks a ring that is in use.
Consumers get a read-only descriptor, so they can neither write nor truncate.
"""

from __future__ import annotations

import contextlib
import errno
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
from prefetchd.ipc.descriptors import memfd, memfd_bytes, seal_length

SHM_FOLDER = "/dev/shm"
_NAME = "prefetchd-"
_STALE_S = 60.0
_LEFT_IN_SHM = 2  # slots for which /dev/shm must have room before one is made there: other programs need it too


class Segment:
    """An unnamed segment of `n_bytes`, all of whose pages are reserved. Owns the descriptor."""

    def __init__(self, fd: int, n_bytes: int, *, is_memfd: bool = False) -> None:
        self.fd = fd
        self.n_bytes = n_bytes
        self.is_memfd = is_memfd

    @classmethod
    def create(cls, n_bytes: int) -> Segment:
        """Create and reserve a segment: POSIX shared memory, or a memfd where `/dev/shm` has too little room.

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
        fd = memfd("prefetchd-slot")
        try:
            os.posix_fallocate(fd, 0, n_bytes)
        except OSError as error:
            os.close(fd)
            raise BudgetError(
                f"cannot reserve a slot: the machine has no {format_bytes(n_bytes)} of memory left ({error.strerror}); "
                "lower batch_size, image_size or memory_budget, or free memory"
            ) from None
        seal_length(fd)
        os.fchmod(fd, 0o600)
        return cls(fd, n_bytes, is_memfd=True)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the pages that the segment has now."""
        return memfd_bytes(self.fd)

    def read_only_fd(self) -> int:
        """Return a new read-only descriptor, which the caller owns."""
        return read_only(self.fd)

    def discard(self) -> None:
        """Free the pages now, also those that consumers still map, and close. Nobody may hold a view."""
        memory = map_writable(self.fd, self.n_bytes)
        memory.madvise(mmap.MADV_REMOVE)
        memory.close()
        self.close()

    def close(self) -> None:
        """Close the daemon's descriptor; maps of other processes live on."""
        os.close(self.fd)


def shm_free_bytes() -> int | None:
    """Return the free bytes of `/dev/shm`; `None` if it has no limit or does not exist."""
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
        # Before the pages are reserved, which takes a while: a kill during that leaves no name behind.
        with contextlib.suppress(FileNotFoundError):  # another daemon removed it as stale while this one was stopped
            os.unlink(f"{SHM_FOLDER}/{name}")  # `memory.unlink()` would tell the tracker
        memory.close()
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def read_only(fd: int) -> int:
    """Return a new read-only descriptor of the same memory, which the caller owns."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)


class _NoTracker:
    """Stands in for the resource tracker, a process: if that is stopped, it stops this one too."""

    @staticmethod
    def register(name: str, kind: str) -> None:
        """Track nothing."""

    unregister = register


def _untracked(name: str, n_bytes: int) -> shared_memory.SharedMemory:
    """Return a new named segment that no resource tracker knows; the caller removes the name at once.

    Before Python 3.13 `SharedMemory` has no option for that. It starts a tracker process and writes to its pipe. A
    stopped tracker blocks the daemon once the pipe is full. The patch is safe: the daemon has one thread.
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
    """Remove the names that killed daemons have left. A daemon calls it at its start.

    A name exists for microseconds before its segment has memory, so an old name belongs to no live daemon.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM_FOLDER):
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                is_ours = entry.name.startswith(_NAME) and found.st_uid == os.getuid()
                if is_ours and time.time() - found.st_mtime > _STALE_S:
                    os.unlink(entry.path)


def map_writable(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a writable shared map."""
    return mmap.mmap(fd, n_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_read_only(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a read-only shared map with its page table filled. Forked children do not get it.

    Raises:
        ValueError: if the segment is shorter than `n_bytes`.
    """
    check_length(fd, n_bytes)
    memory = mmap.mmap(fd, n_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    keep_from_children(memory)
    return memory


def map_copy_on_write(fd: int, n_bytes: int) -> mmap.mmap:
    """Return a private map that keeps its writes to itself. Forked children do not get it.

    Raises:
        ValueError: if the segment is shorter than `n_bytes`.
    """
    check_length(fd, n_bytes)
    memory = mmap.mmap(fd, n_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    keep_from_children(memory)
    return memory


_kept_from_children: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def keep_from_children(memory: mmap.mmap) -> None:
    """Keep a map from the children that this process forks."""
    memory.madvise(mmap.MADV_DONTFORK)
    _kept_from_children.add(memory)


def _never_unmap_in_child() -> None:
    """Keep a forked child's copies of the map objects for ever.

    The child has nothing mapped there, so the kernel may put the child's own arrays and stacks there. A map object
    that is dropped would unmap those.
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
