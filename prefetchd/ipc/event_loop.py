"""The daemon's event loop: callbacks for readable descriptors, timers and signals, all in one thread."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import selectors
import signal
import socket
from collections.abc import Callable, Iterator

from prefetchd.ipc import system

Callback = Callable[[], object]

_PARENT_S = 0.5  # between looks whether the parent has ended


class Interrupted(BaseException):
    """A signal, or the end of the parent, asked the daemon to stop while it was busy outside the loop."""


class EventLoop:
    """Wait for descriptors and timers, and run their callbacks in the thread that called `run`."""

    def __init__(self) -> None:
        self.clock = system.monotonic
        self._selector = system.selector()
        self._timers: list[tuple[float, int, Callback]] = []
        self._numbers = itertools.count()
        self._stopped = False
        self._signalled = self._is_interruptible = False
        self._wake, self._wake_end = socket.socketpair()
        self._wake.setblocking(False)
        self._wake_end.setblocking(False)
        self.watch(self._wake.fileno(), lambda: self._drain())

    def watch(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd`, which is not watched otherwise, can be written to."""
        self._selector.register(fd, selectors.EVENT_WRITE, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, if it is watched."""
        if fd >= 0 and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_later(self, delay_s: float, callback: Callback) -> None:
        """Call `callback` once, `delay_s` seconds from now."""
        heapq.heappush(self._timers, (self.clock() + delay_s, next(self._numbers), callback))

    def on_signal(self, number: int, callback: Callback) -> None:
        """Call `callback` from the loop, not from the signal handler, when the signal arrives."""
        signal.set_wakeup_fd(self._wake_end.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda *_: self._on_signal(callback))

    def _on_signal(self, callback: Callback) -> None:
        self._signalled = True
        if self._is_interruptible:
            raise Interrupted
        self.call_later(0, callback)

    @contextlib.contextmanager
    def interruptible(self, parent_pidfd: int = -1) -> Iterator[None]:
        """Have signals end the block, in place of waiting for the loop: it may take minutes, as indexing does.

        Args:
            parent_pidfd: of a process whose end ends the block too; -1 for none.

        Raises:
            Interrupted: at a signal of `on_signal`, also at one before the block.
        """
        before = signal.signal(signal.SIGALRM, lambda *_: self._check_parent(parent_pidfd))
        signal.siginterrupt(signal.SIGALRM, False)  # libraries take an interrupted read for a failure
        try:
            self._is_interruptible = True
            if self._signalled:
                raise Interrupted
            if parent_pidfd >= 0:
                signal.setitimer(signal.ITIMER_REAL, _PARENT_S, _PARENT_S)
            yield
        finally:
            self._is_interruptible = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def _check_parent(self, pidfd: int) -> None:
        if system.poller(pidfd).wait(0) and self._is_interruptible:
            raise Interrupted

    def stop(self) -> None:
        """Make `run` return after the callbacks of this round."""
        self._stopped = True

    def run(self, after_events: Callback) -> None:
        """Run until `stop`; `after_events` is called after each round of callbacks."""
        while not self._stopped:
            timeout = max(0.0, self._timers[0][0] - self.clock()) if self._timers else None
            for key, _ in self._selector.select(timeout):
                # An earlier callback may have closed it, and its number may belong to another file now.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            while self._timers and self._timers[0][0] <= self.clock():
                heapq.heappop(self._timers)[2]()
            after_events()

    def close(self) -> None:
        """Close the loop's own descriptors."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._wake.close()
        self._wake_end.close()

    def _drain(self) -> None:
        try:
            while self._wake.recv(64):
                pass
        except BlockingIOError:
            pass
