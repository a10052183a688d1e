"""Going through the members of shards once, at open: by their headers, or by an index that is kept.

`TarIndexer` and the tables of fields take the members of each shard from here, and so does `prefetchd index`. Where
they come from makes no difference to names, places and contents, so digests and orders are the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from prefetchd.data.files import check_complete, identity, open_regular
from prefetchd.data.stores.urls import file_name
from prefetchd.data.tar.dali_index import DaliMembers, index_of
from prefetchd.data.tar.headers import TarHeaders, file_bytes, printable
from prefetchd.data.tar.kept_index import load_index
from prefetchd.data.tar.open_shard import OpenShard, ShardMembers, dali_members, warn_of_end
from prefetchd.errors import one_line


def scan_shards(paths: Sequence[str], index: str | None = None) -> Iterator[OpenShard]:
    """Yield each shard, whose members are to be gone through before the next is taken.

    Args:
        paths: the shards.
        index: an index file that `prefetchd index` wrote of them, if there is one.

    Raises:
        ManifestError: if a shard cannot be read, was written to meanwhile, or is not that of the index.
    """
    kept = None if index is None else load_index(index)
    if kept is not None:
        kept.check_names(paths)
    if not paths[0].startswith("/"):
        from prefetchd.data.tar.far_members import scan_objects

        yield from scan_objects(paths, kept)
        return
    for number, path in enumerate(paths):
        shown = one_line(path)
        fd = open_regular(path, shown)
        try:
            before = identity(os.fstat(fd))
            name = printable(os.fsencode(file_name(path)))
            state = _state_of(before)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # reading ahead would read the images
            read_at = file_bytes(fd, name)
            members: ShardMembers
            if kept is not None:
                members = kept.members(number, path, state, read_at)
            else:
                members = _beside(path, fd, before[2], name) or TarHeaders(read_at, before[2], name)
            yield OpenShard(path, name, before, before[2], state, members)
            check_complete(fd, before, shown)
        finally:
            os.close(fd)
        warn_of_end(path, before[2], members)


def _state_of(found: Sequence[int]) -> list[int | str]:
    """Return what tells a file from others on another machine too: its size and the time of its last change."""
    return [found[2], found[3]]


def _beside(path: str, fd: int, n_bytes: int, name: str) -> DaliMembers | None:
    """Return the members by the index of DALI that lies beside a shard, if it fits."""
    try:
        with open(index_of(path), "rb") as file:
            content = file.read()
    except OSError:
        return None
    return dali_members(content, path, file_bytes(fd, name), n_bytes, name, is_far=False)
