"""Writes a table of columns into a memfd, in one pass and without work for each row.

A column of text comes in *blocks*: the lengths of some rows, and their bytes behind one another, as Arrow, numpy and
`"".join` have them. A block is written as it comes, so a table of any length takes little memory beside the memfd's.

    writer = ColumnsWriter(n_rows)
    writer.add_strings("path", text_blocks(paths))
    writer.add_numbers("label", np.array(labels))
    description, fd = writer.finish()

`values.py` makes blocks of lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.columns.store import ALIGNMENT_BYTES, MAX_ROWS, ColumnLayout, Kind
from prefetchd.ipc.descriptors import memfd, seal
from prefetchd.ring.layout import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_BYTES = 16 << 20  # written at once of an array that has to be copied first
# Lengths of the rows of a block, and their values behind one another: an array, or any object with the buffer protocol.
Block = tuple["NDArray[Any]", Any]


class ColumnsWriter:
    """Writes columns of `n_rows` rows each; `finish` hands the memfd over, `close` gives it back after an error.

    Methods raise `ValueError` for a column that does not fit, with words that follow "cannot use the column NAME: ".
    """

    def __init__(self, n_rows: int) -> None:
        if not 0 <= n_rows <= MAX_ROWS:
            raise ValueError(f"a table has no {n_rows} rows")
        self.n_rows = n_rows
        self._layouts: dict[str, ColumnLayout] = {}
        self._fd = memfd("prefetchd-columns")
        self._end = 0

    def __enter__(self) -> ColumnsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the memfd, unless `finish` handed it over; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def add_numbers(self, name: str, values: NDArray[Any], missing: NDArray[np.bool_] | None = None) -> None:
        """Add a column of numbers: (rows, ...) of a dtype that a batch can hold."""
        self._check_new(name)
        if values.dtype.name not in DTYPES:
            raise ValueError(f"its dtype is {values.dtype}; give one of {', '.join(DTYPES)}")
        if values.ndim < 1 or len(values) != self.n_rows:
            raise ValueError(f"it has the shape {values.shape}, and the table {self.n_rows} rows")
        native = values.dtype.newbyteorder("=")
        shape = values.shape[1:]
        digest = _digest("numbers", native.name, shape, self.n_rows)
        at = self._align()
        row_bytes = max(1, native.itemsize * int(np.prod(shape, dtype=np.int64)))
        step = max(1, _BLOCK_BYTES // row_bytes)
        for first in range(0, self.n_rows, step):
            self._write(np.ascontiguousarray(values[first : first + step], native), digest)
        self._add(name, "numbers", native.name, shape, self.n_rows, at, None, missing, digest)

    def add_strings(self, name: str, blocks: Iterable[Block], missing: NDArray[np.bool_] | None = None) -> None:
        """Add a column of text: lengths in bytes, and UTF-8 (other bytes come out as surrogate escapes)."""
        self._varying(name, "strings", "uint8", (), blocks, missing)

    def add_bytes(self, name: str, blocks: Iterable[Block], missing: NDArray[np.bool_] | None = None) -> None:
        """Add a column of bytes, such as encoded images."""
        self._varying(name, "bytes", "uint8", (), blocks, missing)

    def add_ragged(
        self,
        name: str,
        blocks: Iterable[Block],
        dtype: str,
        shape: tuple[int, ...] = (),
        missing: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add a column with any number of values a row, each of `shape` and `dtype`.

        Lengths count values; the values of a block are an array (count, *shape).
        """
        if dtype not in DTYPES:
            raise ValueError(f"its dtype is {dtype}; give one of {', '.join(DTYPES)}")
        self._varying(name, "ragged", dtype, shape, blocks, missing)

    def finish(self, attributes: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], int]:
        """Seal the table; return its description and its descriptor, the caller's from now on.

        Args:
            attributes: plain JSON values that belong to the table.
        """
        layouts = self._layouts.values()
        attributes = dict(attributes or {})
        head = {"rows": self.n_rows, "attributes": attributes, "columns": [layout.to_wire() for layout in layouts]}
        at = self._align()
        length = self._write(json.dumps(head).encode(), None)
        seal(self._fd)
        content = json.dumps([self.n_rows, [[each.name, each.digest] for each in layouts], attributes])
        digest = blake2b(content.encode(), digest_size=16).hexdigest()
        description = {"bytes": self._end, "head": [at, length], "digest": digest}
        fd, self._fd = self._fd, -1
        return description, fd

    def _varying(
        self,
        name: str,
        kind: Kind,
        dtype: str,
        shape: tuple[int, ...],
        blocks: Iterable[Block],
        missing: NDArray[np.bool_] | None,
    ) -> None:
        self._check_new(name)
        value_bytes = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
        digest = _digest(kind, dtype, shape, self.n_rows)
        offsets = np.zeros(self.n_rows + 1, np.int64)
        at, row = self._align(), 0
        for lengths, values in blocks:
            end = row + len(lengths)
            if end > self.n_rows:
                raise ValueError(f"it has more than the table's {self.n_rows} rows")
            if len(lengths) and int(lengths.min()) < 0:
                raise ValueError("a row has a length below 0")
            np.cumsum(lengths, out=offsets[row + 1 : end + 1])
            offsets[row + 1 : end + 1] += offsets[row]
            n_bytes = self._write(values, digest)
            if n_bytes != int(offsets[end] - offsets[row]) * value_bytes:
                raise ValueError(f"{n_bytes} bytes came for {int(offsets[end] - offsets[row])} values")
            row = end
        if row != self.n_rows:
            raise ValueError(f"it has {row} rows, and the table {self.n_rows}")
        self._add(name, kind, dtype, shape, int(offsets[-1]), at, offsets, missing, digest)

    def _check_new(self, name: str) -> None:
        if name in self._layouts:
            raise ValueError("there are two of this name")

    def _add(
        self,
        name: str,
        kind: Kind,
        dtype: str,
        shape: tuple[int, ...],
        n_values: int,
        values_at: int,
        offsets: NDArray[np.int64] | None,
        missing: NDArray[np.bool_] | None,
        digest: blake2b,
    ) -> None:
        """Write what stands behind the values, and take the column in."""
        offsets_at = missing_at = -1
        if offsets is not None:
            offsets_at = self._align()
            self._write(offsets, digest)
        if missing is not None and missing.any():
            if missing.shape != (self.n_rows,):
                raise ValueError(f"{missing.shape} marks of missing values came for {self.n_rows} rows")
            missing_at = self._align()
            self._write(np.ascontiguousarray(missing, np.bool_), digest)
        places = (values_at, offsets_at, missing_at)
        self._layouts[name] = ColumnLayout(name, kind, dtype, tuple(shape), n_values, *places, digest.hexdigest())

    def _align(self) -> int:
        """Go on at the next boundary; return where that is."""
        self._write(bytes(-self._end % ALIGNMENT_BYTES), None)
        return self._end

    def _write(self, content: Any, digest: blake2b | None) -> int:
        """Append bytes; return how many."""
        if isinstance(content, np.ndarray):
            content = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        view = memoryview(content)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        if digest is not None:
            digest.update(view)
        at = 0
        while at < view.nbytes:
            at += os.write(self._fd, view[at : at + _BLOCK_BYTES])
        self._end += at
        return at


def _digest(kind: str, dtype: str, shape: tuple[int, ...], n_rows: int) -> blake2b:
    return blake2b(json.dumps([kind, dtype, list(shape), n_rows]).encode(), digest_size=16)
