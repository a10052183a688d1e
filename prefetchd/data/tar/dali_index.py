"""The indexes that NVIDIA DALI's `wds2idx` (version 1.2) writes beside shards: `train-000.idx` for `train-000.tar`.

    v1.2 2
    jpg 1536 98304 n01/a.jpg cls 100864 1 n01/a.cls
    ...

A line is a sample: extension, where the data starts, its bytes and the name of each member. So no header has to be
read, and labels can be read at once. An index that is not of its archive would give wrong labels. So the end of the
archive and some headers are compared, and the header of each label. One that does not fit is left alone, with a line
in the log, and the shard is walked over.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence

from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.stores.urls import with_suffix
from prefetchd.data.tar.headers import BLOCK_BYTES, Member, ReadAt, TarHeaders, is_header
from prefetchd.errors import ManifestError

SUFFIX = ".idx"
_HEAD = re.compile(rb"v1\.2 (\d{1,18})$")
_COMPARED = 16  # headers of members
_NAME_BYTES = 99  # of a header's name that are sure to be the name's


class NotOfArchive(Exception):
    """Says why an index is not taken; empty for a file that is no index of DALI's."""


def index_of(path: str) -> str:
    """Return where the index of the shard at `path` would lie."""
    return with_suffix(path, SUFFIX)


class DaliMembers:
    """The members of one archive as its index has them; see `members.ShardMembers`.

    Args:
        content: of the index.
        read_at: reads from the archive.
        n_bytes: its size.
        name: how errors name it.
        is_far: whether a read takes long, so that labels are read ahead, many at once.

    Raises:
        NotOfArchive: if the index is of another version or of another archive.
        ManifestError: if the archive cannot be read.
    """

    has_end_mark = is_listed = True

    def __init__(self, content: bytes, read_at: ReadAt, n_bytes: int, name: str, *, is_far: bool) -> None:
        self._read_at = read_at
        self._name = name
        self._is_far = is_far
        self._members = _parse(content, n_bytes)
        self._ahead: dict[bytes, Iterator[tuple[int, bytes]]] = {}
        _check(self._members, read_at, n_bytes, name)

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in the archive's order."""
        return iter(self._members)

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return the content of a member; raises `ManifestError` if the archive has another one there."""
        place = bisect.bisect_left(self._members, offset, key=lambda each: each.data_at)
        member = self._members[place]
        if not self._is_far:
            return self._content(member)[1]
        kind = member.name.rpartition(b".")[2]
        for _ in range(2):
            if kind not in self._ahead:
                same = [each for each in self._members[place:] if each.name.endswith(b"." + kind)]
                self._ahead[kind] = in_parallel(self._content, same)
            for at, content in self._ahead[kind]:
                if at == offset:
                    return content
            del self._ahead[kind]  # asked for again, or out of order
        raise AssertionError(member)

    def _content(self, member: Member) -> tuple[int, bytes]:
        """Return where a member's data starts, and the data."""
        raw = self._read_at(member.data_at - BLOCK_BYTES, BLOCK_BYTES + member.n_bytes)
        if not _fits(raw[:BLOCK_BYTES], member):
            raise ManifestError(
                f"cannot use {self._name}: its index ({SUFFIX}) says that the member at byte {member.data_at} has "
                f"{member.n_bytes} bytes, and the archive has another one there; write the index again, or remove it"
            )
        return member.data_at, raw[BLOCK_BYTES:]


def _parse(content: bytes, n_bytes: int) -> list[Member]:
    head, *lines = content.split(b"\n")
    if not (match := _HEAD.match(head.rstrip())):
        raise NotOfArchive("it is not of version 1.2" if head.startswith(b"v1.") else "")
    lines = [line for line in lines if line.strip()]
    if len(lines) != int(match[1]):
        raise NotOfArchive(f"it has {len(lines)} samples, and says that it has {int(match[1])}")
    found: list[Member] = []
    end = 0
    for line in lines:
        words = line.split(b" ")
        if len(words) % 4:
            raise NotOfArchive("names in it have spaces")
        for at in range(0, len(words), 4):
            _, offset, size, name = words[at : at + 4]
            if b"\\" in name:
                raise NotOfArchive("names in it are escaped")
            if not (offset.isdigit() and size.isdigit() and len(offset) < 19 and len(size) < 19):
                raise NotOfArchive("it is damaged")
            data_at, size_bytes = int(offset), int(size)
            if data_at % BLOCK_BYTES or data_at < end + BLOCK_BYTES or data_at + size_bytes > n_bytes:
                raise NotOfArchive("it is of another archive")
            found.append(Member(name, data_at - BLOCK_BYTES, data_at, size_bytes, b"0"))
            end = data_at + -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
    if not found:
        raise NotOfArchive("it has no samples")
    return found


def _check(members: Sequence[Member], read_at: ReadAt, n_bytes: int, name: str) -> None:
    """Compare the end of the archive, and some headers from the first to the last."""
    last = members[-1]
    end = last.data_at + -(-last.n_bytes // BLOCK_BYTES) * BLOCK_BYTES
    try:
        more = end < n_bytes and TarHeaders(read_at, n_bytes, name).member(end) is not None
    except ManifestError:
        more = True
    if more:
        raise NotOfArchive("the archive goes on behind its last member")
    step = max(1, (len(members) - 1) // (_COMPARED - 1))
    compared = [*itertools.islice(members, 0, None, step), last]
    headers = in_parallel(lambda member: read_at(member.header_at, BLOCK_BYTES), compared, _COMPARED)
    if not all(map(_fits, headers, compared)):
        raise NotOfArchive("it is of another archive")


def _fits(block: bytes, member: Member) -> bool:
    """Return whether a header is that of `member`, as far as one block can say."""
    if len(block) < BLOCK_BYTES or not is_header(block):
        return False
    found = TarHeaders(lambda offset, n: block[offset : offset + n], BLOCK_BYTES, "").member(0)
    if found is None or found.kind != b"0" or found.n_bytes != member.n_bytes:
        return False
    return found.name == member.name or found.name[:_NAME_BYTES] == member.name[:_NAME_BYTES]
