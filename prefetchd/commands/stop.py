"""`prefetchd stop`: end a daemon."""

from __future__ import annotations

import argparse
import os
import select
from collections.abc import Iterable

from prefetchd.commands.ask import add_name, ask
from prefetchd.commands.parsers import Subparsers
from prefetchd.errors import PrefetchdError

_STOP_S = 10.0


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser("stop", help="end a daemon", description="End a daemon and wait until it is gone.")
    add_name(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Stop the daemon and wait for its end."""
    from prefetchd import messages
    from prefetchd.liveness import describe_process

    name, answer = ask(arguments, messages.AskStop(messages.PROTOCOL))
    try:
        pidfd = os.pidfd_open(answer.pid)
    except ProcessLookupError:
        pidfd = -1  # gone already
    if pidfd >= 0 and not select.select([pidfd], [], [], _STOP_S)[0]:
        raise PrefetchdError(
            f"cannot stop the daemon {name!r}: it has not ended for {_STOP_S:g} s: {describe_process(answer.pid)}, "
            f"then: kill -9 {answer.pid}"
        )
    print(f"stopped the daemon {name!r} (pid {answer.pid})")
    return 0
