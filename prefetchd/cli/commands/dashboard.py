"""`prefetchd dashboard`: a page that shows running daemons and their batches."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import Subparsers, add_name, name_of
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.dashboard.address import Options

PORT = 8790
_END_S = 5.0


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    from prefetchd.dashboard.address import LOOPBACK

    parser = commands.add_parser(
        "dashboard",
        help="show daemons and batches on a web page",
        description="Serve a web page that shows your running daemons at work, any batch of any epoch, and what is in "
        "the data. It changes nothing. Needs the extra dashboard.",
        epilog="Without --token-file only your own processes on this machine may open the page. From another machine "
        f"use a tunnel, ssh -L {PORT}:localhost:{PORT} HOST, or --host 0.0.0.0 with --token-file.",
    )
    add_name(parser)
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help=f"address to listen on ({LOOPBACK})")
    parser.add_argument("--port", type=int, default=PORT, metavar="PORT", help=f"TCP port; 0 for any ({PORT})")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="file with the secret that a browser must show; it is made if it is not there. Needed with another --host",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name of this machine that browsers use, such as a proxy's; may be given more than once",
    )
    parser.add_argument(
        "--findings",
        action="append",
        default=[],
        metavar="[DATASET=]FILE",
        help="what verify --json printed, for the page of data; it is read again when it changes, and may be given for "
        "each data set",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from prefetchd.client.launch import named_daemons, others_that_run
    from prefetchd.config.convert import daemon_name
    from prefetchd.dashboard import server
    from prefetchd.dashboard.address import address_of, listen

    is_named = arguments.positional_name is not None or arguments.name is not None
    name = name_of(arguments) if is_named else os.environ.get("PREFETCHD_NAME")
    name = name and daemon_name(name)
    server.check_installed()
    options = make_options(
        name, arguments.host, arguments.token_file, arguments.findings, tuple(arguments.allow_host), prefix="--"
    )
    sock = listen(options.host, arguments.port)
    where = address_of(sock, options)
    if options.token is None:
        said = f"dashboard: {where} (this user only; Ctrl-C ends it)"
    else:
        said = f"dashboard: {where}?token={options.token} (Ctrl-C ends it)"
    if name is not None and name not in dict(named_daemons()):
        said += f"\nwaiting for the daemon {name!r}: none is running{others_that_run(name)}"
    server.run(sock, options, lambda: print(said, flush=True))
    return 0


def make_options(
    name: str | None,
    host: str,
    token_file: str | None,
    findings: list[str],
    allowed_hosts: tuple[str, ...] = (),
    *,
    prefix: str,
) -> Options:
    """Return how the dashboard is served, from the words of the command line; the flags begin with `prefix`.

    Raises:
        ConfigError: if they do not go together, or the token cannot be used.
    """
    from prefetchd.dashboard.address import Options, is_loopback
    from prefetchd.dashboard.findings import parse_findings
    from prefetchd.dashboard.token_file import read_token

    if token_file is None and not is_loopback(host):
        raise ConfigError(
            f"cannot use {prefix}host {host} without a token: other machines could see your data; give "
            f"{prefix}token-file FILE"
        )
    files = parse_findings(findings, f"{prefix}findings")
    return Options(name, host, None if token_file is None else read_token(token_file), allowed_hosts, files)


class Beside:
    """The dashboard as a child of `serve`. Ends with `close`, or with this process.

    Args:
        options: for the dashboard.
        port: where it listens.

    Raises:
        ConfigError: if what it needs is not installed, or the port is none.
        PrefetchdError: if nothing can listen there.
    """

    def __init__(self, options: Options, port: int) -> None:
        from prefetchd.dashboard import server
        from prefetchd.dashboard.address import address_of, listen
        from prefetchd.ipc.process import child_command, child_environment

        server.check_installed()
        with listen(options.host, port) as sock:
            self.address = address_of(sock, options)
            self._process = subprocess.Popen(
                child_command("prefetchd.dashboard.server", sock.fileno(), os.getpid()),
                pass_fds=[sock.fileno()],
                env=child_environment(),
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        assert self._process.stdin is not None
        # By a pipe, since every user of the machine can read a command line. One that has died at once is seen later.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(dataclasses.asdict(options)).encode())

    def close(self) -> None:
        """End it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
