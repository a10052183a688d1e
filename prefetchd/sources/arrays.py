"""Arrays in files: rows of `.npy` files, shards or `.npz` members, gathered straight into slots.

The daemon reads headers and some sampled bytes; the data is never loaded. There are no bad samples: a row can be had,
or the file is not what it was (`ManifestError`), or the machine failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.options import Config
from prefetchd.config.units import format_count
from prefetchd.errors import ConfigError, ManifestError
from prefetchd.faults import fault_of
from prefetchd.ipc.reader_messages import Fault
from prefetchd.sources.applicable import (
    COLUMN_OPTIONS,
    IMAGE_OPTIONS,
    LIST_OPTIONS,
    SEQUENCE_OPTIONS,
    refuse_given,
)
from prefetchd.sources.array_set import (
    ArraySet,
    MappedSet,
    array_set_from_wire,
    combined_digest,
    is_npz,
    open_array_set,
    open_npz,
    read_table,
    write_table,
)
from prefetchd.sources.base import ReserveMemory
from prefetchd.sources.mapped_source import MappedSource

if TYPE_CHECKING:
    from numpy.typing import NDArray


class ArraySource(MappedSource):
    """Rows of x, and of y where there are labels; else y is the row's number."""

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
        y: ArraySet | None = None
        if is_npz(config.source):
            x, y = open_npz(config.source, config.x_column, config.y_column)
            if config.labels is not None and config.y_column is not None:
                raise ConfigError(f"cannot take y from labels={config.labels!r} and from y-column: give one of them")
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
        source._digest = digest
        return source

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> ArraySource:
        """Map the files, in a reader."""
        x, y = (None if wire is None else array_set_from_wire(wire) for wire in read_table(fds[0]))
        assert x is not None
        source = cls(x, y, fds[0])
        source._digest = handle["digest"]
        source._x_rows = MappedSet(x, shuffled=config.shuffle)
        source._maps.append(source._x_rows)
        if y is not None:
            source._y_rows = MappedSet(y, shuffled=config.shuffle)
            source._maps.append(source._y_rows)
        return source

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        return {"kind": "arrays", "digest": self._digest}, [self._table_fd]

    @property
    def n_samples(self) -> int:
        """Rows."""
        return self._x.n_rows

    @property
    def versions(self) -> dict[str, str]:
        """The version of what is made of the files' bytes."""
        return {"arrays": "1"}

    @property
    def x(self) -> tuple[tuple[int, ...], str]:
        """The array's own row shape and dtype."""
        return self._x.row_shape, self._x.dtype_name

    @property
    def y(self) -> tuple[tuple[int, ...], str]:
        """The labels' own row shape and dtype; () and int64 without labels."""
        return ((), "int64") if self._y is None else (self._y.row_shape, self._y.dtype_name)

    def where(self, sample_id: int) -> str:
        """File and row of a sample."""
        return self._x.where(sample_id)

    def fill(
        self,
        epoch: int,
        sample_ids: NDArray[np.int64],
        rows: Sequence[int],
        x: NDArray[Any],
        y: NDArray[Any],
        reserve: ReserveMemory,
    ) -> list[Fault]:
        """Gather the rows of a chunk, or read a single one; `rows` follow one another."""
        into = slice(rows[0], rows[0] + len(sample_ids))
        x, y = x[into], y[into]
        if len(sample_ids) == 1:
            sample_id = int(sample_ids[0])
            try:
                self._x_rows.read(sample_id, x)
                if self._y_rows is not None:
                    self._y_rows.read(sample_id, y)
            except OSError as error:
                return [unreadable(error, rows[0], sample_id, self.where(sample_id))]
            if self._y_rows is None:
                y[0] = sample_id
            return []
        ids = np.asarray(sample_ids, np.int64)
        self._x_rows.gather(ids, x)
        if self._y_rows is None:
            y[:] = ids
        else:
            self._y_rows.gather(ids, y)
        return []


def check_counts(x: ArraySet, n_samples: int, y: ArraySet | None) -> None:
    """Raise `ManifestError` unless there are samples, and a label for each."""
    if not n_samples:
        raise ManifestError(f"cannot serve {x.name}: it has no samples; give an array with a row for each")
    if y is not None and y.n_rows != n_samples:
        raise ManifestError(
            f"cannot serve: {x.name} has {format_count(n_samples, 'sample')} and {y.name} has "
            f"{format_count(y.n_rows, 'label')}; give as many labels as samples"
        )


def unreadable(error: OSError, row: int, sample_id: int, where: str) -> Fault:
    """Return the fault for a row that the machine did not give."""
    return Fault(
        row=row,
        sample_id=sample_id,
        where=where,
        reason=fault_of(error).reason,
        content=False,
        needs_fresh_reader=False,
    )
