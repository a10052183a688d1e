"""One array in a file: what a `.npy` header says, checked, and whether the file is still the one that was opened.

Called in the daemon, which reads headers and some sampled bytes and never the data; readers get `ArrayFile` as plain
values and work from it (`mapped_rows`). What is refused here is refused with how to convert it. Nothing is unpickled:
an array of Python objects is a pickle, and is refused by its header.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from prefetchd.data.files import check_unchanged, identity, open_regular, read_exactly
from prefetchd.errors import ManifestError, one_line
from prefetchd.ring.layout import DTYPES

# More than any array without named fields needs, and than numpy itself takes for harmless.
_HEAD_BYTES = 12 << 10
_MAX_ARRAY_BYTES = (1 << 63) - 1
_DIGEST_BLOCKS = 64
_DIGEST_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """Where the rows of one array lie.

    Attributes:
        path: the file, absolute; bytes that are not UTF-8 are surrogate escapes.
        name: how errors name the array.
        identity: device, inode, size and times of change of the file when it was opened.
        dtype: as numpy writes it, with the byte order of the file: `<i4`.
        shape: all of it, rows first.
        offset_bytes: where the first row starts in the file.
    """

    path: str
    name: str
    identity: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def n_rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows."""
        return self.n_rows * self.row_bytes

    @property
    def dtype_name(self) -> str:
        """The dtype's name without its byte order: `int32`."""
        return np.dtype(self.dtype).name

    def check_path(self) -> None:
        """Raise `ManifestError` if the path no longer leads to the file as it was opened."""
        check_unchanged(self.path, self.identity, self.name)

    def digest(self, *, blocks: int = _DIGEST_BLOCKS) -> bytes:
        """Return a digest of dtype, shape, size and a sample of the data, not of where the file lies.

        The sample is `blocks` blocks of 4 KiB, spread evenly from the first byte of the data to the last; data that is
        no larger is taken whole. So another array is noticed, and so is one that was written anew, but not a change of
        a few rows that no block happens to hold: hashing all of a large file would take longer than to begin.
        """
        found = blake2b(repr((self.dtype, self.shape, self.n_bytes)).encode())
        with opened(self.path, self.name) as fd:
            check_unchanged(fd, self.identity, self.name)
            last = max(0, self.n_bytes - _DIGEST_BLOCK_BYTES)
            count = min(blocks, -(-self.n_bytes // _DIGEST_BLOCK_BYTES))
            for number in range(count):
                start = last * number // max(1, count - 1)
                n_bytes = min(_DIGEST_BLOCK_BYTES, self.n_bytes - start)
                found.update(read_exactly(fd, self.offset_bytes + start, n_bytes, self.name))
        return found.digest()

    def to_wire(self) -> list[Any]:
        """Plain values, of which JSON can be made; `array_file_from_wire` is the inverse."""
        return [self.path, self.name, self.identity, self.dtype, self.shape, self.offset_bytes]


def array_file_from_wire(wire: list[Any]) -> ArrayFile:
    """Return what `ArrayFile.to_wire` described."""
    path, name, found, dtype, shape, offset_bytes = wire
    return ArrayFile(path, name, tuple(found), dtype, tuple(shape), offset_bytes)


@contextlib.contextmanager
def opened(path: str, name: str) -> Iterator[int]:
    """Open a regular file for the time of a block; errors call it `name`."""
    fd = open_regular(path, name)
    try:
        yield fd
    finally:
        os.close(fd)


def open_npy(path: str) -> ArrayFile:
    """Return the array in the `.npy` file at `path`.

    Raises:
        ManifestError: if it cannot be read, is cut short, or holds what cannot be served.
    """
    name = one_line(path)
    path = os.path.abspath(os.path.expanduser(path))
    with opened(path, name) as fd:
        found = identity(os.fstat(fd))
        dtype, shape, offset_bytes = read_header(fd, name, 0, found[2])
    return ArrayFile(path, name, tuple(found), dtype, shape, offset_bytes)


def read_header(fd: int, name: str, start: int, end: int) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and offset of the data of the `.npy` that lies in bytes `start` to `end` of a file.

    Raises:
        ManifestError: if it is none, is shorter than its header says, or holds what cannot be served.
    """
    head = io.BytesIO(read_exactly(fd, start, min(_HEAD_BYTES, end - start), name))
    try:
        version = np.lib.format.read_magic(head)
        # Version 3 differs from 2 in the encoding of the names of fields, and arrays with those are refused.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its format is version {version[0]}.{version[1]}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header that Python 2 wrote is as good
            shape, fortran_order, dtype = read(head)
    except Exception as error:  # whatever the parser of a damaged header comes upon
        why = str(error).partition("\n")[0][:200]
        raise ManifestError(
            f"cannot read {name} as a .npy file: {why}; write it with np.save, or give another file"
        ) from None
    shape = tuple(int(side) for side in shape)
    _check_servable(name, shape, fortran_order, dtype)
    offset_bytes = start + head.tell()
    n_bytes = math.prod(shape) * dtype.itemsize
    if offset_bytes + n_bytes > end:
        raise ManifestError(
            f"cannot serve {name}: its header says {shape} {dtype.name}, {n_bytes} bytes, and the file holds "
            f"{end - offset_bytes}; it was cut short: copy or write it again"
        )
    return dtype.str, shape, offset_bytes


def _check_servable(name: str, shape: tuple[int, ...], fortran_order: bool, dtype: np.dtype[Any]) -> None:
    """Raise `ManifestError`, with how to convert it, for an array whose rows cannot be served."""
    if dtype.hasobject:
        raise ManifestError(
            f"cannot serve {name}: it is an array of Python objects, a pickle, which is never loaded; convert it: "
            "np.save(path, np.stack(array)) if all rows have one shape, else np.save of np.concatenate(array) and of "
            "its offsets (offsets=)"
        )
    if dtype.names is not None:
        raise ManifestError(
            f"cannot serve {name}: it has named fields ({', '.join(dtype.names)[:200]}); save a field by itself: "
            f"np.save(path, array[{dtype.names[0]!r}])"
        )
    if dtype.name not in DTYPES:
        raise ManifestError(
            f"cannot serve {name}: a batch cannot hold {dtype.name}; convert it to one of {', '.join(DTYPES)}: "
            "np.save(path, array.astype(...))"
        )
    if not shape or any(side < 0 for side in shape):
        raise ManifestError(f"cannot serve {name}: its shape is {shape}, which has no rows; give one row a sample")
    # Of an array without any bytes, too: numpy makes none of that shape.
    if math.prod(side or 1 for side in shape) * dtype.itemsize > _MAX_ARRAY_BYTES:
        raise ManifestError(
            f"cannot serve {name}: its header says {shape} {dtype.name}, more than any array can be; it is damaged: "
            "write it again with np.save"
        )
    if fortran_order and len(shape) > 1:
        raise ManifestError(
            f"cannot serve {name}: it is in Fortran order, so that no row of its {shape} lies in one piece; "
            "convert it: np.save(path, np.ascontiguousarray(array))"
        )
