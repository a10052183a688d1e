"""The column store: named columns with one value a row, in one sealed memfd that any number of processes map.

    column: | values | offsets, where rows differ in length: (rows + 1) int64 | missing: (rows) bool, where some are |
    column: ...
    head: the names, kinds and places of the columns, and the table's attributes, as JSON
    ^ each part starts on a 64-byte boundary

`writer.ColumnsWriter` makes it. The *description* says where the head is, in a few plain values for a message. A
process attaches with the description and the descriptor: nothing is copied, and a table of any length costs a reader no
memory of its own. Numbers come out as views of the map. The kernel frees the memory with the last descriptor and map.

Attaching checks that each part lies in the memfd, and that the memfd is sealed: nobody can shorten or change it under a
reader. Offsets are checked as rows are read.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from prefetchd.errors import ManifestError
from prefetchd.ipc.descriptors import memfd_bytes
from prefetchd.ring.layout import DTYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["numbers", "strings", "bytes", "ragged"]
ALIGNMENT_BYTES = 64
MAX_ROWS = 1 << 40
_MAX_BYTES = 1 << 50
_BLOCK_ROWS = 1 << 16
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_NONE = -1  # the place of a part that a column does not have


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """Where one column is, and what it holds.

    Attributes:
        name: of the column.
        kind: numbers of one shape, text, bytes, or ragged: any number of values a row.
        dtype: numpy name of the values' dtype; uint8 for text and bytes.
        shape: of one row of numbers, or of one value of ragged numbers.
        n_values: values of all rows together; the rows for numbers, the bytes for text.
        values_at, offsets_at, missing_at: offsets in bytes; -1 for a part that it does not have.
        digest: 32 hexadecimal digits that follow its content, not its name.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...]
    n_values: int
    values_at: int
    offsets_at: int
    missing_at: int
    digest: str

    def to_wire(self) -> list[Any]:
        """Return it as plain values."""
        wire = (self.n_values, self.values_at, self.offsets_at, self.missing_at, self.digest)
        return [self.name, self.kind, self.dtype, list(self.shape), *wire]

    def check(self, n_rows: int, n_bytes: int) -> None:
        """Raise `ValueError` unless each part lies in a memfd of `n_bytes`."""
        varies = self.kind != "numbers"
        if self.kind not in get_args(Kind) or self.dtype not in DTYPES:
            raise ValueError(f"the column {self.name!r} has the kind {self.kind!r} and the dtype {self.dtype!r}")
        if any(not 0 <= side <= MAX_ROWS for side in (*self.shape, self.n_values)):
            raise ValueError(f"the column {self.name!r} has values of the shape {self.shape}")
        if (not varies and self.n_values != n_rows) or (self.offsets_at != _NONE) != varies:
            raise ValueError(f"the column {self.name!r} has {self.n_values} values for {n_rows} rows")
        values_bytes = self.n_values * math.prod(self.shape) * np.dtype(self.dtype).itemsize
        parts = ((self.values_at, values_bytes), (self.offsets_at, 8 * (n_rows + 1)), (self.missing_at, n_rows))
        for at, length in parts:
            if at != _NONE and not (at >= 0 and at % ALIGNMENT_BYTES == 0 and at + length <= n_bytes):
                raise ValueError(f"the column {self.name!r} ends at byte {at + length} of {n_bytes}")


