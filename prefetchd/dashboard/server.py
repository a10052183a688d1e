"""The dashboard's process: a socket, and a web server on it until it is asked to stop.

`prefetchd dashboard` calls `run`. `serve --dashboard-port` opens the socket itself, so that a port that is taken is
said at once, and starts this module as a process with it; that one ends with the daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from prefetchd.dashboard.address import Options
from prefetchd.dashboard.watch import Watcher
from prefetchd.errors import ConfigError
from prefetchd.ipc.parent_death import end_with_parent

if TYPE_CHECKING:
    import uvicorn


def check_installed() -> None:
    """Raise `ConfigError` if what the dashboard needs is not installed."""
    try:
        import starlette
        import uvicorn
    except ImportError:
        raise ConfigError(
            "cannot show a dashboard: starlette or uvicorn is not installed; pip install 'prefetchd[dashboard]'"
        ) from None
    del starlette, uvicorn


def run(sock: socket.socket, options: Options, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serve on `sock`, which the server then owns, until SIGINT, SIGTERM or SIGHUP."""
    import uvicorn

    warnings.simplefilter("ignore")  # those for training loops, such as that one waits: the page says it

    from prefetchd.dashboard.app import Api, make_app
    from prefetchd.dashboard.connection import Connection
    from prefetchd.dashboard.findings import FindingsFiles

    watcher = Watcher(options.daemon)
    hosts = {"localhost", socket.gethostname().lower(), *(name.lower() for name in options.allowed_hosts)}
    if options.host:
        hosts.add(options.host.lower())
    api = Api(watcher, FindingsFiles(options.findings))
    app = make_app(api, hosts, sock.getsockname()[1], options.token)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", proxy_headers=False, ws="none",
        timeout_graceful_shutdown=2, timeout_keep_alive=20, limit_concurrency=200, http=Connection,
    )  # fmt: skip
    server = uvicorn.Server(config)
    # At the end it logs, with tracebacks, which answers were still being made.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
    with _until_signal(server):
        watcher.start()
        on_ready()
        try:
            server.run([sock])
        finally:
            api.close()
            sock.close()


@contextlib.contextmanager
def _until_signal(server: uvicorn.Server) -> Iterator[None]:
    """End the server in order at SIGHUP too; uvicorn takes SIGINT and SIGTERM, and raises them again at its end."""

    def stop(*_: object) -> None:
        server.should_exit = True

    assert threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str]) -> int:
    """Run as the child of `serve`, with the descriptor of a listening socket and the daemon's process; see `Beside`.

    The options come as JSON on standard input.
    """
    fd, daemon_pid = map(int, arguments)
    if end_with_parent(daemon_pid, signal.SIGTERM):
        given = json.load(sys.stdin)
        run(socket.socket(fileno=fd), Options(**{**given, "allowed_hosts": tuple(given["allowed_hosts"])}))
    return 0
