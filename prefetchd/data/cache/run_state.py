"""What all readers of one run know of a cache: each sample's row and label, counts, and the table from a key to a row.

The state:

    | why filling stopped, 1 word | readers x (hits, misses, rows, bytes) | row of each sample | its shape | its label |

A word is 0 for not known, or (segment + 1) << 48 | offset of the row.

The daemon makes the state, and all readers map it. A reader writes a sample's word after its label, once it has checked
or written the row in this run. From then on no reader examines the sample's file, parses its line or computes the
checksum until the run ends. Writers of one sample write the same row, or an equally good one. Each reader counts in a
line of its own, which it holds by a lock that dies with it and that no process waits for.

The table, for every record that was in the cache at the start or was written in this run:

    | slots: a power of two of uint64, 0 for empty | names of the segments, 24 bytes each |

A hash table with linear probing. The daemon builds it, block by block, from the indexes' keys alone. Readers map it and
read the one record that they look for from its index. So a cache of ten million rows costs 16 to 32 bytes a row, and a
second at start. A slot holds (segment + 1) << 48 | number of the record. Readers add the rows that they write, so that
a file that a list names twice is kept once. They need no lock: a slot is one word. Where two readers write to one slot
at a time, one of the two rows is not found, and is decoded again. A slot is only a hint: the record has the whole key.

Both are in scratch files: without a name, in the cache's folder, with pages that the kernel may drop. They are reserved
when they are made, so that a disk that fills up later is no SIGBUS. No other process can reach them, so none can
truncate them. They are gone with their last descriptor. Where the disk has no space, they are memory, and count as the
source's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefetchd.data.cache.directory import open_regular
from prefetchd.data.cache.keys import KEY_BYTES
from prefetchd.data.cache.segment import RECORD_BYTES
from prefetchd.ring.segment import keep_from_children


def make_scratch(folder: Path, n_bytes: int) -> int:
    """Return a descriptor, the caller's, of `n_bytes` zero bytes."""
    try:
        fd = _unnamed(folder)
    except OSError:
        return _memory(n_bytes)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except OSError:
        os.close(fd)
        return _memory(n_bytes)
    return fd


def is_memory(fd: int) -> bool:
    """Return whether the file behind `fd` counts as memory."""
    return os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")


def _unnamed(folder: Path) -> int:
    with contextlib.suppress(OSError):  # some file systems cannot
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    import tempfile  # takes milliseconds to load

    fd, path = tempfile.mkstemp(prefix="state.", dir=folder)
    os.unlink(path)
    return fd


