"""The fork server: a small process with one thread that has numpy and cv2 loaded, and forks a reader on request.

    child process prefetchd.reader.fork_server SOCKET_FD DAEMON_PID [FILE ... LOCK]

A fork takes some milliseconds where a fresh interpreter takes a third of a second, and readers share the libraries'
private pages. It is started before the daemon has any thread, and has none itself, so `fork` is sound. The standard
library's forkserver does the same, but leaves its socket's folder behind when its parent is killed, reports only to a
child's creator how the child ended, and hands out no pidfd.

When the daemon dies, by any means, the fork server's socket ends: it kills the readers (a stopped one does not see its
own socket end), removes the daemon's files unless a successor has them (their lock is the last), and exits. The kernel
wakes a stopped fork server as the daemon dies, and kills the readers as the fork server dies. A parent-death signal is
sent as the *thread* ends that forked. Daemon and fork server have just one thread, so it is sound here.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback

from prefetchd.errors import PrefetchdError
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.exit_status import RAISED_STATUS
from prefetchd.ipc.failures import explained
from prefetchd.ipc.loading import LoadingModules
from prefetchd.ipc.run_directory import remove_left_files

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_UNLOCK_S = 1.0
_KILL_S = 2.0
_prctl = ctypes.CDLL(None).prctl


class ForkServer:
    """Forks readers for the daemon at the other end of `sock` and reports how they end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._children: dict[int, tuple[int, int]] = {}  # pidfd -> (reader, pid)
        self._unsent: collections.deque[tuple[bytes, list[int]]] = collections.deque()

    def run(self) -> bool:
        """Serve until the daemon stops or is gone; return whether it stops in order."""
        try:
            while True:
                for fd, ready in self._wait():
                    if fd in self._children:
                        self._reap(fd)
                    elif ready & ~select.POLLOUT:
                        data, fds = sockets.receive(self._sock)
                        message = reader_messages.decode_to_fork_server(data)
                        if isinstance(message, reader_messages.Stop):
                            return True
                        self._spawn(message.reader, fds[0])
                    else:
                        self._send_unsent()
        except sockets.ConnectionEnded:
            return False
        finally:
            self._kill_all()

    def _wait(self) -> list[tuple[int, int]]:
        if not self._unsent:
            return self._poll.poll()
        poll = select.poll()  # no child is reaped before its pidfd is sent
        poll.register(self._sock, select.POLLIN | select.POLLOUT)
        return poll.poll()

    def _spawn(self, reader: int, fd: int) -> None:
        own_pid = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_reader(fd, [self._sock.fileno(), *self._children], own_pid)
        os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = reader, pid
        self._poll.register(pidfd, select.POLLIN)
        self._send(reader_messages.Spawned(reader, pid), [pidfd])

    def _reap(self, pidfd: int) -> None:
        reader, pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        exit_code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._send(reader_messages.Exited(reader, exit_code), [])

    def _send(self, message: reader_messages.FromForkServer, fds: list[int]) -> None:
        """Send `message`, now or when there is room.

        A daemon that asks for hundreds of readers does not read meanwhile: waiting here, we would wait for each other.
        """
        self._unsent.append((reader_messages.encode(message), fds))
        self._send_unsent()

    def _send_unsent(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sockets.send(self._sock, *self._unsent[0], wait=False)
                self._unsent.popleft()

    def _kill_all(self) -> None:
        import psutil

        for descendant in psutil.Process().children(recursive=True):  # users' functions may have started some
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        for pidfd in self._children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline_s = time.monotonic() + _KILL_S  # one that hangs in the kernel does not keep us from cleaning up
        for pidfd, (_, pid) in self._children.items():
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                os.waitpid(pid, 0)


def _run_reader(fd: int, inherited: list[int], server_pid: int) -> None:
    """Be the reader, in the forked child; never returns."""
    status = 1
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server_pid:
            os._exit(status)  # it died before we asked for the signal
        sockets.close_all(inherited)
        from prefetchd.reader import process

        process.main(socket.socket(fileno=fd))
        status = 0
    except BaseException as error:
        # Such as for lack of memory or threads. What a user's function or a decoder raises was caught as a fault.
        status = RAISED_STATUS if isinstance(error, Exception) else 1
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _remove_half_made_segments(daemon_pid: str) -> None:
    """Remove the name of a segment that the daemon was killed in the midst of making; it has no memory yet."""
    for name in os.listdir("/dev/shm"):
        if name.startswith(f"prefetchd-{daemon_pid}-"):
            with contextlib.suppress(OSError):
                os.unlink(f"/dev/shm/{name}")


def main(argv: list[str]) -> None:
    """Run the fork server; see the module's docstring for `argv`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # we end what a reader leaves behind

    try:
        with explained("start a reader"):
            # Readers share what is loaded here. A reader that loads it itself takes a tenth of a second, and outgrows
            # its share of the budget.
            with LoadingModules(in_child=True):
                import prefetchd.data.images.pipeline
                import prefetchd.reader.process  # noqa: F401  # its children have it then

            in_order = ForkServer(socket.socket(fileno=int(argv[0]))).run()
    except PrefetchdError as error:
        print(f"prefetchd: {error}", file=sys.stderr, flush=True)
        sys.exit(1)  # the pool starts another, and gives up after some
    with contextlib.suppress(OSError):
        _remove_half_made_segments(argv[1])
    if argv[2:]:
        # A daemon that stops in order waits for us with its lock held: waiting for the lock would cost it a second.
        remove_left_files(argv[2:], 0.0 if in_order else _UNLOCK_S)
