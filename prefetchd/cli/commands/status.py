"""`prefetchd status`: what a daemon does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable

from prefetchd.cli.arguments import Subparsers, add_name, ask


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser("status", help="show what a daemon does", description="Show what a daemon does.")
    add_name(parser)
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the daemon's report."""
    from prefetchd.ipc import messages

    _, answer = ask(arguments, messages.AskStatus(messages.PROTOCOL))
    report = answer.report
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        from prefetchd.cli.views.status_text import describe

        print(describe(report))
    return 0
