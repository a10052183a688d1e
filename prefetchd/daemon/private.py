"""Being the private daemon of one process: what `launch.start_private` starts.

    python -P -m prefetchd.daemon.private SOCKET_FD PARENT_PIDFD

Its own entry, without the command line: its start is part of the wait for the first batch.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys

from prefetchd.config.validate import make_config
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import messages, os_errors, sockets
from prefetchd.ipc.descriptors import open_standard_descriptors
from prefetchd.ipc.event_loop import EventLoop


def main(argv: list[str]) -> int:
    """Be the daemon of the process at the other end of SOCKET_FD; return the exit status."""
    open_standard_descriptors()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="prefetchd: %(message)s")
    socket_fd, parent_pidfd = map(int, argv)
    sock = socket.socket(fileno=socket_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        data, fds = sockets.receive(sock)
        sockets.close_all(fds)
        configure = messages.decode_to_daemon(data)
        assert isinstance(configure, messages.Configure)
        configs = {name: make_config(**options) for name, options in configure.datasets.items()}
        from prefetchd.daemon.server import Daemon

        loop = EventLoop()
        loop.on_signal(signal.SIGTERM, loop.stop)
        with os_errors.explained("start"):
            daemon = Daemon(configs, loop)
            daemon.serve_parent(sock, parent_pidfd)
    except sockets.ConnectionEnded:
        return 1
    except PrefetchdError as error:
        try:
            sockets.send(sock, messages.encode(messages.Fatal(type(error).__name__, str(error))))
        except sockets.ConnectionEnded:
            pass
        return 1
    try:
        daemon.run()
    except PrefetchdError:
        return 1  # the consumer was told
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
