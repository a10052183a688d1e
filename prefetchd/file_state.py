"""Files that are served for as long as a daemon runs: whether one is still what was opened, and exact reads from it.

Used by the manifest and by the sources, in the daemon and in readers. A file that has changed, or become shorter, is a
`ManifestError` and never other data.
"""

from __future__ import annotations

import os

from prefetchd.errors import ManifestError


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
