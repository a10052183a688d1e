"""The identity of each object of a list, as it was when it was first read in this run: one word each, for all readers.

A list names objects and not their state. So the first reader that reads one notes what it found, and each later read
must find the same: an epoch never has two states of one object. Where a listing told the identities, they are noted
from the start.

The daemon makes the table in a memfd, and readers map it. A word is 0 for not known, or a digest of ETag and size with
a bit that is set once the object was read, and one where nothing but the size is known. No lock: a word is written at
once, and two readers that note one object at a time have found the same, or the next read of it finds that it has
changed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from collections.abc import Sequence
from typing import Any

from prefetchd.data.files import write_all
from prefetchd.ipc.descriptors import memfd, seal_length
from prefetchd.ring.segment import keep_from_children

WORD_BYTES = 8
_READ = 2
_SIZE_ALONE = 4


def word_of(identity: Sequence[Any]) -> int:
    """Return the word of an identity (size, ETag); it is never 0."""
    tag = str(identity[1]).removeprefix("W/")  # a server may send one object now with a weak and now with a strong tag
    digest = hashlib.blake2b(repr((int(identity[0]), tag)).encode(), digest_size=WORD_BYTES).digest()
    return int.from_bytes(digest, "little") & ~(_READ | _SIZE_ALONE) | 1 | (0 if tag else _SIZE_ALONE)


def make_pins(n_objects: int, words: Sequence[int] = ()) -> int:
    """Return the descriptor, the caller's, of a table of so many objects; `words` are those that are known."""
    fd = memfd("prefetchd-pins")
    try:
        os.posix_fallocate(fd, 0, max(1, n_objects) * WORD_BYTES)  # so that memory that is short is no SIGBUS later
        if words:
            write_all(fd, array("Q", words).tobytes())
        seal_length(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Pins:
    """The table, mapped. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        n_bytes = os.fstat(fd).st_size
        try:
            self._memory = mmap.mmap(fd, n_bytes)
        except PermissionError:  # sealed, as on another machine than the daemon's: then each reader has its own
            self._memory = mmap.mmap(fd, n_bytes, access=mmap.ACCESS_COPY)
        keep_from_children(self._memory)
        self._words = memoryview(self._memory).cast("Q")

    def word(self, place: int) -> int:
        """Return the word of an object; 0 if its identity is not known."""
        return self._words[place] & ~_READ

    def state(self, place: int) -> bytes | None:
        """Return what tells the object's state from any other in a later run; `None` if it is not known."""
        word = self.word(place)
        return None if not word or word & _SIZE_ALONE else word.to_bytes(WORD_BYTES, "little")

    def was_read(self, place: int) -> bool:
        """Return whether a reader has read the object in this run."""
        return bool(self._words[place] & _READ)

    def note(self, place: int, identity: Sequence[Any], *, is_read: bool = False) -> bool:
        """Note the identity of an object, unless one is known; return whether it is the known one."""
        word = word_of(identity)
        known = self.word(place)
        if known not in (0, word):
            return False
        if not known or (is_read and not self.was_read(place)):
            self._words[place] = word | (_READ if is_read else 0)
        return True

    def close(self) -> None:
        """Close the descriptor and the map."""
        self._words.release()
        self._memory.close()
        os.close(self.fd)
