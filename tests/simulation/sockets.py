"""Simulated sockets, pidfds, pollers, selectors and locks: what `ipc/system.py` returns in a simulated world.

Sockets behave as Linux's `AF_UNIX`, `SOCK_SEQPACKET` pairs do: a message is there at once, in order and whole; a full
buffer refuses; a close with messages unread resets the peer once, before the peer's last messages. Each socket and
pidfd has a real descriptor as its number, so that `os.close` works on it and a leak is seen.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tests.simulation.kernel import Kernel, Process, SimulationError

CAPACITY = 200  # messages, as a socket of Linux holds of small ones
_SO_PEERPIDFD = 77


class Endpoint:
    """One end of a connection; several descriptors may name it.

    Attributes:
        owner: the process that made it, which the other end sees as its peer.
        peer: the other end.
        inbox: messages that were not received, with what their descriptors name.
        capacity: how many messages the inbox holds.
        reset: whether the next receive is told that the peer left with messages unread.
    """

    def __init__(self, kernel: Kernel, owner: Process, capacity: int) -> None:
        self.kernel = kernel
        self.owner = owner
        self.peer: Endpoint
        self.inbox: deque[tuple[bytes, list[Any]]] = deque()
        self.capacity = capacity
        self.n_open = 0  # descriptors
        self.closed = self.no_more_in = self.no_more_out = self.reset = False
        self.watchers: dict[Any, None] = {}

    @property
    def readable(self) -> bool:
        return bool(self.inbox) or self.no_more_in or self.peer.closed or self.peer.no_more_out

    @property
    def writable(self) -> bool:
        return self.peer.closed or self.no_more_out or len(self.peer.inbox) < self.peer.capacity

    def changed(self) -> None:
        """Wake those who wait for this end."""
        for watcher in list(self.watchers):
            watcher.wake()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self.inbox:
            self.peer.reset = True
            for _, things in self.inbox:
                drop(things)
            self.inbox.clear()
        self.changed()
        self.peer.changed()

    def process_ended(self, process: Process) -> None:
        """The process that had it has ended."""
        self.close()


class PidHandle:
    """What a pidfd names."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @property
    def readable(self) -> bool:
        return not self.process.alive

    @property
    def watchers(self) -> dict[Any, None]:
        return self.process.watchers


def drop(things: Sequence[Any]) -> None:
    """Close what came with a message that nobody receives."""
    for thing in things:
        if isinstance(thing, int):
            os.close(thing)
        elif isinstance(thing, Endpoint):
            thing.n_open -= 1
            if not thing.n_open:
                thing.close()


class Network:
    """All sockets and pidfds of one world, by descriptor."""

    def __init__(self, kernel: Kernel, capacity: int = CAPACITY) -> None:
        self.kernel = kernel
        self.capacity = capacity  # of trainers' sockets
        self.named: dict[int, Endpoint | PidHandle | Listener] = {}
        self.listeners: dict[str, Listener] = {}
        self.on_message: Callable[[Process, Process, bytes], None] = lambda owner, peer, data: None
        self.on_round: Callable[[], None] = lambda: None
        self.n_rounds = 0
        self.closed = False
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._device = os.fstat(self._null).st_rdev

    def find(self, fd: int) -> Any:
        """Return what a descriptor names; `None` for one that is real."""
        thing = self.named.get(fd)
        # `os.close` tells nobody: the number may be a real file's by now.
        return thing if thing is not None and os.fstat(fd).st_rdev == self._device else None

    def close(self) -> None:
        """End all sockets: one that is dropped later closes no descriptor, whose number may be another's by then."""
        self.closed = True
        os.close(self._null)

    def forget(self) -> None:
        """Let go of everything that a descriptor names."""
        self.named.clear()
        self.listeners.clear()

    def descriptor(self, thing: Endpoint | PidHandle | Listener) -> int:
        """Return a new descriptor that names `thing`."""
        fd = os.dup(self._null)
        self.named[fd] = thing
        return fd

    def pair(self, owner: Process, other: Process | None = None) -> tuple[SimSocket, SimSocket]:
        """Return two connected sockets: the first of `owner`, the second to be used by `other`."""
        capacity = self.capacity if owner.name.startswith("client") else CAPACITY
        ends = Endpoint(self.kernel, owner, capacity), Endpoint(self.kernel, other or owner, capacity)
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        owner.endpoints[ends[0]] = None
        return SimSocket(self, ends[0], self.descriptor(ends[0])), SimSocket(self, ends[1], self.descriptor(ends[1]))

    def adopt(self, fd: int, process: Process) -> SimSocket:
        """Return a socket object for a descriptor that came with a message."""
        thing = self.find(fd)
        if not isinstance(thing, Endpoint):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        process.endpoints[thing] = None
        thing.n_open -= 1  # counted when the message came
        return SimSocket(self, thing, fd)

    def in_flight(self, fds: Sequence[int]) -> list[Any]:
        """Return what descriptors name, to go with a message."""
        things: list[Any] = []
        for fd in fds:
            thing = self.find(fd)
            if isinstance(thing, Endpoint | PidHandle):
                if isinstance(thing, Endpoint):
                    thing.n_open += 1
                things.append(thing)
            else:
                things.append(os.dup(fd))
        return things

    def pidfd(self, process: Process) -> int:
        """Return a new pidfd."""
        return self.descriptor(PidHandle(process))

    def handle_of(self, process: Process) -> PidHandle:
        """Return what a pidfd of a process names, to go with a message."""
        return PidHandle(process)

    def received(self, things: Sequence[Any]) -> list[int]:
        """Return the receiver's descriptors of what came with a message."""
        return [thing if isinstance(thing, int) else self.descriptor(thing) for thing in things]


