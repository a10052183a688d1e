"""The walk over archives that lie far away: many segments at once, joined so that the result is that of one walk.

The headers of a tar form a chain: where a member starts is known from the one before it alone. At 50 ms a read, a
walk over 10,000 samples would take eight minutes. So an archive is cut into segments. In each a thread looks for the
first header and walks from there. Then the chain is followed through the segments in order: what a thread found
counts from the member on where the chain arrives. Where it arrives at none (the thread took something in a member's
data for a header, or found none), the segment is walked again from there. So the members are those of one walk,
with anything in their data.

`members` uses it, in the daemon. A sample costs a read of 8 KiB; where samples are smaller than some 60 KB, all is
read, in pieces of 1 MiB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from prefetchd.data.in_parallel import in_parallel
from prefetchd.data.kinds import IMAGE_SUFFIXES
from prefetchd.data.tar.headers import BLOCK_BYTES, WINDOW_BYTES, Member, ReadAt, TarHeaders, is_header
from prefetchd.errors import ManifestError

MAX_KEPT_BYTES = 64 << 10  # of a member that is no image: its content is kept with its header
_IMAGES = tuple(suffix.encode() for suffix in IMAGE_SUFFIXES)
_LEAST_SEGMENT_BYTES, _MOST_SEGMENT_BYTES = 8 << 20, 64 << 20
_SEGMENTS = 256  # of all archives together, where sizes allow
_SEARCHED_BYTES = 256 << 10  # at a time
_WIDE_BYTES = 1 << 20
_JUDGED_READS = 8
_MAGIC = b"ustar"


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive: how to read it, its size, and how errors name it."""

    read_at: ReadAt
    n_bytes: int
    name: str


@dataclass(slots=True)
class Walked:
    """What a thread found in a segment.

    Attributes:
        members: in order.
        contents: of small members, by where their data starts.
        next_at: where the chain goes on after them; -1 if nothing was found.
        error: what ended the walk.
        has_end_mark: see `TarHeaders`.
    """

    members: list[Member] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)
    next_at: int = -1
    error: ManifestError | None = None
    has_end_mark: bool = True


class JoinedMembers:
    """The members of one archive, from its segments. For one thread; `TarHeaders` of an archive that is near.

    Attributes:
        has_end_mark, is_listed: see `TarHeaders`.
    """

    is_listed = False

    def __init__(self, archive: Archive, segments: Iterable[tuple[int, int, Walked]]) -> None:
        self.has_end_mark = False
        self._archive = archive
        self._segments = segments
        self._contents: list[dict[int, bytes]] = []

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in the archive's order; raises as `TarHeaders` does."""
        position = 0
        for _, stop, walked in self._segments:
            if position >= stop:
                continue
            place = next((n for n, member in enumerate(walked.members) if member.header_at == position), None)
            if place is None:
                walked, place = walk_segment(self._archive, position, stop, starts_there=True), 0
            self._contents = [*self._contents[-1:], walked.contents]  # the last sample may have begun before
            yield from walked.members[place:]
            if walked.error is not None:
                raise walked.error
            position = walked.next_at
            self.has_end_mark = walked.has_end_mark

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return a member's content; raises `ManifestError` if it cannot be read."""
        for contents in self._contents:
            if len(found := contents.get(offset, b"")) == n_bytes:
                return found
        return self._archive.read_at(offset, n_bytes)


def joined(archives: Sequence[Archive]) -> Iterator[JoinedMembers]:
    """Yield the members of each archive, to be gone through before the next is taken."""
    total = sum(archive.n_bytes for archive in archives)
    segment_bytes = min(max(total // _SEGMENTS, _LEAST_SEGMENT_BYTES), _MOST_SEGMENT_BYTES) // BLOCK_BYTES * BLOCK_BYTES
    segments = (  # made as they are needed: a server may say any size
        (archive, start, min(start + segment_bytes, archive.n_bytes))
        for archive in archives
        for start in range(0, max(1, archive.n_bytes), segment_bytes)
    )

    def walk(segment: tuple[Archive, int, int]) -> tuple[int, int, Walked]:
        return *segment[1:], walk_segment(*segment, starts_there=not segment[1])

    walks = in_parallel(walk, segments)
    try:
        for archive in archives:
            count = -(-archive.n_bytes // segment_bytes) or 1
            mine = (next(walks) for _ in range(count))
            yield JoinedMembers(archive, mine)
            for _ in mine:
                pass  # behind the archive's end, or after an error
    finally:
        walks.close()


def walk_segment(archive: Archive, start: int, stop: int, *, starts_there: bool) -> Walked:
    """Return the members whose headers start from `start` to before `stop`.

    Without `starts_there` the first is searched for, and what is found may be wrong.
    """
    walked = Walked()
    reads = [0]

    def read_at(offset: int, n_bytes: int) -> bytes:
        reads[0] += 1
        return archive.read_at(offset, min(n_bytes, archive.n_bytes - offset))

    headers = TarHeaders(read_at, archive.n_bytes, archive.name)
    try:
        first = start if starts_there else _first_header(archive, start, stop)
        if first < 0:
            return walked
        judged_at = first
        for member in headers.walk(first, stop):
            walked.members.append(member)
            if is_kept(member):  # as a rule it is in the window
                walked.contents[member.data_at] = headers.read(member.data_at, member.n_bytes)
            if reads[0] >= _JUDGED_READS:
                passed_bytes = (headers.next_at - judged_at) // reads[0]
                is_dense = passed_bytes < _JUDGED_READS * headers.window_bytes
                headers.window_bytes = _WIDE_BYTES if is_dense else WINDOW_BYTES
                reads[0], judged_at = 0, headers.next_at
        walked.next_at, walked.has_end_mark = headers.next_at, headers.has_end_mark
    except ManifestError as error:
        walked.error = error
    return walked


def is_kept(member: Member) -> bool:
    """Return whether a member may be a label or say of one."""
    return member.kind == b"0" and member.n_bytes <= MAX_KEPT_BYTES and not member.name.lower().endswith(_IMAGES)


def _first_header(archive: Archive, start: int, stop: int) -> int:
    """Return where the first block that looks like a header is; -1 for none."""
    for at in range(start, stop, _SEARCHED_BYTES):
        searched = archive.read_at(at, min(_SEARCHED_BYTES, stop - at))
        for place in range(0, len(searched) - BLOCK_BYTES + 1, BLOCK_BYTES):
            if searched[place + 257 : place + 262] == _MAGIC and is_header(searched[place : place + BLOCK_BYTES]):
                return at + place
    return -1
