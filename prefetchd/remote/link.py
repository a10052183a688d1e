"""A connection between daemon and agent: whole frames over a TCP or TLS socket, with waiting and without.

`Peer` waits: it greets, proves, joins and ships indexes, each step with a deadline. Then `Link` takes the socket over
and never waits. It receives the body of a frame straight to where it belongs, such as a slot, or drops it. Both own the
socket. A frame that makes no sense, or a peer that is gone, is a `LinkEnded`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from prefetchd.remote import wire

_SCRATCH_BYTES = 1 << 18
_AT_ONCE_BYTES = 1 << 20
_LOW_WATER_BYTES = 1 << 18
_SHORT_BYTES = 1 << 16  # a body that is no longer is received as it comes
_MOST_READ_BYTES = 64 << 20  # before others have their turn
_SEND_BUFFERS = 64
_KEEP_IDLE_S = 10
_KEEP_INTERVAL_S = 5
_KEEP_TIMES = 4
_CANNOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

Message = TypeVar("Message")
Parts = Sequence[memoryview]


class LinkEnded(Exception):
    """The connection is over, and why."""


def tune(sock: socket.socket) -> None:
    """Have the kernel send at once, and end the connection half a minute after the peer's machine is gone.

    Without the times for an idle connection the kernel would look after two hours, and an agent keep a share for a
    daemon whose machine has lost its power.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    with contextlib.suppress(OSError):  # a sandbox that has not all of them
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_TIMES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class Peer:
    """A connection whose every step waits, up to a deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, message: wire.Frame, parts: Parts = (), *, deadline_s: float) -> None:
        """Send a frame.

        Raises:
            LinkEnded: if the peer is gone, or takes longer than `deadline_s` seconds.
        """
        try:
            self.sock.settimeout(deadline_s)
            self.sock.sendall(wire.frame_head(message, parts))
            for part in parts:
                self.sock.sendall(part)
        except OSError as error:
            raise LinkEnded(why(error)) from None

    def receive(
        self,
        decode: Callable[[bytes], Message],
        *,
        deadline_s: float,
        most_head_bytes: int = wire.MAX_HEAD_BYTES,
        most_body_bytes: int = 0,
    ) -> tuple[Message, bytearray]:
        """Return the next message and the body of its frame; raises as `send` does."""
        end_s = time.monotonic() + deadline_s
        try:
            header = self._exactly(wire.HEADER.size, end_s)
            head_sum, head_bytes, body_bytes, body_sum = wire.read_header(header, most_head_bytes, most_body_bytes)
            head, body = self._exactly(head_bytes, end_s), self._exactly(body_bytes, end_s)
            wire.check_head(head, head_sum)
            if body_bytes and wire.checksum([memoryview(body)]) != body_sum:
                raise wire.BadFrame("the bytes of a frame changed on the way")
            return decode(bytes(head)), body
        except OSError as error:
            raise LinkEnded(why(error)) from None
        except wire.BadFrame as error:
            raise LinkEnded(str(error)) from None
        except wire.DecodeError as error:
            raise LinkEnded(f"it sent what is no message of ours ({error})") from None

    def _exactly(self, n_bytes: int, end_s: float) -> bytearray:
        """Return so many bytes; memory is taken as they come, so that a length alone costs nothing."""
        data = bytearray()
        while len(data) < n_bytes:
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.sock.settimeout(left_s)
            part = self.sock.recv(min(n_bytes - len(data), wire.PIECE_BYTES))
            if not part:
                raise LinkEnded("it closed the connection")
            data += part
        return data

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


class Link(Generic[Message]):
    """A connection that never waits.

    Args:
        sock: the connected socket, owned.
        decode: of the messages that come.
        place: returns where the body of a frame goes: (message, its bytes) -> views of as many bytes in all, or `None`
            to drop it. Raises `LinkEnded` if there may be no such body.
        handle: called with each message once its body is there, and with whether that arrived as it was sent.
    """

    def __init__(
        self,
        sock: socket.socket,
        decode: Callable[[bytes], Message],
        place: Callable[[Message, int], Parts | None],
        handle: Callable[[Message, bool], None],
    ) -> None:
        self.sock = sock
        self.received_bytes = 0
        self._decode, self._place, self._handle = decode, place, handle
        self._head = bytearray(wire.HEADER.size)
        self._is_head = False  # whether `_head` is a message's, and not a header
        self._announced = (0, 0, 0, 0)
        self._n_read = 0
        self._message: Message | None = None  # whose body is being received
        self._parts: deque[memoryview] | None = None
        self._sum = wire.new_checksum()  # of the body so far
        self._left_bytes = 0
        self._low_bytes = 1  # how much must have come before the socket is readable
        self._is_drained = False
        self._is_plain = not isinstance(sock, ssl.SSLSocket)
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._out: deque[tuple[memoryview, Callable[[], None] | None]] = deque()
        sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor of the socket."""
        return self.sock.fileno()

    @property
    def receiving(self) -> Message | None:
        """The message whose body is being received."""
        return self._message

    def drop_body(self) -> None:
        """Drop what is still to come of the present body; nothing more is written to where it went."""
        self._parts = None

    # --- in

    def read(self) -> None:
        """Take in what has come.

        Raises:
            LinkEnded: if the peer is gone, or sent no frame of ours.
        """
        most = self.received_bytes + _MOST_READ_BYTES
        try:
            while self.received_bytes < most or self._pending():
                self._step()
                if self._is_drained:
                    break
        except _CANNOT_NOW:
            pass
        except wire.BadFrame as error:
            raise LinkEnded(str(error)) from None
        except wire.DecodeError as error:
            raise LinkEnded(f"it sent what is no message of ours ({error})") from None
        except OSError as error:
            raise LinkEnded(why(error)) from None
        self._set_low_water()

    def _pending(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def _receive(self, view: memoryview) -> int:
        n_bytes = self.sock.recv_into(view)
        if not n_bytes:
            raise LinkEnded("it closed the connection")
        self.received_bytes += n_bytes
        self._is_drained = self._is_plain and n_bytes < len(view)
        return n_bytes

    def _set_low_water(self) -> None:
        """Have the loop come back when much of a long body is there: each round costs as much as some rows."""
        low_bytes = min(self._left_bytes, _LOW_WATER_BYTES) if self._left_bytes > _SHORT_BYTES else 1
        if self._is_plain and low_bytes != self._low_bytes:
            self._low_bytes = low_bytes
            with contextlib.suppress(OSError):  # it has no such option, or the loop learns next that it has ended
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_bytes)

    def _step(self) -> None:
        """Receive once."""
        if self._message is not None:
            self._step_in_body()
            return
        self._n_read += self._receive(memoryview(self._head)[self._n_read :])
        if self._n_read < len(self._head):
            return
        self._n_read = 0
        if not self._is_head:
            self._announced = wire.read_header(self._head, wire.MAX_HEAD_BYTES, wire.MAX_BODY_BYTES)
            self._head, self._is_head = bytearray(self._announced[1]), True
            return
        wire.check_head(self._head, self._announced[0])
        message = self._decode(bytes(self._head))
        self._head, self._is_head = bytearray(wire.HEADER.size), False
        body_bytes = self._announced[2]
        if not body_bytes:
            self._place(message, 0)
            self._handle(message, True)
            return
        placed = self._place(message, body_bytes)
        assert placed is None or sum(map(len, placed)) == body_bytes
        self._parts = None if placed is None else deque(part for part in placed if len(part))
        self._message, self._left_bytes = message, body_bytes
        if self._parts:
            self._sum.reset()
            self._sum.update(wire.length_bytes(self._parts[0]))

    def _step_in_body(self) -> None:
        if self._parts is None:
            n_bytes = self._receive(self._scratch[: self._left_bytes])
        else:
            part = self._parts[0]
            n_bytes = self._receive(part[:_AT_ONCE_BYTES])
            self._sum.update(part[:n_bytes])  # at once: it is still in the processor's caches
            if n_bytes < len(part):
                self._parts[0] = part[n_bytes:]
            else:
                self._parts.popleft()
                if self._parts:
                    self._sum.update(wire.length_bytes(self._parts[0]))
        self._left_bytes -= n_bytes
        if self._left_bytes:
            return
        message, is_kept = self._message, self._parts is not None
        assert message is not None
        self._message, self._parts = None, None
        self._handle(message, not is_kept or self._sum.intdigest() == self._announced[3])

    # --- out

    @property
    def is_sending(self) -> bool:
        """Whether something waits until the peer takes it."""
        return bool(self._out)

    def send(self, message: wire.Frame, parts: Parts = (), sent: Callable[[], None] | None = None) -> None:
        """Queue a frame for `flush`; `parts` must not change until `sent` is called."""
        views: list[memoryview] = [memoryview(wire.frame_head(message, parts)), *(part for part in parts if len(part))]
        self._out.extend((view, None) for view in views[:-1])
        self._out.append((views[-1], sent))

    def flush(self) -> None:
        """Send what the peer takes now.

        Raises:
            LinkEnded: if it is gone.
        """
        try:
            while self._out:
                self._sent(self._send_once())
        except _CANNOT_NOW:
            return
        except OSError as error:
            raise LinkEnded(why(error)) from None

    def _send_once(self) -> int:
        if isinstance(self.sock, ssl.SSLSocket):  # it must be given the same bytes again, and takes one buffer
            return self.sock.send(self._out[0][0])
        return self.sock.sendmsg([view for view, _ in list(self._out)[:_SEND_BUFFERS]])

    def _sent(self, n_bytes: int) -> None:
        while n_bytes:
            view, sent = self._out[0]
            if n_bytes < len(view):
                self._out[0] = view[n_bytes:], sent
                return
            n_bytes -= len(view)
            self._out.popleft()
            if sent is not None:
                sent()

    def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self.sock.close()
        self._out.clear()
        self._parts = None


def why(error: OSError) -> str:
    """Return why a connection failed, in words."""
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message})"
    if isinstance(error, ssl.SSLError) and error.reason == "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        return "it asks for a certificate of this side; give tls_cert"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error})"
    return error.strerror or type(error).__name__
