"""The consumer's line to its daemon: sends and receives messages, and waits for a daemon that does not read or answer.

Owned by the `Connection`, which knows what the messages are about. The line never blocks without end: a daemon whose
socket stays full, or that says nothing, is looked into (`silence`) and given up in the end. When the daemon dies, what
it said last can still be received.
"""

from __future__ import annotations

import contextlib
import select
import socket

from prefetchd._version import __version__
from prefetchd.client.waiting import LOOK_S, Silence
from prefetchd.errors import DaemonNotFound, PrefetchdError
from prefetchd.ipc import messages, sockets


class Uplink:
    """A socket to the daemon whose process is `daemon_pid`; takes `sock` over.

    Attributes:
        daemon_pid: whom one looks into while it says nothing.
        daemon_name: what it is called; empty until it has let us in.
        heard: how many messages came from it.
    """

    def __init__(self, sock: socket.socket, daemon_pid: int) -> None:
        self._sock = sockets.OwnedSocket(fileno=sock.detach())
        self.daemon_pid = daemon_pid
        self.daemon_name = ""
        self.heard = 0
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._buffer = bytearray(sockets.MAX_MESSAGE_BYTES)

    # --- receiving

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to receive, which may be the daemon's end; return whether there is."""
        return bool(self._poll.poll(timeout_s * 1000))

    def receive(self, *, wait: bool) -> tuple[messages.ToConsumer, list[int]]:
        """Return the next message and the descriptors that came with it, which the caller then owns.

        Raises:
            BlockingIOError: with `wait=False`, if there is none.
            ConnectionEnded: at the end of the daemon.
            PrefetchdError: if it is no message of this version's.
        """
        data, fds = sockets.receive(self._sock, wait=wait, buffer=self._buffer)
        self.heard += 1
        try:
            return messages.decode_to_consumer(data), fds
        except messages.DecodeError:
            sockets.close_all(fds)
            raise self._not_understood(data) from None

    def _not_understood(self, data: bytes | memoryview) -> PrefetchdError:
        """Return the error for a message that is none of this version's."""
        ours = f"this prefetchd is {__version__} (protocol {messages.PROTOCOL})"
        introduction = messages.read_introduction(data)
        if not self.daemon_name and introduction is not None and introduction.what == "Attached":
            return DaemonNotFound(
                f"cannot attach: {ours}, the daemon {introduction.version} speaks another protocol; "
                "restart the daemon with this version"
            )
        return PrefetchdError(
            f"cannot go on: the daemon sent what is no message of ours; {ours}: restart the daemon with it"
        )

    # --- sending

    def send(self, message: messages.Message) -> None:
        """Send a message to a daemon that may be stopped, with its socket full: say so, and give it up in the end.

        Raises:
            ConnectionEnded: if the daemon is gone.
            DaemonLost: if it is given up.
        """
        data = messages.encode(message)
        silence: Silence | None = None
        while True:
            try:
                sockets.send(self._sock, data, wait=False)
            except BlockingIOError:
                silence = self.wait_for_room(silence)
            else:
                return

    def send_at_once(self, message: messages.Message) -> None:
        """Send a message if there is room for it; else it is not sent.

        Raises:
            ConnectionEnded: if the daemon is gone.
        """
        with contextlib.suppress(BlockingIOError):
            sockets.send(self._sock, messages.encode(message), wait=False)

    def wait_for_room(self, silence: Silence | None) -> Silence:
        """Wait until the socket takes something again; return the silence of the whole wait, for the next time."""
        silence = silence or self.silence()
        writable = select.poll()
        writable.register(self._sock, select.POLLOUT)
        if not writable.poll(LOOK_S * 1000):
            silence.look()
        return silence

    # --- the daemon that says nothing

    def silence(self, *, ask: bool = False) -> Silence:
        """Return a wait for the daemon, that begins now; with `ask` it is asked what it is at."""
        return Silence(self.daemon_name, self.daemon_pid, self._ask if ask else None)

    def _ask(self) -> None:
        self.send_at_once(messages.AskStatus(messages.PROTOCOL))

    # --- the end

    def dup(self) -> socket.socket:
        """Return another socket object of the same connection, which the caller then owns."""
        return self._sock.dup()

    def shut_down(self) -> None:
        """End the connection for whoever has its socket: a forked child may have it, too."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back. What is still sent goes by others' objects of it; nothing more is received."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # closing it would wake no loop that waits for it in another thread
        self._sock.close()
