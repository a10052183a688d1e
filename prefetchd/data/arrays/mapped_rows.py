"""Rows of array files, in a reader: gathered through maps, or read one by one without them.

A map makes small rows cheap: 320 rows of 320 bytes take 25 to 45 microseconds through it, and 600 by as many calls of
`pread`. Its price is that a page that is gone (the file was truncated, the disk failed) is a SIGBUS, which ends the
reader. So:

- `prepare` checks the file's size and times before the map is touched, and `confirm` after it, once for several batches
  and before any of them is delivered. Rows read between the two are right, or a `ManifestError`, and never half of one
  file and half of another.
- A reader that dies between the two is a crash like any other. Another reader does its rows again, each alone, through
  `read`, which does not use the map and reports the error as such.

The kernel may drop pages of the map. A file that is larger than memory is read at random. Read-ahead would then fetch
128 KiB for each row, so it is off for shuffled orders. While rows come slowly from a disk, those of a chunk are asked
for together beforehand: 64 rows together take about a sixth of one after another.
"""

from __future__ import annotations

import mmap
import os
import resource
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.arrays.array_set import ArraySet, allow_descriptors
from prefetchd.data.arrays.npy import ArrayFile
from prefetchd.data.files import check_unchanged, open_regular, read_into
from prefetchd.errors import ManifestError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SLOW_ROW_S = 20e-6  # a row that takes longer came from the disk
_SLOW_BYTE_S = 1e-9
_COPY_BYTES = 1 << 20
_ADVISED_CHUNKS = 16  # so many are asked for beforehand after one that was slow


class MappedRows:
    """The rows of `file`; owns a descriptor and a map of it.

    Attributes:
        rows: (n_rows,) of void items, a row each, as the bytes that are in the file; between `prepare` and `finish`
            only. Void, since the data of an `.npz` starts at any byte, and numpy would copy all of an unaligned array.

    Raises:
        ManifestError: if the file is no longer the one that was opened.
    """

    rows: NDArray[np.void]

    def __init__(self, file: ArrayFile, *, shuffled: bool) -> None:
        self.file = file
        self._fd = open_regular(file.path, file.name)
        try:
            self._map(shuffled)
        except BaseException:
            os.close(self._fd)
            raise

    def _map(self, shuffled: bool) -> None:
        file = self.file
        self._check()
        self._row_bytes = file.row_bytes
        self._trusted = False
        self._advise_chunks = 0
        self._n_major_faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        self._n_rows_prepared = 0
        self._started_s = 0.0
        row = np.dtype((np.void, self._row_bytes))
        if not file.n_bytes:
            self.rows = np.empty(file.n_rows if not self._row_bytes else 0, row)
            return
        end = file.offset_bytes + file.n_bytes
        try:
            memory = mmap.mmap(self._fd, end, mmap.MAP_SHARED, mmap.PROT_READ)
        except ValueError:  # it is shorter than `end`
            self._check()
            raise
        if shuffled:
            memory.madvise(mmap.MADV_RANDOM)
        self.rows = np.frombuffer(memory, row, file.n_rows, file.offset_bytes)

    def close(self) -> None:
        """Give the descriptor and the map back; may be called twice."""
        self.rows = self.rows[:0].copy()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def confirm(self) -> None:
        """Make sure that all that was read since the last `confirm` is right.

        Raises:
            ManifestError: if the file was written to, truncated or removed meanwhile.
        """
        if self._trusted:
            self._trusted = False
            self._check()

    def prepare(self, firsts: NDArray[np.int64], counts: NDArray[np.int64] | None = None) -> None:
        """Get ready to read rows: `counts` from each of `firsts` on (one each).

        The first time since `confirm`, make sure that the file is as it was: looking costs as much as some rows.

        Raises:
            ManifestError: if it was written to, truncated or removed.
        """
        if not self._trusted:
            self._check()
            self._trusted = True
        if self._advise_chunks:
            self._advise_chunks -= 1
            n_bytes = [self._row_bytes] * len(firsts) if counts is None else (counts * self._row_bytes).tolist()
            starts = (firsts * self._row_bytes + self.file.offset_bytes).tolist()
            for start, length in zip(starts, n_bytes, strict=True):
                if length:  # 0 would mean the rest of the file
                    os.posix_fadvise(self._fd, start, length, os.POSIX_FADV_WILLNEED)
        self._n_rows_prepared = len(firsts)
        self._started_s = time.perf_counter()

    def finish(self) -> None:
        """The rows were read: see how long that took."""
        took_s = time.perf_counter() - self._started_s
        if took_s > self._n_rows_prepared * (_SLOW_ROW_S + self._row_bytes * _SLOW_BYTE_S):
            # It may be that another process had the processor: then no page was waited for.
            n_major_faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            if n_major_faults > self._n_major_faults:
                self._n_major_faults = n_major_faults
                self._advise_chunks = _ADVISED_CHUNKS

    def _check(self) -> None:
        check_unchanged(self._fd, self.file.identity, self.file.name)

    def read(self, first: int, out: NDArray[Any]) -> None:
        """Read rows from `first` on into all of `out`, C-contiguous, without touching the map.

        Raises:
            ManifestError: if the file is not as it was.
            OSError: if it cannot be read.
        """
        self._check()
        buffer = out.reshape(-1).view(np.uint8).data
        n_read = read_into(self._fd, buffer, self.file.offset_bytes + first * self._row_bytes)
        self._check()
        if n_read < len(buffer):
            raise ManifestError(f"cannot go on with {self.file.name}: it became shorter while in use; start again")


