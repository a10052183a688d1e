"""Descriptors: the standard three, how many this process may have, and memfds.

A memfd is a file in memory without a name. The daemon puts indexes and class names into memfds for readers and
consumers. The kernel frees one with its last descriptor, so no process that dies leaves one behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import stat
import sys
from collections.abc import Iterator, Sequence

from prefetchd.errors import PrefetchdError

_MAX_DESCRIPTORS = 65536
# The ring leaves a quarter of the descriptors, and at least this many, to others. Each slot takes one; a daemon whose
# slots took them all could accept no consumer and start no reader.
_LEAST_KEPT = 16
_MAX_CLASSES_BYTES = 1 << 30


def open_standard_descriptors() -> None:
    """Open /dev/null as 0, 1 or 2 where they are closed: otherwise a socket could become 2 and receive error texts."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
            os.set_inheritable(fd, True)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the life of the process


@contextlib.contextmanager
def beyond_standard() -> Iterator[None]:
    """Make no descriptor 0, 1 or 2 in this block, also where those are closed: a child would lose what it is passed."""
    with contextlib.ExitStack() as taken:
        while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
            taken.callback(os.close, fd)
        os.close(fd)
        yield


def raise_descriptor_limit() -> int:
    """Raise the soft limit of descriptors as far as allowed, at most to `_MAX_DESCRIPTORS`; return the limit.

    Descriptors that wait in sockets count too. A start with many readers and many slots has thousands of them.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def check_descriptors(newest: int) -> None:
    """Raise `PrefetchdError` if a slot may not have the descriptor `newest`, as it is kept for consumers and readers.

    The system gives out the lowest free number, so the number says how many are in use.
    """
    allowed = raise_descriptor_limit()
    kept = max(_LEAST_KEPT, allowed // 4)
    if newest >= allowed - kept:
        raise PrefetchdError(
            f"cannot make another slot: {allowed} open files are allowed, {newest + 1} are in use, and {kept} are kept "
            "for loops and readers; raise the limit (ulimit -n)"
        )


def memfd(label: str) -> int:
    """Return the descriptor of a new memfd; the caller owns it."""
    return os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def memfd_of_length(label: str, n_bytes: int) -> int:
    """Return the descriptor, which the caller owns, of a new memfd of `n_bytes` whose length never changes."""
    fd = memfd(label)
    os.ftruncate(fd, n_bytes)
    seal_length(fd)
    return fd


def memfd_bytes(fd: int) -> int:
    """Return the bytes of memory that the memfd `fd` occupies."""
    return os.fstat(fd).st_blocks * 512


def seal(fd: int) -> None:
    """Make the memfd `fd` immutable for every process that holds it."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)


def seal_length(fd: int) -> None:
    """Seal the length of the memfd `fd`: a writer that cut the file would make every map of it a SIGBUS."""
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def write_classes(classes: Sequence[str]) -> int:
    """Return a sealed memfd with the class names as JSON, for `read_classes`; the caller owns it.

    A memfd and not a message, since a million names do not fit into one.
    """
    fd = memfd("prefetchd-classes")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(list(classes)).encode())
    seal(fd)
    return fd


def read_classes(fd: int) -> tuple[str, ...]:
    """Return the class names in the memfd `fd`, which the caller keeps.

    Raises:
        ValueError: if it is not a file of JSON text, or is too large.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MAX_CLASSES_BYTES:
        raise ValueError(f"the class names are not a file, or are one of {found.st_size} bytes")
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        names = json.loads(file.read(_MAX_CLASSES_BYTES))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("the class names are not a list of text")
    return tuple(names)
