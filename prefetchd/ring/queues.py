"""The two queues of shared memory between the daemon and one consumer. They replace two messages a batch.

    daemon:   GrantWriter.write(...)          -> page -> consumer: GrantReader.read(serial) -> Grant or None
    consumer: ReturnWriter.write(lease, ...)  -> page -> daemon:   ReturnReader.read_new() -> [(lease, taken), ...]

Grants: the daemon writes the grants that it makes ahead. A loop that finds its next grant there makes no system call. A
loop that finds none sends `Want` on its socket and sleeps. The daemon answers `GrantReady` once one is there. Grants
have numbers from 1 for each cursor. Each says how many messages the daemon had sent on the socket before (`n_sent`), so
that the consumer knows whether to read one first, such as the slot that the grant is for.

Returns: a consumer with several grants ahead needs nothing now, so a lease that ends need not wake the daemon. The
consumer writes the lease here at that moment, and sends it again later in a `Release` for several leases. So nothing
depends on when the daemon reads the page. It reads at every round. While a loop waits for a slot it comes round every
few milliseconds, a few times. Then it writes to the page of grants that it wants a message for each lease (`Ended`),
reads once more, and sleeps. The consumer looks for that word after it has written a lease, so one of the two sees the
other. A loop that takes its batches evenly is told to write each lease here, and the daemon polls the queue.

Every record carries a checksum: a reader of the page sees a record whole, or does not see it yet.

Memory: the daemon makes both pages. Only one side can write each, and nobody can cut them, which would make the other
side's map a SIGBUS. The maps go with their processes, so a party that dies leaves nothing behind.
"""

from __future__ import annotations

import enum
import itertools
import os
import struct
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from prefetchd.ipc.descriptors import memfd_of_length
from prefetchd.ring import segment

if TYPE_CHECKING:
    import mmap


_RECORD = struct.Struct("<10QI")
_RECORD_BYTES = _RECORD.size
_CHECK_BYTES = 4
_unpack = _RECORD.unpack
_begin = struct.Struct("<2Q").unpack_from
_new = tuple.__new__
_STRIDE_BYTES = 128
_N_RECORDS = 64
GRANT_QUEUE_BYTES = _N_RECORDS * _STRIDE_BYTES
MAX_GRANTS_AHEAD = _N_RECORDS // 2  # so a record is written over only long after it was read
_ENDED_AT = _STRIDE_BYTES - 1  # behind the first record
assert _RECORD_BYTES < _STRIDE_BYTES


class Ended(enum.IntEnum):
    """How a consumer says that a lease has ended."""

    AS_USUAL = 0  # by message; by its queue while it has several grants ahead
    BY_MESSAGE = 1
    BY_QUEUE = 2


class Grant(NamedTuple):
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
        n_sent: how many messages the daemon had sent to the consumer before.
        layout: the number of its layout, where the data set has several.
        check: the checksum over the other fields.
    """

    number: int
    serial: int
    lease: int
    slot: int
    epoch: int
    batch: int
    rows: int
    repeated: int
    n_sent: int
    layout: int
    check: int


class GrantWriter:
    """The daemon's end of the grant queue. Owns its map of the page."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._serial = 0
        self._number = 0

    @classmethod
    def create(cls) -> tuple[GrantWriter, int]:
        """Return an empty queue, and a read-only descriptor of it for the consumer, which the caller owns.

        Raises:
            OSError: if the process has no descriptor left, or the machine no memory.
        """
        fd = memfd_of_length("prefetchd-grants", GRANT_QUEUE_BYTES)
        try:
            writer = cls(segment.map_writable(fd, GRANT_QUEUE_BYTES))
            try:
                return writer, segment.read_only(fd)
            except OSError:
                writer.close()
                raise
        finally:
            os.close(fd)

    def open(self, serial: int) -> None:
        """Begin with another cursor: grants of the last one that were not read are void."""
        self._serial, self._number = serial, 0

    def write(
        self, lease: int, slot: int, epoch: int, batch: int, rows: int, *, repeated: bool, n_sent: int, layout: int = 0
    ) -> None:
        """Write the cursor's next grant."""
        self._number += 1
        fields = self._number, self._serial, lease, slot, epoch, batch, rows, repeated, n_sent, layout
        check = crc32(_RECORD.pack(*fields, 0)[:-_CHECK_BYTES])
        at = self._number % _N_RECORDS * _STRIDE_BYTES
        self._memory[at : at + _RECORD_BYTES] = _RECORD.pack(*fields, check)

    def say_how_leases_end(self, how: Ended) -> None:
        """Tell the consumer how to say that a lease has ended."""
        self._memory[_ENDED_AT] = how

    def close(self) -> None:
        """Drop the map; the consumer's lives on."""
        self._memory.close()


class CursorGrants:
    """The number of one cursor's next grant. A loop that has ended in another thread moves its own number alone."""

    __slots__ = ("number", "serial")

    def __init__(self, serial: int) -> None:
        self.serial = serial
        self.number = 1


