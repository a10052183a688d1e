"""The lines of a manifest by position: what the pass at open and the lookups share.

Called by `manifest` (daemon and readers), `manifest_open` and `manifest_scan`. Holds no state.
"""

from __future__ import annotations

from collections.abc import Iterator

from prefetchd.errors import ManifestError
from prefetchd.file_state import read_exactly
from prefetchd.manifest_dialect import MAX_LINE_BYTES, is_sample

LINES_PER_ENTRY = 64
_CHUNK_BYTES = 1 << 16


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
