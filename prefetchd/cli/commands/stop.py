"""`prefetchd stop`: end a daemon."""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Iterable

from prefetchd.cli.arguments import Subparsers, add_name, name_of
from prefetchd.client.admin import ask_over
from prefetchd.errors import PrefetchdError

_STOP_S = 10.0


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser("stop", help="end a daemon", description="End a daemon and wait until it is gone.")
    add_name(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon and wait for its end."""
    from prefetchd.client import launch
    from prefetchd.ipc import messages, sockets
    from prefetchd.ipc.process import describe_process

    name = name_of(arguments)
    with launch.connect(name, timeout_s=0) as sock:
        _, _, pidfd = sockets.peer(sock)  # its pid may be another's here: it may run in a container
        try:
            answer = ask_over(sock, name, messages.AskStop(messages.PROTOCOL))
            has_ended = bool(select.select([pidfd], [], [], _STOP_S)[0])
        finally:
            os.close(pidfd)
    if not has_ended:
        raise PrefetchdError(
            f"cannot stop the daemon {name!r}: it has not ended for {_STOP_S:g} s: {describe_process(answer.pid)}, "
            f"then: kill -9 {answer.pid}"
        )
    print(f"stopped the daemon {name!r} (pid {answer.pid})")
    return 0
