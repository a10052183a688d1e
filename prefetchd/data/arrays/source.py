"""Arrays in files: rows of `.npy` files, shards or `.npz` members, gathered straight into slots.

The daemon reads headers and some sampled bytes, and never loads the data. There are no bad samples: a row can be read,
or the file has changed (`ManifestError`), or the machine failed. `MappedSource` is the base of this source and of
`SequenceSource`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from prefetchd.config.options import MAX_BATCH_SIZE, Config
from prefetchd.config.units import format_count
from prefetchd.data.arrays.array_set import (
    ArraySet,
    array_set_from_wire,
    combined_digest,
    is_npz,
    open_array_set,
    open_npz,
    read_table,
    write_table,
)
from prefetchd.data.arrays.mapped_rows import MappedSet
from prefetchd.data.faults import fault_of
from prefetchd.data.kinds import (
    COLUMN_OPTIONS,
    IMAGE_OPTIONS,
    LIST_OPTIONS,
    SEQUENCE_OPTIONS,
    refuse_given,
)
from prefetchd.data.source import ReserveMemory, SourceFacts
from prefetchd.data.stores.urls import is_url, shown
from prefetchd.errors import ConfigError, ManifestError, one_line
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.layout import FieldLayout, xy_fields

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Mapped(Protocol):
    """What a reader has mapped."""

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that was read since the last call is not as it was."""

    def close(self) -> None:
        """Give descriptors and maps back."""


class MappedSource(ABC):
    """The base of sources whose rows come from maps of array files. Owns the table's descriptor, and a reader's maps.

    Args:
        files: its arrays, which `check_unchanged` looks at.
        table_fd: a memfd with the files for the readers; -1 until there is one.
    """

    _kind: str  # as the registry names it

    def __init__(self, files: Sequence[ArraySet | None], table_fd: int) -> None:
        self._files = [each for each in files if each is not None]
        self._table_fd = table_fd
        self.facts: SourceFacts
        self._turn = 0
        self._maps: list[Mapped] = []

    def close(self) -> None:
        """Give all descriptors back, and a reader's maps."""
        os.close(self._table_fd)
        while self._maps:
            self._maps.pop().close()

    @property
    def read_s(self) -> float:
        """Nothing: the kernel reads ahead in a mapped file."""
        return 0.0

    @property
    def waited_s(self) -> float:
        """Not known: a reader waits where it touches a page."""
        return 0.0

    def expect(self, sample_ids: Iterable[int]) -> None:
        """Do nothing; see `read_s`."""
        del sample_ids

    @property
    def cache(self) -> None:
        """None: nothing is decoded."""
        return

    def _make_facts(
        self, digest: str, n_samples: int, fields: tuple[FieldLayout, ...], *, more_shared_bytes: int = 0, **more: Any
    ) -> SourceFacts:
        """Return the facts; the table of files must have been written.

        `digest` follows headers, sizes and sampled data of all files; see `ArrayFile.digest`. `more` are other facts.
        """
        return SourceFacts(
            n_samples=n_samples,
            digest=digest,
            versions={self._kind: "1"},  # of what is made of the files' bytes
            fields=fields,
            shared_bytes=os.fstat(self._table_fd).st_blocks * 512 + more_shared_bytes,
            max_task_rows=MAX_BATCH_SIZE,  # there are no bad rows to report
            answers_together=True,  # a batch of rows costs as much as a message
            **more,
        )

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file was written to, replaced or removed."""
        self._turn += 1
        for each in self._files:
            each.check_unchanged(self._turn)

    def confirm(self) -> None:
        """Raise `ManifestError` if a file that rows were taken from since the last call is not as it was."""
        for maps in self._maps:
            maps.confirm()

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Write the samples of a chunk; `rows` follow one another. A single sample is read without a map."""
        ids = np.asarray(sample_ids, np.int64)
        into = slice(rows[0], rows[0] + len(ids))
        try:
            self._fill(epoch, ids, [array[into] for array in arrays])
        except OSError as error:
            if len(ids) > 1:
                raise
            return [_unreadable(error, rows[0], int(ids[0]), self.where(int(ids[0])))]
        return []

    def labels(self) -> NDArray[Any] | None:
        """Return the labels, (samples, ...), numbers; `None` without any. Of labels that are arrays no row is read."""
        return None

    @property
    def has_labels(self) -> bool:
        """Whether y is more than the row's number."""
        return True

    @abstractmethod
    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        """Write the samples `ids`, as they are in `epoch`, into `arrays`; an `OSError` is the fault of the only one."""

    @abstractmethod
    def where(self, sample_id: int) -> str:
        """Return where a sample is, for errors."""


