"""Memfds: files in memory without a name, in which the daemon leaves indexes for readers.

The kernel frees one with its last descriptor, so no death of any party leaves it behind.
"""

from __future__ import annotations

import fcntl
import os


def memfd(label: str) -> int:
    """Return a new anonymous file in memory; the caller owns it."""
    return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def memfd_bytes(fd: int) -> int:
    """Return the memory that the memfd `fd` takes."""
    return os.fstat(fd).st_blocks * 512


def seal(fd: int) -> None:
    """Make the memfd `fd` immutable for everyone who holds it."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
