"""`prefetchd serve`: be a daemon with a name."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
from collections.abc import Iterable

from prefetchd.commands.parsers import Subparsers
from prefetchd.commands.source_options import EPILOG, add_source_options, configs_of
from prefetchd.errors import ConfigError, DaemonNotFound

log = logging.getLogger("prefetchd")


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "serve",
        help="decode a data set ahead of the trainers that attach",
        description="Serve the samples of a manifest to every trainer of this user that calls prefetchd.batches().",
        epilog=f"{EPILOG} With several data sets an option holds for all of them; --NAME.OPTION is for one: "
        "--val.batch-size 256 --no-val.shuffle.",
    )
    add_source_options(parser, datasets)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until asked to stop."""
    configs = configs_of(arguments)
    name = next(iter(configs.values())).name
    log.setLevel(logging.INFO)

    from prefetchd.liveness import RunLock, lock_owner
    from prefetchd.loop import EventLoop
    from prefetchd.names import daemon_paths

    paths = daemon_paths(name, create=True)
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock: it is never left behind
        loop.on_signal(number, loop.stop)
    lock = RunLock.acquire(paths)
    if lock is None:
        owner = lock_owner(paths.lock)
        raise DaemonNotFound(
            f"cannot serve as {name!r}: a daemon of that name is running (pid {owner}); "
            f"stop it with: prefetchd stop {name}, or choose another --name"
        )
    try:
        from prefetchd.daemon import Daemon

        named = [f"daemon={name!r}"] if name != "default" else []
        attach = f"attach with prefetchd.batches({', '.join(named + ['dataset=...'] * (len(configs) > 1))})"
        files = (os.fspath(paths.socket), os.fspath(paths.lock))
        daemon = Daemon(configs, loop, files_to_remove=files, attach_hint=attach)
        paths.socket.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.bind(os.fspath(paths.socket))
        except OSError as error:
            listener.close()
            raise ConfigError(
                f"cannot make the socket {paths.socket}: {error.strerror}; make room there, or set XDG_RUNTIME_DIR to "
                "another folder"
            ) from None
        listener.listen(128)
        listener.setblocking(False)
        daemon.listen(listener)
        daemon.run()
        log.info("stopped")
    finally:
        lock.release()
    return 0
