"""`prefetchd top`: what a daemon does, live."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import Subparsers, add_name, ask
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.cli.measure.rates import Report

_ONCE_S = 0.5
_KEPT_REPORTS = 240


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="watch a daemon at work",
        description="Watch a daemon: images a second, who waits for whom, the ring, readers, consumers, memory. "
        "On a terminal the screen is drawn over; q or Ctrl-C ends it. Elsewhere frames follow one another.",
    )
    add_name(parser)
    parser.add_argument("--once", action="store_true", help="print one frame, of half a second, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds from frame to frame (1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show frames until told to end, or until the daemon does."""
    from prefetchd.cli.views.screen import full_screen
    from prefetchd.cli.views.top_frame import frame

    if not 0.1 <= arguments.interval <= 3600:
        raise ConfigError(f"cannot use --interval {arguments.interval:g}: it must be from 0.1 to 3600 seconds")
    history = deque([_report(arguments)], _KEPT_REPORTS)
    time.sleep(min(_ONCE_S, arguments.interval))
    history.append(_report(arguments))
    if arguments.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("\n".join(frame(history)), flush=True)
        while not arguments.once:
            time.sleep(arguments.interval)
            history.append(_report(arguments))
            print("\n" + "\n".join(frame(history)), flush=True)
        return 0
    with full_screen() as screen:
        while True:
            columns, lines = screen.size
            screen.draw(frame(history, width=columns, height=lines))
            if screen.wait_for_key(arguments.interval) in ("q", "Q", "\x1b", "\x04"):
                return 0
            history.append(_report(arguments))


def _report(arguments: argparse.Namespace) -> Report:
    from prefetchd.ipc import messages

    report: Report = ask(arguments, messages.AskStatus(messages.PROTOCOL))[1].report
    return report
