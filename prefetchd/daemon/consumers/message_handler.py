"""What consumers send: messages, each passed to the part that it concerns, and leases that have ended.

    socket -> decode -> Attach: attaching   OpenCursor, CloseCursor: loops   Release: releases   Want: the consumer
                     -> AddConnection: the acceptor   AskStatus, ChangeOptions, AskStop: the daemon's `Control`
    the last view dies -> `Release`, or a record in the return queue -> ring, group -> stalled loops wait again

A message that is not valid ends the connection that sent it and touches no other. Another protocol is answered first.
Few messages are read at a time, so that a consumer that sends without end holds up no other.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefetchd.daemon.consumers.attach import Attaching, refuse_protocol
from prefetchd.daemon.consumers.consumer import Consumer, Control, State
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.consumers.loops import Loops
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import messages, sockets, system
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.queues import ENOUGH_AHEAD, Ended
from prefetchd.ring.slots import Ring

log = logging.getLogger("prefetchd")

_MESSAGES_AT_A_TIME = 64
_POLL_S = 0.005
_MOST_POLLS = 4  # then consumers send messages


@dataclass(eq=False)
class Releases:
    """Takes leases back into the ring; borrows all its parts.

    The ring ignores numbers of leases that are old or another consumer's. A record in a queue wakes nobody, so the
    daemon reads the queues in every round. While a loop or the budget needs slots it comes round to read them a few
    times, and then has the consumers send messages: one that stopped may send none for hours. The leases of a consumer
    that died are no release: the manager ends them.
    """

    _consumers: Mapping[int, Consumer]
    _ring: Ring
    _groups: Groups
    _memory: MemoryManager
    _loop: EventLoop
    _polling: bool = False
    _n_polls: int = 0  # since slots are needed

    def take_back(self, consumer: Consumer, leases: Sequence[int], taken: int) -> None:
        """End the consumer's `leases`; it has taken every lease up to `taken`."""
        consumer.take(taken)
        n_before = self._ring.n_returned
        group = self._groups.of(consumer)
        for lease in leases:
            if self._ring.release(lease, consumer.number) and group is not None:
                group.released(consumer, lease)
        if self._ring.n_returned == n_before:
            return  # others hold the same slots: the time-outs of loops that wait for one run on
        for other in self._consumers.values():
            if other.state is State.STALLED:
                other.become(State.WAITING)  # it gets `Stalled` again if it still gets no slot

    def read_queues(self) -> None:
        """Take back the leases in every consumer's return queue."""
        for consumer in self._consumers.values():
            self.read_queue(consumer)

    def read_queue(self, consumer: Consumer) -> None:
        """Take back the leases in one consumer's return queue."""
        if consumer.attachment is None:
            return
        returns = consumer.attachment.returns
        consumer.take(returns.taken)
        if new := returns.read_new():
            self.take_back(consumer, [lease for lease, _ in new], max(taken for _, taken in new))

    def poll_queues(self) -> None:
        """Have leases in the queues come back soon, while slots are needed that a queue may give back."""
        if not self._are_needed():
            self.poll_anew()
        elif not self._polling and self._n_polls <= _MOST_POLLS:
            if self._n_polls == _MOST_POLLS:
                self._want_messages(True)  # and a last look, at what was written down meanwhile
            self._n_polls += 1
            self._polling = True
            self._loop.call_later(_POLL_S, self._polled)

    def poll_anew(self) -> None:
        """Do without messages for leases that end, until slots have been needed for a while."""
        if self._n_polls > _MOST_POLLS:
            self._want_messages(False)
        self._n_polls = 0

    def _are_needed(self) -> bool:
        """Return whether a loop or the budget needs slots, and a consumer may have written down leases of some."""
        if not any(len(consumer.untaken) >= ENOUGH_AHEAD for consumer in self._consumers.values()):
            return False
        too_many = len(self._ring.slots) > self._memory.target.n_slots
        return too_many or any(consumer.is_waiting for consumer in self._consumers.values())

    def _want_messages(self, wanted: bool) -> None:
        for consumer in self._consumers.values():
            if consumer.attachment is not None:
                consumer.attachment.grants.say_how_leases_end(Ended.BY_MESSAGE if wanted else Ended.AS_USUAL)

    def _polled(self) -> None:
        self._polling = False


