"""The acceptor: which connections a daemon accepts, how many, and how long it stays without any.

    connect -> accepted -> of this user, and not too many? -> added ... the last one ends -> none for a while -> stop

Owns the listener. A refused connection gets the reason and blocks nobody. A process that dies while it connects leaves
nothing. A connection that has not attached for a while makes room when another needs it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prefetchd.daemon.consumers.consumer import Consumer, ConsumerSocket, Control
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import raise_descriptor_limit
from prefetchd.ipc.event_loop import EventLoop

log = logging.getLogger("prefetchd")

MAX_CONSUMERS = 1024
DESCRIPTORS_EACH = 4  # a consumer's socket and pidfd, and the maps of its two queues
DESCRIPTORS_KEPT = 512  # for slots, readers and samples; with a low limit, three quarters of it
_ATTACH_S = 10.0
_RETRY_S = 0.1


def most_consumers() -> int:
    """Raise this process's limit of descriptors as far as it can be, and return how many consumers it allows."""
    limit = raise_descriptor_limit()
    kept = min(DESCRIPTORS_KEPT, limit * 3 // 4)
    return min(MAX_CONSUMERS, max(1, (limit - kept) // DESCRIPTORS_EACH))


@dataclass(eq=False)
class Acceptor:
    """Accepts connections.

    Args:
        consumers: those that are connected, borrowed.
        max_consumers: how many may be.
        loop: watches the listener.
        control: ends the daemon.
        add: takes a consumer that was accepted.
        remove: ends a consumer that has to make room.
        linger_s: ends the daemon after so many seconds without a consumer; `None` for never.
    """

    _consumers: Mapping[int, Consumer]
    _max_consumers: int
    _loop: EventLoop
    _control: Control
    _add: Callable[[Consumer], None]
    _remove: Callable[[Consumer], None]
    _linger_s: float | None = None
    _next_consumer: int = field(default=1, init=False)
    _listener: socket.socket | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._empty_since_s = self._loop.clock()

    def listen(self, listener: socket.socket) -> None:
        """Accept connections to `listener`, which the acceptor then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)
        self.emptied()

    def close(self) -> None:
        """Accept no more connections."""
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
            # No descriptor is left, so the connection stays in the queue: do not look at it all the time.
            log.warning("cannot accept a connection: %s; trying again", error.strerror)
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_later(_RETRY_S, self._listen_again)
            return
        self.admit(sock)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), self._accept)

    def admit(self, sock: socket.socket) -> Consumer | None:
        """Add a connection, if it is this user's and not one too many; return its consumer."""
        try:
            pid, uid, pidfd = sockets.peer(sock)
        except OSError:
            sock.close()
            return None
        consumer = Consumer(self._next_consumer, ConsumerSocket(sock), pid, pidfd, self._loop.clock)
        if uid != os.getuid() or not self._has_room():
            why = "another user's process" if uid != os.getuid() else f"{self._max_consumers} are connected already"
            consumer.socket.send(messages.Fatal("DaemonNotFound", f"cannot attach: {why}; run a daemon of your own"))
            sock.close()
            os.close(pidfd)
            return None
        self._next_consumer += 1
        self._add(consumer)
        return consumer

    def _has_room(self) -> bool:
        """Return whether one more may connect; if not yet, remove one that has not attached for a while."""
        if len(self._consumers) < self._max_consumers:
            return True
        for consumer in self._consumers.values():
            if consumer.attachment is None and self._loop.clock() - consumer.connected_s > _ATTACH_S:
                self._remove(consumer)
                return True
        return False

    def emptied(self) -> None:
        """End the daemon if no consumer connects within its linger time."""
        self._empty_since_s = self._loop.clock()
        if self._linger_s is not None:
            self._loop.call_later(self._linger_s, self._stop_if_empty)

    def _stop_if_empty(self) -> None:
        assert self._linger_s is not None
        if not self._consumers and self._loop.clock() - self._empty_since_s >= self._linger_s:
            log.info("the daemon had no loader for %g s and ends", self._linger_s)
            self._control.stop()
