"""The daemon's handle on the fork server: starts it, asks it for readers, checks that it works, waits for its end.

    start -> Spawn (with the reader's socket) -> Spawned (with its pidfd) ... Exited -> hang_up -> gone

Owned by the pool, which handles the fork server's messages. One that is stopped, or forks nobody, is killed: the pool
sees its end and starts another. It ends by itself when its socket does.
"""

from __future__ import annotations

import contextlib
import logging

from prefetchd.daemon.readers.fork_server_start import StartedForkServer
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.process import process_state

log = logging.getLogger("prefetchd")

_FORK_S = 60.0  # it forks in milliseconds, once it has loaded its libraries


class ForkServerHandle:
    """A fork server that runs; owns it.

    Args:
        started: its process and socket.
    """

    def __init__(self, started: StartedForkServer) -> None:
        self._started = started
        self._sock, self._process = started.sock, started.process
        self._was_stopped = False

    @property
    def pid(self) -> int:
        """The pid of its process."""
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor of its socket; negative once that is closed."""
        return self._sock.fileno()

    def spawn(self, reader: int, fd: int) -> None:
        """Have it fork a reader whose end of its socket is `fd`, borrowed."""
        with contextlib.suppress(sockets.ConnectionEnded):  # the loop sees that next and starts another
            sockets.send(self._sock, reader_messages.encode(reader_messages.Spawn(reader)), [fd])

    def receive(self) -> tuple[reader_messages.FromForkServer, list[int]] | None:
        """Return its next message and the descriptors that came with it, which the caller then owns, or `None`.

        Raises:
            ConnectionEnded: if it is gone.
        """
        try:
            data, fds = sockets.receive(self._sock, wait=False)
        except BlockingIOError:
            return None
        return reader_messages.decode_from_fork_server(data), fds

    def check(self, waited_s: float, hang_s: float) -> None:
        """Kill it if it is stopped, or does not fork: the pool has waited for a reader for `waited_s` seconds."""
        stopped = process_state(self.pid) in ("T", "t")
        if stopped and self._was_stopped:  # for two looks: one that is continued at once is left alone
            log.warning("killing the fork server (pid %d): it is stopped", self.pid)
            self._process.kill()
        elif waited_s > max(_FORK_S, hang_s):
            log.warning("killing the fork server (pid %d): it has forked no reader for %.0f s", self.pid, waited_s)
            self._process.kill()
        self._was_stopped = stopped

    def kill(self) -> None:
        """Kill it, and with it its readers; it removes nothing."""
        self._process.kill()

    def hang_up(self) -> None:
        """Tell it to stop, and close its socket: it kills its children and exits."""
        self._started.hang_up()

    def wait(self) -> int:
        """Wait for its end, once its socket has ended, and kill it if it takes long; return its exit code."""
        return self._started.wait()
