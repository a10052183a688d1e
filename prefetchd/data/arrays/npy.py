"""One array in a file: what the header of a `.npy` says, checked, and the arrays of an `.npz`.

The daemon calls it. It reads headers and some sampled bytes, and never the data. Readers get `ArrayFile` as plain
values (`mapped_rows`). An array that cannot be served is refused with how to convert it. Nothing is unpickled: an array
of Python objects is a pickle, and is refused by its header. `np.savez` stores arrays in a zip archive as they are, so
they are read in place.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.data.files import check_unchanged, identity, open_regular, read_exactly
from prefetchd.errors import ManifestError, one_line
from prefetchd.ring.layout import DTYPES

if TYPE_CHECKING:
    import zipfile

# More than any array without named fields needs, and than numpy itself takes for harmless.
_HEAD_BYTES = 12 << 10
_MAX_SHAPE_TEXT = 1000
_MAX_ARRAY_BYTES = (1 << 63) - 1
_DIGEST_BLOCKS = 64
_DIGEST_BLOCK_BYTES = 4096
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # the signature; the lengths of the name and of the extra field
_SIGNATURE = b"PK\x03\x04"
_STORED = 0
_ENCRYPTED = 1


@dataclass(frozen=True, slots=True)
class ArrayFile:
    """Where the rows of one array lie.

    Attributes:
        path: the file, absolute, or a URL; bytes that are not UTF-8 are surrogate escapes.
        name: how errors name the array.
        identity: device, inode, size and times of change of the file when it was opened; of an object size and ETag.
        dtype: as numpy writes it, with the byte order of the file: `<i4`.
        shape: all of it, rows first.
        offset_bytes: where the first row starts in the file.
    """

    path: str
    name: str
    identity: tuple[Any, ...]
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

        The sample is `blocks` blocks of 4 KiB, spread evenly from the first byte of the data to the last; smaller data
        is taken whole. So another array, or one that was written anew, has another digest. A change of a few rows
        outside the blocks is not seen: hashing all of a large file would take longer than the start of serving.
        """
        found = blake2b(repr((self.dtype, self.shape, self.n_bytes)).encode())
        with opened(self.path, self.name) as fd:
            check_unchanged(fd, self.identity, self.name)
            for start, n_bytes in digest_blocks(self.n_bytes, blocks):
                found.update(read_exactly(fd, self.offset_bytes + start, n_bytes, self.name))
        return found.digest()

    def to_wire(self) -> list[Any]:
        """Plain values, of which JSON can be made; `array_file_from_wire` is the inverse."""
        return [self.path, self.name, self.identity, self.dtype, self.shape, self.offset_bytes]


def array_file_from_wire(wire: list[Any]) -> ArrayFile:
    """Return what `ArrayFile.to_wire` described."""
    path, name, found, dtype, shape, offset_bytes = wire
    return ArrayFile(path, name, tuple(found), dtype, tuple(shape), offset_bytes)


