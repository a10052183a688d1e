"""Samples in shards: an index of the samples, and the files that it points into. For tar shards and Parquet files.

`ShardRecords` is the base of `TarShards` and `ParquetRecords`, in the daemon and in readers; it does not know how a
sample is found in its file. Files are opened on demand, a few at a time, and must be those that were indexed. The table
of paths and identities (`write_table`) lies in the index's memfd, so a hundred thousand shards cost a reader nothing.
"""

from __future__ import annotations

import os
import struct
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Self

from prefetchd.data.faults import fault_of
from prefetchd.data.files import check_unchanged
from prefetchd.data.record_index import IndexWriter, RecordIndex
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ShardRecords:
    """The index and the files of some `Records`. Owns their descriptors."""

    def __init__(self, facts: dict[str, Any], index_fd: int, *, at_random: bool = False) -> None:
        """Take over the descriptor; `facts` are those of `handle()`."""
        self.name: str = facts["name"]
        self.digest: str = facts["digest"]
        self._facts = facts
        self._index = RecordIndex(facts, index_fd, self.name)
        self._files = ShardFiles(facts, self._index, self.name, at_random=at_random)

    def close(self) -> None:
        """Close the descriptors; may be called twice."""
        self._files.close()
        self._index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._index.n_samples

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names: sorted where labels were text, or as a file's own description numbers them."""
        return self._index.classes

    @property
    def label_shape(self) -> tuple[int, ...]:
        """`()`, or `(k,)` for vectors."""
        return self._index.label_shape

    @property
    def label_dtype(self) -> str:
        """`int64` or `float32`."""
        return self._index.label_dtype

    def label_values(self) -> NDArray[Any] | None:
        """Return the labels, (samples,) or (samples, k), int64 or float64; `None` without any."""
        return self._index.label_values()

    def file_names(self) -> list[str]:
        """Return the files' names without their folders, by number."""
        return [os.path.basename(self._files.path(number)) for number in range(self._facts["files"])]

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of each sample's file, and its place there, (samples,) each."""
        raise NotImplementedError

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is not what was indexed; each call checks some of many files."""
        self._files.check_unchanged()


_ENTRY = struct.Struct("=2q2Q3q")  # where the path is and its length; device, inode, size, times of change
_MAX_OPEN = 16
_CHECKED_AT_ONCE = 256


def write_table(writer: IndexWriter, paths: list[str], identities: list[list[int]]) -> dict[str, Any]:
    """Append the table of the files to the index and return the facts for `ShardFiles`."""
    encoded = [os.fsencode(path) for path in paths]
    at = writer.append(b"".join(encoded))
    entries = []
    for path, found in zip(encoded, identities, strict=True):
        entries.append(_ENTRY.pack(at, len(path), *found))
        at += len(path)
    return {"files": len(paths), "table_at": writer.append(b"".join(entries))}


class ShardFiles:
    """The files by number. Owns the descriptors that it opened; borrows the index."""

    def __init__(self, facts: dict[str, Any], index: RecordIndex, name: str, *, at_random: bool = False) -> None:
        self._index = index
        self._name = name
        self._n_files: int = facts["files"]
        self._table_at: int = facts["table_at"]
        self._at_random = at_random
        self._open: OrderedDict[int, tuple[int, list[int], str]] = OrderedDict()
        self._next_checked = 0

    def path(self, number: int) -> str:
        """Return the absolute path of a file."""
        return self._entry(number)[0]

    def _entry(self, number: int) -> tuple[str, list[int]]:
        raw = self._index.at(self._table_at + number * _ENTRY.size, _ENTRY.size)
        at, n_bytes, *found = _ENTRY.unpack(raw)
        return os.fsdecode(self._index.at(at, n_bytes)), found

    def descriptor(self, number: int) -> int:
        """Return a descriptor of a file that is unchanged, borrowed until the next call.

        Raises:
            ManifestError: if it is not what was indexed, or is gone.
            SampleFault: if the machine fails.
        """
        if number in self._open:
            self._open.move_to_end(number)
            fd, expected, shown = self._open[number]
        else:
            path, expected = self._entry(number)
            shown = self._shown(path)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise ManifestError(
                    f"cannot go on with {shown}: it cannot be opened any more ({error.strerror}) while in use; "
                    "start again to serve it as it is"
                ) from None
            except OSError as error:
                raise fault_of(error) from None
            if self._at_random:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            self._open[number] = fd, expected, shown
            if len(self._open) > _MAX_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
        # Sees a replaced file too: losing its name changes the times of the old one.
        check_unchanged(fd, expected, shown)
        return fd

    def check_unchanged(self) -> None:
        """Check the next few files by their paths, all in turn; raise `ManifestError` if one has changed."""
        for _ in range(min(_CHECKED_AT_ONCE, self._n_files)):
            number = self._next_checked
            self._next_checked = (number + 1) % self._n_files
            path, expected = self._entry(number)
            check_unchanged(path, expected, self._shown(path))

    def _shown(self, path: str) -> str:
        return f"{self._name}: {one_line(path)}"

    def close(self) -> None:
        """Close the files; may be called twice."""
        for fd, *_ in self._open.values():
            os.close(fd)
        self._open.clear()
