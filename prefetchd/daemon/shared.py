"""Being the daemon that all processes share which ask for the same: what `launch.find_or_start_shared` starts.

    python -P -m prefetchd.daemon.shared SOCKET_FD

The starter sends the configuration over SOCKET_FD, and waits until that ends: then somebody listens, or it was told why
not. It is needed no more: this process puts itself out of the starter's session and family, so that neither a signal
nor the starter's end reaches it. The run lock of its name decides between several that were started at once; the others
leave without a word. It listens before it looks at the data, so that whoever connects hears, one by one, why it cannot
serve. It ends `LINGER_S` after the last consumer.
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

from prefetchd.config.options import Config
from prefetchd.config.validate import make_config
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ipc.run_directory import DaemonPaths, RunLock, daemon_paths, remove_files_of_others

LINGER_S = 3.0
_REFUSE_S = 1.0  # for how long those who wait for it are told why it cannot serve
_HEAR_S = 10.0


def main(argv: list[str]) -> int:
    """Be the shared daemon if no other is; return the exit status."""
    sock = socket.socket(fileno=int(argv[0]))
    if os.fork():
        os._exit(0)  # the starter waits for this process, and then for the end of the socket
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock: it is never left behind
        loop.on_signal(number, loop.stop)
    with contextlib.ExitStack() as place:
        with sock:
            configure = _hear(sock)
            if configure is None:
                return 1
            configs = {name: make_config(**options) for name, options in configure.datasets.items()}
            try:
                paths = daemon_paths(next(iter(configs.values())).name, create=True)
                listener = _take_place(paths, place)
            except PrefetchdError as error:
                with contextlib.suppress(sockets.ConnectionEnded):
                    sockets.send(sock, messages.encode(messages.Fatal(type(error).__name__, str(error))))
                return 1
        return 0 if listener is None else _serve(configs, loop, listener, paths)


def _hear(sock: socket.socket) -> messages.Configure | None:
    """Return what the starter wants served; `None` if it has gone without a word."""
    sock.settimeout(_HEAR_S)
    try:
        data, fds = sockets.receive(sock)
    except (sockets.ConnectionEnded, TimeoutError):
        return None
    sockets.close_all(fds)
    configure = messages.decode_to_daemon(data)
    assert isinstance(configure, messages.Configure)
    return configure


def _take_place(paths: DaemonPaths, place: contextlib.ExitStack) -> socket.socket | None:
    """Become the daemon of that name, until `place` is closed; return its listener, or `None`: another was faster.

    Raises:
        ConfigError: if its files cannot be made.
    """
    lock = RunLock.acquire(paths)
    if lock is None:
        return None
    place.callback(lock.release)
    remove_files_of_others(paths)
    try:
        _log_to(paths)
        paths.socket.unlink(missing_ok=True)
        listener = place.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(os.fspath(paths.socket))
    except OSError as error:
        raise ConfigError(
            f"cannot make the files of the shared daemon beside {paths.socket}: {error.strerror}; make room there, or "
            "set XDG_RUNTIME_DIR to another folder"
        ) from None
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _serve(configs: dict[str, Config], loop: EventLoop, listener: socket.socket, paths: DaemonPaths) -> int:
    from prefetchd.daemon.server import Daemon

    try:
        daemon = Daemon(configs, loop, files_to_remove=paths.files, linger_s=LINGER_S)
    except PrefetchdError as error:
        _refuse_all(listener, messages.Fatal(type(error).__name__, str(error)))
        return 1
    try:
        daemon.listen(listener.dup())
        daemon.run()
    except PrefetchdError:
        return 1  # the consumers were told
    return 0


def _log_to(paths: DaemonPaths) -> None:
    """Log into a file beside the socket, removed with it: the starter's standard error may end before this does."""
    fd = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s prefetchd: %(message)s")


def _refuse_all(listener: socket.socket, why: messages.Fatal) -> None:
    """Tell everybody who waits, and who comes in the next second, why it cannot serve."""
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
                sockets.receive(sock)  # what it says first; unread, it would end the connection before it has read
            except (sockets.ConnectionEnded, OSError):
                continue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
