"""What records in shards have alike, tar shards and Parquet files: an index of the samples, and the files they lie in.

The base of `TarShards` and `ParquetRecords`; it knows nothing of how a sample is found in its file.
"""

from __future__ import annotations

from typing import Any, Self

from prefetchd.sources.record_index import RecordIndex
from prefetchd.sources.shard_files import ShardFiles


class ShardRecords:
    """An index and the table of files behind it, of `Records`. Owns their descriptors."""

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

    def check_unchanged(self) -> None:
        """Raise `ManifestError` if a file is not what was indexed; some of them are looked at each time."""
        self._files.check_unchanged()
