"""The protocol of a field in a reader, and fields without pixels: labels, arrays, text and bytes.

A part loads the value of one sample into its row, shows it to a user's `transform`, and takes what that returns. What
was fetched is written at once: the next field is fetched into the same memory. Used in one thread.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from prefetchd.data.faults import RefusedImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.config.fields import Field
    from prefetchd.data.files import FileBuffer
    from prefetchd.data.read_ahead import ReadAhead
    from prefetchd.data.records import FieldFacts, Sample
    from prefetchd.data.source import ReserveMemory

Rows = Sequence["NDArray[Any]"]  # one sample's row of each array of a field


_NPY_HEAD_BYTES = 1 << 16


class Draw(NamedTuple):
    """Which sample, in which epoch, and its random numbers."""

    epoch: int
    sample_id: int
    units: Sequence[float]


class BadValue(ValueError):
    """What a `transform` returned for a field does not fit; the message follows "returned the field NAME as "."""


class Part(Protocol):
    """One field of the samples, in a reader."""

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Load the value of a sample, and write it into `rows`.

        Raises:
            SampleFault: if it is bad.
        """

    def shown(self) -> Any:
        """Return the value for a user's function, which may change and keep it."""

    def take(self, value: Any) -> None:
        """Write what that function returned in its place; raises `BadValue` if it does not fit."""

    def finish(self) -> None:
        """Write what `load` and `take` have not written yet."""


class Encoded:
    """Fetches the encoded bytes of one field, from storage or from its column.

    Args:
        number: the field's number.
        ahead: reads ahead; borrowed.
        buffer: takes the bytes; borrowed.
    """

    def __init__(self, number: int, ahead: ReadAhead, buffer: FileBuffer) -> None:
        self._number = number
        self._ahead = ahead
        self._buffer = buffer

    def bytes_of(self, sample: Sample, sample_id: int, reserve: ReserveMemory) -> memoryview:
        """Return the bytes, valid until the next read."""
        return self._ahead.read(sample_id, sample, self._buffer, reserve, self._number)


class NumbersPart:
    """A label or an array: numbers of one shape from a column, or from a `.npy` file."""

    def __init__(self, number: int, facts: FieldFacts, encoded: Encoded) -> None:
        self._number = number
        self._encoded = encoded if facts.is_encoded else None
        self._row: NDArray[Any]

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Write the numbers of the sample."""
        (row,) = rows
        self._row = row
        if self._encoded is None:
            row[...] = np.reshape(sample.values[self._number], row.shape)
        else:
            row[...] = read_npy(self._encoded.bytes_of(sample, draw.sample_id, reserve), row.shape, row.dtype)

    def shown(self) -> Any:
        """Return the numbers; a scalar of numpy for a single one."""
        return self._row.copy()[()]

    def take(self, value: Any) -> None:
        """Write numbers of the field's shape."""
        row = self._row
        try:
            found = np.asarray(value)
        except (TypeError, ValueError):
            found = np.asarray(None)
        if found.shape != row.shape or not np.can_cast(found.dtype, row.dtype, "same_kind"):
            raise BadValue(f"an array of {found.shape} {found.dtype}, and it must be {row.shape} {row.dtype}")
        if not _fits(found, row.dtype):
            raise BadValue(f"{found.dtype} numbers, of which {row.dtype} does not hold all")
        row[...] = found

    def finish(self) -> None:
        """Do nothing: the row is written."""


class BytesPart:
    """Bytes of at most a fixed number, and their count; text is UTF-8."""

    def __init__(self, field: Field, number: int, facts: FieldFacts, encoded: Encoded) -> None:
        self._is_text = field.kind == "text"
        self._truncate = bool(field.truncate)
        self._number = number
        self._encoded = encoded if facts.is_encoded else None
        self._content: NDArray[Any]
        self._length: NDArray[Any]

    def load(self, sample: Sample, draw: Draw, rows: Rows, reserve: ReserveMemory) -> None:
        """Write the bytes of the sample; text that is too long is cut at a character's end, if the field says so."""
        self._content, self._length = rows
        value = sample.values[self._number]
        if self._encoded is not None:
            value = self._encoded.bytes_of(sample, draw.sample_id, reserve)
        elif isinstance(value, str):
            value = value.encode("utf-8", "surrogateescape")
        if self._is_text:
            value = self._checked(bytes(value))
        most = len(self._content)
        if len(value) > most:
            raise RefusedImage(f"it has {len(value)} bytes, more than max_bytes={most}; give a larger max_bytes")
        self._write(value)

    def _write(self, value: bytes | memoryview) -> None:
        """Write the bytes, zeros behind them, and their number."""
        n_bytes = len(value)
        self._content[:n_bytes] = np.frombuffer(value, np.uint8)
        self._content[n_bytes:] = 0
        self._length[...] = n_bytes

    def _checked(self, value: bytes) -> bytes:
        try:
            value.decode()
        except UnicodeDecodeError as error:
            raise RefusedImage(f"it is no UTF-8 (byte {error.start})") from None
        if len(value) > len(self._content) and self._truncate:
            return value[: len(self._content)].decode("utf-8", "ignore").encode()  # without half a character
        return value

    def shown(self) -> Any:
        """Return text, or bytes."""
        value = self._content[: int(self._length)].tobytes()
        return value.decode() if self._is_text else value

    def take(self, value: Any) -> None:
        """Write text, or bytes."""
        wanted = str if self._is_text else bytes
        if not isinstance(value, wanted):
            raise BadValue(f"a {type(value).__name__}, and it must be {wanted.__name__}")
        try:
            encoded = value.encode() if isinstance(value, str) else value
        except UnicodeEncodeError:
            raise BadValue("text with half a surrogate pair, which is no UTF-8") from None
        if self._is_text and self._truncate:
            encoded = self._checked(encoded)
        if len(encoded) > len(self._content):
            raise BadValue(f"{len(encoded)} bytes, and it can hold {len(self._content)}")
        self._write(encoded)

    def finish(self) -> None:
        """Do nothing: the row is written."""


def _fits(values: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Return whether no number overflows `dtype`, of a kind that may hold `values`."""
    if np.can_cast(values.dtype, dtype, "safe") or not values.size:
        return True
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return limits.min <= int(values.min()) and int(values.max()) <= limits.max
    with np.errstate(over="ignore"):
        return not bool((np.isinf(values.astype(dtype)) & np.isfinite(values)).any())


def read_npy(data: memoryview, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in a `.npy` file's bytes, a view of them; nothing is unpickled, and no memory taken.

    Raises:
        RefusedImage: if it is none, or not of this shape and of a dtype that fits.
    """
    head = io.BytesIO(data[:_NPY_HEAD_BYTES])
    try:
        version = np.lib.format.read_magic(head)
        read_header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        found, is_fortran, kind = read_header(head)
        if found != shape or kind.hasobject or not np.can_cast(kind, dtype, "same_kind"):
            raise RefusedImage(f"it is an array of {found} {kind}, and must be {shape} {dtype}")
        values = np.frombuffer(data, kind, math.prod(shape), head.tell())
        if not _fits(values, dtype):
            raise RefusedImage(f"it has {kind} numbers, of which {dtype} does not hold all")
        return values.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, OSError, EOFError) as error:
        raise RefusedImage(f"it is no .npy file of numbers ({error})") from None
