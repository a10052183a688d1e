"""The daemon's side of one consumer: its socket, its process, its cursor, the leases it was granted.

A consumer lives until its process ends (by pidfd: a forked child may keep its socket open) or its socket ends with no
lease out. When it dies, its leases end at once. It is a party of its own: whatever it sends that makes no sense ends
its connection and touches nobody else.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from dataclasses import dataclass, field

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.ipc import messages, sockets
from prefetchd.ring.queues import GrantWriter, ReturnReader
from prefetchd.ring.slots import Slot


@dataclass(slots=True, eq=False)
class Consumer:
    """One connection.

    Attributes:
        number: the daemon's name for it.
        sock: its socket, owned; closed when the peer has ended it.
        pid: its process.
        pidfd: owned.
        guaranteed_slots: how many slots each of its cursors may hold whatever the others do.
        dataset: what it asked for.
        group: the group that it shares its passes with; `None` for a cursor of its own.
        start_together: how many loaders its first loop is to start with; 0 once it has.
        start_timeout_s: how long it waits for them.
        held_back: whether its first loop waits for the other loaders.
        attached: whether it has said what it wants and was let in.
        cursor: where its loop is.
        blocked: whether its socket was full when something was last sent: nothing more is until it reads.
        unsent: what must not be lost for that; sent as soon as it reads.
        untaken: leases granted ahead that its loop has not taken yet, oldest first.
        wanted_s: when its loop began to wait, by the monotonic clock.
        stalled: whether it was told that no slot can be spared.
        slots: slots that it has a descriptor of.
        batches, samples: what it was granted, over all its loops.
        outbox: where its grants are left, owned; made when it attaches.
        returned: where it notes leases that have ended and are still to be told, owned; made when it attaches.
        told: how many messages were sent to it.
        since_s: when it connected, by the monotonic clock, in seconds.
    """

    number: int
    sock: socket.socket
    pid: int
    pidfd: int
    guaranteed_slots: int = 2
    dataset: Dataset | None = None
    group: str | None = None
    start_together: int = 0
    start_timeout_s: float = 0.0
    held_back: bool = False
    attached: bool = False
    cursor: Cursor | None = None
    untaken: deque[int] = field(default_factory=deque)
    wanted_s: float = 0.0
    stalled: bool = False
    slots: set[int] = field(default_factory=set)
    outbox: GrantWriter | None = None
    returned: ReturnReader | None = None
    told: int = 0
    batches: int = 0
    samples: int = 0
    _waited_s: float = 0.0
    _waiting_since_s: float | None = None
    since_s: float = 0.0
    blocked: bool = False
    unsent: deque[messages.Message] = field(default_factory=deque)

    def send(self, message: messages.Message, fds: list[int] | None = None) -> bool:
        """Send a message; `False` if the consumer does not take it (it is gone, or does not read)."""
        if self.blocked:
            return False
        try:
            sockets.send(self.sock, messages.encode(message), fds or (), wait=False)
        except BlockingIOError:
            self.blocked = True
            return False
        except (sockets.ConnectionEnded, OSError):
            return False
        self.told += 1
        return True

    def set_waiting(self, is_waiting: bool) -> None:
        """Its loop stands still for its next batch from now on, or does not any more."""
        if self.cursor is not None:
            self.cursor.waiting = is_waiting
        if is_waiting != (self._waiting_since_s is not None):
            now_s = time.monotonic()
            if self._waiting_since_s is not None:
                self._waited_s += now_s - self._waiting_since_s
            self._waiting_since_s = now_s if is_waiting else None

    @property
    def waits(self) -> bool:
        """Whether its loop stands still for its next batch."""
        return self._waiting_since_s is not None

    @property
    def waited_s(self) -> float:
        """Seconds that its loops have stood still for a batch, until now."""
        since_s = self._waiting_since_s
        return self._waited_s + (0.0 if since_s is None else time.monotonic() - since_s)

    def send_sooner_or_later(self, message: messages.Message) -> None:
        """Send a message, now or when the consumer reads again."""
        if not self.send(message) and self.blocked:
            self.unsent.append(message)

    def unblock(self) -> None:
        """Its socket may have room again: send what was kept back."""
        self.blocked = False
        while self.unsent and self.send(self.unsent[0]):
            self.unsent.popleft()

    def open_slot(self, slot: Slot) -> bool:
        """Make sure that the consumer has the slot's descriptor."""
        if slot.number in self.slots:
            return True
        try:
            fd = slot.segment.read_only_fd()
        except OSError:  # no descriptor is left: tried again, as with a full socket
            self.blocked = True
            return False
        try:
            sent = self.send(messages.SlotOpened(slot.number, slot.segment.n_bytes), [fd])
        finally:
            sockets.close_all([fd])
        if sent:
            self.slots.add(slot.number)
        return sent

    def took(self, lease: int) -> None:
        """The loop has taken every lease up to `lease`."""
        while self.untaken and self.untaken[0] <= lease:
            self.untaken.popleft()
