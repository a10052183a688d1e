"""Samples in shards: an index of the samples, and the files that it points into.

`ShardRecords` is the base of `TarShards`, `PackedRecords` and `ParquetRecords`, in the daemon and in readers; it does
not know how a sample is found in its file. The files are `NumberedFiles`. The table of paths and identities
(`write_table`) lies in the index's memfd, so a hundred thousand shards cost a reader nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

from prefetchd.data.numbered_files import NumberedFiles
from prefetchd.data.record_index import IndexWriter, RecordIndex
from prefetchd.data.stores.urls import file_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.records import Sample


# Of the store's library in each reader, with 160 requests in flight, and of what is read ahead. The library ends the
# process where it gets no memory.
STORE_BYTES = 88 << 20


class ShardIndexer(Protocol):
    """What has gone through all shards once.

    Attributes:
        writer: the index.
        digest: of what the samples are, in their order; not of where the shards lie.
        identities: of each shard.
    """

    writer: IndexWriter
    digest: hashlib.blake2b
    identities: list[list[int]]


class ShardRecords:
    """The index and the files of some `Records`. Owns their descriptors."""

    def __init__(self, facts: dict[str, Any], index_fd: int, *, at_random: bool = False) -> None:
        """Take over the descriptor; `facts` are those of `handle()`."""
        self.name: str = facts["name"]
        self.digest: str = facts["digest"]
        self._facts = facts
        self._index = RecordIndex(facts, index_fd, self.name)
        self._files = ShardFiles(facts, self._index, self.name, at_random=at_random)

    @classmethod
    def _of(cls, indexer: ShardIndexer, name: str, paths: list[str], run: Callable[[], None], **facts: Any) -> Self:
        """Index the shards at `paths` by `run` and return them; `facts` are those beside name and digest."""
        try:
            run()
            found = indexer.writer.finish()
            files = write_table(indexer.writer, paths, indexer.identities)
        except BaseException:
            indexer.writer.close()
            raise
        described = {"name": name, "digest": indexer.digest.hexdigest(), **facts}
        return cls({**found, **files, **described}, indexer.writer.seal())

    @classmethod
    def attach(cls, handle: dict[str, Any], fds: list[int]) -> Self:
        """Return the shards that `handle()` described, in another process; it owns `fds` from here on."""
        (index_fd,) = fds
        return cls(handle, index_fd)

    def handle(self) -> tuple[dict[str, Any], list[int]]:
        """Plain values and descriptors from which a reader attaches."""
        return self._facts, [self._index.fd]

    @property
    def shared_bytes(self) -> int:
        """The index."""
        return self._index.n_bytes

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

    @property
    def is_far(self) -> bool:
        """Whether the shards are objects of a store."""
        return bool(self._facts["is_far"])

    def label_values(self) -> NDArray[Any] | None:
        """Return the labels, (samples,) or (samples, k), int64 or float64; `None` without any."""
        return self._index.label_values()

    def file_names(self) -> list[str]:
        """Return the files' names without their folders, by number."""
        return [file_name(self._files.path(number)) for number in range(self._facts["files"])]

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of each sample's file, and its place there, (samples,) each."""
        raise NotImplementedError

    def object_state(self, sample: Sample, ask: bool) -> bytes | None:
        """Return the state of the object that a sample is in; see `Records.object_state`."""
        found = self._files.object(sample.place[0])
        if found is None:
            return None
        from prefetchd.data.stores.identity import state_of

        return state_of(found[1])

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is not what was indexed; each call checks some of many files."""
        self._files.check_unchanged()


_ENTRY = struct.Struct("=3q")  # where the path or URL is and its length; the length of the identity behind it


def write_table(writer: IndexWriter, paths: list[str], identities: Sequence[Sequence[int | str]]) -> dict[str, Any]:
    """Append the table of the files or objects to the index and return the facts for `ShardFiles`."""
    encoded = [(os.fsencode(path), json.dumps(found).encode()) for path, found in zip(paths, identities, strict=True)]
    at = writer.append(b"".join(path + found for path, found in encoded))
    entries = []
    for path, found in encoded:
        entries.append(_ENTRY.pack(at, len(path), len(found)))
        at += len(path) + len(found)
    is_far = bool(paths) and not paths[0].startswith("/")
    return {"files": len(paths), "table_at": writer.append(b"".join(entries)), "is_far": is_far}


class ShardFiles(NumberedFiles):
    """The files of an index, which is borrowed; see `NumberedFiles`."""

    def __init__(self, facts: dict[str, Any], index: RecordIndex, name: str, *, at_random: bool = False) -> None:
        super().__init__(name, facts["files"], at_random=at_random)
        self._index = index
        self._table_at: int = facts["table_at"]

    def _entry(self, number: int) -> tuple[str, list[Any]]:
        raw = self._index.at(self._table_at + number * _ENTRY.size, _ENTRY.size)
        at, path_bytes, identity_bytes = _ENTRY.unpack(raw)
        found = self._index.at(at, path_bytes + identity_bytes)
        return os.fsdecode(found[:path_bytes]), json.loads(found[path_bytes:])
