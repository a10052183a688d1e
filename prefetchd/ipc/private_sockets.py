"""The sockets on which private daemons can be asked: abstract ones, named by user and pid, so nothing lies in a folder.

A private daemon listens on its own besides the connection of its starter, which alone keeps it alive. `prefetchd list`,
and commands with `--pid`, find it in /proc/net/unix. The kernel removes the name with the process. Any user may take
such a name, so both sides check the user id of the peer. Another network namespace (a container) has its own names.
"""

from __future__ import annotations

import os
import socket

from prefetchd.ipc import sockets

_BACKLOG = 16
_CONNECT_S = 1.0


def listen() -> socket.socket:
    """Return a listener of this process's own, which the caller owns.

    Raises:
        OSError: if there can be none.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"\0{_prefix()}{os.getpid()}")
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def connect_to_all() -> list[tuple[int, socket.socket]]:
    """Return the pid of each private daemon of this user, as it is here, and a socket to it that the caller owns."""
    found = []
    for name in sorted(_names()):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(_CONNECT_S)  # with a full queue of others before us, connecting would not return
            sock.connect(f"\0{name}")
            pid, uid, pidfd = sockets.peer(sock)
        except OSError:  # it has ended, or is ending
            sock.close()
            continue
        os.close(pidfd)
        if uid == os.getuid():
            found.append((pid, sock))
        else:
            sock.close()
    return found


def _prefix() -> str:
    return f"prefetchd-{os.getuid()}-"


def _names() -> set[str]:
    """Return the names that private daemons of this user listen on."""
    start = f"@{_prefix()}"
    try:
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as lines:
            words = [line.split() for line in lines]
    except OSError:  # a sandbox without it
        return set()
    return {found[-1][1:] for found in words if found[-1].startswith(start) and found[-1][len(start) :].isdigit()}
