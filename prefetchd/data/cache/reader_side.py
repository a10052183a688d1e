"""A cache as a reader has it. A row goes one of three ways:

- known in this run (`fill_rows`, `row`): one `preadv`, straight into its place;
- not known, but kept for the file as it is now, from an earlier run or for another sample (`find_rows`, `find`): its
  checksum is computed, then it is known;
- not kept: the sample is decoded, and `store` writes it.

A sample whose row or file is cut short, damaged, removed or unreadable counts as not kept, and is decoded again. A
reader that dies leaves nothing that another could take for a row.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.cache import segment
from prefetchd.data.cache.allowance import WriteAllowance
from prefetchd.data.cache.directory import open_regular
from prefetchd.data.cache.keys import is_settled, key_of, key_of_object
from prefetchd.data.cache.run_state import LIMIT_REACHED, OFFSET_BITS, OFFSET_MASK, Lookup, RunState, StateShape
from prefetchd.data.files import read_into
from prefetchd.data.stores.urls import is_url

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.records import Sample

_MAX_OPEN = 256  # and a quarter of the process's descriptors
_MAX_INDEXES = 64  # open at once
_MAX_OWN_SEGMENTS = 16_000
_State = os.stat_result | bytes  # of a file, or of an object


def close_all(descriptors: dict[int, int]) -> None:
    """Close descriptors, and forget them."""
    for fd in descriptors.values():
        os.close(fd)
    descriptors.clear()


class CacheInReader:
    """One data set's cache, in one reader process. Owns its descriptors.

    Args:
        facts, fds: of `CacheInDaemon.handle`; the descriptors are its own from here on.
        kept_size: (height, width) of kept images where all have one.
        channels: of an image; 0 if rows are encoded, with `cache_format="jpeg"`.
        dtype: numpy name of its pixels.

    Attributes:
        object_state: returns the state of the object that a sample is, or is in; asks the store if that is wanted.
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
        self._index_fds: dict[int, int] = {}
        self._most_open = max(1, min(_MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._writer: segment.SegmentWriter | None = None
        self._writer_segment = -1
        self._examined: tuple[int, bytes, _State] | None = None
        self.object_state: Callable[[Sample, bool], bytes | None] = lambda sample, ask: None
        self._not_kept: dict[int, tuple[bytes, _State]] = {}  # of the task's samples, those without a row

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

    def find(self, sample: Sample, sample_id: int, size: tuple[int, int] | None = None) -> NDArray[Any] | None:
        """Return the kept image of a sample's file if there is one, checked, and make it known.

        With `size` it has that (height, width): a file that changed after its header was read was kept in the size of
        another bucket. It remembers the file's state for `store`.
        """
        self._examined = None
        known: tuple[bytes, _State | None] | None = self._not_kept.pop(sample_id, None)
        if known is None or not known[0]:
            known = self._examine(sample, ask=self._lookup.n_segments > 0)
        key, found = known
        if found is None:
            return None  # reading it raises the error
        self._examined = sample_id, key, found
        if not key:
            return None  # an object's state is known once it was read
        for number, record in self._records_of(key):
            if size is not None and (record.height, record.width) != size:
                continue
            try:
                pixels = segment.read_row(self._rows_fds[number + 1], record, self._channels, self._dtype)
            except OSError:
                continue
            if pixels is not None:
                self._know(sample, sample_id, pixels, number, record.offset)
                self._state.count(hits=1)
                return pixels
        return None

    def find_rows(
        self,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        samples: Sequence[Sample],
        x: NDArray[Any],
        y: NDArray[Any],
        size: tuple[int, int],
    ) -> list[int]:
        """Write samples whose rows are kept, checked, into `rows` of `x` and `y`, and make them known.

        Arrays as for `fill_rows`, with images of `size`, (height, width). Returns the places of the other samples.
        """
        memory = segment.bytes_of(x)
        row_bytes = len(memory) // len(x)
        self._not_kept.clear()
        left = []
        for place, (sample_id, row, sample) in enumerate(zip(sample_ids.tolist(), rows, samples, strict=True)):
            key, found = self._examine(sample)
            at = row * row_bytes
            if key and self._find_into(sample, sample_id, key, memory[at : at + row_bytes], size):
                y[row] = self._state.labels[sample_id]
                continue
            if found is not None:
                self._not_kept[sample_id] = key, found
            left.append(place)
        self._state.count(hits=len(samples) - len(left))
        return left

    def _find_into(self, sample: Sample, sample_id: int, key: bytes, row: memoryview, size: tuple[int, int]) -> bool:
        """Read the row of `key` into `row`; return whether it is there, and right."""
        for number, record in self._records_of(key):
            if record.n_bytes != len(row) or (record.height, record.width) != size:
                continue
            try:
                is_whole = os.preadv(self._rows_fds[number + 1], (row,), record.offset) == len(row)
            except OSError:
                continue
            if is_whole and segment.checksum_of(row) == record.checksum:
                label = sample_id if sample.label is None else sample.label
                self._state.set_row(sample_id, label, record.height, record.width, number, record.offset)
                return True
        return False

    def _examine(self, sample: Sample, *, ask: bool = False) -> tuple[bytes, _State | None]:
        """Return the key of a sample's file or object as it is now, and its state.

        The state is `None` for a file that is not there. The key is empty if there is none, or the object's state is
        not known; with `ask` its store is asked then.
        """
        if is_url(sample.path):
            from prefetchd.data.stores.places import disk_name

            state = self.object_state(sample, ask)
            if state is None:
                return b"", b""
            return key_of_object(disk_name(sample.path), sample.place, state), state
        try:
            found = os.stat(sample.path)
        except (OSError, ValueError):
            return b"", None
        return key_of(sample.path, sample.place, found), found

    def may_have(self, sample: Sample) -> bool:
        """Return whether the row of an object may be here from an earlier run; asks the store; for any thread."""
        if not self._lookup.n_segments or not is_url(sample.path):
            return False
        key, _ = self._examine(sample, ask=True)
        return bool(key) and bool(self._lookup.places(key))

    def _records_of(self, key: bytes) -> Iterator[tuple[int, segment.Record]]:
        """Yield segment and record of each row of `key`, with the rows' file open."""
        for number, record_number in self._lookup.places(key):
            try:
                if number + 1 not in self._rows_fds:
                    self._open(number + 1)
                if number not in self._index_fds:
                    self._open_index(number)
                at = record_number * segment.RECORD_BYTES
                record = segment.unpack(os.pread(self._index_fds[number], segment.RECORD_BYTES, at))
            except OSError:
                continue
            if record is not None and record.key == key:
                yield number, record

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
        now, _ = self._examine(sample)
        if not now or key not in (b"", now) or (isinstance(found, os.stat_result) and not is_settled(found, read_ns)):
            return
        pixels = np.ascontiguousarray(pixels)
        try:
            if not self._allowance.take(pixels.nbytes + segment.RECORD_BYTES):
                self._state.stop_filling(LIMIT_REACHED)
                return
            if self._writer is None:
                self._begin_segment()
            assert self._writer is not None
            offset, number = self._writer.append(now, pixels)
        except OSError as error:
            self._state.stop_filling(error.errno or errno.EIO)
            return
        self._lookup.add(now, self._writer_segment, number)
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
            close_all(self._rows_fds)
        path = self._folder / f"{self._name(key - 1)}.rows"
        self._rows_fds[key] = open_regular(path)

    def _open_index(self, number: int) -> None:
        """Open the index of a segment, which may close others."""
        if len(self._index_fds) >= min(_MAX_INDEXES, self._most_open):
            close_all(self._index_fds)
        self._index_fds[number] = open_regular(self._folder / f"{self._name(number)}.index")

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

    def close(self) -> None:
        """Give descriptors and maps back."""
        close_all(self._rows_fds)
        close_all(self._index_fds)
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lookup.close()
        self._state.close()
