"""Files that are served while they may change: exact reads from them, and whether one is still what was opened.

Called in the daemon, which opens files, and in readers, which read them. Holds no state. Files are read and never
mapped: a mapped file that someone truncates is a SIGBUS. A file that changed or became shorter is a `ManifestError`
and never other data.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.faults import UnreadableFile, fault_of
from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.source import ReserveMemory

# Many kernels take the times of files from a clock that moves once in 4 to 10 ms: writes within a step look alike.
CLOCK_STEP_NS = 20_000_000
_KEPT_BYTES = 4 << 20  # of a buffer, from one sample to the next
# O_NONBLOCK: opening a FIFO would wait for its writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_KINDS = {
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def open_regular(path: str, name: str) -> int:
    """Return a descriptor, the caller's, of the regular file at `path`; errors call it `name`.

    Raises:
        ManifestError: if it cannot be opened, or is a directory, FIFO, socket or device.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise cannot_open(name, error) from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise ManifestError(
            f"cannot open {name}: it is a {_kind_of(mode)}, and files are read by position; write it to a file first"
        )
    return fd


def cannot_open(name: str, error: OSError | ValueError) -> ManifestError:
    """Return the error for a file that cannot be opened; a `ValueError` is Python's for an impossible path."""
    what = f"{error.strerror} (errno {error.errno})" if isinstance(error, OSError) else str(error)
    remedy = "check the path and its permissions"
    if is_url(name):
        remedy = "it is read from this machine alone: download it, and give its path"
    elif "://" in name:
        remedy = "stores are read by s3://, gs://, az:// or https://; download or mount what is elsewhere"
    return ManifestError(f"cannot open {name}: {what}; {remedy}")


_across_hosts = False


def compare_across_hosts() -> None:
    """Compare files, from now on and in this process, with identities that another machine has seen.

    It mounts the same file system with other numbers of device and inode, and only it watches lists of samples.
    """
    global _across_hosts
    _across_hosts = True


def is_across_hosts() -> bool:
    """Return whether the identities in this process are those that another machine has seen."""
    return _across_hosts


def _is_same(now: Sequence[int], opened: Sequence[int]) -> bool:
    return [*now][2:4] == [*opened][2:4] if _across_hosts else [*now] == [*opened]


def identity(found: os.stat_result) -> list[int]:
    """Return what tells this state of a file from any other: device, inode, size, times of change."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def identity_of(path: str) -> list[int]:
    """Return the identity of the regular file at `path`, which is to be indexed.

    Raises:
        ManifestError: if it cannot be looked at, or is a directory, FIFO or device.
    """
    fd = open_regular(path, one_line(path))
    try:
        return identity(os.fstat(fd))
    finally:
        os.close(fd)


def check_unchanged(file: int | str | bytes, opened: Sequence[int], name: str) -> None:
    """Raise `ManifestError` if `file`, a path or a descriptor, no longer has the identity `opened`."""
    try:
        now = identity(os.stat(file))
    except OSError as error:
        what = f"it cannot be found any more ({error.strerror})"
    else:
        if _is_same(now, opened):
            return
        sizes = "" if now[2] == opened[2] else f" (from {opened[2]} to {now[2]} bytes)"
        what = f"it was written to, or replaced{sizes}"
    raise ManifestError(f"cannot go on with {name}: {what} while in use; start again to serve it as it is")


def check_complete(file: int | str, before: Sequence[int], name: str) -> None:
    """Raise `ManifestError` if `file` was written to since its identity was `before`, when its reading began."""
    try:
        now = identity(os.stat(file))
    except OSError as error:
        raise cannot_open(name, error) from None
    if now != [*before]:
        raise ManifestError(f"cannot use {name}: it was written to while it was read; start again when it is complete")


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Read from `offset` until `view` is full or the file ends; return the number of bytes read."""
    n_read = 0
    while n_read < len(view):
        n_new = os.preadv(fd, (view[n_read:] if n_read else view,), offset + n_read)
        if n_new == 0:
            break
        n_read += n_new
    return n_read


