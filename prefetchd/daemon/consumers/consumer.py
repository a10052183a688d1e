"""One consumer as the daemon sees it: its socket, its process, its loop, and the leases that it was granted.

    CONNECTED --Attach--> IDLE --OpenCursor--> RUNNING --Want--> WAITING --no slot can be spared--> STALLED
                            ^                     ^                 |  ^-----a lease has ended---------+
                            |                     +---a grant-------+----------------------------------+
                            +--CloseCursor, Failed, Ended, from each of the three
    DISCONNECTED: from each, when its socket has ended

A consumer lives until its process ends (seen by pidfd, as a forked child may keep the socket open), or until its socket
ends while it has no lease. Its leases end with it. What it sends wrongly ends its own connection and touches no other.
"""

from __future__ import annotations

import enum
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.ipc import messages, sockets
from prefetchd.ring.queues import GrantWriter, ReturnReader
from prefetchd.ring.slots import Slot


class Control(Protocol):
    """What a consumer or a command may ask of the daemon as a whole; the daemon implements it."""

    def status(self) -> dict[str, Any]:
        """Return the report of `prefetchd status`."""

    def bad_samples(self, dataset: str, first: int) -> messages.BadSamples:
        """Return some of the bad samples of a data set; raise `ConfigError` if there is no such data set."""

    def change_options(self, options: dict[str, str]) -> str:
        """Change options for `prefetchd set`; return a line that says what is in force now."""

    def stop(self) -> None:
        """End the daemon."""


class State(enum.Enum):
    """What a consumer is doing."""

    CONNECTED = "connected"  # and not attached yet
    IDLE = "idle"  # between two loops
    RUNNING = "running"  # its loop works on a batch
    WAITING = "waiting"  # its loop waits for its next batch
    STALLED = "stalled"  # it waits, and knows that no slot can be spared
    DISCONNECTED = "disconnected"  # it may hold leases still


_WAITING = frozenset({State.WAITING, State.STALLED})
_LOOPING = _WAITING | {State.RUNNING}
_NEXT = {
    State.CONNECTED: frozenset({State.IDLE, State.DISCONNECTED}),
    State.IDLE: frozenset({State.RUNNING, State.DISCONNECTED}),
    State.RUNNING: frozenset({State.WAITING, State.IDLE, State.DISCONNECTED}),
    State.WAITING: frozenset({State.RUNNING, State.STALLED, State.IDLE, State.DISCONNECTED}),
    State.STALLED: frozenset({State.RUNNING, State.WAITING, State.IDLE, State.DISCONNECTED}),
    State.DISCONNECTED: frozenset[State](),
}


class ConsumerSocket:
    """The daemon's end of a consumer's socket, owned. It never blocks.

    Attributes:
        n_sent: how many messages were sent.
        blocked: whether the socket was full at the last message: nothing is sent until the consumer reads.
        slots: the numbers of the slots whose descriptors the consumer has.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.n_sent = 0
        self.blocked = False
        self.slots: set[int] = set()
        self._unsent: deque[messages.Message] = deque()

    def fileno(self) -> int:
        """Return the descriptor, -1 after `close`."""
        return self.sock.fileno()

    def close(self) -> None:
        """End the connection."""
        self.sock.close()

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> bool:
        """Send a message; return `False` if the consumer is gone or does not read."""
        if self.blocked:
            return False
        try:
            sockets.send(self.sock, messages.encode(message), fds, wait=False)
        except BlockingIOError:
            self.blocked = True
            return False
        except (sockets.ConnectionEnded, OSError):
            return False
        self.n_sent += 1
        return True

    def send_surely(self, message: messages.Message) -> None:
        """Send a message now, or when the consumer reads again."""
        if not self.send(message) and self.blocked:
            self._unsent.append(message)

    def owes(self, kind: type[messages.Message]) -> bool:
        """Return whether a message of that kind waits until the consumer reads again."""
        return any(isinstance(message, kind) for message in self._unsent)

    def unblock(self) -> None:
        """Try again: the socket may have room now. Send what was kept."""
        self.blocked = False
        while self._unsent and self.send(self._unsent[0]):
            self._unsent.popleft()

    def open_slot(self, slot: Slot) -> bool:
        """Return whether the consumer has the slot's descriptor; send it if not."""
        if slot.number in self.slots:
            return True
        try:
            fd = slot.segment.read_only_fd()
        except OSError:  # no descriptor is left: tried again later, as with a full socket
            self.blocked = True
            return False
        try:
            sent = self.send(messages.SlotOpened(slot.number, slot.segment.n_bytes), [fd])
        finally:
            os.close(fd)
        if sent:
            self.slots.add(slot.number)
        return sent

    def close_slot(self, slot: Slot) -> None:
        """Say that a slot is gone, if the consumer knows it."""
        if slot.number in self.slots:
            self.slots.discard(slot.number)
            self.send_surely(messages.SlotClosed(slot.number))


