"""An object as a file that Python's and pyarrow's readers take: read by ranges, some of which are kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from prefetchd.data.stores.client import fetch

TAIL_BYTES = 64 << 10  # the footer of most Parquet files


class RangeFile(io.RawIOBase):
    """The object at `url`, which must have `identity`. For one thread at a time.

    Reads raise as `stores.client.fetch`.
    """

    def __init__(self, url: str, identity: Sequence[Any]) -> None:
        self._url = url
        self._identity = identity
        self._n_bytes = int(identity[0])
        self._at = 0
        self._kept: list[tuple[int, memoryview]] = []

    def keep(self, start: int, n_bytes: int) -> None:
        """Read bytes now, by one request, and keep them."""
        start = max(0, min(start, self._n_bytes))
        n_bytes = min(n_bytes, self._n_bytes - start)
        if self._find(start, n_bytes) is None:
            self._kept.append((start, fetch(self._url, self._identity, start, n_bytes)))

    def pread(self, n_bytes: int, offset: int) -> bytes:
        """Return bytes from `offset` on; fewer at the end."""
        n_bytes = max(0, min(n_bytes, self._n_bytes - offset))
        if not n_bytes:
            return b""
        found = self._find(offset, n_bytes)
        return bytes(fetch(self._url, self._identity, offset, n_bytes) if found is None else found)

    def _find(self, start: int, n_bytes: int) -> memoryview | None:
        for at, content in self._kept:
            if at <= start and start + n_bytes <= at + len(content):
                return content[start - at : start - at + n_bytes]
        return None

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`, or as much of it as there is; return the number of bytes."""
        view = memoryview(buffer).cast("B")
        content = self.pread(len(view), self._at)
        view[: len(content)] = content
        self._at += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; return it."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._n_bytes}[whence])
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True
