"""One packed shard that is an object: as it is indexed in the daemon, and what a reader holds of compressed ones.

The index of such a shard has no labels and no sizes of columns: they stand in the samples. So around the start of each
sample some KiB are read, by many requests at once; of a shard of small samples all is read.
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.packed.content import Content, MemoryContent
from prefetchd.data.packed.zstd import decompress
from prefetchd.data.stores.client import fetch, read_bytes
from prefetchd.data.stores.urls import shown
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    from collections.abc import Generator

    from prefetchd.data.packed.index import PackedShard

_BEFORE_BYTES, _BEHIND_BYTES = 2048, 6144  # of a sample's start: small values of the one before, and of it
_DENSE_BYTES = 64 << 10  # with smaller samples all is read
_PIECE_BYTES = 1 << 20
_HELD = 3  # windows that a read may still go back to


class _RangesContent:
    """The bytes of a shard that is not compressed, from windows that are read ahead. For one thread."""

    def __init__(self, url: str, identity: Sequence[Any]) -> None:
        self._url = url
        self._identity = identity
        self._n_bytes = int(identity[0])
        self._windows: Generator[tuple[int, bytes], None, None] | None = None
        self._held: deque[tuple[int, bytes]] = deque(maxlen=_HELD)

    def expect(self, offsets: Sequence[int]) -> None:
        """Begin to read around the starts of samples."""
        dense = self._n_bytes < _DENSE_BYTES * max(1, len(offsets) - 1)
        if dense:
            windows = [(at, _PIECE_BYTES) for at in range(0, self._n_bytes, _PIECE_BYTES)]
        else:
            windows = [(max(0, at - _BEFORE_BYTES), _BEFORE_BYTES + _BEHIND_BYTES) for at in offsets]
        self._windows = in_parallel(self._window, windows)

    def _window(self, window: tuple[int, int]) -> tuple[int, bytes]:
        at, n_bytes = window
        return at, self._fetch(at, min(n_bytes, self._n_bytes - at))

    def _fetch(self, at: int, n_bytes: int) -> bytes:
        return read_bytes(self._url, at, n_bytes, self._identity)

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes, whole."""
        while self._windows is not None and not self._held_from(at, n_bytes):
            if self._held and self._held[-1][0] > at:
                break
            if (window := next(self._windows, None)) is None:
                break
            self._held.append(window)
        return self._held_from(at, n_bytes) or self._fetch(at, n_bytes)

    def whole(self) -> memoryview:
        """Refuse: to find the rows of an Arrow file, all of it would be downloaded at open."""
        raise ManifestError(
            f"cannot serve {one_line(shown(self._url))}: LitData wrote its rows as an Arrow file, and only all of it "
            "tells where they are; download the folder, or write JPEG images in place of their bytes"
        )

    def _held_from(self, at: int, n_bytes: int) -> bytes:
        for start, content in self._held:
            if start <= at and at + n_bytes <= start + len(content):
                return content[at - start : at - start + n_bytes]
        return b""

    def close(self) -> None:
        """End what is read ahead."""
        if self._windows is not None:
            self._windows.close()


@contextmanager
def far_content(shard: PackedShard, identity: Sequence[Any], name: str) -> Iterator[Content]:
    """Give the content of a shard, in the daemon; raises `ManifestError` if it cannot be read."""
    if shard.is_zstd:
        raw = io.BytesIO(read_bytes(shard.path, 0, shard.stored_bytes, identity))
        yield MemoryContent(decompress(raw, shard.n_bytes, name))
        return
    content = _RangesContent(shard.path, identity)
    try:
        yield content
    finally:
        content.close()


class FarZstd:
    """The last compressed shard, decompressed, in a reader. For any number of threads, which wait for one another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: tuple[int, bytearray] | None = None

    def read(self, number: int, found: tuple[str, list[Any]], n_bytes: int, into: memoryview, at: int) -> None:
        """Copy a part of a shard.

        Args:
            number: of the shard.
            found: its URL and identity.
            n_bytes: what it decompresses to.
            into: takes the bytes.
            at: where they start in the decompressed shard.

        Raises:
            SampleFault: if it cannot be read.
            ManifestError: if it is another one, or damaged.
        """
        with self._lock:
            if self._kept is None or self._kept[0] != number:
                self._kept = None  # before another is made
                url, identity = found
                raw = io.BytesIO(fetch(url, identity, 0, int(identity[0])))
                self._kept = number, decompress(raw, n_bytes, url)
            into[:] = memoryview(self._kept[1])[at : at + len(into)]
