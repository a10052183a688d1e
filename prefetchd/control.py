"""Sockets: one datagram a message, descriptors beside it. Used by every process; knows nothing of what is said.

Every socket is `AF_UNIX`, `SOCK_SEQPACKET`: messages keep their boundaries, arrive in order, and the end of the peer
is an empty read. A message is at most `MAX_MESSAGE_BYTES`.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence

MAX_MESSAGE_BYTES = 128 * 1024
_MAX_FDS = 8
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_SO_PEERPIDFD = 77  # Linux 6.5; not named by the socket module yet


class ConnectionEnded(Exception):
    """The peer has closed its end, or is gone."""


class OwnedSocket(socket.socket):
    """A socket that ends with its last user, without Python's warning: how long that is, is for held views to say."""

    def __del__(self) -> None:
        self.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = (), *, wait: bool = True) -> None:
    """Send one message.

    Raises:
        BlockingIOError: with `wait=False`, if the peer's buffer is full; nothing was sent.
        ConnectionEnded: if the peer is gone.
    """
    flags = socket.MSG_NOSIGNAL | (0 if wait else socket.MSG_DONTWAIT)
    try:
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sock.sendmsg([data], ancillary, flags)
        else:
            sock.send(data, flags)
    except (BrokenPipeError, ConnectionError) as error:
        raise ConnectionEnded from error


def receive(sock: socket.socket, *, wait: bool = True) -> tuple[bytes, list[int]]:
    """Return the next message and the descriptors that came with it, which the caller then owns.

    Raises:
        BlockingIOError: with `wait=False`, if there is none.
        ConnectionEnded: at the end of the peer.
    """
    flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
    try:
        data, ancillary, _, _ = sock.recvmsg(MAX_MESSAGE_BYTES, _ANCILLARY_BYTES, flags)
    except ConnectionError as error:
        raise ConnectionEnded from error
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds.extend(numbers)
    if not data:
        close_all(fds)
        raise ConnectionEnded
    return data, fds


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody will use."""
    for fd in fds:
        os.close(fd)


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
