"""Opening what a cache's folder holds: regular files, and nothing that stands in their place.

Whoever may write to the folder may put a pipe there, whose opening never ends, or a link to a device, whose reading
never does. Used by the daemon, readers and `commands.cache`; holds nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_regular(path: Path) -> int:
    """Return a descriptor for reading, the caller's, of the regular file at `path`.

    Raises:
        OSError: if there is none.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "no regular file", os.fspath(path))
    return fd


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return the first `most_bytes` of a regular file; raises as `open_regular` does."""
    fd = open_regular(path)
    try:
        return os.pread(fd, most_bytes, 0)
    finally:
        os.close(fd)
