"""Messages between the dashboard and its index worker: a length of four bytes, then the bytes."""

from __future__ import annotations

import os
import select
import time
from typing import IO

_MOST_BYTES = 1 << 26


def read_frame(fd: int, until_s: float = float("inf")) -> bytes | None:
    """Return the next message of a pipe; `None` at its end.

    Raises:
        TimeoutError: if it is not there at a moment of the monotonic clock.
        ValueError: if it is too long to be one.
    """
    head = _read(fd, 4, until_s)
    if head is None:
        return None
    n_bytes = int.from_bytes(head, "little")
    if n_bytes > _MOST_BYTES:
        raise ValueError("a message is too long")
    return _read(fd, n_bytes, until_s)


def _read(fd: int, n_bytes: int, until_s: float) -> bytes | None:
    parts = bytearray()
    while len(parts) < n_bytes:
        if until_s != float("inf") and not select.select([fd], [], [], max(0.0, until_s - time.monotonic()))[0]:
            raise TimeoutError
        part = os.read(fd, n_bytes - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


def write_frame(stream: IO[bytes], data: bytes) -> None:
    """Write a message."""
    view = memoryview(len(data).to_bytes(4, "little") + data)
    while view:
        view = view[stream.write(view) :]
    stream.flush()