def digest_blocks(n_bytes: int, blocks: int) -> list[tuple[int, int]]:
    """Return which blocks of data of `n_bytes` a digest is of, `blocks` at most, as start and bytes."""
    last = max(0, n_bytes - _DIGEST_BLOCK_BYTES)
    count = min(blocks, -(-n_bytes // _DIGEST_BLOCK_BYTES))
    starts = [last * number // max(1, count - 1) for number in range(count)]
    return [(start, min(_DIGEST_BLOCK_BYTES, n_bytes - start)) for start in starts]


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
    return parse_header(read_exactly(fd, start, min(_HEAD_BYTES, end - start), name), name, start, end)


def parse_header(content: bytes, name: str, start: int, end: int) -> tuple[str, tuple[int, ...], int]:
    """Return what `read_header` does, from the first bytes of the `.npy`; raises as it does."""
    head = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(head)
        # Version 3 differs from 2 in the encoding of the names of fields, and arrays with those are refused.
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"its format is version {version[0]}.{version[1]}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a header that Python 2 wrote is as good
            shape, fortran_order, dtype = read(head)
    except Exception as error:  # all that the parser of a damaged header raises
        why = one_line(str(error).partition("\n")[0])[:200]
        raise ManifestError(
            f"cannot read {name} as a .npy file: {why}; write it with np.save, or give another file"
        ) from None
    shape = tuple(int(side) for side in shape)
    if len(repr(shape)) > _MAX_SHAPE_TEXT:  # no message holds numbers of thousands of digits
        raise ManifestError(f"cannot serve {name}: its header's shape is damaged; write it again with np.save")
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
    # Sides of 0 count as 1: numpy makes no empty array of such a shape either.
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


def open_npz_members(path: str, x_name: str | None, y_name: str | None) -> tuple[ArrayFile, ArrayFile | None]:
    """Return the members x and y of the `.npz` file at `path`; y is `None` if there is none.

    Args:
        path: the file.
        x_name: name of x; by default `x`, or `arr_0` (which `np.savez` calls the first), or the only member.
        y_name: name of y; by default `y` beside `x`, and `arr_1` beside `arr_0`, if there is one.

    Raises:
        ManifestError: if it cannot be read, a member is missing or compressed, or it is unclear which is meant.
    """
    import zipfile  # here: few data sets need it, and each reader would hold it

    name = one_line(path)
    path = os.path.abspath(os.path.expanduser(path))
    with opened(path, name) as fd:
        found = identity(os.fstat(fd))
        try:
            with open(fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
                members = {
                    info.filename.removesuffix(".npy"): info
                    for info in archive.infolist()
                    if info.filename.endswith(".npy")
                }
        except Exception as error:  # all that the parser of a damaged archive raises
            raise ManifestError(
                f"cannot read {name} as an .npz file: {one_line(str(error))[:200]}; was it cut short? write it again "
                "with np.savez"
            ) from None
        x_name = x_name or _default_x(name, list(members))
        x = _member(fd, path, name, found, members, x_name)
        if y_name is None:
            usual = {"x": "y", "arr_0": "arr_1"}.get(x_name)
            y_name = usual if usual in members else None
        return x, None if y_name is None else _member(fd, path, name, found, members, y_name)


def _default_x(name: str, members: list[str]) -> str:
    for usual in ("x", "arr_0"):
        if usual in members:
            return usual
    if len(members) != 1:
        raise ManifestError(
            f"cannot tell which array of {name} is x: it holds {_listed(members)}; name it with x_column, "
            "and the labels with y_column"
        )
    return members[0]


def _listed(members: list[str]) -> str:
    return ", ".join(map(one_line, members[:20])) + (", ..." if len(members) > 20 else "") or "no .npy member"


def _member(
    fd: int, path: str, name: str, found: list[int], members: dict[str, zipfile.ZipInfo], wanted: str
) -> ArrayFile:
    if wanted not in members:
        raise ManifestError(
            f"cannot find {one_line(wanted)} in {name}: it holds {_listed(list(members))}; "
            "name the arrays with x_column and y_column"
        )
    info, title = members[wanted], f"{name}[{one_line(wanted)}]"
    if info.compress_type != _STORED or info.flag_bits & _ENCRYPTED:
        raise ManifestError(
            f"cannot serve {title}: it is compressed, so that no row can be read by itself; convert it: "
            "np.savez(new_path, **np.load(path))"
        )
    damaged = ManifestError(f"cannot serve {title}: the archive is damaged there; write it again with np.savez")
    if not 0 <= info.header_offset <= found[2] - _LOCAL_HEADER.size:
        raise damaged
    signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(
        read_exactly(fd, info.header_offset, _LOCAL_HEADER.size, title)
    )
    start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    if signature != _SIGNATURE or start + info.file_size > found[2]:
        raise damaged
    dtype, shape, offset_bytes = read_header(fd, title, start, start + info.file_size)
    return ArrayFile(path, title, tuple(found), dtype, shape, offset_bytes)
