"""Class names on their way to consumers: a sealed memfd with JSON, since a million of them fit in no message."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Sequence

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
