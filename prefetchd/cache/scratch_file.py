"""Memory that daemon and readers share for one run, and that the kernel may drop: a file without a name in the cache.

Its pages are reserved when it is made, so that a disk that fills up later is no SIGBUS; nobody else can reach it, so no
one can truncate it. It is gone with its last descriptor. Where the disk has no room for it, it is memory after all, and
counts as the source's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def make_scratch(folder: Path, n_bytes: int) -> int:
    """Return a descriptor, the caller's, of `n_bytes` zero bytes."""
    try:
        fd = _unnamed(folder)
    except OSError:
        return _memory(n_bytes)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError:
        os.close(fd)
        return _memory(n_bytes)
    return fd


def is_memory(fd: int) -> bool:
    """Whether it counts as memory."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")


def _unnamed(folder: Path) -> int:
    with contextlib.suppress(OSError):  # not every file system can
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fd, path = tempfile.mkstemp(prefix="state.", dir=folder)
    os.unlink(path)
    return fd


def _memory(n_bytes: int) -> int:
    fd = os.memfd_create("prefetchd-cache", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd
