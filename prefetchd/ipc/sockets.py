"""Sockets: send and receive one message, with descriptors beside it. Every process uses it.

Each socket is `AF_UNIX`, `SOCK_SEQPACKET`: messages keep their boundaries and arrive in order, and an empty read means
that the peer has ended. A message has at most `MAX_MESSAGE_BYTES`. The sockets on which `prefetchd list`, and commands
with `--pid`, find private daemons are here too.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence

from prefetchd.ipc import system

# Below the size from which malloc takes fresh pages for the buffer of every receive.
MAX_MESSAGE_BYTES = 96 * 1024
_MAX_FDS = 253  # the kernel's most: each source of a mixture has some
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC)
_RECEIVE_NOW = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_NOSIGNAL)
_SEND_NOW = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_PRIVATE_BACKLOG = 16
_PRIVATE_CONNECT_S = 1.0
_SO_PEERPIDFD = 77  # Linux 6.5; not named by the socket module yet


class ConnectionEnded(Exception):
    """The peer has closed its end, or is gone."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets."""
    return system.socket_pair()


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = (), *, wait: bool = True) -> None:
    """Send one message.

    Raises:
        BlockingIOError: with `wait=False`, if the peer's buffer is full; nothing was sent.
        ConnectionEnded: if the peer is gone.
    """
    flags = _SEND if wait else _SEND_NOW
    try:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sock.sendmsg([data], ancillary, flags)
        else:
            sock.send(data, flags)
    except (BrokenPipeError, ConnectionError) as error:
        raise ConnectionEnded from error


def receive(
    sock: socket.socket, *, wait: bool = True, buffer: bytearray | None = None
) -> tuple[bytes | memoryview, list[int]]:
    """Return the next message and the descriptors that came with it, which the caller then owns.

    With a `buffer` of `MAX_MESSAGE_BYTES` the message is a view of it, valid until the next call.

    Raises:
        BlockingIOError: with `wait=False`, if there is no message.
        ConnectionEnded: if the peer has closed its end or is gone.
    """
    flags = _RECEIVE if wait else _RECEIVE_NOW
    try:
        data, ancillary = _receive(sock, flags, buffer)
    except ConnectionResetError:
        # The peer closed with messages of ours unread. The error comes once, before the peer's last message.
        try:
            data, ancillary = _receive(sock, flags, buffer)
        except ConnectionError as error:
            raise ConnectionEnded from error
    except ConnectionError as error:
        raise ConnectionEnded from error
    fds = _descriptors(ancillary) if ancillary else []
    if not data:
        close_all(fds)
        raise ConnectionEnded
    return data, fds


def _receive(
    sock: socket.socket, flags: int, buffer: bytearray | None
) -> tuple[bytes | memoryview, list[tuple[int, int, bytes]]]:
    if buffer is None:
        data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, flags)
        return data, ancillary
    n_bytes, ancillary, _, _ = sock.recvmsg_into([buffer], _ANCILLARY_BYTES, flags)
    return memoryview(buffer)[:n_bytes], ancillary


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    return fds


def close_all(fds: Sequence[int]) -> None:
    """Close every descriptor of `fds`."""
    for fd in fds:
        os.close(fd)


def peer_pid(sock: socket.socket) -> int:
    """Return the pid of the process that created the peer's end, or listened on it."""
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """Return the peer's pid, user id and a pidfd that the caller owns.

    Raises:
        ProcessLookupError: if the peer is gone already.
    """
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
        os.set_inheritable(pidfd, False)
    except OSError:
        pidfd = os.pidfd_open(pid)
    return pid, uid, pidfd


# A private daemon listens on an abstract socket of its own, besides the connection of its starter, which alone keeps it
# alive. The socket is named by user and pid, so nothing lies in a folder, and the kernel removes the name with the
# process. Any user may take such a name, so both sides check the user id of the peer. Another network namespace (a
# container) has its own names.


def listen_privately() -> socket.socket:
    """Return a listener of this process's own, which the caller owns.

    Raises:
        OSError: if there can be none.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{_private_prefix()}{os.getpid()}")
        listener.listen(_PRIVATE_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def connect_to_private() -> list[tuple[int, socket.socket]]:
    """Return the pid of each private daemon of this user, as it is here, and a socket to it that the caller owns."""
    found = []
    for name in sorted(_private_names()):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(_PRIVATE_CONNECT_S)  # with a full queue of others before us, connecting would not return
            sock.connect(f"\0{name}")
            pid, uid, pidfd = peer(sock)
        except OSError:  # it has ended, or is ending
            sock.close()
            continue
        os.close(pidfd)
        if uid == os.getuid():
            found.append((pid, sock))
        else:
            sock.close()
    return found


def _private_prefix() -> str:
    return f"prefetchd-{os.getuid()}-"


def _private_names() -> set[str]:
    """Return the names that private daemons of this user listen on."""
    start = f"@{_private_prefix()}"
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
            words = [line.split() for line in lines]
    except OSError:  # a sandbox without it
        return set()
    return {found[-1][1:] for found in words if found[-1].startswith(start) and found[-1][len(start) :].isdigit()}
