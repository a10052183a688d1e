"""Going through the members of shards that are objects of a store: many requests at once, or by an index.

`members` calls it, in the daemon or in `prefetchd index`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial

from prefetchd.config.units import format_bytes
from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.stores.client import head, read_bytes, read_whole
from prefetchd.data.stores.urls import file_name
from prefetchd.data.tar.dali_index import index_of
from prefetchd.data.tar.headers import ReadAt, printable
from prefetchd.data.tar.kept_index import KeptIndex
from prefetchd.data.tar.open_shard import OpenShard, ShardMembers, dali_members, warn_of_end
from prefetchd.data.tar.segments import Archive, joined

log = logging.getLogger("prefetchd")

_SAY_EVERY_S = 10.0


def scan_objects(urls: Sequence[str], kept: KeptIndex | None) -> Iterator[OpenShard]:
    """Yield each shard, whose members are to be gone through before the next is taken; see `members.scan_shards`."""
    identities = list(in_parallel(head, urls))
    names = [printable(os.fsencode(file_name(url))) for url in urls]
    reads: list[ReadAt] = [partial(_read, *each) for each in zip(urls, identities, strict=True)]
    sizes = [int(identity[0]) for identity in identities]
    beside = [None] * len(urls) if kept is not None else _indexes(urls)
    archives = [Archive(*each) for each in zip(reads, sizes, names, strict=True)]
    walks: Iterator[ShardMembers] = iter(())
    if kept is None:
        walks = joined([each for each, index in zip(archives, beside, strict=True) if index is None])
    said_s = time.monotonic()
    for number, url in enumerate(urls):
        members: ShardMembers | None = None
        if kept is not None:
            members = kept.members(number, url, identities[number], reads[number])
        elif (content := beside[number]) is not None:
            members = dali_members(content, url, *(reads[number], sizes[number], names[number]), is_far=True)
            if members is None:
                alone = joined([archives[number]])  # which reads for as long as it is held
                members = next(alone)
        else:
            members = next(walks)
        yield OpenShard(url, names[number], identities[number], sizes[number], identities[number], members)
        warn_of_end(url, sizes[number], members)
        if kept is None and time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            done = f"{number + 1} of {len(urls)} shards, {format_bytes(sum(sizes[: number + 1]))}"
            log.warning("indexing: %s; `prefetchd index` keeps what it finds", done)


def _read(url: str, identity: list[int | str], offset: int, n_bytes: int) -> bytes:
    return read_bytes(url, offset, min(n_bytes, int(identity[0]) - offset), identity)


def _indexes(urls: Sequence[str]) -> list[bytes | None]:
    """Return DALI's indexes beside the shards; they are looked for if there is one of the first shard."""
    first = _index_beside(urls[0])
    if first is None:
        return [None] * len(urls)
    return [first, *in_parallel(_index_beside, urls[1:])]


def _index_beside(url: str) -> bytes | None:
    return read_whole(index_of(url), is_optional=True)