class ArraySource(MappedSource):
    """Rows of x, and of y where there are labels; else y is the row's number."""

    _kind = "arrays"

    def __init__(self, x: ArraySet, y: ArraySet | None, table_fd: int) -> None:
        """Take over `table_fd`, which has `x` and `y` for the readers. Use `open` or `attach`."""
        super().__init__((x, y), table_fd)
        self._x = x
        self._y = y
        self._x_rows: MappedSet
        self._y_rows: MappedSet | None = None

    @classmethod
    def open(cls, config: Config) -> ArraySource:
        """Check headers, shapes and sizes of what the configuration names."""
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, LIST_OPTIONS, "lists of images")
        refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences (with offsets)")
        refuse_far_labels(config)
        y: ArraySet | None = None
        if is_npz(config.source):
            x, y = open_npz(config.source, config.x_column, config.y_column)
            if config.labels is not None and config.y_column is not None:
                raise ConfigError(
                    f"cannot take y from labels={config.labels!r} and from y_column={config.y_column!r}; "
                    "give one of them"
                )
        else:
            refuse_given(config, COLUMN_OPTIONS, "tables and .npz files")
            x = open_array_set(config.source)
        if config.labels is not None:
            y = open_array_set(config.labels)
        check_counts(x, x.n_rows, y)
        x.check_batch(config.batch_size)
        if y is not None:
            y.check_batch(config.batch_size)
        digest = combined_digest("arrays", x, y)
        source = cls(x, y, write_table([x.to_wire(), None if y is None else y.to_wire()]))
        source.facts = source._make_facts(digest, x.n_rows, source._fields())
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> ArraySource:
        """Map the files, in a reader."""
        x, y = (None if wire is None else array_set_from_wire(wire) for wire in read_table(fds[0]))
        assert x is not None
        source = cls(x, y, fds[0])
        source.facts = source._make_facts(handle["digest"], x.n_rows, source._fields())
        source._x_rows = MappedSet(x, shuffled=config.shuffle)
        source._maps.append(source._x_rows)
        if y is not None:
            source._y_rows = MappedSet(y, shuffled=config.shuffle)
            source._maps.append(source._y_rows)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        return {"kind": self._kind, "digest": self.facts.digest}, [self._table_fd]

    def _fields(self) -> tuple[FieldLayout, ...]:
        """Return both arrays' own row shapes and dtypes; y is () and int64 without labels."""
        x, y = self._x, self._y
        labels = ((), "int64") if y is None else (y.row_shape, y.dtype_name)
        return xy_fields((x.row_shape, x.dtype_name), labels)

    def where(self, sample_id: int) -> str:
        """File and row of a sample."""
        return self._x.where(sample_id)

    def labels(self) -> NDArray[Any] | None:
        """Return y, read whole; see `MappedSource.labels`."""
        return None if self._y is None else read_rows(self._y)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""
        return self._y is not None

    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        del epoch
        x, y = arrays
        self._x_rows.fill(ids, x)
        if self._y_rows is None:
            y[:] = ids
        else:
            self._y_rows.fill(ids, y)


def refuse_far_labels(config: Config) -> None:
    """Raise `ConfigError` for labels or offsets in a store of rows that are files here."""
    for option, path in (("labels", config.labels), ("offsets", config.offsets)):
        if path is not None and is_url(path):
            raise ConfigError(
                f"cannot take {option} from {one_line(shown(path))} for {one_line(config.source)}, which is a file "
                "here; download them, and give their path"
            )


def read_rows(files: ArraySet) -> NDArray[Any]:
    """Return all rows of an array whose rows are numbers; of another none, in its shape."""
    if files.row_shape:
        return np.empty((0, *files.row_shape), files.dtype_name)
    found = np.empty(files.n_rows, files.dtype_name)
    rows = MappedSet(files, shuffled=False)
    try:
        rows.gather(np.arange(files.n_rows), found)
        rows.confirm()
    finally:
        rows.close()
    return found


def check_counts(x: ArraySet, n_samples: int, y: ArraySet | None) -> None:
    """Raise `ManifestError` unless there are samples, and a label for each."""
    if not n_samples:
        raise ManifestError(f"cannot serve {x.name}: it has no samples; give an array with a row for each")
    if y is not None and y.n_rows != n_samples:
        raise ManifestError(
            f"cannot serve: {x.name} has {format_count(n_samples, 'sample')} and {y.name} has "
            f"{format_count(y.n_rows, 'label')}; give as many labels as samples"
        )


def _unreadable(error: OSError, row: int, sample_id: int, where: str) -> Fault:
    """Return the fault for a row that the machine did not give."""
    return Fault(
        row=row,
        sample_id=sample_id,
        where=where,
        reason=fault_of(error).reason,
        content=False,
        needs_fresh_reader=False,
    )
