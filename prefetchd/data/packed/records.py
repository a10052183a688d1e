"""Packed shards (MDS, LitData): samples by random access, from an index of where each image is.

`PackedRecords.open` indexes the shards in the daemon. Readers read a sample by one `pread` at its place. A shard that
is compressed with zstd has no places: a reader decompresses it whole, and keeps the last one. The plan has memory for
that.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes
from prefetchd.data.faults import UnreadableFile
from prefetchd.data.packed.index import folder_of, read_index
from prefetchd.data.packed.zstd import LIBRARY_BYTES, decompress, load_zstandard
from prefetchd.data.records import Sample, shown_path
from prefetchd.data.shards import STORE_BYTES, ShardRecords
from prefetchd.data.stores.urls import is_url
from prefetchd.errors import ManifestError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prefetchd.data.files import FileBuffer
    from prefetchd.data.packed.far_shard import FarZstd
    from prefetchd.data.source import ReserveMemory

log = logging.getLogger("prefetchd")

_MAX_ZSTD_BYTES = 256 << 20  # of one shard, decompressed, in each reader


class PackedRecords(ShardRecords):
    """The samples of packed shards; see `Records`. A sample's place is (shard, where its image starts, bytes)."""

    def __init__(self, facts: dict[str, Any], index_fd: int) -> None:
        """Take over the descriptor; `facts` are those of `handle()`. Use `open` or `attach`."""
        super().__init__(facts, index_fd, at_random=facts["at_random"])
        self._sizes: list[int] = facts["zstd_bytes"]  # of each compressed shard, 0 of others; empty if none is
        self._kept: tuple[int, bytearray] | None = None
        self._far_zstd: FarZstd | None = None
        if self._sizes and self.is_far:
            from prefetchd.data.packed.far_shard import FarZstd

            self._far_zstd = FarZstd()

    @classmethod
    def open(cls, config: Config) -> PackedRecords:
        """Index the shards of the folder `config.source`.

        Raises:
            ManifestError: if one cannot be read, there are no samples, or one of them does not fit.
            ConfigError: if zstandard is needed and not installed.
        """
        from prefetchd.data.packed.indexer import PackedIndexer

        name = one_line(config.source)
        columns, shards = read_index(folder_of(config.source), name)
        zstd_bytes = [shard.n_bytes if shard.is_zstd else 0 for shard in shards]
        if any(zstd_bytes):
            load_zstandard()
            _check_zstd(max(zstd_bytes), config, name, is_far=is_url(shards[0].path))
        indexer = PackedIndexer(config, columns, name)
        return cls._of(
            indexer,
            name,
            [shard.path for shard in shards],
            lambda: indexer.run(shards),
            at_random=config.shuffle and not any(zstd_bytes),
            zstd_bytes=zstd_bytes if any(zstd_bytes) else [],
        )

    @property
    def reads_apart(self) -> bool:
        """Of objects; open shards are kept and closed in the order of their use."""
        return self.is_far

    @property
    def reader_bytes(self) -> int:
        """The largest compressed shard, decompressed, and what the decoder takes meanwhile."""
        far = STORE_BYTES if self.is_far else 0
        if not self._sizes:
            return far
        # An object is in memory as it is stored, too.
        return far + (3 if far else 2) * max(self._sizes) + LIBRARY_BYTES

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of each sample's shard, and where its image begins there; see `ShardRecords.places`."""
        table = self._index.table()
        return table[:, 0], table[:, 1]

    def samples(self, sample_ids: Iterable[int]) -> list[Sample]:
        """Return the samples of these numbers; see `Records.samples`. `read` checks whether a shard has changed."""
        return [Sample(self._files.path(place[0]), label, place=place) for place, label in self._index.rows(sample_ids)]

    def read(self, sample: Sample, buffer: FileBuffer, reserve: ReserveMemory) -> memoryview:
        """Return the bytes of the image; see `Records.read`."""
        shard, at, n_bytes = sample.place
        if not self._sizes or not self._sizes[shard]:
            return self._files.read(shard, at, n_bytes, buffer, reserve, "the image")
        if self._far_zstd is not None:
            return self._read_far_zstd(self._far_zstd, sample.place, buffer, reserve)
        fd = self._files.descriptor(shard)
        if self._kept is None or self._kept[0] != shard:
            self._kept = None  # before another is made
            with open(os.dup(fd), "rb") as file:
                self._kept = shard, decompress(file, self._sizes[shard], shown_path(sample.path))
        if not n_bytes:
            raise UnreadableFile("the image is empty (0 bytes)")
        return memoryview(self._kept[1])[at : at + n_bytes]

    def _read_far_zstd(
        self, shards: FarZstd, place: tuple[int, ...], buffer: FileBuffer, reserve: ReserveMemory
    ) -> memoryview:
        shard, at, n_bytes = place
        if not n_bytes:
            raise UnreadableFile("the image is empty (0 bytes)")
        if n_bytes > buffer.capacity_bytes:
            reserve(n_bytes)
        found = self._files.object(shard)
        assert found is not None
        view = buffer.view(n_bytes)
        try:
            shards.read(shard, found, self._sizes[shard], view, at)
        except UnreadableFile as fault:
            from prefetchd.data.stores.faults import lost

            raise lost(found[0], fault) from None
        return view

    def where(self, sample: Sample) -> str:
        """Shard and place: `shard.00000.mds at byte 232`."""
        return f"{shown_path(sample.path)} at byte {sample.place[1]}"


def _check_zstd(n_bytes: int, config: Config, name: str, *, is_far: bool) -> None:
    """Refuse compressed shards that no reader should hold, and say what they cost in a shuffled order."""
    if n_bytes > _MAX_ZSTD_BYTES:
        raise ManifestError(
            f"cannot serve {name}: its shards are compressed, and each reader would hold {format_bytes(n_bytes)} "
            f"(at most {format_bytes(_MAX_ZSTD_BYTES)}); decompress them (zstd -d)"
        )
    if is_far and config.shuffle and config.shuffle_block is None:
        raise ManifestError(
            f"cannot serve {name} in a shuffled order: its shards are compressed, and each sample would download one "
            f"of them, {format_bytes(n_bytes)} decompressed; give shuffle_block, or upload them decompressed (zstd -d)"
        )
    if config.shuffle and config.shuffle_block is None:
        log.warning(
            "slow: the shards of %s are compressed, and a shuffled order decompresses up to %s for each sample; "
            "decompress them once (zstd -d), or give shuffle_block",
            name,
            format_bytes(n_bytes),
        )