class SimSocket:
    """Stands in for `socket.socket`."""

    family, type = socket.AF_UNIX, socket.SOCK_SEQPACKET

    def __init__(self, network: Network, endpoint: Endpoint, fd: int) -> None:
        self._network = network
        self._kernel = network.kernel
        self.endpoint = endpoint
        self._fd = fd
        self._timeout_s: float | None = None
        endpoint.n_open += 1

    def fileno(self) -> int:
        return self._fd

    def __enter__(self) -> SimSocket:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._network.closed:
                return
            self._network.named.pop(fd, None)
            os.close(fd)
            self.endpoint.n_open -= 1
            if not self.endpoint.n_open:
                self.endpoint.close()

    def dup(self) -> SimSocket:
        return SimSocket(self._network, self.endpoint, self._network.descriptor(self.endpoint))

    def setblocking(self, flag: bool) -> None:
        self._timeout_s = None if flag else 0.0

    def settimeout(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s

    def shutdown(self, how: int) -> None:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        end = self.endpoint
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            end.no_more_in = True
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            end.no_more_out = True
        end.changed()
        end.peer.changed()

    def getsockopt(self, level: int, option: int, size: int = 0) -> Any:
        owner = self.endpoint.peer.owner
        if option == socket.SO_PEERCRED:
            return struct.pack("3i", owner.pid, os.getuid(), os.getgid())
        if option == _SO_PEERPIDFD:
            return self._network.pidfd(owner)
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    # --- sending

    def send(self, data: bytes, flags: int = 0) -> int:
        return self._send(data, (), flags)

    def sendmsg(self, buffers: Sequence[bytes], ancillary: Sequence[tuple[int, int, Any]], flags: int = 0) -> int:
        return self._send(b"".join(buffers), ancillary[0][2], flags)

    def _send(self, data: bytes, fds: Sequence[int], flags: int) -> int:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        end, kernel = self.endpoint, self._kernel
        kernel.called()
        kernel.maybe_preempt()
        if not kernel.current.process.alive:
            return len(data)  # it unwinds, and nobody sees it
        end_s = None if self._timeout_s is None else kernel.now_s + self._timeout_s
        while not end.writable:
            if flags & socket.MSG_DONTWAIT or (end_s is not None and kernel.now_s >= end_s):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            wait_for(kernel, [end, end.peer], end_s)
        if end.peer.closed or end.no_more_out or end.peer.no_more_in or end.closed:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._network.on_message(end.owner, end.peer.owner, data)
        end.peer.inbox.append((bytes(data), self._network.in_flight(fds)))
        end.peer.changed()
        return len(data)

    # --- receiving

    def recvmsg(self, size: int, ancillary_size: int, flags: int = 0) -> tuple[bytes, list[Any], int, None]:
        data, things = self._receive(flags)
        fds = self._network.received(things)
        return data, _ancillary(fds), 0, None

    def recvmsg_into(
        self, buffers: Sequence[bytearray], ancillary_size: int, flags: int = 0
    ) -> tuple[int, list[Any], int, None]:
        data, ancillary, _, _ = self.recvmsg(len(buffers[0]), ancillary_size, flags)
        buffers[0][: len(data)] = data
        return len(data), ancillary, 0, None

    def _receive(self, flags: int) -> tuple[bytes, list[Any]]:
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        end, kernel = self.endpoint, self._kernel
        kernel.called()
        end_s = None if self._timeout_s is None else kernel.now_s + self._timeout_s
        while True:
            if end.reset:
                end.reset = False
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            if end.inbox:
                was_full = len(end.inbox) >= end.capacity
                received = end.inbox.popleft()
                if was_full:
                    end.peer.changed()
                return received
            if end.readable:
                return b"", []
            if flags & socket.MSG_DONTWAIT or (end_s is not None and kernel.now_s >= end_s):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            wait_for(kernel, [end], end_s)


def _ancillary(fds: list[int]) -> list[tuple[int, int, bytes]]:
    if not fds:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]


