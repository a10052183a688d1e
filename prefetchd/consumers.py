"""The daemon's side of one consumer: its socket, its process, its cursor, the leases it was granted.

A consumer lives until its process ends (by pidfd: a forked child may keep its socket open) or its socket ends with no
lease out. When it dies, its leases end at once. It is a party of its own: whatever it sends that makes no sense ends
its connection and touches nobody else.
"""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field

from prefetchd import control, messages
from prefetchd.cursor import Cursor
from prefetchd.datasets import Dataset
from prefetchd.slots import Slot


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
        untaken: leases granted ahead that its loop has not taken yet, oldest first.
        stalled: whether it was told that no slot can be spared.
        slots: slots that it has a descriptor of.
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
    stalled: bool = False
    slots: set[int] = field(default_factory=set)
    batches: int = 0

    def send(self, message: messages.Message, fds: list[int] | None = None) -> bool:
        """Send a message; `False` if the consumer does not take it (it is gone, or does not read)."""
        try:
            control.send(self.sock, messages.encode(message), fds or (), wait=False)
        except (BlockingIOError, control.ConnectionEnded, OSError):
            return False
        return True

    def open_slot(self, slot: Slot) -> bool:
        """Make sure that the consumer has the slot's descriptor."""
        if slot.number in self.slots:
            return True
        fd = slot.segment.read_only_fd()
        try:
            sent = self.send(messages.SlotOpened(slot.number, slot.segment.n_bytes), [fd])
        finally:
            control.close_all([fd])
        if sent:
            self.slots.add(slot.number)
        return sent

    def took(self, lease: int) -> None:
        """The loop has taken every lease up to `lease`."""
        while self.untaken and self.untaken[0] <= lease:
            self.untaken.popleft()
