"""Releases that need not wake the daemon: a page of shared memory in which a consumer notes leases that have ended.

    consumer: the last view dies -> Returns.note(lease) -> page -> daemon: ReturnedLeases.new()

A loop that has several grants in its mailbox is in no need of more, so the daemon may hear of what it gives back with
the next message, for several batches at once: waking it for each would cost both as much as all the rest of a cheap
batch. But a slot goes back when its last view dies: so the lease is noted here at that moment, and the daemon looks
whenever it looks at anything, and every few milliseconds while somebody waits for a slot.

Every noted lease is told in the next `Release` besides; so nothing depends on when the page is read, and a note that is
written over before is no loss. Notes hold a checksum: one that is read while it is written is not there yet.

Memory: the daemon makes the page and maps it read-only; the consumer alone writes to it. It cannot be cut, which would
make the daemon's map a SIGBUS. Both maps go with their process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from typing import TYPE_CHECKING

from prefetchd import segment

if TYPE_CHECKING:
    import mmap

_NOTE = struct.Struct("<3Q")  # lease, last lease taken, checksum
_N_NOTES = 16
_TAKEN = struct.Struct("<2Q")  # last lease taken, checksum
_TAKEN_AT = _NOTE.size * _N_NOTES
_CHECK = 0x9E3779B97F4A7C15  # so that a page of zeros is no note
RETURN_QUEUE_BYTES = 4096
MAX_NOTED = 8
ENOUGH_AHEAD = 2  # grants in the mailbox with which a loop does without the daemon


class ReturnedLeases:
    """The daemon's end. Owns its map of the page."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._page = bytes(_NOTE.size * _N_NOTES)
        self._notes: set[tuple[int, int]] = set()

    @classmethod
    def create(cls) -> tuple[ReturnedLeases, int]:
        """Return an empty page, and the consumer's descriptor of it, the caller's own.

        Raises:
            OSError: if the process has no descriptor left, or the machine no memory.
        """
        fd = segment.anonymous_file("prefetchd-returns", RETURN_QUEUE_BYTES)
        try:
            return cls(segment.map_read_only(fd, RETURN_QUEUE_BYTES)), fd
        except BaseException:
            os.close(fd)
            raise

    def new(self) -> list[tuple[int, int]]:
        """Return what was noted since the last time: (lease, last lease taken then)."""
        page = self._memory[: len(self._page)]
        if page == self._page:
            return []
        self._page = page
        before = self._notes
        self._notes = {
            (lease, taken) for lease, taken, check in _NOTE.iter_unpack(page) if check == lease ^ taken ^ _CHECK
        }
        return sorted(self._notes - before)

    @property
    def taken(self) -> int:
        """The last lease that the loop has taken; 0 if that is not known just now."""
        taken, check = _TAKEN.unpack_from(self._memory, _TAKEN_AT)
        return taken if check == taken ^ _CHECK else 0

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()


class Returns:
    """The consumer's end: a map that it writes through.

    Raises:
        ValueError: if what `fd` names is smaller than a page.
    """

    def __init__(self, fd: int) -> None:
        segment.check_length(fd, RETURN_QUEUE_BYTES)
        self._memory = segment.map_writable(fd, RETURN_QUEUE_BYTES)
        segment.keep_from_children(self._memory)
        self._numbers = itertools.count()

    def note(self, lease: int, taken: int) -> None:
        """Note that a lease has ended. In any thread, at any moment: each note has a place of its own."""
        at = next(self._numbers) % _N_NOTES * _NOTE.size
        self._memory[at : at + _NOTE.size] = _NOTE.pack(lease, taken, lease ^ taken ^ _CHECK)

    def took(self, lease: int) -> None:
        """Note that the loop has taken a lease, so that `status` can tell what it holds from what lies ready for it."""
        with contextlib.suppress(ValueError):  # another thread has closed the connection
            self._memory[_TAKEN_AT : _TAKEN_AT + _TAKEN.size] = _TAKEN.pack(lease, lease ^ _CHECK)

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()
