"""The door of a daemon: whom it lets in, how many, and how long it stays open for nobody. A part of the front desk.

    connect -> accepted -> this user's? room left? -> enters ... the last one leaves -> nobody for a while -> stop

Owns the listener. Whoever is refused hears why, and holds nobody up. A process that dies on its way in was never there;
one that comes in and says nothing has to make room when others need it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import raise_descriptor_limit
from prefetchd.ipc.event_loop import EventLoop

log = logging.getLogger("prefetchd")

MAX_CONSUMERS = 1024
DESCRIPTORS_EACH = 4  # a consumer's socket and pidfd, and the maps of its mailbox and its returned leases
DESCRIPTORS_KEPT = 512  # for slots, readers and samples, whoever connects; of few, three quarters
_INTRODUCTION_S = 10.0
_RETRY_S = 0.1


def most_consumers() -> int:
    """Raise this process's limit of descriptors as far as may be, and return how many consumers it allows."""
    limit = raise_descriptor_limit()
    kept = min(DESCRIPTORS_KEPT, limit * 3 // 4)
    return min(MAX_CONSUMERS, max(1, (limit - kept) // DESCRIPTORS_EACH))


class Door:
    """Lets consumers in.

    Args:
        consumers: who is inside, borrowed.
        max_consumers: how many may be.
        loop: where the listener is watched.
        enter: takes a consumer in that was let in.
        send_away: ends the connection of one that has to make room.
        stop: ends the daemon.
        linger_s: after how long without a consumer it does so; `None` for never.
    """

    def __init__(
        self,
        consumers: Mapping[int, Consumer],
        max_consumers: int,
        loop: EventLoop,
        *,
        enter: Callable[[Consumer], None],
        send_away: Callable[[Consumer], None],
        stop: Callable[[], None],
        linger_s: float | None = None,
    ) -> None:
        self._consumers = consumers
        self._max_consumers = max_consumers
        self._loop = loop
        self._enter = enter
        self._send_away = send_away
        self._stop = stop
        self._linger_s = linger_s
        self._empty_since_s = loop.clock()
        self._next_consumer = 1
        self._listener: socket.socket | None = None

    def open(self, listener: socket.socket) -> None:
        """Admit whoever connects to `listener`, which the door then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)
        self.nobody_inside()

    def close(self) -> None:
        """Let nobody in any more."""
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptor is left, so whoever knocks stays at the door: do not look there all the time.
            log.warning("cannot admit a consumer: %s; trying again", error.strerror)
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_later(_RETRY_S, self._listen_again)
            return
        self.admit(sock)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), self._accept)

    def admit(self, sock: socket.socket) -> None:
        """Take a connection in, if it is this user's and there is room."""
        try:
            pid, uid, pidfd = sockets.peer(sock)
        except OSError:
            sock.close()
            return
        consumer = Consumer(self._next_consumer, sock, pid, pidfd, since_s=self._loop.clock())
        if uid != os.getuid() or not self._has_room():
            why = "another user's process" if uid != os.getuid() else f"{self._max_consumers} are connected already"
            consumer.send(messages.Fatal("DaemonNotFound", f"cannot attach: {why}; run a daemon of your own"))
            sock.close()
            os.close(pidfd)
            return
        self._next_consumer += 1
        self._enter(consumer)

    def _has_room(self) -> bool:
        """Whether one more may come in; in a full house, who has not said what it wants for long makes room."""
        if len(self._consumers) < self._max_consumers:
            return True
        for consumer in self._consumers.values():
            if not consumer.attached and self._loop.clock() - consumer.since_s > _INTRODUCTION_S:
                self._send_away(consumer)
                return True
        return False

    def nobody_inside(self) -> None:
        """Nobody is inside (any more): end the daemon if that is so for as long as it may be."""
        self._empty_since_s = self._loop.clock()
        if self._linger_s is not None:
            self._loop.call_later(self._linger_s, self._end_if_empty)

    def _end_if_empty(self) -> None:
        assert self._linger_s is not None
        if not self._consumers and self._loop.clock() - self._empty_since_s >= self._linger_s:
            log.info("no loader for %g s; ending", self._linger_s)
            self._stop()
