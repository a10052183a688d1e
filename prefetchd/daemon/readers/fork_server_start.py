"""The start and the end of a fork server's process.

It is part of the wait for the first batch: the fork server loads numpy and OpenCV while the daemon loads its own
modules. So this module imports next to nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Sequence

from prefetchd.ipc import system
from prefetchd.ipc.process import child_command, child_environment

log = logging.getLogger("prefetchd")

_END_S = 3.0
# The allocator and the libraries read it when the fork server starts: one thread, one arena. Big buffers go back to the
# kernel when they are freed, instead of staying in the heap.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "TOKIO_WORKER_THREADS": "1",  # of obstore, in a reader that reads objects
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 20),
    "OPENCV_LOG_LEVEL": "OFF",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
}


def accept_signals() -> None:
    """Undo what a process inherits: SIGCHLD ignored hides the exit status of readers; others blocked stop no daemon."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class StartedForkServer:
    """The process of a fork server and the daemon's end of its socket; owns both.

    Args:
        files_to_remove: what it removes should this process be killed.

    Raises:
        PrefetchdError, OSError: if it cannot be started.
    """

    def __init__(self, files_to_remove: Sequence[str] = ()) -> None:
        self.sock, theirs = system.socket_pair()
        try:
            self.process = system.start_process(
                child_command("prefetchd.reader.fork_server", theirs.fileno(), os.getpid(), *files_to_remove),
                pass_fds=[theirs.fileno()],
                env=child_environment(**ENVIRONMENT),
            )
        except BaseException:
            self.sock.close()
            raise
        finally:
            theirs.close()

    def end(self) -> None:
        """End one that no pool has taken over."""
        self.hang_up()
        self.wait()

    def hang_up(self) -> None:
        """Tell it to stop, and close its socket: it kills its children and exits."""
        from prefetchd.ipc import reader_messages, sockets

        if self.sock.fileno() < 0:
            return
        with contextlib.suppress(sockets.ConnectionEnded, BlockingIOError):
            sockets.send(self.sock, reader_messages.encode(reader_messages.Stop()), wait=False)
        self.sock.close()

    def wait(self) -> int:
        """Wait for its end, once its socket has ended, and kill it if it takes long; return its exit code."""
        for _ in range(2):
            try:
                return self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        log.error("the fork server (pid %d) was killed and does not end; leaving it behind", self.process.pid)
        return -signal.SIGKILL
