"""The private daemon of one process: what `launch.start_private` starts.

    child process prefetchd.daemon.private SOCKET_FD PARENT_PIDFD

The starter sends the configuration over SOCKET_FD, and then uses it as its connection. It gets every failure of the
start as `Fatal`. Commands reach the daemon through a socket of its own (`sockets.listen_privately`). The entry is apart
from the command line, as its start is part of the wait for the first batch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING

from prefetchd.daemon.readers.fork_server_start import StartedForkServer, accept_signals
from prefetchd.errors import PrefetchdError
from prefetchd.ipc.loading import LoadingModules

if TYPE_CHECKING:
    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.options import Config


# `main` imports them late. What is missing is said here, while the starter still quotes what this process prints.
for _module in ("msgspec", "numpy", "psutil"):
    if importlib.util.find_spec(_module) is None:
        raise ModuleNotFoundError(f"No module named {_module!r}")


def main(argv: list[str]) -> int:
    """Be the daemon of the process at the other end of SOCKET_FD; return the exit status."""
    from prefetchd.ipc.descriptors import open_standard_descriptors

    open_standard_descriptors()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="prefetchd: %(message)s")
    socket_fd, parent_pidfd = map(int, argv)
    sock = socket.socket(fileno=socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fork_server = _start_fork_server()
    # Imported here, while the fork server loads its libraries.
    with LoadingModules():
        from prefetchd.ipc import messages, sockets
        from prefetchd.ipc.event_loop import EventLoop, Interrupted
        from prefetchd.ipc.failures import explained

    try:
        with explained("start the daemon", everything=True), contextlib.ExitStack() as unless_started:
            if isinstance(fork_server, Exception):
                raise fork_server
            unless_started.callback(fork_server.end)
            configs, tables = receive_configs(sock)
            # Imported here, so that a failure reaches the starter.
            with LoadingModules(in_child=True):
                from prefetchd.daemon.server import Daemon

            loop = EventLoop()
            loop.on_signal(signal.SIGTERM, loop.stop)
            daemon = Daemon(configs, loop, tables=tables, parent_pidfd=parent_pidfd, fork_server=fork_server)
            unless_started.pop_all()
            daemon.serve_parent(sock, parent_pidfd)
            with contextlib.suppress(OSError):  # the starter is served without it
                daemon.listen(sockets.listen_privately())
    except (sockets.ConnectionEnded, Interrupted):
        return 1
    except PrefetchdError as error:
        with contextlib.suppress(sockets.ConnectionEnded):
            sockets.send(sock, messages.encode(messages.Fatal.of(error)))
        return 1
    try:
        daemon.run()
    except PrefetchdError:
        return 1  # `run` has sent the reason
    return 0


def _start_fork_server() -> StartedForkServer | Exception:
    """Return the fork server, or why there is none."""
    try:
        accept_signals()
        return StartedForkServer()
    except (PrefetchdError, OSError) as error:
        return error


def receive_configs(sock: socket.socket) -> tuple[dict[str, Config], dict[str, PassedTable]]:
    """Return the configuration of each data set, which the starter sends first, and those that are in its memory.

    Raises:
        ConnectionEnded: if the starter has gone.
        ConfigError: if a configuration is not valid.
    """
    from prefetchd.columns.passed import PassedTable
    from prefetchd.config.validate import make_config
    from prefetchd.ipc import messages, sockets

    data, fds = sockets.receive(sock)
    configure = messages.decode_to_daemon(data)
    assert isinstance(configure, messages.Configure)
    passed = zip(configure.tables.items(), fds, strict=True)
    tables = {name: PassedTable.from_wire(table, fd) for (name, table), fd in passed}
    return {name: make_config(**options) for name, options in configure.datasets.items()}, tables
