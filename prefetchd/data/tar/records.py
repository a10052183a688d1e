"""WebDataset tar shards: samples by random access, from an index of the headers.

`TarShards.open` indexes the shards in the daemon (`indexer`). Readers attach to the index and read a sample by one
`pread` of its member. The order is that of the shards and of their members. It is shuffled like that of any other
source: over all samples, not within a buffer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.data.faults import SampleFault
from prefetchd.data.kinds import expand
from prefetchd.data.records import Sample
from prefetchd.data.shards import STORE_BYTES, ShardRecords
from prefetchd.data.stores.urls import file_name
from prefetchd.data.tar.headers import BLOCK_BYTES, BLOCKS_BITS, ReadAt, TarHeaders, compressed, file_bytes, printable
from prefetchd.data.tar.member_check import read_member
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.source import ReserveMemory

_COMPRESSED = {"gz": "gzip", "tgz": "gzip", "bz2": "bzip2", "tbz": "bzip2", "tbz2": "bzip2", "xz": "xz", "txz": "xz"}


def check_not_compressed(paths: Iterable[str]) -> None:
    """Raise `ManifestError` if a shard is compressed, by its name."""
    for path in paths:
        suffix = file_name(path).rpartition(".")[2].lower()
        if suffix != "tar":
            raise compressed(one_line(path), _COMPRESSED.get(suffix, suffix))


class TarShards(ShardRecords):
    """The samples of tar shards; see `Records`.

    A sample's place is (shard, header blocks, data offset, bytes), and its value the check of its member: whether an
    index lists it makes no other sample of it.
    """

    def __init__(self, facts: dict[str, Any], index_fd: int) -> None:
        """Take over the descriptor; `facts` are those of `handle()`. Use `open` or `attach`."""
        super().__init__(facts, index_fd, at_random=facts["at_random"])

    @classmethod
    def open(cls, config: Config) -> TarShards:
        """Index the shards that `config.source` names.

        Raises:
            ManifestError: if one cannot be read, there are no samples, or one of them does not fit.
        """
        from prefetchd.data.tar.indexer import TarIndexer

        name = one_line(config.source)
        paths = expand(config.source, "tar", name)
        check_not_compressed(paths)
        indexer = TarIndexer(config, name)
        return cls._of(indexer, name, paths, lambda: indexer.run(paths), at_random=config.shuffle)

    @property
    def reads_apart(self) -> bool:
        """Of objects; open files are kept and closed in the order of their use."""
        return self.is_far

    @property
    def reader_bytes(self) -> int:
        """Nothing for files, as readers share the index; for objects the store's library."""
        return STORE_BYTES if self.is_far else 0

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of each sample's shard, and where its image begins there; see `ShardRecords.places`."""
        table = self._index.table()
        return table[:, 0] >> BLOCKS_BITS, table[:, 1]

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers; see `Records.samples`. `read` checks whether a shard has changed."""
        found = []
        for (packed, data_at, n_bytes, check), label in self._index.rows(sample_ids):
            shard, blocks = packed >> BLOCKS_BITS, packed & (1 << BLOCKS_BITS) - 1
            found.append(
                Sample(self._files.path(shard), label, place=(shard, blocks, data_at, n_bytes), values=(check,))
            )
        return found

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the image member; see `Records.read`."""
        shard, blocks, data_at, n_bytes = sample.place
        (check,) = sample.values
        return read_member(self._files, (shard, data_at, n_bytes), blocks, check, buffer, reserve)

    def where(self, sample: Sample) -> str:
        """Shard, key and member: `shard-000.tar sample a/n01_10: n01_10.jpg`."""
        shard, blocks, data_at, _ = sample.place
        shard_name = printable(os.fsencode(file_name(sample.path)))
        try:
            headers = TarHeaders(self._read_at(shard, shard_name), data_at + BLOCK_BYTES, shard_name)
            headers.window_bytes = (blocks + 1) * BLOCK_BYTES
            member = headers.member(data_at - blocks * BLOCK_BYTES)
        except (ManifestError, SampleFault):
            member = None
        if member is None:
            return f"{shard_name} at byte {data_at}"
        folder, slash, base = member.name.rpartition(b"/")
        key = printable(folder + slash + base.partition(b".")[0])
        return f"{shard_name} sample {key}: {printable(base)}"

    def _read_at(self, shard: int, name: str) -> ReadAt:
        if (found := self._files.object(shard)) is None:
            return file_bytes(self._files.descriptor(shard), name)
        from prefetchd.data.stores.client import read_bytes

        url, identity = found
        return lambda offset, n_bytes: read_bytes(url, offset, n_bytes, identity)
