"""One array in one or several files: a `.npy`, a member of an `.npz`, or a directory of `.npy` shards end to end.

The daemon finds and checks the files (`open_array_set`), and leaves a table of them to the readers. Rows are numbered
through all files, in the order of the files' sorted names.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from prefetchd.config.units import format_bytes, format_count
from prefetchd.data.arrays.npy import ArrayFile, array_file_from_wire, open_npy, open_npz_members
from prefetchd.errors import ConfigError, ManifestError, one_line
from prefetchd.ipc.descriptors import memfd, seal
from prefetchd.ring.layout import MAX_SLOT_BYTES

_DIGEST_BLOCKS = 1024  # over all shards
_CHECKED_AT_ONCE = 256
_SPARE_DESCRIPTORS = 64


@dataclass(frozen=True, slots=True)
class ArraySet:
    """The files of one array, in order.

    Attributes:
        name: how errors name it.
        files: of equal row shape and dtype; at least one.
        starts: the number of the first row of each file, and the number of all rows at the end.
    """

    name: str
    files: tuple[ArrayFile, ...]
    starts: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", (0, *itertools.accumulate(file.n_rows for file in self.files)))

    @property
    def n_rows(self) -> int:
        """Rows of all files."""
        return self.starts[-1]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.files[0].row_shape

    @property
    def dtype_name(self) -> str:
        """The dtype's name without a byte order: batches have the machine's."""
        return self.files[0].dtype_name

    def check_batch(self, batch_size: int) -> None:
        """Raise `ConfigError` if `batch_size` rows are more than any slot may hold."""
        row_bytes = self.files[0].row_bytes
        if batch_size * row_bytes > MAX_SLOT_BYTES // 2:
            raise ConfigError(
                f"cannot serve {self.name}: {format_count(batch_size, 'row')} of {format_bytes(row_bytes)} are more "
                f"than a batch can hold ({format_bytes(MAX_SLOT_BYTES // 2)}); lower batch_size, or save smaller rows"
            )

    def check_unchanged(self, turn: int) -> None:
        """Raise `ManifestError` if a file is no longer what was opened; of many, another part each `turn`."""
        parts = -(-len(self.files) // _CHECKED_AT_ONCE)
        for file in self.files[turn % parts :: parts]:
            file.check_path()

    def digest(self) -> bytes:
        """Return a digest of all files' shapes, sizes and sampled data; see `ArrayFile.digest`."""
        blocks = self.digest_blocks
        return blake2b(b"".join(file.digest(blocks=blocks) for file in self.files)).digest()

    @property
    def digest_blocks(self) -> int:
        """How many blocks of each file the digest is of."""
        return max(2, min(64, _DIGEST_BLOCKS // len(self.files)))

    def where(self, row: int) -> str:
        """Return in which file a row is, and its number there."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return f"{self.files[number].name} row {row - self.starts[number]}"

    def to_wire(self) -> list[Any]:
        """Plain values, of which JSON can be made; `array_set_from_wire` is the inverse."""
        return [self.name, [file.to_wire() for file in self.files]]


def array_set_from_wire(wire: list[Any]) -> ArraySet:
    """Return what `ArraySet.to_wire` described."""
    name, files = wire
    return ArraySet(name, tuple(map(array_file_from_wire, files)))


def is_npz(path: str) -> bool:
    """Whether `path` is named as an `.npz` file."""
    return path.lower().endswith(".npz")


def open_array_set(path: str) -> ArraySet:
    """Return the array in the `.npy` file, or in the directory of `.npy` shards, at `path`.

    Raises:
        ManifestError: if it cannot be served.
    """
    folder = os.path.expanduser(path)
    if not os.path.isdir(folder):
        return ArraySet(one_line(path), (open_npy(path),))
    name = one_line(path)
    shards = sorted(name for name in os.listdir(folder) if name.endswith(".npy") and not name.startswith("."))
    if not shards:
        raise ManifestError(f"cannot serve {name}: the directory holds no .npy files; give one that does")
    allow_descriptors(len(shards), name)
    files = tuple(open_npy(os.path.join(path, shard)) for shard in shards)
    first = files[0]
    for file in files:
        if (file.dtype, file.row_shape) != (first.dtype, first.row_shape):
            raise ManifestError(
                f"cannot serve {name}: {file.name} has rows of {file.row_shape} {np.dtype(file.dtype)} and "
                f"{first.name} of {first.row_shape} {np.dtype(first.dtype)}; shards must agree: convert the odd ones"
            )
    return ArraySet(name, files)


def combined_digest(kind: str, *sets: ArraySet | None) -> str:
    """Return one digest, 16 hexadecimal digits, of several arrays and what is made of them."""
    found = blake2b(kind.encode(), digest_size=8)
    for each in sets:
        found.update(b"none" if each is None else each.digest())
    return found.hexdigest()


def write_table(values: list[Any]) -> int:
    """Return a new descriptor, the caller's own, of a sealed memfd: thousands of files fit in no message."""
    fd = memfd("prefetchd-array-files")
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(json.dumps(values).encode())
    seal(fd)
    return fd


def read_table(fd: int) -> list[Any]:
    """Return what `write_table` wrote behind `fd`, which stays the caller's."""
    # By position: all readers' descriptors share one place in the file.
    return json.loads(os.pread(fd, os.fstat(fd).st_size, 0))  # type: ignore[no-any-return]


def open_npz(path: str, x_name: str | None, y_name: str | None) -> tuple[ArraySet, ArraySet | None]:
    """Return x and y (`None` if it has none) of the `.npz` file at `path`; see `open_npz_members`."""
    x, y = open_npz_members(path, x_name, y_name)
    return ArraySet(x.name, (x,)), None if y is None else ArraySet(y.name, (y,))


def allow_descriptors(n_files: int, name: str) -> None:
    """Let this process open `n_files` more; raise `ManifestError` if its hard limit forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * n_files + _SPARE_DESCRIPTORS  # the map has a descriptor of its own
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ManifestError(
            f"cannot serve {name}: its {n_files} shards take {needed} descriptors and a process may have {hard}; "
            "write fewer, larger shards, or raise the limit (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
