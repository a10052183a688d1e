"""The shared daemon: one for all processes of a user that ask for the same source and options.

    child process prefetchd.daemon.shared SOCKET_FD

`launch.find_or_start_shared` starts it. The starter sends the configuration over SOCKET_FD and waits until that socket
ends: then a daemon listens, or a `Fatal` said why not. From then on this process does not need the starter. It leaves
the starter's session and forks, so that neither a signal nor the starter's end reaches it. The run lock of its name
decides between several that start at once; the others end silently. It listens before it opens the data, so that each
process that connects gets the reason if it cannot serve. It ends `LINGER_S` after its last consumer.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time

from prefetchd.columns.passed import PassedTable
from prefetchd.config.options import Config
from prefetchd.daemon.private import receive_configs
from prefetchd.daemon.readers.fork_server_start import StartedForkServer, accept_signals
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.event_loop import EventLoop, Interrupted
from prefetchd.ipc.failures import explained
from prefetchd.ipc.run_directory import DaemonPaths, RunLock, daemon_paths, remove_files_of_others

LINGER_S = 3.0
_REFUSE_S = 1.0  # for how long those that connect get the reason why it cannot serve
_RECEIVE_S = 10.0


def main(argv: list[str]) -> int:
    """Be the shared daemon, unless another process is; return the exit status."""
    sock = socket.socket(fileno=int(argv[0]))
    if os.fork():
        os._exit(0)  # the starter waits for this process, and then for the end of the socket
    with contextlib.ExitStack() as resources:
        with sock:
            sock.settimeout(_RECEIVE_S)
            try:
                with explained("start the shared daemon", everything=True):
                    loop = EventLoop()
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock is taken
                        loop.on_signal(number, loop.stop)
                    configs, tables = receive_configs(sock)
                    paths = daemon_paths(next(iter(configs.values())).name, create=True)
                    listener = _become_daemon(paths, resources)
            except sockets.ConnectionEnded:
                return 1
            except PrefetchdError as error:
                with contextlib.suppress(sockets.ConnectionEnded):
                    sockets.send(sock, messages.encode(messages.Fatal.of(error)))
                return 1
        return 0 if listener is None else _serve(configs, tables, loop, listener, paths)


def _become_daemon(paths: DaemonPaths, resources: contextlib.ExitStack) -> socket.socket | None:
    """Take the run lock until `resources` is closed; return the listener, or `None` if another daemon has the lock.

    Raises:
        ConfigError: if its files cannot be made.
    """
    lock = RunLock.acquire(paths)
    if lock is None:
        return None
    resources.callback(lock.release)
    remove_files_of_others(paths)
    try:
        _log_to(paths)
        paths.socket.unlink(missing_ok=True)
        listener = resources.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.fspath(paths.socket))
    except OSError as error:
        raise ConfigError(
            f"cannot make the files of the shared daemon beside {paths.socket}: {error.strerror}; make room there, or "
            "set XDG_RUNTIME_DIR to another folder"
        ) from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _serve(
    configs: dict[str, Config],
    tables: dict[str, PassedTable],
    loop: EventLoop,
    listener: socket.socket,
    paths: DaemonPaths,
) -> int:
    try:
        with explained("start the shared daemon", everything=True), contextlib.ExitStack() as unless_started:
            accept_signals()
            fork_server = StartedForkServer(paths.files)
            unless_started.callback(fork_server.end)
            # Imported here, so that a failure reaches those that connect.
            from prefetchd.daemon.server import Daemon

            daemon = Daemon(
                configs,
                loop,
                tables=tables,
                files_to_remove=paths.files,
                linger_s=LINGER_S,
                fork_server=fork_server,
            )
            unless_started.pop_all()
            daemon.listen(listener.dup())
    except Interrupted:
        return 0
    except PrefetchdError as error:
        _refuse_all(listener, messages.Fatal.of(error))
        return 1
    try:
        daemon.run()
    except PrefetchdError:
        return 1  # `run` has sent the reason
    return 0


def _log_to(paths: DaemonPaths) -> None:
    """Log into a file beside the socket, removed with it: the starter's standard error may end earlier."""
    fd = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s prefetchd: %(message)s")


def _refuse_all(listener: socket.socket, why: messages.Fatal) -> None:
    """Tell all that wait, and all that connect in the next second, why it cannot serve."""
    end_s = time.monotonic() + _REFUSE_S
    while (left_s := end_s - time.monotonic()) > 0:
        if not select.select([listener], [], [], left_s)[0]:
            return
        try:
            sock, _ = listener.accept()
        except OSError:
            continue
        with sock:
            try:
                sockets.send(sock, messages.encode(why), wait=False)
                sock.settimeout(max(0.01, min(left_s, 0.2)))
                sockets.receive(sock)  # unread, its first message would end the connection before it reads ours
            except (sockets.ConnectionEnded, OSError):
                continue
