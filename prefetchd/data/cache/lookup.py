"""The table from a key to its row, for every record that was in the cache at the start or was written in this run.

    memory   | slots: a power of two of uint64, 0 for empty | names of the segments, 24 bytes each |

A hash table with linear probing. The daemon builds it, block by block, from the indexes' keys alone. Readers map it and
read the one record that they look for from its index. So a cache of ten million rows costs 16 to 32 bytes a row, in a
file that no other process can reach (`make_scratch`), and a second at start. None of it is private memory.

A slot holds (segment + 1) << 48 | number of the record. Readers add the rows that they write, so that a file that a
list names twice is kept once. They need no lock: a slot is one word. Where two readers write to one slot at a time, one
of the two rows is not found, and is decoded again. A slot is only a hint: the record has the whole key.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prefetchd.data.cache.directory import open_regular
from prefetchd.data.cache.keys import KEY_BYTES
from prefetchd.data.cache.run_state import make_scratch
from prefetchd.data.cache.segment import RECORD_BYTES
from prefetchd.ring.segment import keep_from_children

MAX_SEGMENTS = 16_000
NUMBER_BITS = 48
NUMBER_MASK = (1 << NUMBER_BITS) - 1
_NAME_BYTES = 24
_BLOCK_RECORDS = 1 << 14
_MAX_PROBES = 32
_MAX_ROUNDS = 1024  # of placing a block; only damaged or duplicated records need more
_MAX_RECORDS = 1 << 27  # a table of 2 GiB; the size of a damaged index is no reason for more


def build(folder: Path, names: list[str], n_more: int = 0) -> tuple[int, int]:
    """Return a descriptor of the table over these segments, the caller's, and how many slots it has.

    Args:
        folder: of the pipeline.
        names: of the segments.
        n_more: how many records are to be added.
    """
    sizes = [_n_records(folder / f"{name}.index") for name in names]
    while sum(sizes) > _MAX_RECORDS:
        sizes[sizes.index(max(sizes))] = 0
    n_slots = 1 << max(6, (2 * (sum(sizes) + n_more)).bit_length())
    fd = make_scratch(folder, n_slots * 8 + len(names) * _NAME_BYTES)
    with mmap.mmap(fd, 0) as memory:
        table = np.frombuffer(memory, np.uint64, n_slots)
        for segment, (name, n_records) in enumerate(zip(names, sizes, strict=True)):
            for first, hashes in _hashes(folder / f"{name}.index", n_records):
                values = np.arange(first, first + len(hashes), dtype=np.uint64)
                _insert(table, hashes, values + np.uint64((segment + 1) << NUMBER_BITS))
        del table
        for segment, name in enumerate(names):
            at = n_slots * 8 + segment * _NAME_BYTES
            memory[at : at + _NAME_BYTES] = name.encode().ljust(_NAME_BYTES)
    return fd, n_slots


def _n_records(path: Path) -> int:
    try:
        return path.lstat().st_size // RECORD_BYTES
    except OSError:
        return 0


def _hashes(path: Path, n_records: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the first halves of the keys of an index, in blocks, each with its first record's number."""
    try:
        with open(open_regular(path), "rb") as file:
            for first in range(0, n_records, _BLOCK_RECORDS):
                raw = np.frombuffer(file.read(_BLOCK_RECORDS * RECORD_BYTES), np.uint8)
                if not len(raw):
                    return
                rows = raw[: len(raw) // RECORD_BYTES * RECORD_BYTES].reshape(-1, RECORD_BYTES)
                yield first, np.ascontiguousarray(rows[: n_records - first, :8]).view(np.uint64)[:, 0]
    except OSError:
        return  # it was removed: its rows are decoded again


def _insert(table: NDArray[np.uint64], hashes: NDArray[np.uint64], values: NDArray[np.uint64]) -> None:
    mask = np.uint64(len(table) - 1)
    slots = hashes & mask
    for _ in range(_MAX_ROUNDS):
        if not len(slots):
            return
        empty = table[slots] == 0
        table[slots[empty]] = values[empty]  # of several for one slot, one stays
        left = table[slots] != values
        slots, values = (slots[left] + np.uint64(1)) & mask, values[left]


class Lookup:
    """The table, in a reader. Owns its map and, until `close`, nothing else.

    Args:
        fd: of `build`, which it closes.
        n_slots: of `build`.
    """

    def __init__(self, fd: int, n_slots: int) -> None:
        self._memory = mmap.mmap(fd, 0)
        keep_from_children(self._memory)
        os.close(fd)
        self._n_slots = n_slots
        self._table = memoryview(self._memory)[: n_slots * 8].cast("Q")
        self.n_segments = (len(self._memory) - n_slots * 8) // _NAME_BYTES

    def segment_name(self, segment: int) -> str:
        """Return the name of a segment."""
        at = self._n_slots * 8 + segment * _NAME_BYTES
        return self._memory[at : at + _NAME_BYTES].decode().strip()

    def places(self, key: bytes) -> Iterator[tuple[int, int]]:
        """Yield (segment, number of the record) of the records that may be of `key`, in any order."""
        assert len(key) == KEY_BYTES
        first = int.from_bytes(key[:8], "little")
        for slot in range(first, first + self._n_slots):
            value = self._table[slot & self._n_slots - 1]
            if not value:
                return
            yield (value >> NUMBER_BITS) - 1, value & NUMBER_MASK

    def add(self, key: bytes, segment: int, number: int) -> None:
        """Make `places` find a record; where the table is crowded, only from the next run on."""
        first = int.from_bytes(key[:8], "little")
        for slot in range(first, first + _MAX_PROBES):
            if not self._table[slot & self._n_slots - 1]:
                self._table[slot & self._n_slots - 1] = (segment + 1) << NUMBER_BITS | number
                return

    def close(self) -> None:
        """Give the map back."""
        self._table.release()
        self._memory.close()