@dataclass(frozen=True, slots=True)
class Attachment:
    """What a consumer asked for when it attached, and what it got.

    Attributes:
        request: its `Attach`.
        dataset: the data set that it reads.
        grants: where its grants are written, owned.
        returns: where it writes leases that have ended, owned.
    """

    request: messages.Attach
    dataset: Dataset
    grants: GrantWriter
    returns: ReturnReader

    def close(self) -> None:
        """Drop the maps of both queues."""
        self.grants.close()
        self.returns.close()


@dataclass(slots=True, eq=False)
class Consumer:
    """One connection.

    Attributes:
        number: the daemon's name for it.
        socket: owned.
        pid: its process.
        pidfd: owned.
        clock: monotonic seconds.
        attachment: `None` until it has attached.
        state: see the module; `become` alone changes it.
        cursor: of its loop; of a member of a group, its standing with the ring, which goes nowhere.
        held_back: whether its loop waits for the other loaders of its `start_together`.
        has_started: whether its first loop has begun together with those.
        untaken: leases granted ahead that its loop has not taken yet, the oldest first.
        batches, samples: what it was granted in all its loops.
        connected_s: when it connected.
        waiting_since_s: when its loop began to wait the last time.
        told_stalled: whether the last word that its loop got of its wait is `Stalled`.
        is_polled: whether the daemon polls its return queue (`steady`).
    """

    number: int
    socket: ConsumerSocket
    pid: int
    pidfd: int
    clock: Callable[[], float]
    attachment: Attachment | None = None
    state: State = State.CONNECTED
    cursor: Cursor | None = None
    held_back: bool = False
    has_started: bool = False
    untaken: deque[int] = field(default_factory=deque)
    batches: int = 0
    samples: int = 0
    connected_s: float = field(init=False)
    waiting_since_s: float = 0.0
    told_stalled: bool = False
    is_polled: bool = False
    _waited_s: float = 0.0

    def __post_init__(self) -> None:
        self.connected_s = self.clock()

    def become(self, state: State) -> None:
        """Change to `state`, and its cursor with it."""
        assert state in _NEXT[self.state], (self.state, state)
        was_waiting = self.is_waiting
        self.state = state
        self.told_stalled = self.told_stalled and self.is_waiting
        if self.is_waiting != was_waiting:
            now_s = self.clock()
            if was_waiting:
                self._waited_s += now_s - self.waiting_since_s
            else:
                self.waiting_since_s = now_s
        self._show()

    def hold_back(self, is_held: bool) -> None:
        """Have its loop wait for the other loaders of its `start_together`, or no longer."""
        self.held_back = is_held
        self._show()

    def _show(self) -> None:
        """Let its cursor say what it does; one that is held back waits for other loaders, and claims no slot yet."""
        if self.cursor is not None:
            self.cursor.waiting = self.is_waiting and not self.held_back
            self.cursor.open = self.is_looping

    @property
    def is_waiting(self) -> bool:
        """Whether its loop waits for its next batch."""
        return self.state in _WAITING

    @property
    def is_looping(self) -> bool:
        """Whether a loop of it goes on."""
        return self.state in _LOOPING

    @property
    def is_attached(self) -> bool:
        """Whether it has attached and its socket has not ended."""
        return self.attachment is not None and self.state is not State.DISCONNECTED

    @property
    def group(self) -> str | None:
        """The group that it shares its passes with; `None` for a cursor of its own."""
        return self.attachment.request.group if self.attachment is not None else None

    @property
    def own_cursor(self) -> Cursor | None:
        """Where it is in the sequence of batches; `None` for a member of a group."""
        return self.cursor if self.group is None else None

    @property
    def waited_s(self) -> float:
        """Seconds that its loops have waited for a batch, until now."""
        return self._waited_s + (self.clock() - self.waiting_since_s if self.is_waiting else 0.0)

    @property
    def n_taken(self) -> int:
        """How many of its grants its loops have taken, as far as is known, or given back at their ends."""
        return self.batches - len(self.untaken)

    def take(self, lease: int) -> None:
        """Count every lease up to `lease` as taken by the loop."""
        while self.untaken and self.untaken[0] <= lease:
            self.untaken.popleft()
