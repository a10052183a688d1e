"""The operating system, as far as daemon and client wait for it or look at it: one place for each of its parts.

    clock            monotonic, sleep, lock, reentrant_lock
    waiting          poller, selector
    sockets          socket_pair, adopt_socket, own_socket, connect
    processes        start_process, send_signal
    the machine      read_file, memory, idle_seconds, usable_cores, lower_priority

Callers write `system.monotonic()` and never import a name from here. So `tests/simulation` can run the same code over a
simulated system, with a clock of its own. Memory and its maps are the kernel's own there too.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any

# --- clock


def monotonic() -> float:
    """Return monotonic seconds."""
    return time.monotonic()


def sleep(delay_s: float) -> None:
    """Wait `delay_s` seconds."""
    time.sleep(delay_s)


def lock() -> AbstractContextManager[Any]:
    """Return a lock between threads of this process."""
    return threading.Lock()


def reentrant_lock() -> AbstractContextManager[Any]:
    """Return a lock that the thread which has it may take again."""
    return threading.RLock()


# --- waiting


class Poller:
    """Waits for one descriptor to become readable, or writable."""

    def __init__(self, file: socket.socket | int, *, to_write: bool = False) -> None:
        self._poll = select.poll()
        self._poll.register(file, select.POLLOUT if to_write else select.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is ready, `timeout_s` seconds at most; return whether it is. An end counts as ready."""
        return bool(self._poll.poll(timeout_s * 1000))


def poller(file: socket.socket | int, *, to_write: bool = False) -> Poller:
    """Return what waits for one descriptor, borrowed."""
    return Poller(file, to_write=to_write)


def selector() -> selectors.BaseSelector:
    """Return what waits for many descriptors."""
    return selectors.DefaultSelector()


# --- sockets


class OwnedSocket(socket.socket):
    """A socket that closes with its last user, without a warning: arrays that a user holds keep it open."""

    def __del__(self) -> None:
        self.close()


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep the boundaries of messages."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def adopt_socket(fd: int) -> socket.socket:
    """Return a socket that owns `fd`.

    Raises:
        OSError: if it is none.
    """
    return socket.socket(fileno=fd)


def own_socket(sock: socket.socket) -> socket.socket:
    """Return a socket in place of `sock` that closes with its last user."""
    return OwnedSocket(fileno=sock.detach())


def connect(path: str) -> socket.socket:
    """Return a socket that is connected to the listener at `path`, without waiting.

    Raises:
        BlockingIOError: if its queue of new connections is full.
        OSError: if nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.setblocking(False)  # with a full queue of others before us, connecting would wait without an end
        sock.connect(path)
        sock.setblocking(True)
    except OSError:
        sock.close()
        raise
    return sock


# --- processes


def start_process(
    command: Sequence[str], *, pass_fds: Sequence[int], env: Mapping[str, str], stderr: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that Ctrl-C in the terminal is for this process alone.

    Raises:
        OSError: if it cannot be started.
    """
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=stderr, pass_fds=pass_fds, env=env, start_new_session=True
    )


def send_signal(pidfd: int, number: signal.Signals) -> None:
    """Send a signal to a process.

    Raises:
        ProcessLookupError: if it has ended.
    """
    signal.pidfd_send_signal(pidfd, number)


# --- the machine


def read_file(path: str) -> bytes:
    """Return a file of the kernel's, such as one in /proc or a control group.

    Raises:
        OSError: if there is none, or it may not be read.
    """
    with open(path, "rb") as file:
        return file.read()


def memory() -> tuple[int, int]:
    """Return the bytes of memory that the machine can give to programs, and those that it has."""
    import psutil  # consumers do without it

    found = psutil.virtual_memory()
    return int(found.available), int(found.total)


def idle_seconds() -> float:
    """Return for how many seconds the usable cores have been idle so far, or waited for storage, all together."""
    import psutil

    times = psutil.cpu_times(percpu=True)
    usable = [times[core] for core in os.sched_getaffinity(0) if core < len(times)]
    return float(sum(core.idle + core.iowait for core in usable))


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def lower_priority() -> None:
    """Keep this process from preempting others that it wakes."""
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