class Listener:
    """Stands in for a listening socket."""

    def __init__(self, network: Network, path: str, process: Process, backlog: int) -> None:
        self._network = network
        self._path = path
        self.process = process
        self.queue: deque[SimSocket] = deque()
        self.backlog = backlog
        self.watchers: dict[Any, None] = {}
        self._fd = network.descriptor(self)
        network.listeners[path] = self
        process.endpoints[self] = None

    @property
    def readable(self) -> bool:
        return bool(self.queue)

    def fileno(self) -> int:
        return self._fd

    def accept(self) -> tuple[SimSocket, None]:
        if not self.queue:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        sock = self.queue.popleft()
        self.process.endpoints[sock.endpoint] = None
        return sock, None

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            if self._network.closed:
                return
            self._network.named.pop(fd, None)
            os.close(fd)
            self._stop()

    def process_ended(self, process: Process) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._network.listeners.get(self._path) is self:
            del self._network.listeners[self._path]
        for sock in self.queue:
            sock.close()
        self.queue.clear()

    def connect(self, client: Process) -> SimSocket:
        """Return the client's end of a new connection."""
        if len(self.queue) >= self.backlog:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        ours, theirs = self._network.pair(client, self.process)
        self.queue.append(theirs)
        for watcher in list(self.watchers):
            watcher.wake()
        return ours


def wait_for(kernel: Kernel, things: Sequence[Any], until_s: float | None) -> None:
    """Block the current task until one of `things` changes."""
    task = kernel.current
    for thing in things:
        thing.watchers[task] = None
    try:
        kernel.block(until_s)
    finally:
        for thing in things:
            thing.watchers.pop(task, None)


class SimPoller:
    """Stands in for `system.Poller`."""

    def __init__(self, network: Network, file: Any, *, to_write: bool = False) -> None:
        self._kernel = network.kernel
        if isinstance(file, SimSocket):
            self._thing: Any = file.endpoint
        else:
            self._thing = network.find(file if isinstance(file, int) else file.fileno())
        self._to_write = to_write

    @property
    def _ready(self) -> bool:
        return bool(self._thing.writable if self._to_write else self._thing.readable)

    def wait(self, timeout_s: float) -> bool:
        kernel, thing = self._kernel, self._thing
        if thing is None:
            raise SimulationError("a poller waits for what is not simulated")
        end_s = kernel.after(timeout_s)
        kernel.called()
        if timeout_s:
            kernel.maybe_preempt()
        while not self._ready:
            if kernel.now_s >= end_s:
                return False
            wait_for(kernel, [thing, *([thing.peer] if self._to_write else [])], end_s)
        return True


class SimSelector:
    """Stands in for `selectors.DefaultSelector`: the daemon's wait. Each round costs a little time."""

    def __init__(self, network: Network, round_s: float) -> None:
        self._network = network
        self._kernel = network.kernel
        self._round_s = round_s
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._things: dict[int, Any] = {}
        self.task = self._kernel.current

    def register(self, fd: int, events: int, data: Any = None) -> None:
        assert fd not in self._keys
        thing = self._network.find(fd)
        self._keys[fd] = selectors.SelectorKey(fd, fd, events, data)
        if thing is not None:  # one that is real is never ready
            self._things[fd] = thing
            thing.watchers[self.task] = None
            if thing.readable:
                self.task.wake()

    def unregister(self, fd: int) -> None:
        del self._keys[fd]
        thing = self._things.pop(fd, None)
        if thing is not None:
            thing.watchers.pop(self.task, None)

    def get_map(self) -> dict[int, selectors.SelectorKey]:
        return self._keys

    def select(self, timeout_s: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        kernel = self._kernel
        kernel.called()
        self._network.n_rounds += 1
        self._network.on_round()
        end_s = None if timeout_s is None else kernel.after(timeout_s)
        kernel.sleep(self._round_s)
        while True:
            ready = [self._keys[fd] for fd, thing in self._things.items() if thing.readable]
            if ready or (end_s is not None and kernel.now_s >= end_s):
                break
            kernel.block(end_s)
        if len(ready) > 1:
            kernel.random.shuffle(ready)
        return [(key, selectors.EVENT_READ) for key in ready]

    def close(self) -> None:
        for fd in list(self._keys):
            self.unregister(fd)


class SimLock:
    """Stands in for a lock: a task that waits for it gives the baton on."""

    def __init__(self, kernel: Kernel, *, reentrant: bool) -> None:
        self._kernel = kernel
        self._reentrant = reentrant
        self._owner: Any = None
        self._depth = 0
        self.watchers: dict[Any, None] = {}

    def __enter__(self) -> bool:
        task = self._kernel.current
        while self._owner is not None and not (self._reentrant and self._owner is task):
            wait_for(self._kernel, [self], None)
        self._owner = task
        self._depth += 1
        return True

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            for watcher in list(self.watchers):
                watcher.wake()
