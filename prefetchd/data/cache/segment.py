"""One writer's rows, and the index of them that is written behind each row. Used in readers.

    NAME.rows    rows after rows: pixels, or an image's JPEG
    NAME.index   records of 40 bytes: key, where the row is, its shape, its checksum, the record's own checksum

Only the process that made a segment appends to it, and it never goes back. So writers need no lock, and any of them may
be killed at any instant: a torn row has no record, or one whose checksum is wrong. After a power cut a record may be on
disk without its row, so a row's checksum is computed before the row is first used in a run.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xxhash

from prefetchd.data.cache.keys import KEY_BYTES
from prefetchd.data.files import read_into

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BODY = struct.Struct(f"={KEY_BYTES}sQIHHI")
_SUM = struct.Struct("=I")
_WHOLE = struct.Struct(_BODY.format + _SUM.format[1:])
RECORD_BYTES = _WHOLE.size
_MAX_SIDE_PX = 1 << 16
_UINT8: np.dtype[Any] = np.dtype(np.uint8)


class Record(NamedTuple):
    """Where a row is and what it is.

    Attributes:
        key: of `keys.key_of`.
        offset: where it starts in the rows' file.
        n_bytes: its length.
        height, width: of the kept image; of an encoded row its length // 65536 and the rest.
        checksum: of its bytes, see `checksum_of`.
    """

    key: bytes
    offset: int
    n_bytes: int
    height: int
    width: int
    checksum: int

    def pack(self) -> bytes:
        """Return the record as it is written."""
        body = _BODY.pack(*self)
        return body + _SUM.pack(zlib.crc32(body))


def unpack(raw: bytes) -> Record | None:
    """Return the record that `raw` holds; `None` if it is torn or damaged."""
    if len(raw) != RECORD_BYTES:
        return None
    *values, checksum = _WHOLE.unpack(raw)
    return Record._make(values) if zlib.crc32(raw[: _BODY.size]) == checksum else None


def read_row(fd: int, record: Record, channels: int, dtype: np.dtype[Any] = _UINT8) -> NDArray[Any] | None:
    """Return the row of a record, or `None` if it is not what was written; arguments as for `shape_of`.

    Raises:
        OSError: if it cannot be read.
    """
    shape = shape_of(record.height, record.width, channels)
    if math.prod(shape) * dtype.itemsize != record.n_bytes:
        return None
    if record.offset + record.n_bytes > os.fstat(fd).st_size:  # before memory is taken for it
        return None
    row = np.empty(shape, dtype)
    if read_into(fd, bytes_of(row), record.offset) < record.n_bytes:
        return None
    return row if checksum_of(bytes_of(row)) == record.checksum else None


def checksum_of(row: memoryview) -> int:
    """Return the low half of the row's XXH3, which takes a fifteenth of the time of a CRC-32."""
    return int(xxhash.xxh3_64_intdigest(row)) & 0xFFFFFFFF


def bytes_of(pixels: NDArray[Any]) -> memoryview:
    """Return the memory of a C-contiguous array, as bytes."""
    return memoryview(pixels).cast("B")  # type: ignore[arg-type, unused-ignore]


def shape_of(height: int, width: int, channels: int) -> tuple[int, ...]:
    """Return the shape of a row from its two sides.

    A kept image has OpenCV's: without a dimension for one channel. With 0 channels the row is encoded: (bytes,), and
    the sides hold its length.
    """
    if not channels:
        return (height * _MAX_SIDE_PX + width,)
    return (height, width) if channels == 1 else (height, width, channels)


def sides_of(row: NDArray[Any]) -> tuple[int, int]:
    """Return the two sides from which `shape_of` gives the row's shape; each is below 65,536."""
    return divmod(len(row), _MAX_SIDE_PX) if row.ndim == 1 else row.shape[:2]


class SegmentWriter:
    """Appends rows to a segment of its own. Owns its descriptors.

    Raises:
        FileExistsError: if there is a segment of that name.
        OSError: if the files cannot be made.
    """

    def __init__(self, folder: Path, name: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.fd = os.open(folder / f"{name}.rows", flags, 0o600)
        try:
            self._index_fd = os.open(folder / f"{name}.index", flags, 0o600)
        except BaseException:
            os.close(self.fd)
            raise
        self._end = 0
        self._index_end = 0

    def append(self, key: bytes, pixels: NDArray[Any]) -> tuple[int, int]:
        """Write a row and then its record; return where the row starts, and the record's number.

        Raises:
            OSError: if it cannot be written whole; nothing of it is left then.
        """
        height, width = sides_of(pixels)
        assert max(height, width) < _MAX_SIDE_PX
        offset = self._end
        record = Record(key, offset, pixels.nbytes, height, width, checksum_of(bytes_of(pixels)))
        try:
            _write(self.fd, bytes_of(pixels), offset)
            _write(self._index_fd, memoryview(record.pack()), self._index_end)
        except OSError:
            os.ftruncate(self._index_fd, self._index_end)
            os.ftruncate(self.fd, offset)
            raise
        self._end += pixels.nbytes
        self._index_end += RECORD_BYTES
        return offset, self._index_end // RECORD_BYTES - 1

    def close(self) -> None:
        """Give the descriptors back; the files stay."""
        os.close(self.fd)
        os.close(self._index_fd)


def _write(fd: int, data: memoryview, offset: int) -> None:
    """Write all of `data`. A nearly full disk takes a part; writing the rest raises its error."""
    while data:
        n_written = os.pwrite(fd, data, offset)
        data, offset = data[n_written:], offset + n_written