def _memory(n_bytes: int) -> int:
    fd = os.memfd_create("prefetchd-cache", os.MFD_CLOEXEC)
    try:
        os.posix_fallocate(fd, 0, n_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd


OFFSET_BITS = 48
OFFSET_MASK = (1 << OFFSET_BITS) - 1
LIMIT_REACHED = -1  # why filling stopped, beside error numbers
_N_READERS = 256
_HITS, _MISSES, _ROWS, _BYTES = range(4)


@dataclass(frozen=True, slots=True)
class Counts:
    """What all readers did in this run: rows served from the cache, samples decoded, rows and bytes written."""

    hits: int
    misses: int
    rows: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class StateShape:
    """What the state's layout follows from; plain values, so that a handle can carry them."""

    n_samples: int
    has_shapes: bool
    label_shape: tuple[int, ...]
    label_dtype: str

    @property
    def parts(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each part, in order, with no gaps: the first ones are of whole words."""
        label_shape = (self.n_samples, *self.label_shape)
        shapes = (self.n_samples if self.has_shapes else 0,)
        return [
            ((1,), "int64"),
            ((_N_READERS, 4), "int64"),
            ((self.n_samples,), "int64"),
            (label_shape, self.label_dtype),
            (shapes, "uint32"),
        ]

    @property
    def n_bytes(self) -> int:
        """Of the whole file."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.parts)


def make_state(folder: Path, shape: StateShape) -> int:
    """Return a descriptor, the caller's, of the empty state of a run."""
    return make_scratch(folder, shape.n_bytes)


class RunState:
    """The state, mapped. The daemon looks at it, readers write to it. Owns the descriptor.

    Attributes:
        words: (n_samples,) int64, where each sample's row is.
        labels: (n_samples, ...), of samples whose word is set.
        shapes: (n_samples,) uint32, height << 16 | width of rows (`segment.sides_of`), where they differ; else empty.
    """

    def __init__(self, fd: int, shape: StateShape) -> None:
        self._fd = fd
        self._memory = mmap.mmap(fd, shape.n_bytes)
        keep_from_children(self._memory)
        views: list[NDArray[Any]] = []
        at = 0
        for dimensions, dtype in shape.parts:
            views.append(np.ndarray(dimensions, dtype, self._memory, at))
            at += views[-1].nbytes
        self._stop, self._lines, self.words, self.labels, self.shapes = views
        self._mine: NDArray[np.int64] | None = None

    def claim_line(self) -> None:
        """Take a line of counts for this process. Beyond 256 readers there is none, and it does not count."""
        for number in range(_N_READERS):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    continue
                return
            self._mine = self._lines[number]
            return

    def count(self, *, hits: int = 0, misses: int = 0, rows: int = 0, n_bytes: int = 0) -> None:
        """Add to this process's counts."""
        mine = self._mine
        if mine is None:
            return
        if hits:
            mine[_HITS] += hits
        if misses:
            mine[_MISSES] += misses
        if rows:
            mine[_ROWS] += rows
            mine[_BYTES] += n_bytes

    def counts(self) -> Counts:
        """Return the counts of all readers together."""
        return Counts(*self._lines.sum(axis=0).tolist())

    @property
    def stopped(self) -> int:
        """0 while the cache is being filled; else `LIMIT_REACHED`, or the error number that ended it."""
        return int(self._stop[0])

    def stop_filling(self, why: int) -> None:
        """Stop all readers from writing in this run."""
        self._stop[0] = why

    def set_row(self, sample_id: int, label: Any, height: int, width: int, segment: int, offset: int) -> None:
        """Make a row known to all readers."""
        self.labels[sample_id] = label
        if len(self.shapes):
            self.shapes[sample_id] = height << 16 | width
        self.words[sample_id] = (segment + 1) << OFFSET_BITS | offset

    def close(self) -> None:
        """Give map and descriptor back."""
        self._stop = self._lines = self.words = self.labels = self.shapes = np.empty(0, np.int64)
        self._mine = None
        self._memory.close()
        os.close(self._fd)


MAX_SEGMENTS = 16_000
NUMBER_BITS = 48
NUMBER_MASK = (1 << NUMBER_BITS) - 1
_NAME_BYTES = 24
_BLOCK_RECORDS = 1 << 14
_MAX_PROBES = 32
_MAX_ROUNDS = 1024  # of placing a block; only damaged or duplicated records need more
_MAX_RECORDS = 1 << 27  # a table of 2 GiB; the size of a damaged index is no reason for more


def build_table(folder: Path, names: list[str], n_more: int = 0) -> tuple[int, int]:
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
    memory = mmap.mmap(fd, 0)
    try:
        table = np.frombuffer(memory, np.uint64, n_slots)
        for segment, (name, n_records) in enumerate(zip(names, sizes, strict=True)):
            for first, hashes in _hashes(folder / f"{name}.index", n_records):
                values = np.arange(first, first + len(hashes), dtype=np.uint64)
                _insert(table, hashes, values + np.uint64((segment + 1) << NUMBER_BITS))
        del table
        for segment, name in enumerate(names):
            at = n_slots * 8 + segment * _NAME_BYTES
            memory[at : at + _NAME_BYTES] = name.encode().ljust(_NAME_BYTES)
    except BaseException:  # a signal too: the map cannot be closed while the traceback holds the table
        os.close(fd)
        raise
    memory.close()
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
        fd: of `build_table`, which it closes.
        n_slots: of `build_table`.
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

    def places(self, key: bytes) -> list[tuple[int, int]]:
        """Return (segment, number of the record) of the records that may be of `key`, in any order."""
        assert len(key) == KEY_BYTES
        table, mask = self._table, self._n_slots - 1
        slot = int.from_bytes(key[:8], "little") & mask
        found: list[tuple[int, int]] = []
        while (value := table[slot]) and len(found) <= mask:
            found.append(((value >> NUMBER_BITS) - 1, value & NUMBER_MASK))
            slot = slot + 1 & mask
        return found

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
