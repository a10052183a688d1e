"""The images of one row group, read from the file into one buffer. `ParquetRecords` calls it, in readers.

What a column takes in the file is no measure of what it is in memory: a dictionary stores an image once for all rows
that have it. So rows are decoded a few at a time, and an image that repeats is kept once, as in the file. What is kept
is then no larger than the file says, and nor is what decoding takes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.faults import EnvironmentFault, SampleFault, UndecodableImage, UnreadableFile, fault_of
from prefetchd.data.parquet.library import load_pyarrow

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH_BYTES = 1 << 20  # decoded at a time: more would be memory beyond the plan
_UNEVEN = 4  # a batch that is so many times larger than planned is decoded again in smaller ones
_COMPARED_BYTES = 32  # of two images' ends before the images are compared: their headers are often equal
_DICTIONARY_ENCODINGS = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}
_SHARING_ENCODING = "DELTA_BYTE_ARRAY"  # stores only what differs from the value before
# Of the head of a dictionary's page, in Thrift's compact protocol.
_PAGE_HEAD_BYTES = 64
_TYPE, _UNCOMPRESSED_BYTES, _DICTIONARY_HEAD = 1, 2, 7
_DICTIONARY_PAGE = 2
_I32, _STRUCT = 5, 12


class RowGroupTooSmallError(Exception):
    """The images are larger together than the buffer.

    Attributes:
        needed_bytes: a size to try next.
    """

    def __init__(self, needed_bytes: int) -> None:
        super().__init__(f"{needed_bytes} bytes")
        self.needed_bytes = needed_bytes


class RowGroup:
    """The encoded images of a row group, by row.

    Args:
        capacity_bytes: of the buffer.
        may_repeat: whether images may repeat, and are to be kept once.
    """

    def __init__(self, capacity_bytes: int, *, may_repeat: bool) -> None:
        self._data: NDArray[np.uint8] = np.empty(capacity_bytes, np.uint8)
        self._end = 0
        self._places: list[tuple[int, int] | None] = []  # start and end of each row's image; None for null
        self._may_repeat = may_repeat
        self._known: dict[tuple[int, bytes], list[int]] = {}  # where images of this length and with this end start

    def __len__(self) -> int:
        return len(self._places)

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the buffer."""
        return self._data.nbytes

    def image(self, row: int) -> memoryview:
        """Return the bytes of a row's image.

        Raises:
            UnreadableFile: if it is null or empty.
        """
        place = self._places[row]
        if place is None:
            raise UnreadableFile("the image is null")
        start, end = place
        if start == end:
            raise UnreadableFile("the image is empty (0 bytes)")
        return memoryview(self._data)[start:end]  # type: ignore[arg-type, unused-ignore]

    def add(self, image: Any) -> None:
        """Append a row with its image, an Arrow buffer, or with `None`.

        Raises:
            RowGroupTooSmallError: if the buffer is full.
        """
        if image is None:
            self._places.append(None)
            return
        content = np.frombuffer(image, np.uint8)
        start = self._find(content) if self._may_repeat else None
        if start is None:
            start = self._end
            if start + len(content) > self.capacity_bytes:
                raise RowGroupTooSmallError(max(start + len(content), self.capacity_bytes * 3 // 2))
            self._end += len(content)
            self._data[start : self._end] = content
        self._places.append((start, start + len(content)))

    def finish(self) -> None:
        """Drop what only `add` needs."""
        self._known.clear()

    def _find(self, content: NDArray[np.uint8]) -> int | None:
        """Return where an equal image starts; `None` for a new one, which will start at the end."""
        key = len(content), content[-_COMPARED_BYTES:].tobytes()
        starts = self._known.setdefault(key, [])
        for start in starts:
            if np.array_equal(self._data[start : start + len(content)], content):
                return start
        starts.append(self._end)
        return None


def read_metadata(fd: int, group: int) -> Any:
    """Return what pyarrow says of the file behind `fd`; raises as `read_row_group` does."""
    _, parquet = load_pyarrow()
    with _faults(group):
        return parquet.read_metadata(f"/proc/self/fd/{fd}")


def read_row_group(fd: int, metadata: Any, group: int, name: str, capacity_bytes: int = 0) -> RowGroup:
    """Return the images in the column `name` of a row group of the file behind `fd`.

    Args:
        fd: the file; borrowed.
        metadata: the file's, as pyarrow read it.
        group: the row group's number.
        name: the column's dotted name.
        capacity_bytes: of the buffer; at least what the file says the column takes.

    Raises:
        SampleFault: if the file is damaged there, or the machine fails.
        RowGroupTooSmallError: if the images need a larger buffer.
    """
    with _faults(group):
        described = metadata.row_group(group)
        columns = map(described.column, range(described.num_columns))
        column = next(found for found in columns if found.path_in_schema == name)
        n_batch, may_repeat = _batching(fd, described.num_rows, column)
        while True:
            rows = RowGroup(max(capacity_bytes, column.total_uncompressed_size), may_repeat=may_repeat)
            try:
                n_next = _fill(rows, fd, metadata, group, name, n_batch)
            except MemoryError:
                if n_batch == 1:
                    raise
                n_next = 1  # a few images are far larger than the others
            if n_next == n_batch:
                rows.finish()
                return rows
            n_batch = n_next


@contextlib.contextmanager
def _faults(group: int) -> Iterator[None]:
    """Raise a `SampleFault` for what pyarrow raises."""
    pa, _ = load_pyarrow()
    try:
        yield
    except MemoryError as error:
        raise fault_of(error) from None
    except (ValueError, pa.ArrowNotImplementedError, StopIteration) as error:  # ArrowInvalid is a ValueError
        raise _damaged(group, error) from None
    except OSError as error:  # pyarrow raises it for damaged data too
        raise (_damaged(group, error) if error.errno is None else EnvironmentFault(str(error))) from None
    finally:
        pa.default_memory_pool().release_unused()  # small pieces stay in the C library's heap otherwise


def _fill(rows: RowGroup, fd: int, metadata: Any, group: int, name: str, n_batch: int) -> int:
    """Add all rows of a row group to `rows` and return `n_batch`, or return another number to decode at a time.

    pyarrow's arrays are gone on return, and what it took goes back at once.
    """
    pa, parquet = load_pyarrow()
    with parquet.ParquetFile(f"/proc/self/fd/{fd}", metadata=metadata, pre_buffer=False, buffer_size=1 << 16) as file:
        for batch in file.iter_batches(n_batch, row_groups=[group], columns=[name], use_threads=False):
            values = _leaf(batch, name)
            if pa.types.is_dictionary(values.type):  # each batch comes with the whole dictionary
                n_rows = metadata.row_group(group).num_rows
                if n_batch < n_rows:
                    return int(n_rows)
            elif n_batch > 1 and values.nbytes > _UNEVEN * _BATCH_BYTES:
                return int(max(1, n_batch * _BATCH_BYTES // values.nbytes))
            for image in _images(values):
                rows.add(image)
    return n_batch


def _images(values: Any) -> Iterator[Any]:
    """Yield the Arrow buffer of each value, `None` for null."""
    if hasattr(values, "dictionary"):
        for index in values.indices.to_pylist():
            yield None if index is None else values.dictionary[index].as_buffer()
    else:
        for value in values:
            yield value.as_buffer()


def _leaf(batch: Any, column: str) -> Any:
    """Return the array of a column, or of a nested one by its dotted name; null where a struct around it is."""
    import pyarrow.compute

    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    return pyarrow.compute.struct_field(batch.column(first), rest)


def _batching(fd: int, n_rows: int, column: Any) -> tuple[int, bool]:
    """Return how many rows to decode at a time, and whether images may repeat."""
    mean_bytes = column.total_uncompressed_size // max(1, n_rows)
    may_repeat = _SHARING_ENCODING in column.encodings
    if column.has_dictionary_page or _DICTIONARY_ENCODINGS.intersection(column.encodings):
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        found = dictionary_of(os.pread(fd, _PAGE_HEAD_BYTES, start))
        if found is None:
            return 1, True
        n_bytes, n_values = found
        mean_bytes = max(mean_bytes, n_bytes // max(1, n_values))
        may_repeat = may_repeat or n_values < n_rows
    return int(max(1, _BATCH_BYTES // max(1, mean_bytes))), may_repeat


def dictionary_of(head: bytes) -> tuple[int, int] | None:
    """Return the bytes and the number of a dictionary's values, by the head of its page; `None` if it is none.

    pyarrow does not tell them. The format is that of `PageHeader` in Parquet's `parquet.thrift`.
    """
    found: dict[int, int] = {}
    place = field = 0
    try:
        while head[place]:
            field += head[place] >> 4
            kind = head[place] & 15
            place += 1
            if kind == _STRUCT and field == _DICTIONARY_HEAD:
                if head[place] != 1 << 4 | _I32 or found[_TYPE] != _DICTIONARY_PAGE:
                    return None
                return found[_UNCOMPRESSED_BYTES], _integer(head, place + 1)[0]
            if kind != _I32:
                return None
            found[field], place = _integer(head, place)
    except (IndexError, KeyError):
        pass
    return None


def _integer(head: bytes, place: int) -> tuple[int, int]:
    """Return the integer at `place`, and where it ends: 7 bits a byte, the lowest first, its sign in the lowest bit."""
    value = shift = 0
    while True:
        byte = head[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), place


def _damaged(group: int, error: BaseException) -> SampleFault:
    what = " ".join(str(error).split())[:200]
    return UndecodableImage(f"row group {group} cannot be read: {what}")