@dataclass(eq=False)
class MessageHandler:
    """Reads the messages of every consumer; borrows all its parts.

    Args:
        consumers: those that are connected.
        attaching, loops, releases: the parts that messages concern.
        control: answers what is asked of the daemon as a whole.
        admit: takes another connection, whose socket it then owns.
        disconnect: ends a consumer's connection.
    """

    _consumers: Mapping[int, Consumer]
    _attaching: Attaching
    _loops: Loops
    _releases: Releases
    _control: Control
    _admit: Callable[[socket.socket], object]
    _disconnect: Callable[[Consumer], None]
    _buffer: bytearray = field(default_factory=lambda: bytearray(sockets.MAX_MESSAGE_BYTES), init=False)

    def read(self, consumer: Consumer) -> bool:
        """Read what a consumer has sent; return whether there may be more."""
        for _ in range(_MESSAGES_AT_A_TIME):
            try:
                data, fds = sockets.receive(consumer.socket.sock, wait=False, buffer=self._buffer)
            except BlockingIOError:
                return False
            except (sockets.ConnectionEnded, OSError):
                self._disconnect(consumer)
                return False
            try:
                message = messages.decode_to_daemon(data)
                if isinstance(message, messages.AddConnection):
                    self._add_connection(consumer, fds)
            except messages.DecodeError:
                self._refuse(consumer, data)
                return False
            finally:
                sockets.close_all(fds)
            self._handle(consumer, message)
            if consumer.number not in self._consumers or isinstance(message, messages.AskStatus | messages.AskBad):
                break  # one that asks without end is answered in turn with the others
        return True

    def _refuse(self, consumer: Consumer, data: bytes | memoryview) -> None:
        introduction = messages.read_introduction(data) if consumer.attachment is None else None
        if introduction is not None and introduction.protocol != messages.PROTOCOL:
            refuse_protocol(consumer, introduction)
        else:
            log.warning(
                "consumer %d (pid %d) sent bytes that are no message; ending its connection",
                consumer.number,
                consumer.pid,
            )
        self._disconnect(consumer)

    def _handle(self, consumer: Consumer, message: messages.ToDaemon) -> None:
        match message:
            case messages.Release():
                self._releases.take_back(consumer, message.leases, message.taken)
            case messages.Want():
                self._want(consumer, message)
            case messages.OpenCursor():
                self._releases.poll_anew()  # the consumer may be a new one
                if not self._loops.begin(consumer, message):
                    self._disconnect(consumer)
            case messages.CloseCursor():
                self._loops.end(consumer, message)
            case messages.Attach():
                if consumer.attachment is not None:
                    self._disconnect(consumer)
                else:
                    self._attaching.attach(consumer, message)
            case messages.AskStatus():
                if not consumer.socket.owes(messages.StatusReport):  # one that asks and does not read gets one
                    consumer.socket.send_surely(messages.StatusReport(self._report()))
            case messages.AskBad():
                dataset, first = message.dataset, message.first
                consumer.socket.send(_answer(lambda: self._control.bad_samples(dataset, first)))
            case messages.ChangeOptions():
                options = message.options
                consumer.socket.send(_answer(lambda: messages.OptionsChanged(self._control.change_options(options))))
            case messages.AskStop():
                consumer.socket.send(messages.Stopping(os.getpid()))
                log.info("the process %d asks the daemon to stop", consumer.pid)
                self._control.stop()
            case messages.Configure():
                consumer.socket.send(messages.Fatal("ConfigError", "cannot configure a daemon that is running"))

    def _add_connection(self, consumer: Consumer, fds: list[int]) -> None:
        """Admit the socket that a consumer has sent; it is taken out of `fds`."""
        try:
            sock = system.adopt_socket(fds[0])
        except (IndexError, OSError):
            self._disconnect(consumer)
            return
        del fds[0]
        if (sock.family, sock.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            self._admit(sock)
        else:
            sock.close()
            self._disconnect(consumer)

    def _want(self, consumer: Consumer, message: messages.Want) -> None:
        consumer.take(message.taken)
        if not consumer.is_looping or consumer.cursor is None or consumer.cursor.serial != message.serial:
            return  # of a loop that has ended
        if consumer.untaken:  # a grant was written before the message came
            consumer.socket.send_surely(messages.GrantReady(message.serial))
        elif consumer.state is State.RUNNING:
            consumer.become(State.WAITING)

    def _report(self) -> dict[str, Any]:
        """Return the status, its lists cut short until it fits into one message."""
        self._releases.read_queues()
        report = self._control.status()
        while len(messages.encode(messages.StatusReport(report))) > sockets.MAX_MESSAGE_BYTES:
            longest = max(("bad", "consumers", "readers"), key=lambda name: len(messages.encode(report[name])))
            del report[longest][len(report[longest]) // 2 :]
        return report


def _answer(ask: Callable[[], messages.Message]) -> messages.Message:
    """Return the answer, or the reason why there is none."""
    try:
        return ask()
    except PrefetchdError as error:
        return messages.Fatal.of(error)
