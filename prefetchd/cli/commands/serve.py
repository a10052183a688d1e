"""`prefetchd serve`: run a daemon with a name."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import logging
import os
import signal
import socket
from collections.abc import Iterable
from typing import Any

from prefetchd.cli.arguments import EPILOG, Subparsers, add_source_options, configs_of
from prefetchd.cli.commands.dashboard import Beside, make_options
from prefetchd.cli.spelling import as_flags
from prefetchd.client.admin import ask_daemon
from prefetchd.config.contradictions import doubts
from prefetchd.daemon.metrics import MetricsServer
from prefetchd.dashboard.address import LOOPBACK, Options
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
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="serve metrics for Prometheus (no); needs the extra metrics",
    )
    parser.add_argument(
        "--metrics-address", default="127.0.0.1", metavar="ADDRESS", help="address for the metrics (127.0.0.1)"
    )
    parser.add_argument(
        "--dashboard-port",
        type=int,
        metavar="PORT",
        help="show the dashboard on this port (no); needs the extra dashboard",
    )
    parser.add_argument("--dashboard-host", metavar="ADDRESS", help="address that the dashboard listens on (127.0.0.1)")
    parser.add_argument(
        "--dashboard-token-file",
        metavar="FILE",
        help="file with the secret that a browser must show to it; needed with another --dashboard-host (none)",
    )
    parser.add_argument(
        "--dashboard-findings",
        action="append",
        default=[],
        metavar="[DATASET=]FILE",
        help="what verify --json printed, for its page of data; may be given for each data set (none)",
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="how the log is written to standard error (text)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until asked to stop."""
    configs = configs_of(arguments)
    name = next(iter(configs.values())).name
    log.setLevel(logging.INFO)
    if arguments.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_JsonFormatter(name))
    for config in configs.values():
        if doubt := doubts(config):
            log.warning("%s", doubt)

    shown = _dashboard_options(arguments, name)

    from prefetchd.ipc.event_loop import EventLoop, Interrupted
    from prefetchd.ipc.run_directory import RunLock, daemon_paths, lock_owner, remove_files_of_others
    from prefetchd.ipc.service_manager import notify

    paths = daemon_paths(name, create=True)
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the lock: it is never left behind
        loop.on_signal(number, loop.stop)
    lock = RunLock.acquire(paths)
    if lock is None:
        loop.close()
        owner = lock_owner(paths.lock)
        raise DaemonNotFound(
            f"cannot serve as {name!r}: a daemon of that name is running (pid {owner}); "
            f"stop it with: prefetchd stop {name}, or choose another --name"
        )
    metrics = dashboard = None
    try:
        remove_files_of_others(paths)
        from prefetchd.daemon.server import Daemon

        named = [f"daemon={name!r}"] if name != "default" else []
        attach = f"attach with prefetchd.batches({', '.join(named + ['dataset=...'] * (len(configs) > 1))})"
        daemon = Daemon(configs, loop, files_to_remove=paths.files, attach_hint=attach)
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
        notify("READY=1")
        if arguments.metrics_port is not None:
            metrics = MetricsServer(arguments.metrics_port, arguments.metrics_address, functools.partial(_report, name))
        if shown is not None:
            dashboard = Beside(shown, arguments.dashboard_port)
            secret = arguments.dashboard_token_file
            log.info("dashboard: %s%s", dashboard.address, f" (the token is in {secret})" if secret else "")
        daemon.run()
        log.info("stopped")
    except Interrupted:
        log.info("stopped before it served")
    finally:
        for beside in (metrics, dashboard):
            if beside is not None:
                beside.close()
        lock.release()
        loop.close()
    return 0


def _dashboard_options(arguments: argparse.Namespace, name: str) -> Options | None:
    """Return how the dashboard beside the daemon is served; `None` without one."""
    host, token_file = arguments.dashboard_host, arguments.dashboard_token_file
    findings = arguments.dashboard_findings
    if arguments.dashboard_port is None:
        for flag, value in (("host", host), ("token-file", token_file), ("findings", findings)):
            if value:
                raise ConfigError(
                    f"cannot use --dashboard-{flag} without a dashboard; give --dashboard-port 8790, or leave it out"
                )
        return None
    return make_options(name, host or LOOPBACK, token_file, findings, prefix="--dashboard-")


def _report(name: str) -> dict[str, Any]:
    """Ask this daemon for its report; called from the thread of the metrics."""
    from prefetchd.ipc import messages

    report: dict[str, Any] = ask_daemon(name, messages.AskStatus(messages.PROTOCOL)).report
    return report


class _JsonFormatter(logging.Formatter):
    """One object a record: `time` (ISO 8601, UTC), `level`, `daemon`, `pid`, `message`, and `detail` if there is any.

    A record's first line is its message; what follows, such as the traceback of a user's function, is its detail.
    """

    def __init__(self, daemon: str) -> None:
        super().__init__()
        self._daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message, _, detail = as_flags(record.getMessage()).partition("\n")
        if record.exc_info:
            detail = "\n".join(filter(None, (detail, self.formatException(record.exc_info))))
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        entry = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "daemon": self._daemon,
            "pid": record.process,
            "message": message,
        }
        if detail:
            entry["detail"] = detail
        return json.dumps(entry, ensure_ascii=False)
