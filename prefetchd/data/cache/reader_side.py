"""A cache as a reader has it. A row goes one of three ways:

- known in this run (`fill_rows`, `row`): one `preadv`, straight into its place;
- not known, but kept for the file as it is now, from an earlier run or for another sample (`find`): its checksum is
  computed, then it is known;
- not kept: the sample is decoded, and `store` writes it.

A sample whose row or file is cut short, damaged, removed or unreadable counts as not kept, and is decoded again. A
reader that dies leaves nothing that another could take for a row.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.cache import segment
from prefetchd.data.cache.directory import open_regular, used_bytes
from prefetchd.data.cache.keys import is_settled, key_of
from prefetchd.data.cache.run_state import LIMIT_REACHED, OFFSET_BITS, OFFSET_MASK, Lookup, RunState, StateShape
from prefetchd.data.files import read_into

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.records import Sample

_MAX_OPEN = 256  # and a quarter of the process's descriptors
_MAX_OWN_SEGMENTS = 16_000
_WRITERS = 32
_KEPT_FREE = 0.05  # of the disk, where no limit was given


class WriteAllowance:
    """How much more one writer may write: its part of the size limit, or of what the disk can spare.

    Several writers, of several daemons too, share the limit without a lock: each looks at the whole cache, takes a
    small part of what is left, and looks again when that is used up. So `_WRITERS` of them cannot exceed the limit
    together, and the last rows before it stay unwritten. No row is removed for others: with a uniformly random order,
    any fixed part of the samples serves as well as any other.

    Args:
        cache: the cache's folder.
        limit_bytes: of `limit_of`.
    """

    def __init__(self, cache: Path, limit_bytes: int | None) -> None:
        self._cache = cache
        self._limit_bytes = limit_bytes
        self._may_write_bytes = 0

    def take(self, n_bytes: int) -> bool:
        """Take `n_bytes` for a row; return whether it may be written."""
        if n_bytes > self._may_write_bytes:
            self._may_write_bytes = self._left_bytes() // _WRITERS
        self._may_write_bytes -= n_bytes
        return self._may_write_bytes >= 0

    def allows(self, n_bytes: int) -> bool:
        """Return whether a row of `n_bytes` could be written now; False if the folder is gone."""
        try:
            disk = os.statvfs(self._cache)
            return disk.f_bavail * disk.f_frsize > n_bytes and self.take(n_bytes)
        except OSError:
            return False

    def _left_bytes(self) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes - used_bytes(self._cache)
        disk = os.statvfs(self._cache)
        return int((disk.f_bavail - _KEPT_FREE * disk.f_blocks) * disk.f_frsize)


class CacheInReader:
    """One data set's cache, in one reader process. Owns its descriptors.

    Args:
        facts, fds: of `CacheInDaemon.handle`; the descriptors are its own from here on.
        kept_size: (height, width) of kept images where all have one.
        channels: of an image; 0 if rows are encoded, with `cache_format="jpeg"`.
        dtype: numpy name of its pixels.
    """

    def __init__(
        self,
        facts: dict[str, Any],
        fds: list[int],
        kept_size: tuple[int, int],
        channels: int,
        dtype: str = "uint8",
    ) -> None:
        state_fd, table_fd = fds
        shape = StateShape(facts["n_samples"], facts["has_shapes"], tuple(facts["label_shape"]), facts["label_dtype"])
        self._state = RunState(state_fd, shape)
        self._state.claim_line()
        self._lookup = Lookup(table_fd, facts["n_slots"])
        self._folder = Path(os.fsdecode(facts["folder"]))
        self._run: str = facts["run"]
        self._allowance = WriteAllowance(Path(os.fsdecode(facts["cache"])), facts["limit_bytes"])
        self._kept_size = kept_size
        self._channels = channels
        self._dtype = np.dtype(dtype)
        self._rows_fds: dict[int, int] = {}
        self._most_open = max(1, min(_MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._writer: segment.SegmentWriter | None = None
        self._writer_segment = -1
        self._examined: tuple[int, bytes, os.stat_result] | None = None

    # --- rows that are known

    def known(self, sample_ids: NDArray[np.int64]) -> list[bool]:
        """Return whether each sample's row is known."""
        found: list[bool] = (self._state.words[sample_ids] != 0).tolist()
        return found

    def label(self, sample_id: int) -> Any:
        """Return the label of a sample whose row is known: a numpy scalar, or a vector of the caller's own."""
        return self._state.labels[sample_id].copy()

    def fill_rows(self, sample_ids: NDArray[np.int64], first_row: int, x: NDArray[Any], y: NDArray[Any]) -> list[int]:
        """Write known samples into rows of `x` and `y`, from `first_row` on; return the places of the others.

        `x` is C-contiguous, and its rows are kept images.
        """
        words: list[int] = self._state.words[sample_ids].tolist()
        y[first_row : first_row + len(words)] = self._state.labels[sample_ids]
        memory = segment.bytes_of(x)
        row_bytes = len(memory) // len(x)
        at = first_row * row_bytes
        left = []
        read, descriptors = os.preadv, self._rows_fds
        for place, word in enumerate(words):
            row = memory[at : at + row_bytes]
            at += row_bytes
            number = word >> OFFSET_BITS
            try:
                if word and number not in descriptors:
                    self._open(number)
                if word and read(descriptors[number], (row,), word & OFFSET_MASK) == row_bytes:
                    continue
            except OSError:
                pass
            if word:
                self._forget(int(sample_ids[place]), number)
            left.append(place)
        self._state.count(hits=len(words) - len(left))
        return left

    def row(self, sample_id: int) -> NDArray[Any] | None:
        """Return the row of a sample whose row is known; `None` if it is not, or cannot be read."""
        word = int(self._state.words[sample_id])
        if not word:
            return None
        height, width = self._kept_size
        if len(self._state.shapes):
            packed = int(self._state.shapes[sample_id])
            height, width = packed >> 16, packed & 0xFFFF
        pixels = np.empty(segment.shape_of(height, width, self._channels), self._dtype)
        number = word >> OFFSET_BITS
        try:
            if number not in self._rows_fds:
                self._open(number)
            if read_into(self._rows_fds[number], segment.bytes_of(pixels), word & OFFSET_MASK) == pixels.nbytes:
                self._state.count(hits=1)
                return pixels
        except OSError:
            pass
        self._forget(sample_id, number)
        return None

    def _forget(self, sample_id: int, number: int) -> None:
        """Forget a row that is no longer there; its file is opened anew for the next row in it."""
        self._state.words[sample_id] = 0
        if number != self._writer_segment + 1 and number in self._rows_fds:
            os.close(self._rows_fds.pop(number))

    # --- rows that are not known

    def find(self, sample: Sample, sample_id: int) -> NDArray[Any] | None:
        """Return the kept image of a sample's file if there is one, checked, and make it known.

        It remembers the file's state for `store`.
        """
        self._examined = None
        try:
            found = os.stat(sample.path)
        except (OSError, ValueError):
            return None  # reading it raises the error
        key = key_of(sample.path, sample.place, found)
        self._examined = sample_id, key, found
        for number, record_number in self._lookup.places(key):
            try:
                if number + 1 not in self._rows_fds:
                    self._open(number + 1)
                record = self._record(number, record_number)
                if record is None or record.key != key:
                    continue
                pixels = segment.read_row(self._rows_fds[number + 1], record, self._channels, self._dtype)
            except OSError:
                continue
            if pixels is not None:
                self._know(sample, sample_id, pixels, number, record.offset)
                self._state.count(hits=1)
                return pixels
        return None

    def store(self, sample: Sample, sample_id: int, pixels: NDArray[Any], read_ns: int) -> None:
        """Keep the image that was decoded after `find` had found none, if the file is still what `find` saw.

        The file must also have been that when it was read, from `read_ns` on by the clock of files, which may have been
        before `find`.
        """
        self._state.count(misses=1)
        examined, self._examined = self._examined, None
        if examined is None or examined[0] != sample_id or self._state.stopped:
            return
        _, key, found = examined
        try:
            if not is_settled(found, read_ns) or key_of(sample.path, sample.place, os.stat(sample.path)) != key:
                return
        except OSError:
            return
        pixels = np.ascontiguousarray(pixels)
        try:
            if not self._allowance.take(pixels.nbytes + segment.RECORD_BYTES):
                self._state.stop_filling(LIMIT_REACHED)
                return
            if self._writer is None:
                self._begin_segment()
            assert self._writer is not None
            offset, number = self._writer.append(key, pixels)
        except OSError as error:
            self._state.stop_filling(error.errno or errno.EIO)
            return
        self._lookup.add(key, self._writer_segment, number)
        self._state.count(rows=1, n_bytes=pixels.nbytes)
        self._know(sample, sample_id, pixels, self._writer_segment, offset)

    def _know(self, sample: Sample, sample_id: int, pixels: NDArray[Any], number: int, offset: int) -> None:
        label = sample_id if sample.label is None else sample.label
        self._state.set_row(sample_id, label, *segment.sides_of(pixels), number, offset)

    # --- files

    def _name(self, number: int) -> str:
        """Return the name of a segment: the table has those of earlier runs; this run's have the numbers after them."""
        earlier = self._lookup.n_segments
        return self._lookup.segment_name(number) if number < earlier else f"{self._run}-{number - earlier}"

    def _open(self, key: int) -> None:
        """Open the rows of segment `key - 1`, which may close others."""
        if len(self._rows_fds) >= self._most_open:
            self._close_rows()
        path = self._folder / f"{self._name(key - 1)}.rows"
        self._rows_fds[key] = open_regular(path)

    def _record(self, number: int, record_number: int) -> segment.Record | None:
        fd = open_regular(self._folder / f"{self._name(number)}.index")
        try:
            return segment.unpack(os.pread(fd, segment.RECORD_BYTES, record_number * segment.RECORD_BYTES))
        finally:
            os.close(fd)

    def _begin_segment(self) -> None:
        """Make a segment of this process's own, under the first free number of this run."""
        for number in range(_MAX_OWN_SEGMENTS):
            try:
                self._writer = segment.SegmentWriter(self._folder, f"{self._run}-{number}")
            except FileExistsError:
                continue
            self._writer_segment = self._lookup.n_segments + number
            return
        raise OSError(errno.EMFILE, "too many segments")

    def _close_rows(self) -> None:
        for fd in self._rows_fds.values():
            os.close(fd)
        self._rows_fds.clear()

    def close(self) -> None:
        """Give descriptors and maps back."""
        self._close_rows()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lookup.close()
        self._state.close()
