"""Reading a manifest by position, and the memfds around it: what the pass at open and the lookups share.

Called by `manifest` (daemon and readers), `manifest_open` and `manifest_scan`. Holds no state.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from prefetchd.errors import ManifestError
from prefetchd.manifest_dialect import MAX_LINE_BYTES, is_sample

LINES_PER_ENTRY = 64
_CHUNK_BYTES = 1 << 16


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


def refuse_long_line(name: str, number: int) -> ManifestError:
    """Return the error for a line over the limit."""
    return ManifestError(
        f"cannot use line {number} of {name}: it is longer than {MAX_LINE_BYTES} bytes; is this a manifest?"
    )


def sample_lines(fd: int, start: int, end: int, number: int, name: str) -> Iterator[tuple[int, bytes, int, int]]:
    """Yield (line number, line, its offset, the offset after it) for sample lines in bytes `start` to `end`.

    Raises:
        ManifestError: if a line is too long, there is a NUL byte, or the file is shorter.
    """
    rest, offset, position = b"", start, start
    while position < end or rest:
        at_end = position >= end
        if not at_end:
            fresh = read_exactly(fd, position, min(_CHUNK_BYTES, end - position), name)
            if b"\0" in fresh:
                raise looks_binary(name, position + fresh.index(b"\0"))
            position += len(fresh)
            rest += fresh
        lines = rest.split(b"\n")
        rest = b"" if at_end else lines.pop()
        for line in lines:
            after = min(offset + len(line) + 1, end)
            if len(line) > MAX_LINE_BYTES:
                raise refuse_long_line(name, number)
            if is_sample(line):
                yield number, line, offset, after
            offset, number = after, number + 1
        if len(rest) > MAX_LINE_BYTES:
            raise refuse_long_line(name, number)


def looks_binary(name: str, offset: int) -> ManifestError:
    """Return the error for a file with NUL bytes."""
    return ManifestError(
        f"cannot read the manifest {name}: it has a NUL byte (at byte {offset}) and looks binary; "
        "is this a manifest? give a text, CSV or TSV file, saved as UTF-8"
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
