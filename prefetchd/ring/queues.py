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

A consumer's mailbox: a page of shared memory in which the daemon leaves the grants that it makes ahead.

    daemon: Outbox.put(grant) -> page (written by the daemon alone) -> consumer: Mailbox.take() -> grant, or None

A loop that finds its next grant here makes no system call, which is most of what a message costs after a pause. A loop
that finds none says `Want` on its socket and sleeps; then the daemon says `GrantReady` once there is a grant. Sockets
carry everything else. Each record says how many messages were sent on the socket before it (`told`), so that the
consumer knows without looking whether there is something to read first, such as the slot that the grant is for.

Grants are numbered from 1 for each cursor. A record holds a checksum over itself: whatever order the processor lets
another one see the writes in, it is whole or not there yet. A record is written over only long after it was taken, as
fewer are ever granted ahead than there are records.

Memory: the daemon owns the descriptor and its map, the consumer a map that it cannot write. Both go with their process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from prefetchd.ring import segment

if TYPE_CHECKING:
    import mmap


_RECORD = struct.Struct("<9QI")
_RECORD_BYTES = _RECORD.size
_CHECK_BYTES = 4
_unpack = _RECORD.unpack
_begin = struct.Struct("<2Q").unpack_from
_new = tuple.__new__
_STRIDE_BYTES = 128
_N_RECORDS = 64
GRANT_QUEUE_BYTES = _N_RECORDS * _STRIDE_BYTES
MAX_GRANTS_AHEAD = _N_RECORDS // 2


class Granted(NamedTuple):
    """A lease on a ready batch.

    Attributes:
        number: of the grant, from 1 for each cursor.
        serial: the cursor's.
        lease: the lease's number.
        slot: where the batch is.
        epoch: its epoch.
        batch: its number in the epoch.
        rows: how many samples it has.
        repeated: 1 if it wrapped round past the end of the epoch, else 0.
        told: how many messages the daemon had sent to the consumer before.
        check: the checksum over the others.
    """

    number: int
    serial: int
    lease: int
    slot: int
    epoch: int
    batch: int
    rows: int
    repeated: int
    told: int
    check: int


class Outbox:
    """The daemon's end. Owns the page; takes one descriptor."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._serial = 0
        self._number = 0

    @classmethod
    def create(cls) -> tuple[Outbox, int]:
        """Return an empty one, and the consumer's descriptor of it, the caller's own, which nothing is written by.

        Raises:
            OSError: if the process has no descriptor left, or the machine no memory.
        """
        fd = segment.anonymous_file("prefetchd-mailbox", GRANT_QUEUE_BYTES)
        try:
            outbox = cls(segment.map_writable(fd, GRANT_QUEUE_BYTES))
            try:
                return outbox, segment.read_only(fd)
            except OSError:
                outbox.close()
                raise
        finally:
            os.close(fd)

    def open(self, serial: int) -> None:
        """Begin with another cursor; what the last one was granted and has not taken is void."""
        self._serial, self._number = serial, 0

    def put(self, lease: int, slot: int, epoch: int, batch: int, rows: int, *, repeated: bool, told: int) -> None:
        """Leave a grant for the cursor."""
        self._number += 1
        fields = self._number, self._serial, lease, slot, epoch, batch, rows, repeated, told
        check = crc32(_RECORD.pack(*fields, 0)[:-_CHECK_BYTES])
        at = self._number % _N_RECORDS * _STRIDE_BYTES
        self._memory[at : at + _RECORD_BYTES] = _RECORD.pack(*fields, check)

    def close(self) -> None:
        """Give the page up; the consumer's map lives on."""
        self._memory.close()


class Mailbox:
    """The consumer's end: a read-only map of the page.

    Raises:
        ValueError: if what `fd` names is smaller than a mailbox.
    """

    def __init__(self, fd: int) -> None:
        self._memory = segment.map_read_only(fd, GRANT_QUEUE_BYTES)
        self.serial = 0  # of the cursor whose grants it takes; 0 for none
        self._number = 1

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()

    def open(self, serial: int) -> None:
        """Wait for the grants of another cursor."""
        self.serial, self._number = serial, 1

    def end(self, serial: int) -> None:
        """Take no more grants of a cursor that has ended, unless another one has begun: those made ahead are void."""
        if self.serial == serial:
            self.serial = 0

    @property
    def has_next(self) -> bool:
        """Whether the cursor's next grant is there, or being written."""
        return self.has_ahead(1)

    def has_ahead(self, count: int) -> bool:
        """Whether at least `count` grants are there (or the last of them is being written). In any thread."""
        number = self._number + count - 1
        found, serial = _begin(self._memory, number % _N_RECORDS * _STRIDE_BYTES)
        return bool(found == number and serial == self.serial)

    def take(self) -> Granted | None:
        """Return the cursor's next grant; `None` if it is not there yet."""
        number = self._number
        at = number % _N_RECORDS * _STRIDE_BYTES
        record = self._memory[at : at + _RECORD_BYTES]
        fields = _unpack(record)
        if fields[0] != number or fields[1] != self.serial or fields[-1] != crc32(record[:-_CHECK_BYTES]):
            return None
        self._number = number + 1
        return _new(Granted, fields)  # what Granted._make does, without a call of Python's


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
