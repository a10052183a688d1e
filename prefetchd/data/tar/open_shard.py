"""One shard while its members are gone through, wherever it lies and wherever they come from."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from prefetchd.data.tar.dali_index import DaliMembers, NotOfArchive, index_of
from prefetchd.data.tar.headers import Member, ReadAt
from prefetchd.errors import one_line

log = logging.getLogger("prefetchd")


class ShardMembers(Protocol):
    """The members of one shard, gone through once."""

    @property
    def is_listed(self) -> bool:
        """Whether an index lists them, so that their headers are compared when they are read."""

    @property
    def has_end_mark(self) -> bool:
        """Whether the archive ends with a block of zeros; known after all members."""

    def __iter__(self) -> Iterator[Member]:
        """Yield the members in the archive's order; raises `ManifestError` if it is no tar, or is damaged."""

    def read(self, offset: int, n_bytes: int) -> bytes:
        """Return the content of one of the last sample's members; fewer bytes at the archive's end."""


@dataclass(frozen=True, slots=True)
class OpenShard:
    """One shard while its members are gone through.

    Attributes:
        path: absolute path or URL.
        name: its last part, for errors.
        identity: what tells this state of it from any other; see `files.identity`.
        n_bytes: its size.
        state: what an index that is kept has in place of the identity.
        members: its members.
    """

    path: str
    name: str
    identity: list[Any]
    n_bytes: int
    state: list[int | str]
    members: ShardMembers


def warn_of_end(path: str, n_bytes: int, members: ShardMembers) -> None:
    """Say that a shard may have been cut short."""
    if not members.has_end_mark and n_bytes:
        log.warning(
            "the shard %s has no end mark: some programs leave it out, but if it was cut short or is still being "
            "written, samples are missing; compare its size with the original's",
            one_line(path),
        )


def dali_members(
    content: bytes, path: str, read_at: ReadAt, n_bytes: int, name: str, *, is_far: bool
) -> DaliMembers | None:
    """Return the members of the shard at `path` by DALI's index; `None`, with a line in the log, if it does not fit."""
    try:
        return DaliMembers(content, read_at, n_bytes, name, is_far=is_far)
    except NotOfArchive as error:
        if str(error):
            log.warning("the index %s is not taken: %s; the shard is gone through", one_line(index_of(path)), error)
        return None