class Column:
    """One column: `column[i]` is the value of a row, `column.rows(ids)` those of several.

    Attributes:
        layout: its name, kind, dtype and shape.
        values: numbers (rows, *shape), or the values of all rows behind one another; a read-only view.
    """

    def __init__(self, layout: ColumnLayout, n_rows: int, memory: NDArray[np.uint8]) -> None:
        self.layout = layout
        self._n_rows = n_rows
        self.values: NDArray[Any] = np.ndarray((layout.n_values, *layout.shape), layout.dtype, memory, layout.values_at)
        self._missing: NDArray[np.uint8] | None = None  # not as bool: a byte other than 0 and 1 is none to numpy
        if layout.missing_at != _NONE:
            self._missing = np.ndarray((n_rows,), np.uint8, memory, layout.missing_at)
        self._offsets: NDArray[np.int64] = np.zeros(0, np.int64)
        if layout.offsets_at != _NONE:
            self._offsets = np.ndarray((n_rows + 1,), np.int64, memory, layout.offsets_at)

    def __len__(self) -> int:
        return self._n_rows

    def __repr__(self) -> str:
        layout = self.layout
        return f"<Column {layout.name!r}: {self._n_rows} {layout.kind} {layout.dtype}{list(layout.shape)}>"

    def __getitem__(self, row: int) -> Any:
        """Return the value of a row.

        A number as Python's own, an array for numbers with a shape and for ragged numbers (count, *shape), text, or a
        memoryview of bytes. Arrays and memoryviews are views that may not be written.

        Raises:
            IndexError: for a row that it does not have.
            ManifestError: if its offsets make no sense.
        """
        if not 0 <= row < self._n_rows:
            raise IndexError(f"row {row} of {self._n_rows} in the column {self.layout.name!r}")
        if self.layout.kind == "numbers":
            value = self.values[row]
            return value if self.layout.shape else value.item()
        start, end = int(self._offsets[row]), int(self._offsets[row + 1])
        if not 0 <= start <= end <= self.layout.n_values:
            raise self._broken(row)
        part = self.values[start:end]
        if self.layout.kind == "strings":
            return part.tobytes().decode("utf-8", "surrogateescape")
        return part if self.layout.kind == "ragged" else part.data

    def rows(self, ids: Iterable[int]) -> Any:
        """Return the values of these rows, in that order: an array of numbers (len(ids), *shape), else a list.

        Raises:
            IndexError, ManifestError: as `column[row]`.
        """
        if self.layout.kind != "numbers":
            return [self[int(row)] for row in ids]
        wanted = np.fromiter(ids, np.int64) if not isinstance(ids, np.ndarray) else ids
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < self._n_rows:
            raise IndexError(f"row {int(wanted.max())} of {self._n_rows} in the column {self.layout.name!r}")
        return self.values[wanted]

    def is_missing(self, row: int) -> bool:
        """Return whether a row has no value; `column[row]` is then 0, or empty."""
        return self._missing is not None and bool(self._missing[row])

    @property
    def missing(self) -> NDArray[np.bool_] | None:
        """Which rows have no value, (rows,) bool, made anew; `None` if all have one."""
        return None if self._missing is None else self._missing != 0

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Values of each row, (rows,) int64: bytes for text and bytes; computed anew.

        Raises:
            ManifestError: if its offsets make no sense.
        """
        if self.layout.kind == "numbers":
            return np.ones(self._n_rows, np.int64)
        lengths: NDArray[np.int64] = np.diff(self._offsets)
        within = self._offsets[0] >= 0 and self._offsets[-1] <= self.layout.n_values
        if not within or (len(lengths) and lengths.min() < 0):
            raise self._broken(int(lengths.argmin()) if len(lengths) else 0)
        return lengths

    def __iter__(self) -> Iterator[Any]:
        if self.layout.kind != "strings":
            return (self[row] for row in range(self._n_rows))
        firsts = range(0, self._n_rows, _BLOCK_ROWS)
        return chain.from_iterable(self.texts(first, min(first + _BLOCK_ROWS, self._n_rows)) for first in firsts)

    def texts(self, first: int, end: int) -> list[str]:
        """Return the text of the rows from `first` up to `end`, many at once in a tenth of the time of each alone.

        Raises:
            ManifestError: if its offsets make no sense.
        """
        at = self._offsets[first : end + 1]
        if at[0] < 0 or at[-1] > self.layout.n_values or (len(at) > 1 and np.diff(at).min() < 0):
            raise self._broken(first)
        raw = self.values[int(at[0]) : int(at[-1])].tobytes()
        text = raw.decode("utf-8", "surrogateescape")
        places = (at - at[0]).tolist()
        if len(text) == len(raw):
            return [text[start:stop] for start, stop in pairwise(places)]
        return [raw[start:stop].decode("utf-8", "surrogateescape") for start, stop in pairwise(places)]

    def _broken(self, row: int) -> ManifestError:
        return ManifestError(
            f"cannot read row {row} of the column {self.layout.name!r}: its offsets lead out of the column's "
            f"{self.layout.n_values} values; make the table anew"
        )


class Columns(Mapping[str, Column]):
    """The columns of one table, by name. Owns the descriptor; `close()` ends that, while views go on.

    Attributes:
        n_rows: rows of each column.
        fd: the memfd.
        digest: 32 hexadecimal digits that follow names, content and attributes.
        attributes: plain values that belong to the table, such as the names of classes.
    """

    def __init__(self, description: Mapping[str, Any], fd: int) -> None:
        """Take over `fd`; see `attach`."""
        self.fd = fd
        self._description = dict(description)
        self.digest = str(description["digest"])
        n_bytes = _whole(description["bytes"], _MAX_BYTES)
        found = os.fstat(fd).st_size
        if found != n_bytes:
            raise ValueError(f"it has {found} bytes, {n_bytes} were announced")
        _check_sealed(fd)
        memory = np.frombuffer(mmap.mmap(fd, n_bytes, mmap.MAP_SHARED, mmap.PROT_READ), np.uint8)
        at, length = (_whole(number, n_bytes) for number in description["head"])
        head = json.loads(memory[at : at + length].tobytes())
        self.n_rows = _whole(head["rows"], MAX_ROWS)
        self.attributes: dict[str, Any] = dict(head["attributes"])
        layouts = [_layout_from_wire(wire) for wire in head["columns"]]
        for layout in layouts:
            layout.check(self.n_rows, n_bytes)
        self._columns = {layout.name: Column(layout, self.n_rows, memory) for layout in layouts}
        if len(self._columns) != len(layouts):
            raise ValueError("two columns have one name")

    @classmethod
    def attach(cls, description: Mapping[str, Any], fd: int) -> Columns:
        """Return the table that `description` describes, in any process; it owns `fd` from here on.

        Raises:
            ValueError: if the description makes no sense, or the memfd is shorter, or is not sealed; `fd` is closed.
        """
        try:
            return cls(description, fd)
        except (ValueError, KeyError, TypeError, OverflowError, OSError) as error:
            os.close(fd)
            raise ValueError(f"this is no table: {error}") from None

    def __getitem__(self, name: str) -> Column:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._columns)

    def __repr__(self) -> str:
        return f"<Columns of {self.n_rows} rows: {', '.join(self._columns)}>"

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that the table takes."""
        return memfd_bytes(self.fd)

    def handle(self) -> tuple[dict[str, Any], int]:
        """Return the description, and the descriptor, which stays this object's; `attach` needs a copy of it."""
        return self._description, self.fd

    def __enter__(self) -> Columns:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; may be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def _layout_from_wire(wire: Any) -> ColumnLayout:
    name, kind, dtype, shape, n_values, values_at, offsets_at, missing_at, digest = wire
    return ColumnLayout(
        name=str(name),
        kind=kind,
        dtype=str(dtype),
        shape=tuple(int(side) for side in shape),
        n_values=int(n_values),
        values_at=int(values_at),
        offsets_at=int(offsets_at),
        missing_at=int(missing_at),
        digest=str(digest),
    )


def _whole(value: Any, most: int) -> int:
    number = int(value)
    if not 0 <= number <= most:
        raise ValueError(f"{number} is not from 0 to {most}")
    return number


def _check_sealed(fd: int) -> None:
    """Raise unless nobody can change or shorten the memfd: a map of a file that is cut ends a reader by SIGBUS."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0  # no memfd
    if seals & _SEALS != _SEALS:
        raise ValueError("its memory is not sealed")
