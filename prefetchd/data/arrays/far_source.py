"""Rows of `.npy` files in a store of objects, each by a request for its range; labels are downloaded at the start."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.data.arrays.array_set import ArraySet, array_set_from_wire, read_table, write_table
from prefetchd.data.arrays.far_file import SmallArray, check_large, far_digest, mapped, open_far_set, open_small
from prefetchd.data.arrays.far_rows import FarRows, Span
from prefetchd.data.arrays.source import MappedSource, check_counts
from prefetchd.data.faults import SampleFault
from prefetchd.data.kinds import COLUMN_OPTIONS, IMAGE_OPTIONS, LIST_OPTIONS, SEQUENCE_OPTIONS, refuse_given
from prefetchd.data.shards import STORE_BYTES
from prefetchd.data.source import ReserveMemory, SourceFacts
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.layout import FieldLayout, xy_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_TASK_ROWS = 64


class FarSource(MappedSource):
    """The base of sources of arrays in a store. Owns the table's descriptor, and those of small arrays.

    Args:
        files: its objects.
        table_fd: see `MappedSource`.
        small: arrays that are in memory whole, owned, in order; `None` for one that is not given.
    """

    def __init__(self, files: ArraySet, table_fd: int, small: Sequence[SmallArray | None]) -> None:
        super().__init__((), table_fd)
        self._x = files
        self._small = small
        self._values = [None if each is None else mapped(each) for each in small]
        self._rows: FarRows | None = None

    def close(self) -> None:
        """Give the descriptors back."""
        super().close()
        for each in self._small:
            if each is not None:
                os.close(each.fd)

    def _far_facts(self, digest: str, n_samples: int, fields: tuple[FieldLayout, ...]) -> SourceFacts:
        small_bytes = sum(0 if each is None else os.fstat(each.fd).st_blocks * 512 for each in self._small)
        return SourceFacts(
            n_samples=n_samples,
            digest=digest,
            versions={self._kind: "1"},
            fields=fields,
            shared_bytes=os.fstat(self._table_fd).st_blocks * 512 + small_bytes,
            reader_bytes=STORE_BYTES + self._x.files[0].row_bytes,
            max_task_rows=_MAX_TASK_ROWS,
            is_far=True,
        )

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        fds = [each.fd for each in self._small if each is not None]
        return {"kind": self._wire_kind, "digest": self.facts.digest, **self._more()}, [self._table_fd, *fds]

    _wire_kind: str

    def _more(self) -> dict[str, Any]:
        return {}

    @property
    def read_s(self) -> float:
        """Seconds that a request takes, in readers."""
        return 0.0 if self._rows is None else self._rows.read_s

    @property
    def waited_s(self) -> float:
        """Seconds that all calls of `fill` have waited for requests."""
        return 0.0 if self._rows is None else self._rows.waited_s

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Begin to fetch these rows."""
        assert self._rows is not None, "only in a process that attached"
        self._rows.expect(sample_ids)

    def check_unchanged(self) -> None:
        """Do nothing: each request says which object it is for."""

    def confirm(self) -> None:
        """Do nothing, as in `check_unchanged`."""

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Write the samples of a chunk; see `Source.fill`."""
        del epoch
        faults = []
        for sample_id, row in zip(np.asarray(sample_ids).tolist(), rows, strict=True):
            try:
                self._row(sample_id, [array[row : row + 1] for array in arrays], reserve)
            except SampleFault as fault:
                where = self.where(sample_id)
                faults.append(Fault(row, sample_id, where, fault.reason, content=False, needs_fresh_reader=False))
        return faults

    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        raise AssertionError("fill writes row by row, as each may have a fault of its own")

    @abstractmethod
    def _row(self, sample_id: int, arrays: Sequence[NDArray[Any]], reserve: ReserveMemory) -> None:
        """Write a sample into `arrays`, each with one row."""


class FarArrays(FarSource):
    """Rows of x, and of y where there are labels; else y is the row's number."""

    _kind = "arrays"
    _wire_kind = "far_arrays"

    @classmethod
    def open(cls, config: Config) -> FarArrays:
        """Check headers, shapes and sizes of what the configuration names."""
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, LIST_OPTIONS, "lists of images")
        refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences (with offsets)")
        refuse_given(config, COLUMN_OPTIONS, "tables and .npz files")
        x = open_far_set(config.source)
        check_large(x.files[0].row_bytes, x.name, "rows")
        labels = None if config.labels is None else open_small(config.labels, "labels")
        try:
            check_counts(x, x.n_rows, None if labels is None else labels.files)
            x.check_batch(config.batch_size)
            if labels is not None:
                labels.files.check_batch(config.batch_size)
            wire = [x.to_wire(), None if labels is None else labels.files.to_wire()]
            source = cls(x, write_table(wire), [labels])
        except BaseException:
            if labels is not None:
                os.close(labels.fd)
            raise
        digests = b"arrays" + far_digest(x) + (b"none" if labels is None else labels.digest)  # as of files
        digest = blake2b(digests, digest_size=8).hexdigest()
        source.facts = source._far_facts(digest, x.n_rows, source._fields())
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> FarArrays:
        """Return, in a reader, the source that the daemon opened; owns `fds`."""
        del config
        x, y = (None if wire is None else array_set_from_wire(wire) for wire in read_table(fds[0]))
        assert x is not None
        source = cls(x, fds[0], [None if y is None else SmallArray(y, fds[1], b"")])
        source.facts = source._far_facts(handle["digest"], x.n_rows, source._fields())
        source._rows = FarRows(x.files, source._span, source._span_of_run)
        return source

    def _fields(self) -> tuple[FieldLayout, ...]:
        y = self._values[0]
        labels = ((), "int64") if y is None else (y.shape[1:], y.dtype.name)
        return xy_fields((self._x.row_shape, self._x.dtype_name), labels)

    def _span(self, row: int) -> Span:
        return self._span_of_run(row, 1)

    def _span_of_run(self, first: int, count: int) -> Span:
        number = int(np.searchsorted(self._x.starts, first, "right")) - 1
        file = self._x.files[number]
        return number, file.offset_bytes + (first - self._x.starts[number]) * file.row_bytes, count * file.row_bytes

    def _row(self, sample_id: int, arrays: Sequence[NDArray[Any]], reserve: ReserveMemory) -> None:
        x, y = arrays
        assert self._rows is not None, "only in a process that attached"
        content = self._rows.row(sample_id, reserve)
        x[0] = np.frombuffer(content, self._x.files[0].dtype).reshape(self._x.row_shape)
        y[0] = sample_id if self._values[0] is None else self._values[0][sample_id]

    def where(self, sample_id: int) -> str:
        """File and row of a sample."""
        return self._x.where(sample_id)

    def labels(self) -> NDArray[Any] | None:
        """Return y; see `MappedSource.labels`."""
        return self._values[0]

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""
        return self._values[0] is not None
