"""The bytes of one packed shard, wherever they are: what is indexed in the daemon."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Protocol

from prefetchd.data.files import read_exactly


class Content(Protocol):
    """The bytes of a decompressed shard, by position."""

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes, whole."""

    def whole(self) -> memoryview:
        """Return all bytes; raises `ManifestError` where they are not at hand."""

    def expect(self, offsets: Sequence[int]) -> None:
        """Samples that start there will be read, in this order: of each its head, and small values."""


class FileContent:
    """Of a file, whose descriptor is borrowed."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes, whole."""
        return read_exactly(self._fd, at, n_bytes, self._name)

    def whole(self) -> memoryview:
        """Return a map of the file."""
        return memoryview(mmap.mmap(self._fd, 0, prot=mmap.PROT_READ))

    def expect(self, offsets: Sequence[int]) -> None:
        """Do nothing: each read is quick."""
        del offsets


class MemoryContent:
    """Of what was compressed."""

    def __init__(self, content: bytearray) -> None:
        self._content = content

    def read(self, at: int, n_bytes: int) -> bytes:
        """Return bytes, whole."""
        return bytes(self._content[at : at + n_bytes])

    def whole(self) -> memoryview:
        """Return all bytes."""
        return memoryview(self._content)

    def expect(self, offsets: Sequence[int]) -> None:
        """Do nothing: all is there."""
        del offsets
