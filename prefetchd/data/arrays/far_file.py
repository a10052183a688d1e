"""Array files that are objects, in the daemon: their headers, sampled bytes, and small ones whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.config.units import format_bytes
from prefetchd.data.arrays.array_set import ArraySet, open_array_set
from prefetchd.data.arrays.mapped_rows import MappedSet
from prefetchd.data.arrays.npy import ArrayFile, digest_blocks, parse_header, read_header
from prefetchd.data.files import identity
from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.kinds import expand
from prefetchd.data.stores.client import head, read_bytes
from prefetchd.data.stores.download import download
from prefetchd.data.stores.urls import file_name, is_url, shown
from prefetchd.errors import ManifestError, one_line
from prefetchd.ipc.descriptors import memfd, seal

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_BYTES = 4096  # of a row: with less, a request costs far more than the bytes
_HEAD_BYTES = 12 << 10
_MOST_SMALL_BYTES = 1 << 30  # of labels, or offsets
_AT_ONCE = 16


def open_far_set(source: str) -> ArraySet:
    """Return the array in the objects that `source` names: a URL, braces or a glob.

    Raises:
        ManifestError: if one cannot be read, or they do not agree.
    """
    name = one_line(shown(source))
    files = tuple(in_parallel(_open, expand(source, "arrays", name), _AT_ONCE))
    first = files[0]
    for file in files:
        if (file.dtype, file.row_shape) != (first.dtype, first.row_shape):
            raise ManifestError(
                f"cannot serve {name}: {file.name} has rows of {file.row_shape} {np.dtype(file.dtype)} and "
                f"{first.name} of {first.row_shape} {np.dtype(first.dtype)}; shards must agree: convert the odd ones"
            )
    return ArraySet(name if len(files) > 1 else first.name, files)


def _open(url: str) -> ArrayFile:
    name = one_line(shown(url))
    if file_name(url).lower().endswith(".npz"):
        raise ManifestError(f"cannot serve {name}: of .npz files in a store no row is read; write .npy files")
    found = head(url)
    n_bytes = int(found[0])
    start = read_bytes(url, 0, min(_HEAD_BYTES, n_bytes), found)
    dtype, shape, offset_bytes = parse_header(start, name, 0, n_bytes)
    return ArrayFile(url, name, (*found,), dtype, shape, offset_bytes)


def far_digest(files: ArraySet) -> bytes:
    """Return the digest that the same files have on a disk; see `ArraySet.digest`."""
    blocks = files.digest_blocks
    parts = []
    for file in files.files:
        found = blake2b(repr((file.dtype, file.shape, file.n_bytes)).encode())
        places = digest_blocks(file.n_bytes, blocks)
        for content in in_parallel(lambda each: _block(*each), [(file, *place) for place in places]):
            found.update(content)
        parts.append(found.digest())
    return blake2b(b"".join(parts)).digest()


def _block(file: ArrayFile, start: int, n_bytes: int) -> bytes:
    return read_bytes(file.path, file.offset_bytes + start, n_bytes, file.identity)


@dataclass(frozen=True, slots=True)
class SmallArray:
    """An array that is held whole, such as labels: what it is, its sealed memfd, owned, and its digest."""

    files: ArraySet
    fd: int
    digest: bytes


def open_small(path: str, what: str) -> SmallArray:
    """Return an array from a file, a folder of shards, or an object; the caller owns it.

    Raises:
        ManifestError: if it cannot be read, is no array, or is too large.
    """
    if is_url(path):
        name = one_line(shown(path))
        n_bytes = int(head(path)[0])
        if n_bytes > _MOST_SMALL_BYTES:
            raise ManifestError(
                f"cannot take {what} from {name}: it has {format_bytes(n_bytes)}, and at most "
                f"{format_bytes(_MOST_SMALL_BYTES)} are downloaded whole; download it, and give its path"
            )
        return _in_memory(download(path), name, None)
    files = open_array_set(path)
    values = np.empty((files.n_rows, *files.row_shape), files.dtype_name)
    rows = MappedSet(files, shuffled=False)
    try:
        rows.gather(np.arange(files.n_rows), values)
        rows.confirm()
    finally:
        rows.close()
    fd = memfd("prefetchd-small-array")
    with os.fdopen(os.dup(fd), "wb") as file:
        np.save(file, values)
    seal(fd)
    return _in_memory(fd, files.name, files.digest())


def _in_memory(fd: int, name: str, digest: bytes | None) -> SmallArray:
    try:
        found = identity(os.fstat(fd))
        dtype, shape, offset_bytes = read_header(fd, name, 0, found[2])
        file = ArrayFile(f"/proc/self/fd/{fd}", name, tuple(found), dtype, shape, offset_bytes)
        files = ArraySet(name, (file,))
        return SmallArray(files, fd, files.digest() if digest is None else digest)
    except BaseException:
        os.close(fd)
        raise


def mapped(small: SmallArray) -> NDArray[Any]:
    """Return the values of a small array, in the machine's byte order."""
    file = small.files.files[0]
    if not file.n_bytes:
        return np.empty(file.shape, file.dtype_name)
    found = np.memmap(f"/proc/self/fd/{small.fd}", file.dtype, "r", file.offset_bytes, file.shape)
    return found.astype(file.dtype_name, copy=False)


def check_large(mean_bytes: float, name: str, what: str) -> None:
    """Raise `ManifestError` for rows, or sequences, that are too small to be read by a request each."""
    if mean_bytes < LEAST_BYTES:
        raise ManifestError(
            f"cannot serve {name} from a store: its {what} have {mean_bytes:.0f} bytes, a request each, and from "
            f"{LEAST_BYTES} bytes on that pays; download it, and give its path"
        )
