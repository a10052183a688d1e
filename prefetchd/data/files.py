"""The bytes of a file, read into a buffer that is kept from file to file. Used in readers; holds no state of its own.

Read, and never mapped: a mapped file that someone truncates is a SIGBUS.

Files that are served for as long as a daemon runs: whether one is still what was opened, and exact reads from it.

Used by the manifest and by the sources, in the daemon and in readers. A file that has changed, or become shorter, is a
`ManifestError` and never other data.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.data.faults import UnreadableFile, fault_of
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def identity(found: os.stat_result) -> list[int]:
    """Return what tells this state of a file from any other: device, inode, size, times of change."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def read_exactly(fd: int, offset: int, n_bytes: int, name: str) -> bytes:
    """Return `n_bytes` of the manifest at `offset`.

    Raises:
        ManifestError: if the file ends before, or cannot be read.
    """
    parts: list[bytes] = []
    while n_bytes > 0:
        try:
            part = os.pread(fd, n_bytes, offset)
        except OSError as error:
            raise ManifestError(
                f"cannot read the manifest {name}: {error.strerror} (at byte {offset}); check the disk"
            ) from None
        if not part:
            raise ManifestError(
                f"cannot read the manifest {name}: it became shorter while in use (ends at byte {offset}); start again"
            )
        parts.append(part)
        offset += len(part)
        n_bytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class FileBuffer:
    """Memory kept from file to file; grows to the largest file read, never shrinks by itself.

    Views handed out stay valid when it grows: growing takes new memory and leaves the old to its views.
    """

    def __init__(self, capacity_bytes: int = 1 << 18) -> None:
        self._memory: NDArray[np.uint8] = np.empty(capacity_bytes, np.uint8)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that it holds on to."""
        return self._memory.nbytes

    def view(self, n_bytes: int) -> memoryview:
        """The first `n_bytes`, writable; grows to hold them."""
        if n_bytes > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8)  # drop the old before taking the new
            self._memory = np.empty(self.rounded(n_bytes), np.uint8)
        return memoryview(self._memory)[:n_bytes]  # type: ignore[arg-type, unused-ignore]

    @staticmethod
    def rounded(n_bytes: int) -> int:
        """Bytes that it takes to grow to `n_bytes`."""
        return (n_bytes + 0xFFFF) & ~0xFFFF

    def trim(self, capacity_bytes: int) -> None:
        """Give memory above `capacity_bytes` back, once the budget wants it."""
        if self._memory.nbytes > capacity_bytes:
            self._memory = np.empty(0, np.uint8)
            self._memory = np.empty(capacity_bytes, np.uint8)


def read_file(
    path: str | bytes | os.PathLike[str],
    buffer: FileBuffer,
    *,
    reserve: Callable[[int], None] | None = None,
) -> memoryview:
    """Return the bytes of the regular file at `path`, in `buffer` until the next read.

    Never blocks on a FIFO or a device. A file that grows while it is read gives the bytes it had at first.

    Args:
        path: the file; a symbolic link is followed.
        buffer: where the bytes go.
        reserve: called with the file's size in bytes before `buffer` grows to it; may raise to refuse.

    Raises:
        UnreadableFile: it is missing, forbidden, a directory, FIFO, socket or device, or empty.
        EnvironmentFault: an I/O error, no memory, no descriptors, and whatever else is not the file's own
            fault.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise fault_of(error) from None
    try:
        n_bytes = _regular_size(descriptor)
        if reserve is not None and n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)
        view = _read_all(descriptor, buffer, n_bytes)
    finally:
        os.close(descriptor)
    if not view:
        raise UnreadableFile("the file is empty (0 bytes)")
    return view


def _regular_size(descriptor: int) -> int:
    try:
        status = os.fstat(descriptor)
    except OSError as error:
        raise fault_of(error) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableFile(f"not a regular file but a {_kind_of(status.st_mode)}")
    return status.st_size


def _read_all(descriptor: int, buffer: FileBuffer, n_bytes: int) -> memoryview:
    """Read `n_bytes`, or less where the file has become shorter."""
    n_read = 0
    try:
        view = buffer.view(n_bytes)
        while n_read < n_bytes:
            n_new = os.readv(descriptor, [view[n_read:]])
            if n_new == 0:
                break
            n_read += n_new
    except (OSError, MemoryError) as error:
        raise fault_of(error) from None
    return view[:n_read]


def _kind_of(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "directory",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "character device",
        stat.S_IFBLK: "block device",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