class MappedSet:
    """The rows of an `ArraySet`, in a reader."""

    def __init__(self, files: ArraySet, *, shuffled: bool) -> None:
        allow_descriptors(len(files.files), files.name)
        self._parts = [MappedRows(file, shuffled=shuffled) for file in files.files]
        self._starts = np.array(files.starts, np.int64)
        dtype = np.dtype(files.files[0].dtype)
        self._row = np.dtype((np.void, files.files[0].row_bytes))
        self._swap = not dtype.isnative

    def close(self) -> None:
        """Give descriptors and maps back."""
        for part in self._parts:
            part.close()

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that was read since the last call is not as it was."""
        for part in self._parts:
            part.confirm()

    def fill(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Write the rows numbered `ids` into `out`: gathered through the maps, or a single one read without them.

        Raises:
            ManifestError: if a file is not as it was.
            OSError: if a single row cannot be read.
        """
        if len(ids) == 1:
            self.read(int(ids[0]), out)
        else:
            self.gather(ids, out)

    def gather(self, ids: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Write the rows numbered `ids` into `out`, (len(ids), *row shape), C-contiguous, of the native dtype.

        Raises:
            ManifestError: if a file is not as it was.
        """
        if not self._row.itemsize:
            return
        raw = out.reshape(-1).view(self._row)
        number_of = self._starts.searchsorted(ids, "right") - 1 if len(self._parts) > 1 else None
        if number_of is None or (number_of == number_of[0]).all():
            number = 0 if number_of is None else int(number_of[0])
            _gather(self._parts[number], ids - self._starts[number] if number else ids, raw)
        else:
            self._gather_from_several(number_of, ids, raw)
        if self._swap:
            out.byteswap(inplace=True)

    def _gather_from_several(self, number_of: NDArray[np.int64], ids: NDArray[np.int64], out: NDArray[np.void]) -> None:
        """Write rows from several files into `out`: file by file into a copy of it, or one by one if that is large."""
        order = number_of.argsort(kind="stable")
        numbers, local = number_of[order], (ids - self._starts[number_of])[order]
        ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(ids)]
        copy = np.empty_like(out) if out.nbytes <= _COPY_BYTES else None
        start = 0
        for end in ends:
            part = self._parts[int(numbers[start])]
            if copy is not None:
                _gather(part, local[start:end], copy[start:end])
            else:
                part.prepare(local[start:end])
                for place, row in zip(order[start:end].tolist(), local[start:end].tolist(), strict=True):
                    out[place] = part.rows[row]
                part.finish()
            start = end
        if copy is not None:
            out[order] = copy

    def read(self, row: int, out: NDArray[Any]) -> None:
        """Write one row into `out`, of its size, without touching a map; raises as `MappedRows.read` does."""
        number = int(self._starts.searchsorted(row, "right")) - 1
        self._parts[number].read(row - int(self._starts[number]), out)
        if self._swap:
            out.byteswap(inplace=True)


def _gather(part: MappedRows, ids: NDArray[np.int64], out: NDArray[np.void]) -> None:
    part.prepare(ids)
    # "clip" writes into `out` directly, where "raise" would go through a copy of it; the ids are in range.
    part.rows.take(ids, out=out, mode="clip")
    part.finish()
