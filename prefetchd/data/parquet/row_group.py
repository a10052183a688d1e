"""The images of one row group, read from the file into one buffer. `ParquetRecords` calls it, in readers.

What a column takes in the file is no measure of what its rows take in memory: a dictionary stores an image once for all
rows that have it, and a row group may be larger than all memory. So rows are decoded a few at a time, an image that
repeats is kept once, and of a row group that does not fit in the buffer a block of rows is kept. The blocks are the
same for each pass, so that rows in order take one pass a block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prefetchd.data.faults import EnvironmentFault, SampleFault, UndecodableImage, UnreadableFile, fault_of
from prefetchd.data.parquet.library import load_pyarrow
from prefetchd.data.parquet.page_heads import read_page_heads

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH_BYTES = 1 << 20  # decoded at a time: more would be memory beyond the plan
_UNEVEN = 4  # a batch that is so many times larger than planned is decoded again in smaller ones
_COMPARED_BYTES = 32  # of two images' ends before the images are compared: their headers are often equal
_SHARING_ENCODING = "DELTA_BYTE_ARRAY"  # stores only what differs from the value before


class RowBlock:
    """The encoded images of rows of a row group that follow one another.

    Args:
        wanted: the row that the block must hold in the end.
        capacity_bytes: of the buffer. An image that is larger gets a buffer and a block of its own.
        may_repeat: whether images may repeat, and are to be kept once.

    Attributes:
        first: number of its first row.
    """

    def __init__(self, wanted: int, capacity_bytes: int, *, may_repeat: bool) -> None:
        self.first = 0
        self._wanted = wanted
        self._data: NDArray[np.uint8] = np.empty(capacity_bytes, np.uint8)
        self._end = 0
        self._places: list[tuple[int, int] | None] = []  # start and end of each row's image; None for null
        self._may_repeat = may_repeat
        self._known: dict[tuple[int, bytes], list[int]] = {}  # where images of this length and with this end start

    def __contains__(self, row: int) -> bool:
        return self.first <= row < self.first + len(self._places)

    @property
    def capacity_bytes(self) -> int:
        """Bytes of the buffer."""
        return self._data.nbytes

    def image(self, row: int) -> memoryview:
        """Return the bytes of a row's image.

        Raises:
            UnreadableFile: if it is null or empty.
        """
        place = self._places[row - self.first]
        if place is None:
            raise UnreadableFile("the image is null")
        start, end = place
        if start == end:
            raise UnreadableFile("the image is empty (0 bytes)")
        return memoryview(self._data)[start:end]  # type: ignore[arg-type, unused-ignore]

    def add(self, image: Any) -> bool:
        """Append the next row with its image, an Arrow buffer, or with `None`; return whether more rows are wanted.

        A full block ends if it holds the wanted row; otherwise the next one begins.
        """
        if image is None:
            self._places.append(None)
            return True
        content = np.frombuffer(image, np.uint8)
        start = self._find(content) if self._may_repeat else None
        if start is None:
            if self._end + len(content) > self.capacity_bytes:
                if self._wanted in self:
                    return False
                self._begin_at(self.first + len(self._places))
                if len(content) > self.capacity_bytes:
                    if self.first != self._wanted:
                        self.first += 1
                        return True
                    self._data = np.empty(len(content), np.uint8)
            start = self._end
            self._end += len(content)
            self._data[start : self._end] = content
            if self._may_repeat:
                self._known.setdefault(_key(content), []).append(start)
        self._places.append((start, start + len(content)))
        return True

    def finish(self) -> None:
        """Drop what only `add` needs."""
        self._known.clear()

    def _begin_at(self, row: int) -> None:
        self.first, self._end = row, 0
        self._places.clear()
        self._known.clear()

    def _find(self, content: NDArray[np.uint8]) -> int | None:
        """Return where an equal image starts, if there is one."""
        for start in self._known.get(_key(content), ()):
            if np.array_equal(self._data[start : start + len(content)], content):
                return start
        return None


def _key(content: NDArray[np.uint8]) -> tuple[int, bytes]:
    return len(content), content[-_COMPARED_BYTES:].tobytes()


@dataclass(frozen=True, slots=True)
class Column:
    """The image column of a row group, as the file describes it.

    Attributes:
        n_rows: rows of the group.
        bytes: of the column, decompressed.
        n_batch: rows to decode at a time.
        may_repeat: whether images may repeat.
        working_bytes: what pyarrow takes while it decodes: pages as stored and decompressed, a dictionary, a batch.
    """

    n_rows: int
    bytes: int
    n_batch: int
    may_repeat: bool
    working_bytes: int


class FarFile(Protocol):
    """A file-like object in place of a descriptor: pyarrow reads it, and `pread` reads bytes by place."""

    def pread(self, n_bytes: int, offset: int) -> bytes:
        """Return bytes from `offset` on."""


def _source(file: int | FarFile) -> Any:
    """Return what pyarrow opens."""
    return f"/proc/self/fd/{file}" if isinstance(file, int) else file


def read_metadata(fd: int | FarFile, group: int) -> Any:
    """Return what pyarrow says of the file behind `fd`; raises as `read_rows` does."""
    _, parquet = load_pyarrow()
    with _faults(group):
        return parquet.read_metadata(_source(fd))


def column_range(metadata: Any, group: int, name: str) -> tuple[int, int]:
    """Return where the column `name` of a row group starts in its file, and its bytes there."""
    described = metadata.row_group(group)
    columns = map(described.column, range(described.num_columns))
    column = next(found for found in columns if found.path_in_schema == name)
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset > 0:
        start = min(start, column.dictionary_page_offset)
    return start, column.total_compressed_size


def describe_column(fd: int | FarFile, metadata: Any, group: int, name: str) -> Column:
    """Return what is known of the column `name` in a row group before it is read; raises as `read_rows` does."""
    with _faults(group):
        described = metadata.row_group(group)
        columns = map(described.column, range(described.num_columns))
        column = next(found for found in columns if found.path_in_schema == name)
        n_rows, n_bytes = described.num_rows, column.total_uncompressed_size
        start, stored = column_range(metadata, group, name)
        heads = read_page_heads(fd, start, stored)
        if heads is None:
            return Column(n_rows, n_bytes, 1, True, n_bytes + stored)
        largest_bytes = max((head.uncompressed_bytes for head in heads), default=0)
        if largest_bytes > 2 * n_bytes + _BATCH_BYTES:  # before pyarrow takes memory for it
            raise ValueError(f"a page claims {largest_bytes} bytes, and the whole column {n_bytes}")
        mean_bytes = n_bytes // max(1, n_rows)
        may_repeat = _SHARING_ENCODING in column.encodings
        working_bytes = _UNEVEN * _BATCH_BYTES
        for head in heads:
            if head.n_dictionary is not None:
                mean_bytes = max(mean_bytes, head.uncompressed_bytes // max(1, head.n_dictionary))
                may_repeat = may_repeat or head.n_dictionary < n_rows
                working_bytes += 2 * head.uncompressed_bytes  # its page, and the decoder's copy
        # A page that is larger than the one before is decompressed into a new buffer, beside the old one.
        working_bytes += max((2 * head.uncompressed_bytes + head.compressed_bytes for head in heads), default=0)
        return Column(n_rows, n_bytes, max(1, _BATCH_BYTES // max(1, mean_bytes)), may_repeat, working_bytes)


def read_rows(
    fd: int | FarFile, metadata: Any, group: int, name: str, column: Column, row: int, capacity_bytes: int
) -> RowBlock:
    """Return a block of rows with `row` in it, of the column `name` in a row group of the file behind `fd`.

    Raises:
        SampleFault: if the file is damaged there, or the machine fails.
    """
    with _faults(group):
        n_batch = column.n_batch
        may_repeat = column.may_repeat or column.bytes > capacity_bytes
        while True:
            rows = RowBlock(row, capacity_bytes, may_repeat=may_repeat)
            try:
                n_next = _fill(rows, fd, metadata, group, name, n_batch)
            except MemoryError:
                if n_batch == 1:
                    raise
                n_next = 1  # a few images are far larger than the others
            if n_next == n_batch:
                break
            n_batch = n_next
        if row not in rows:
            raise ValueError(f"it ends before row {row}")
        rows.finish()
        return rows


def _fill(rows: RowBlock, fd: int | FarFile, metadata: Any, group: int, name: str, n_batch: int) -> int:
    """Add rows to `rows` and return `n_batch`, or return another number of rows to decode at a time.

    pyarrow's arrays are gone on return, and what it took goes back at once.
    """
    pa, parquet = load_pyarrow()
    with parquet.ParquetFile(_source(fd), metadata=metadata, pre_buffer=False, buffer_size=1 << 16) as file:
        for batch in file.iter_batches(n_batch, row_groups=[group], columns=[name], use_threads=False):
            values = _leaf(batch, name)
            if pa.types.is_dictionary(values.type):  # each batch comes with the whole dictionary
                n_rows = metadata.row_group(group).num_rows
                if n_batch < n_rows:
                    return int(n_rows)
            elif n_batch > 1 and values.nbytes > _UNEVEN * _BATCH_BYTES:
                return int(max(1, n_batch * _BATCH_BYTES // values.nbytes))
            if not all(map(rows.add, _images(values))):
                break
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


def _damaged(group: int, error: BaseException) -> SampleFault:
    what = " ".join(str(error).split())[:200]
    return UndecodableImage(f"row group {group} cannot be read: {what}")
