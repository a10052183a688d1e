"""Arrays from a trainer's memory: rows of columns in a memfd, copied straight into slots."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import Columns
from prefetchd.config.options import Config
from prefetchd.data.arrays.source import MappedSource
from prefetchd.data.kinds import ARRAY_OPTIONS, IMAGE_OPTIONS, LIST_OPTIONS, SEQUENCE_OPTIONS, refuse_given
from prefetchd.ring.layout import xy_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class MemoryArrays(MappedSource):
    """Rows of the column `x`, and of `y` where there is one; else y is the row's number."""

    _kind = "memory_arrays"

    def __init__(self, columns: Columns, name: str) -> None:
        """Take over the columns. Use `open` or `attach`."""
        super().__init__((), columns.fd)
        self._columns = columns
        self._name = name
        self._x = columns["x"].values
        self._y = columns["y"].values if "y" in columns else None
        y = ((), "int64") if self._y is None else (self._y.shape[1:], self._y.dtype.name)
        digest = blake2b(columns.digest.encode(), digest_size=8).hexdigest()
        self.facts = self._make_facts(digest, columns.n_rows, xy_fields((self._x.shape[1:], self._x.dtype.name), y))

    @classmethod
    def open(cls, config: Config, columns: Columns) -> MemoryArrays:
        """Return the source of these columns, in the daemon; owns them.

        Raises:
            ConfigError: if an option means nothing for arrays.
        """
        refuse_given(config, IMAGE_OPTIONS, "images")
        refuse_given(config, tuple(name for name in LIST_OPTIONS if name != "label_columns"), "lists of images")
        refuse_given(config, SEQUENCE_OPTIONS, "ragged sequences (with offsets)")
        refuse_given(config, ARRAY_OPTIONS, "arrays in files")
        return cls(columns, config.source)

    @classmethod
    def attach(cls, config: Config, handle: dict[str, Any], fds: list[int]) -> MemoryArrays:
        """Map the columns, in a reader."""
        return cls(Columns.attach(handle["columns"], fds[0]), config.source)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and the descriptor from which a reader attaches."""
        description, fd = self._columns.handle()
        return {"kind": self._kind, "columns": description}, [fd]

    def close(self) -> None:
        """Close the descriptor."""
        self._columns.close()

    def where(self, sample_id: int) -> str:
        """Name and row of a sample."""
        return f"{self._name} row {sample_id}"

    @property
    def has_labels(self) -> bool:
        """Whether there are labels."""
        return self._y is not None

    def labels(self) -> NDArray[Any] | None:
        """Return y; see `MappedSource.labels`."""
        return self._y

    def _fill(self, epoch: int, ids: NDArray[np.int64], arrays: Sequence[NDArray[Any]]) -> None:
        del epoch
        x, y = arrays
        np.take(self._x, ids, axis=0, out=x, mode="clip")  # "raise" would take a copy of `out` first
        if self._y is None:
            y[:] = ids
        else:
            np.take(self._y, ids, axis=0, out=y, mode="clip")