def read_exactly(fd: int, offset: int, n_bytes: int, name: str) -> bytes:
    """Return `n_bytes` of a file from `offset` on; errors call it `name`.

    Raises:
        ManifestError: if the file ends before, or cannot be read.
    """
    try:
        data = os.pread(fd, n_bytes, offset)  # most reads end here: no copy
        while len(data) < n_bytes and (more := os.pread(fd, n_bytes - len(data), offset + len(data))):
            data += more
    except OSError as error:
        raise ManifestError(f"cannot read {name}: {error.strerror} (at byte {offset}); check the disk") from None
    if len(data) < n_bytes:
        raise ManifestError(
            f"cannot read {name}: it became shorter while in use (ends at byte {offset + len(data)}); start again"
        )
    return data


def write_all(fd: int, content: bytes | bytearray | memoryview | NDArray[Any]) -> None:
    """Write all of `content`, bytes or a C-contiguous array, to `fd`."""
    view = memoryview(content).cast("B") if len(content) else memoryview(b"")  # type: ignore[arg-type, unused-ignore]
    while view:
        view = view[os.write(fd, view) :]


class FileBuffer:
    """Memory that is kept from file to file; grows to the largest file read, and shrinks by `trim` alone.

    Views handed out stay valid when it grows: growing takes new memory and leaves the old to its views.
    """

    def __init__(self, capacity_bytes: int = 1 << 18) -> None:
        self._memory: NDArray[np.uint8] = np.empty(capacity_bytes, np.uint8)

    @property
    def capacity_bytes(self) -> int:
        """Bytes that it holds on to."""
        return self._memory.nbytes

    def view(self, n_bytes: int) -> memoryview:
        """Return the first `n_bytes`, writable; grows to hold them."""
        if n_bytes > self._memory.nbytes:
            self._memory = np.empty(0, np.uint8)  # drop the old before taking the new
            self._memory = np.empty(self.rounded(n_bytes), np.uint8)
        return memoryview(self._memory)[:n_bytes]  # type: ignore[arg-type, unused-ignore]

    @staticmethod
    def rounded(n_bytes: int) -> int:
        """Return the bytes that it takes to grow to `n_bytes`."""
        return (n_bytes + 0xFFFF) & ~0xFFFF

    def trim(self, capacity_bytes: int = _KEPT_BYTES) -> None:
        """Give memory above `capacity_bytes` back, after the sample that needed it."""
        if self._memory.nbytes > capacity_bytes:
            self._memory = np.empty(0, np.uint8)
            self._memory = np.empty(capacity_bytes, np.uint8)


def read_file(
    path: str | bytes | os.PathLike[str],
    buffer: FileBuffer,
    *,
    reserve: ReserveMemory | None = None,
) -> memoryview:
    """Return the bytes of the regular file at `path`, in `buffer` until the next read.

    Never blocks on a FIFO or a device. A file that grows while it is read gives the bytes it had at first.

    Args:
        path: the file; a symbolic link is followed.
        buffer: where the bytes go.
        reserve: called with the file's size in bytes before `buffer` grows to it; may raise to refuse.

    Raises:
        UnreadableFile: it is missing, forbidden, a directory, FIFO, socket or device, or empty.
        EnvironmentFault: an I/O error, no memory, no descriptors, and all else that is not the file's own fault.
    """
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError) as error:
        raise fault_of(error) from None
    try:
        n_bytes = _regular_size(fd)
        if reserve is not None and n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)  # what it raises is the budget's, and passes
        view = _read_all(fd, buffer, n_bytes)
    finally:
        os.close(fd)
    if not view:
        raise UnreadableFile("the file is empty (0 bytes)")
    return view


def _regular_size(fd: int) -> int:
    try:
        found = os.fstat(fd)
    except OSError as error:
        raise fault_of(error) from None
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableFile(f"not a regular file but a {_kind_of(found.st_mode)}")
    return found.st_size


def _read_all(fd: int, buffer: FileBuffer, n_bytes: int) -> memoryview:
    """Read `n_bytes`, or fewer where the file has become shorter."""
    try:
        view = buffer.view(n_bytes)
        return view[: read_into(fd, view, 0)]
    except (OSError, MemoryError) as error:
        raise fault_of(error) from None


def _kind_of(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "special file")