class GrantReader:
    """The consumer's end of the grant queue: a read-only map of the page.

    Raises:
        ValueError: if the file of `fd` is smaller than a grant queue.
    """

    def __init__(self, fd: int) -> None:
        self._memory = segment.map_read_only(fd, GRANT_QUEUE_BYTES)
        self.cursor = CursorGrants(0)  # 0 is no cursor's serial number

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()

    def open(self, serial: int) -> None:
        """Read the grants of another cursor from now on."""
        self.cursor = CursorGrants(serial)

    def end(self, serial: int) -> None:
        """Read no more grants of the cursor `serial`, unless another cursor has begun: grants made ahead are void."""
        if self.cursor.serial == serial:
            self.cursor = CursorGrants(0)

    @property
    def has_next(self) -> bool:
        """Whether the cursor's next grant is there, or is being written."""
        return self.has_ahead(1)

    def has_ahead(self, count: int) -> bool:
        """Whether at least `count` grants are there, or the last of them is being written. Any thread may call it."""
        following = self.cursor
        number = following.number + count - 1
        found, serial = _begin(self._memory, number % _N_RECORDS * _STRIDE_BYTES)
        return bool(found == number and serial == following.serial)

    @property
    def leases_end(self) -> int:
        """How to say that a lease has ended, an `Ended`. To be read once more after the lease is written down."""
        return self._memory[_ENDED_AT]

    def read(self, serial: int) -> Grant | None:
        """Return the next grant of the cursor `serial`; `None` if it is not there yet, or the cursor has ended."""
        following = self.cursor
        if following.serial != serial:
            return None
        number = following.number
        at = number % _N_RECORDS * _STRIDE_BYTES
        record = self._memory[at : at + _RECORD_BYTES]
        fields = _unpack(record)
        if fields[0] != number or fields[1] != serial or fields[-1] != crc32(record[:-_CHECK_BYTES]):
            return None
        following.number = number + 1
        return _new(Grant, fields)  # what Grant._make does, without a Python call


_RETURN = struct.Struct("<3Q")  # lease, last lease taken, checksum
_N_RETURNS = 16
_TAKEN = struct.Struct("<2Q")  # last lease taken, checksum
_TAKEN_AT = _RETURN.size * _N_RETURNS
_CHECK = 0x9E3779B97F4A7C15  # so that a page of zeros holds no record
RETURN_QUEUE_BYTES = 4096
MAX_RETURNS_UNSENT = 8  # leases that a consumer writes to the page before it sends them in a `Release`
MAX_RETURNS_QUIET = _N_RETURNS - 1  # the same where the daemon looks for them by itself
ENOUGH_AHEAD = 2  # grants in its queue with which a loop does without the daemon


class ReturnReader:
    """The daemon's end of the return queue. Owns its map of the page."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._page = bytes(_RETURN.size * _N_RETURNS)
        self._returns: set[tuple[int, int]] = set()

    @classmethod
    def create(cls) -> tuple[ReturnReader, int]:
        """Return an empty queue, and a descriptor of it for the consumer, which the caller owns.

        Raises:
            OSError: if the process has no descriptor left, or the machine no memory.
        """
        fd = memfd_of_length("prefetchd-returns", RETURN_QUEUE_BYTES)
        try:
            return cls(segment.map_read_only(fd, RETURN_QUEUE_BYTES)), fd
        except BaseException:
            os.close(fd)
            raise

    def read_new(self) -> list[tuple[int, int]]:
        """Return what was written since the last call: (lease, last lease taken at that time)."""
        page = self._memory[: len(self._page)]
        if page == self._page:
            return []
        self._page = page
        before = self._returns
        self._returns = {
            (lease, taken)
            for lease, taken, check in _RETURN.iter_unpack(page)
            if lease and check == lease ^ taken ^ _CHECK  # `pack_into` writes zeros first, and there is no lease 0
        }
        return sorted(self._returns - before)

    @property
    def taken(self) -> int:
        """The last lease that the loop has taken; 0 while that is being written."""
        taken, check = _TAKEN.unpack_from(self._memory, _TAKEN_AT)
        return taken if check == taken ^ _CHECK else 0

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()


_write_return, _write_taken = _RETURN.pack_into, _TAKEN.pack_into


class ReturnWriter:
    """The consumer's end of the return queue: a map that it writes through.

    Raises:
        ValueError: if the file of `fd` is smaller than a return queue.
    """

    def __init__(self, fd: int) -> None:
        segment.check_length(fd, RETURN_QUEUE_BYTES)
        self._memory = segment.map_writable(fd, RETURN_QUEUE_BYTES)
        segment.keep_from_children(self._memory)
        self._numbers = itertools.count()

    def write(self, lease: int, taken: int) -> None:
        """Write that a lease has ended. Any thread may call it at any moment: each record has a place of its own."""
        at = next(self._numbers) % _N_RETURNS * _RETURN.size
        _write_return(self._memory, at, lease, taken, lease ^ taken ^ _CHECK)

    def write_taken(self, lease: int) -> None:
        """Write that the loop has taken a lease: `status` counts those after it as granted ahead, not as held."""
        try:  # every batch comes here; `suppress` would be three calls
            _write_taken(self._memory, _TAKEN_AT, lease, lease ^ _CHECK)
        except (TypeError, ValueError):  # another thread has closed the connection
            pass

    def close(self) -> None:
        """Drop the map."""
        self._memory.close()
