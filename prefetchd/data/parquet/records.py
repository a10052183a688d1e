"""Parquet files: encoded images in a column, or their paths, with labels in other columns. Needs pyarrow.

`ParquetRecords.open` indexes the rows in the daemon (`indexer`). Paths are then files like a manifest's. Images in a
column come by row group, the smallest piece that pyarrow reads: a reader keeps the images of the last one that it read.
The plan has memory for that in each reader (`reader_bytes`), up to `KEPT_BYTES`. Of larger row groups a reader keeps a
block of rows, and reserves what pyarrow takes to get there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes
from prefetchd.data.files import read_exactly
from prefetchd.data.kinds import expand
from prefetchd.data.named_files import NamedFiles, pins_for
from prefetchd.data.parquet.library import PYARROW_BYTES, load_pyarrow
from prefetchd.data.parquet.row_group import RowBlock, describe_column, read_metadata, read_rows
from prefetchd.data.records import Sample
from prefetchd.data.shards import STORE_BYTES, ShardRecords, write_table
from prefetchd.data.stores.urls import file_name
from prefetchd.errors import ManifestError, one_line
from prefetchd.ipc.descriptors import memfd_bytes, seal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.parquet.far_groups import FarGroups
    from prefetchd.data.source import ReserveMemory

log = logging.getLogger("prefetchd")

KEPT_BYTES = 64 << 20
BLOCK_BYTES = 8 << 20  # of images that are kept of a larger row group
_SLOW_SHUFFLE_BYTES = 8 << 20
_DICTIONARY_COPIES = 5  # that pyarrow and this module have of a column at once whose type is a dictionary


class ParquetRecords(ShardRecords):
    """The rows of Parquet files; see `Records`.

    A sample's place is (file, row group, row in it) for images in a column, and (file, row) for paths.
    """

    def __init__(self, facts: dict[str, Any], index_fd: int, paths_fd: int, pins_fd: int = -1) -> None:
        """Take over the descriptors; `facts` are those of `handle()`. Use `open` or `attach`."""
        super().__init__(facts, index_fd)
        self._paths_fd = paths_fd
        self._named = NamedFiles("/", pins_fd)
        self._is_bytes: bool = facts["is_bytes"]
        self._kept: tuple[tuple[int, int], RowBlock] | None = None  # by file and number
        self._metadata: tuple[int, Any] | None = None
        self._far: FarGroups | None = None
        if self._is_bytes and facts["is_far"]:
            from prefetchd.data.parquet.far_groups import FarGroups, groups_held

            self._far = FarGroups(self._files, facts["column"], groups_held(self._reading_bytes))

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
            "is_dictionary": indexer.is_dictionary,
            "largest": list(indexer.largest_bytes),
        }
        pins_fd = pins_for(facts["samples"], is_far=indexer.any_url)
        records = cls({**facts, **files, **described}, indexer.writer.seal(), indexer.paths_fd, pins_fd)
        try:
            records._refuse_large()
        except BaseException:
            records.close()
            raise
        records._warn(config)
        return records

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> Self:
        """Return the records that `handle()` described, in another process; it owns `fds` from here on."""
        if handle["is_bytes"]:
            load_pyarrow()
        return cls(handle, *fds)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        return self._facts, [self._index.fd, self._paths_fd, *self._named.fds]

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        super().close()
        self._named.close()
        if self._paths_fd >= 0:
            os.close(self._paths_fd)
        self._paths_fd = -1

    @property
    def shared_bytes(self) -> int:
        """The index, the paths, and the identities of objects."""
        return self._index.n_bytes + sum(map(memfd_bytes, (self._paths_fd, *self._named.fds)))

    @property
    def is_far(self) -> bool:
        """Whether the images are objects, or in objects."""
        return super().is_far if self._is_bytes else self._named.is_far

    @property
    def reads_apart(self) -> bool:
        """Whether each is a file of its own, or in an object; a row group of a file is kept from one to the next."""
        return not self._is_bytes or self._far is not None

    @property
    def reader_bytes(self) -> int:
        """pyarrow, and the images of a row group while they are read; of a large one, the block that is kept."""
        if not self._is_bytes:
            return STORE_BYTES if self.is_far else 0
        if self._far is not None:
            from prefetchd.data.parquet.far_groups import METADATA_BYTES, groups_held

            return PYARROW_BYTES + STORE_BYTES + METADATA_BYTES + groups_held(self._reading_bytes) * self._reading_bytes
        return PYARROW_BYTES + (BLOCK_BYTES if self._is_large else self._reading_bytes)

    @property
    def _is_large(self) -> bool:
        return bool(self._facts["largest"][0] > KEPT_BYTES)

    @property
    def _reading_bytes(self) -> int:
        """What the largest row group takes while it is read whole: as stored, decompressed, and copied."""
        decompressed, stored = self._facts["largest"]
        copies = _DICTIONARY_COPIES if self._facts["is_dictionary"] else 2
        return int(copies * decompressed + stored)

    def _refuse_large(self) -> None:
        """Raise `ManifestError` for row groups of objects that are too large to be fetched for a sample."""
        largest = self._facts["largest"][0]
        if self._far is not None and self._is_large:
            raise ManifestError(
                f"cannot serve {self.name} from a store: row groups have up to {format_bytes(largest)} of images, each "
                f"is fetched whole for a sample, and {format_bytes(KEPT_BYTES)} is the most; write the files with a "
                "smaller row_group_size (some 10 images), or convert them to tar shards"
            )

    def _warn(self, config: Config) -> None:
        """Say once what row groups cost, where they cost much."""
        largest = self._facts["largest"][0]
        if not self._is_bytes or largest <= (_SLOW_SHUFFLE_BYTES if config.shuffle else KEPT_BYTES):
            return
        why = "a shuffled order reads one for each sample" if config.shuffle else "they are too large to be kept whole"
        log.warning(
            "slow: row groups of %s have up to %s of images, and %s; write the files with a smaller row_group_size "
            "(some 10 images), or convert them to tar shards",
            self.name,
            format_bytes(largest),
            why,
        )

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of each sample's file, and its row group and row there; see `ShardRecords.places`."""
        table = self._index.table()
        return table[:, 0], (table[:, 1] << 32) + table[:, 2] if self._is_bytes else table[:, 1]

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers; see `Records.samples`."""
        found = []
        numbers = [int(sample_id) for sample_id in sample_ids]
        for number, (row, label) in zip(numbers, self._index.rows(numbers), strict=True):
            if self._is_bytes:
                found.append(Sample(self._files.path(row[0]), label, place=row))
            else:
                path = read_exactly(self._paths_fd, row[2], row[3], self.name)
                found.append(Sample(os.fsdecode(path), label, place=row[:2], pin=number if self.is_far else -1))
        return found

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the image; see `Records.read`."""
        if not self._is_bytes:
            return self._named.read(sample.path, sample.pin, buffer, reserve)
        file, group, row = sample.place
        if self._far is not None:
            content = self._far.image(file, group, row)
            if len(content) > buffer.capacity_bytes:
                reserve(len(content))
            view = buffer.view(len(content))
            view[:] = content
            return view
        fd = self._files.descriptor(file)
        if self._kept is not None and self._kept[0] == (file, group) and row in self._kept[1]:
            return self._kept[1].image(row)
        self._kept = None
        metadata, name = self._metadata_of(file, group, fd), self._facts["column"]
        column = describe_column(fd, metadata, group, name)
        capacity_bytes, working_bytes = column.bytes, 0
        if self._is_large:
            capacity_bytes = min(capacity_bytes, BLOCK_BYTES)
            working_bytes = self._reading_bytes if self._facts["is_dictionary"] else column.working_bytes
            reserve(working_bytes)
        block = read_rows(fd, metadata, group, name, column, row, capacity_bytes)
        if block.capacity_bytes <= capacity_bytes:
            self._kept = (file, group), block
            return block.image(row)
        view = block.image(row)
        if len(view) > buffer.capacity_bytes:
            reserve(working_bytes + 2 * len(view))
        copy = buffer.view(len(view))
        copy[:] = view
        return copy

    def _metadata_of(self, file: int, group: int, fd: int) -> Any:
        """Return what pyarrow says of a file, read once for rows of one file that follow one another."""
        if self._metadata is None or self._metadata[0] != file:
            self._metadata = file, read_metadata(fd, group)
        return self._metadata[1]

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return the state of an object; see `Records.object_state`."""
        if self._is_bytes:
            return super().object_state(sample, ask)
        return self._named.state(sample.path, sample.pin, ask)

    def where(self, sample: Sample) -> str:
        """File and row, and the path if there is one."""
        if not self._is_bytes:
            file, row = sample.place
            return f"{one_line(file_name(self._files.path(file)))} row {row}: {one_line(sample.path)}"
        _, group, row = sample.place
        return f"{one_line(file_name(sample.path))} row group {group} row {row}"
