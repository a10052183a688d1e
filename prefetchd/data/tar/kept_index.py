"""The members of shards in a file, so that shards that lie far away are walked over once: `prefetchd index`.

    magic | blocks | footer | length of the footer | magic

A block has up to 65,536 members of a shard, in MessagePack, compressed. It holds what a walk over the headers finds,
and the content of small members, such as labels. So the same file serves all options (`x_column`, `y_column`, ...),
and digests and orders are those without it. The footer names the shards, with what tells that they are what was
indexed: size and time of the last change of a file, size and ETag of an object. It is checked at open.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from prefetchd.data.files import open_regular
from prefetchd.data.stores.urls import file_name, is_url, shown
from prefetchd.data.tar.headers import BLOCK_BYTES, MAX_HEADERS_BYTES, Member, ReadAt
from prefetchd.errors import ManifestError, one_line

MAGIC = b"prefetchd index 1\n"
TAIL = struct.Struct("<Q18s")
_MAX_BLOCK_BYTES = 1 << 30  # decompressed
_MAX_FOOTER_BYTES = 1 << 28


class KeptMember(msgspec.Struct, array_like=True, frozen=True):
    """One member, as `Member`, and its content if it is small and no image."""

    name: bytes
    header_at: int
    data_at: int
    n_bytes: int
    kind: bytes
    content: bytes | None


class KeptShard(msgspec.Struct, array_like=True, frozen=True):
    """One shard: its path or URL, its state, whether its end is marked, and its blocks as (place, bytes)."""

    path: str
    state: list[int | str]
    n_bytes: int
    has_end_mark: bool
    blocks: list[tuple[int, int]]


class KeptMembers:
    """The members of one shard, from the index; see `members.ShardMembers`."""

    is_listed = True

    def __init__(self, index: KeptIndex, shard: KeptShard, read_at: ReadAt) -> None:
        self.has_end_mark = shard.has_end_mark
        self._index = index
        self._shard = shard
        self._read_at = read_at
        self._contents: dict[int, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in the archive's order; raises `ManifestError` if the index is damaged."""
        before: dict[int, bytes] = {}
        for place, n_bytes in self._shard.blocks:
            kept = self._index.block(place, n_bytes)
            after = {each.data_at: each.content for each in kept if each.content is not None}
            self._contents = {**before, **after}  # the last sample may have begun in the block before
            before = after
            for each in kept:
                is_whole = each.kind != b"0" or each.data_at + each.n_bytes <= self._shard.n_bytes
                headers = each.data_at - each.header_at
                are_headers = 0 < headers <= MAX_HEADERS_BYTES + BLOCK_BYTES and not headers % BLOCK_BYTES
                if not (each.header_at >= 0 and are_headers and each.n_bytes >= 0 and is_whole):
                    raise self._index.damaged()
                yield Member(each.name, each.header_at, each.data_at, each.n_bytes, each.kind)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return a member's content, from the shard if it was not kept."""
        found = self._contents.get(offset)
        return found if found is not None and len(found) == n_bytes else self._read_at(offset, n_bytes)


class KeptIndex:
    """An index file, in memory as it is on disk.

    Args:
        content: all of it.
        name: how errors name it.

    Raises:
        ManifestError: if it is no index, or is damaged.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.name = name
        self._content = content
        try:
            size, magic = TAIL.unpack(content[-TAIL.size :])
            if not content.startswith(MAGIC) or magic != MAGIC or size > _MAX_FOOTER_BYTES:
                raise ValueError
            footer = _decompress(content[-TAIL.size - size : -TAIL.size], _MAX_FOOTER_BYTES)
            self.shards = msgspec.msgpack.decode(footer, type=list[KeptShard])
        except (ValueError, struct.error, zlib.error, msgspec.MsgspecError):
            raise self.damaged() from None

    def block(self, place: int, n_bytes: int) -> list[KeptMember]:
        """Return the members of a block; raises `ManifestError` if it is damaged."""
        try:
            raw = _decompress(self._content[place : place + n_bytes], _MAX_BLOCK_BYTES)
            return msgspec.msgpack.decode(raw, type=list[KeptMember])
        except (ValueError, zlib.error, msgspec.MsgspecError):
            raise self.damaged() from None

    def damaged(self) -> ManifestError:
        """Return the error for an index that is none."""
        return ManifestError(
            f"cannot use index={self.name}: it is no index of prefetchd, or is damaged; make it anew: "
            "prefetchd index SOURCE -o FILE"
        )

    def check_names(self, paths: Sequence[str]) -> None:
        """Raise `ManifestError` unless the shards at `paths` have the names of those that were indexed, in order."""
        names, kept = (list(map(file_name, each)) for each in (paths, [shard.path for shard in self.shards]))
        if names == kept:
            return
        place = next((n for n, (one, other) in enumerate(zip(names, kept, strict=False)) if one != other), None)
        odd = "" if place is None else f": shard {place} is {one_line(names[place])}, and there {one_line(kept[place])}"
        raise ManifestError(
            f"cannot use index={self.name}: it has {len(kept)} shards and the source has {len(names)}{odd}; make it "
            "anew of this source: prefetchd index SOURCE -o FILE"
        )

    def members(self, number: int, path: str, state: list[int | str], read_at: ReadAt) -> KeptMembers:
        """Return the members of a shard; raises `ManifestError` if it is not what was indexed."""
        shard = self.shards[number]
        if state != shard.state:
            raise ManifestError(
                f"cannot use index={self.name}: {one_line(path)} is not what was indexed (size and time or ETag "
                f"{_shown(state)}, and there {_shown(shard.state)}); make it anew: prefetchd index SOURCE -o FILE"
            )
        return KeptMembers(self, shard, read_at)


def _shown(state: list[int | str]) -> str:
    return " ".join(one_line(str(each)) for each in state)


def load_index(path: str) -> KeptIndex:
    """Return the index in the file or object at `path`; raises `ManifestError` if it cannot be read."""
    name = one_line(shown(path))
    if is_url(path):
        from prefetchd.data.stores.client import read_whole

        content = read_whole(path)
        if content is None:
            raise ManifestError(f"cannot open {name}: there is no such object; check index")
        return KeptIndex(content, name)
    fd = open_regular(os.path.abspath(os.path.expanduser(path)), name)
    try:
        with open(fd, "rb", closefd=True) as file:
            return KeptIndex(file.read(), name)
    except OSError as error:
        raise ManifestError(f"cannot read {name}: {error.strerror}; check the disk") from None


def _decompress(content: bytes, most: int) -> bytes:
    found = zlib.decompressobj()
    raw = found.decompress(content, most)
    if found.unconsumed_tail or not found.eof:
        raise ValueError
    return raw
