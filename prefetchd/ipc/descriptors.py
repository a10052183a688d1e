"""Class names on their way to consumers: a sealed memfd with JSON, since a million of them fit in no message.

Descriptors 0, 1 and 2, which a process may be started without.

How many descriptors the daemon may have: as many as the system lets it, asked for as it starts.

A quarter of them (16 at least) is kept from the ring, one of whose slots takes one: a daemon whose slots had them all
could not hear a loop, start a reader or look at what is free.

Memfds: files in memory without a name, in which the daemon leaves indexes for readers.

The kernel frees one with its last descriptor, so no death of any party leaves it behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import stat
import sys
from collections.abc import Sequence

from prefetchd.errors import PrefetchdError


def open_standard_descriptors() -> None:
    """Put /dev/null where 0, 1 or 2 are closed: a socket that came to be 2 would be written to as stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process


_MAX_DESCRIPTORS = 65536
_LEAST_KEPT = 16


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it is allowed, `_MAX_DESCRIPTORS` at most; return how many that is.

    Descriptors that wait in sockets count too: where many readers start with many slots, thousands do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def check_descriptors(newest: int) -> None:
    """Raise `PrefetchdError` if the descriptor `newest`, a slot's, is one of those that are kept for others.

    The system gives the lowest number that is free, so its number says how many there are.
    """
    allowed = raise_descriptor_limit()
    kept = max(_LEAST_KEPT, allowed // 4)
    if newest >= allowed - kept:
        raise PrefetchdError(
            f"cannot make another slot: {allowed} open files are allowed, {newest + 1} are in use, and {kept} are kept "
            "for loops and readers; raise the limit (ulimit -n)"
        )


def memfd(label: str) -> int:
    """Return a new anonymous file in memory; the caller owns it."""
    return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def memfd_bytes(fd: int) -> int:
    """Return the memory that the memfd `fd` takes."""
    return os.fstat(fd).st_blocks * 512


def seal(fd: int) -> None:
    """Make the memfd `fd` immutable for everyone who holds it."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


_MAX_BYTES = 1 << 30


def write_classes(classes: Sequence[str]) -> int:
    """Return a new descriptor, the caller's own, from which `read_classes` reads `classes`."""
    fd = os.memfd_create("prefetchd-classes", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(list(classes)).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def read_classes(fd: int) -> tuple[str, ...]:
    """Return the class names behind `fd`, which stays the caller's.

    Raises:
        ValueError: if it is no such file, or one too large.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_BYTES:
        raise ValueError(f"the class names are no file, or one of {found.st_size} bytes")
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        names = json.loads(file.read(_MAX_BYTES))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the class names are no list of text")
    return tuple(names)
