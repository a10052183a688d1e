"""The bridge's end of the connection to one agent that has joined: tasks out, rows in, straight to their slots."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Sequence

from prefetchd.ipc import reader_messages
from prefetchd.remote import wire
from prefetchd.remote.link import Link, LinkEnded
from prefetchd.remote.targets import Target

_PING_S = 1.0
_TRIPS = 8  # of which the shortest is taken
_SILENT_S = 60.0  # then the connection is given up; the daemon has its tasks done by others long before


class AgentLink:
    """An agent that has joined.

    Args:
        node: its number to the daemon.
        name: its address.
        sock: its connection, owned.
        n_readers: those that it has for this daemon.
        most_body_bytes: of the rows of any task.
        begins: called with a task whose rows begin to come, before any is written.
        answered: called with what it answered: (link, done), in order.
        lost: called with a task whose reader ended: (link, message).

    Attributes:
        targets: where the rows of each task go that was given and is not answered, by task.
        round_trip_s: how long an answer to `Ping` took at least, of the latest ones; 0 before the first.
        seen: the latest `Pong`.
        resized: whether the daemon must learn the number of readers.
    """

    def __init__(
        self,
        node: int,
        name: str,
        sock: socket.socket,
        n_readers: int,
        most_body_bytes: int,
        begins: Callable[[int], None],
        answered: Callable[[AgentLink, reader_messages.Done], None],
        lost: Callable[[AgentLink, wire.Lost], None],
    ) -> None:
        self.node, self.name, self.n_readers = node, name, n_readers
        self.targets: dict[int, Target] = {}
        self.round_trip_s = 0.0
        self.seen = wire.Pong(0, 0, 0, 0)
        self.resized = False
        self._most_body_bytes = most_body_bytes
        self._begins, self._answered, self._lost = begins, answered, lost
        self._link = Link(sock, wire.decode_from_agent, self._place, self._handle)
        self._ping = 0
        self._trips_s: deque[float] = deque(maxlen=_TRIPS)
        self._asked_s = self._came_s = time.monotonic()
        self._is_asked = False

    def fileno(self) -> int:
        """The descriptor of its socket."""
        return self._link.fileno()

    @property
    def received_bytes(self) -> int:
        """All that came."""
        return self._link.received_bytes

    @property
    def is_sending(self) -> bool:
        """Whether something waits to be sent."""
        return self._link.is_sending

    @property
    def quiet_s(self) -> float:
        """For how long it has sent nothing while a question is without an answer; 0 if none is.

        The answer stands behind the rows that were made before, which a full network takes its time for.
        """
        return time.monotonic() - max(self._asked_s, self._came_s) if self._is_asked else 0.0

    def give(self, tasks: Sequence[tuple[wire.Task, Target]]) -> None:
        """Have it do tasks, in this order."""
        self.targets.update({task.task: target for task, target in tasks})
        self._link.send(wire.Tasks([task for task, _ in tasks]))

    def is_receiving(self, task: int) -> bool:
        """Return whether some rows of a task have come, and not all."""
        receiving = self._link.receiving
        return isinstance(receiving, wire.Rows) and receiving.task == task

    def recall(self, task: int) -> bool:
        """Write nothing more for a task, and have the agent forget it; return whether it was not answered yet."""
        if self.targets.pop(task, None) is None:
            return False
        if self.is_receiving(task):
            self._link.drop_body()
        self._link.send(wire.Drop([task]))
        return True

    def read(self) -> None:
        """Take in what it sent; raises `LinkEnded`."""
        before = self._link.received_bytes
        self._link.read()
        if self._link.received_bytes > before:
            self._came_s = time.monotonic()

    def flush(self) -> None:
        """Send what it takes now; raises `LinkEnded`."""
        self._link.flush()

    def tick(self) -> None:
        """Measure the round trip; call about once a second.

        Raises:
            LinkEnded: if it has sent nothing for a minute.
        """
        now_s = time.monotonic()
        if now_s - self._came_s > _SILENT_S:
            raise LinkEnded(f"it has not answered for {now_s - self._came_s:.0f} s")
        if not self._is_asked and now_s - self._asked_s >= _PING_S:
            self._ping, self._asked_s, self._is_asked = self._ping + 1, now_s, True
            self._link.send(wire.Ping(self._ping))

    def close(self) -> None:
        """Close the connection; nothing is written to any slot after this."""
        self._link.close()
        self.targets.clear()

    def _place(self, message: wire.FromAgent, n_bytes: int) -> Sequence[memoryview] | None:
        if not isinstance(message, wire.Rows):
            if n_bytes:
                raise LinkEnded("it sent bytes where there are none")
            return ()
        target = self.targets.get(message.task)
        if target is None:  # recalled
            if n_bytes > self._most_body_bytes:
                raise LinkEnded(f"it sent {n_bytes} bytes for one task, where {self._most_body_bytes} are the most")
            return None
        if n_bytes != target.n_bytes:
            raise LinkEnded(f"it sent {n_bytes} bytes of rows, where {target.n_bytes} were asked for")
        self._begins(message.task)
        return target.views

    def _handle(self, message: wire.FromAgent, is_right: bool) -> None:
        match message:
            case wire.Rows():
                self._take_rows(message, is_right)
            case wire.Lost():
                if self.targets.pop(message.task, None) is not None:
                    self._lost(self, message)
            case wire.Pong():
                if message.number == self._ping and self._is_asked:
                    self._trips_s.append(time.monotonic() - self._asked_s)
                    self.round_trip_s = min(self._trips_s)  # the others waited behind rows
                    self._is_asked, self.seen = False, message
            case wire.Readers():
                self.n_readers, self.resized = message.n_readers, True
            case wire.Refused():
                raise LinkEnded(message.text)
            case _:
                raise LinkEnded("it answered out of turn")

    def _take_rows(self, rows: wire.Rows, is_right: bool) -> None:
        target = self.targets.get(rows.task)
        if target is None:
            return
        if not is_right:
            raise LinkEnded("the bytes of rows changed on the way")
        end = target.first_row + target.n_rows
        if rows.rows_left > target.n_rows or not all(target.first_row <= fault.row < end for fault in rows.faults):
            raise LinkEnded("it reported rows that it was not asked for")
        del self.targets[rows.task]
        done = reader_messages.Done(rows.task, rows.faults, rows.took_s, rows.read_s, rows.rows_left, rows.waited_s)
        self._answered(self, done)
