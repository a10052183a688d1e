"""Parquet files: encoded images in a column, or their paths, with labels in other columns. Needs pyarrow.

`ParquetRecords.open` indexes the rows in the daemon (`parquet_open`). Paths are then files like a manifest's. Images in
a column come by row group, the smallest piece that pyarrow reads: a reader keeps the image column of the last one that
it read. What that takes is planned for in each reader (`reader_bytes`) up to `KEPT_BYTES`; larger row groups are read
anew for each sample, and the memory for it is reserved and given back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes
from prefetchd.data.faults import EnvironmentFault, SampleFault, UndecodableImage, UnreadableFile, fault_of
from prefetchd.data.files import read_exactly
from prefetchd.data.kinds import expand
from prefetchd.data.parquet.library import PYARROW_BYTES, load_pyarrow
from prefetchd.data.records import Sample
from prefetchd.data.shards import ShardRecords, write_table
from prefetchd.errors import one_line
from prefetchd.ipc.descriptors import memfd_bytes, seal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

log = logging.getLogger("prefetchd")

KEPT_BYTES = 64 << 20
_SLOW_SHUFFLE_BYTES = 8 << 20
_BATCH_BYTES = 1 << 20  # taken out at a time: more would be memory beyond what is planned


class ParquetRecords(ShardRecords):
    """The rows of Parquet files; see `Records`.

    A sample's place is (file, row group, row in it) for images in a column, and (file, row) for paths.
    """

    def __init__(self, facts: dict[str, Any], index_fd: int, paths_fd: int) -> None:
        """Take over the descriptors; `facts` are those of `handle()`. Use `open` or `attach`."""
        super().__init__(facts, index_fd)
        self._paths_fd = paths_fd
        self._is_bytes: bool = facts["is_bytes"]
        self._kept: tuple[int, int] | None = None  # file and row group
        self._data: NDArray[np.uint8] | None = None
        self._ends: list[int] = []  # of each row's image in `_data`
        self._nulls: set[int] = set()
        self._metadata: tuple[int, Any] | None = None

    @classmethod
    def open(cls, config: Config) -> ParquetRecords:
        """Index the files that `config.source` names.

        Raises:
            ManifestError: if one cannot be read, there are no rows, or one of them does not fit.
            ConfigError: if pyarrow is not installed.
        """
        from prefetchd.data.parquet.indexer import ParquetIndexer

        name = one_line(config.source)
        paths = expand(config.source, "parquet", name)
        indexer = ParquetIndexer(config, name)
        try:
            indexer.run(paths)
            facts = indexer.writer.finish(indexer.classes)
            files = write_table(indexer.writer, paths, indexer.identities)
            seal(indexer.paths_fd)
        except BaseException:
            indexer.close()
            raise
        described = {
            "name": name,
            "digest": indexer.digest.hexdigest(),
            "is_bytes": indexer.is_bytes,
            "column": indexer.column,
            "largest": list(indexer.largest_bytes),
        }
        records = cls({**facts, **files, **described}, indexer.writer.seal(), indexer.paths_fd)
        records._warn(config)
        return records

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> ParquetRecords:
        """Return the records that `handle()` described, in another process; it owns `fds` from here on."""
        index_fd, paths_fd = fds
        if handle["is_bytes"]:
            load_pyarrow()
        return cls(handle, index_fd, paths_fd)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        return self._facts, [self._index.fd, self._paths_fd]

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        super().close()
        if self._paths_fd >= 0:
            os.close(self._paths_fd)
        self._paths_fd = -1

    @property
    def shared_bytes(self) -> int:
        """The index, and the paths."""
        return self._index.n_bytes + memfd_bytes(self._paths_fd)

    @property
    def reads_apart(self) -> bool:
        """Whether each is a file of its own; a row group is kept from one to the next."""
        return not self._is_bytes

    @property
    def reader_bytes(self) -> int:
        """pyarrow, and the image column of a row group while it is read: as stored, decompressed, and taken out."""
        if not self._is_bytes:
            return 0
        return PYARROW_BYTES + (self._reading_bytes() if self._facts["largest"][0] <= KEPT_BYTES else 0)

    def _reading_bytes(self) -> int:
        decompressed, stored = self._facts["largest"]
        return int(2 * decompressed + stored)

    def _warn(self, config: Config) -> None:
        """Say once what row groups cost, where they cost much."""
        largest = self._facts["largest"][0]
        if not self._is_bytes or largest <= (_SLOW_SHUFFLE_BYTES if config.shuffle else KEPT_BYTES):
            return
        why = "a shuffled order reads one for each sample" if config.shuffle else "they are too large to be kept"
        log.warning(
            "slow: row groups of %s have up to %s of images, and %s; write the files with a smaller row_group_size "
            "(some 10 images), or convert them to tar shards",
            self.name,
            format_bytes(largest),
            why,
        )

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers; see `Records.samples`."""
        found = []
        for row, label in self._index.rows(sample_ids):
            if self._is_bytes:
                found.append(Sample(self._files.path(row[0]), label, place=row))
            else:
                path = read_exactly(self._paths_fd, row[2], row[3], self.name)
                found.append(Sample(os.fsdecode(path), label, place=row[:2]))
        return found

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the image; see `Records.read`."""
        if not self._is_bytes:
            from prefetchd.data.files import read_file

            return read_file(sample.path, buffer, reserve=reserve)
        file, group, row = sample.place
        fd = self._files.descriptor(file)
        if self._kept != (file, group):
            self._drop()
            if self._facts["largest"][0] > KEPT_BYTES:
                reserve(self._reading_bytes())
            self._take_group(file, group, fd)
        if row in self._nulls:
            raise UnreadableFile("the image is null")
        assert self._data is not None
        start, end = (self._ends[row - 1] if row else 0), self._ends[row]
        if start == end:
            raise UnreadableFile("the image is empty (0 bytes)")
        view = memoryview(self._data)[start:end]  # type: ignore[arg-type, unused-ignore]
        if self._facts["largest"][0] > KEPT_BYTES:
            buffer.view(end - start)[:] = view
            view = buffer.view(end - start)
            self._drop()
        return view

    def _drop(self) -> None:
        self._kept, self._data, self._ends, self._nulls = None, None, [], set()

    def _take_group(self, file: int, group: int, fd: int) -> None:
        """Read the image column of a row group into one buffer of its own: what pyarrow took goes back at once."""
        import numpy as np

        pa, parquet = load_pyarrow()
        try:
            if self._metadata is None or self._metadata[0] != file:
                self._metadata = file, parquet.read_metadata(f"/proc/self/fd/{fd}")
            metadata = self._metadata[1]
            described = metadata.row_group(group)
            column = next(
                found
                for found in map(described.column, range(described.num_columns))
                if found.path_in_schema == self._facts["column"]
            )
            data = np.empty(column.total_uncompressed_size, np.uint8)
            n_rows = max(1, _BATCH_BYTES * described.num_rows // max(1, data.nbytes))
            ends: list[int] = []
            nulls: set[int] = set()
            at, most = 0, max(2 * data.nbytes, 2 * KEPT_BYTES)
            with parquet.ParquetFile(
                f"/proc/self/fd/{fd}", metadata=metadata, pre_buffer=False, buffer_size=1 << 16
            ) as opened:
                batches = opened.iter_batches(
                    n_rows, row_groups=[group], columns=[self._facts["column"]], use_threads=False
                )
                batch = value = image = None
                for batch in batches:
                    for value in _leaf(batch, self._facts["column"]):
                        image = value.as_buffer()
                        if image is None:
                            nulls.add(len(ends))
                        else:
                            if at + image.size > data.nbytes:  # one of a dictionary, given more than once
                                if at + image.size > most:
                                    raise UndecodableImage(f"row group {group} is far larger than its file says")
                                data = np.concatenate([data, np.empty(max(image.size, data.nbytes), np.uint8)])
                            data[at : at + image.size] = np.frombuffer(image, np.uint8)
                            at += image.size
                        ends.append(at)
            del batches, batch, value, image
        except MemoryError as error:
            raise fault_of(error) from None
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, StopIteration) as error:
            raise _damaged(group, error) from None
        except OSError as error:  # pyarrow says so of damaged data too
            raise (_damaged(group, error) if error.errno is None else EnvironmentFault(str(error))) from None
        pa.default_memory_pool().release_unused()  # small pieces stay in the C library's heap otherwise
        self._kept, self._data, self._ends, self._nulls = (file, group), data, ends, nulls

    def where(self, sample: Sample) -> str:
        """File and row, and the path if there is one."""
        if not self._is_bytes:
            file, row = sample.place
            return f"{one_line(os.path.basename(self._files.path(file)))} row {row}: {one_line(sample.path)}"
        _, group, row = sample.place
        return f"{one_line(os.path.basename(sample.path))} row group {group} row {row}"


def _leaf(batch: Any, column: str) -> Any:
    """Return the array of a column, of a nested one by its dotted name; null where a struct around it is."""
    import pyarrow.compute

    if column in batch.schema.names:
        return batch.column(column)
    first, *rest = column.split(".")
    return pyarrow.compute.struct_field(batch.column(first), rest)


def _damaged(group: int, error: BaseException) -> SampleFault:
    what = " ".join(str(error).split())[:200]
    return UndecodableImage(f"row group {group} cannot be read: {what}")
