"""`prefetchd set`: change the memory budget and the number of readers of a daemon that is running."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from prefetchd.cli.arguments import Subparsers, name_of
from prefetchd.client.admin import change_options
from prefetchd.errors import ConfigError

_EPILOG = (
    "Consumers notice nothing, and what they hold stays valid: a smaller ring gives up its free slots at once and the "
    "others as they come back. A budget that cannot work is refused, with the smallest one that can."
)


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "set",
        help="change the memory budget or the readers of a daemon",
        description="Change options of a running daemon: memory-budget=SIZE, num-workers=N (or auto).",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[NAME] OPTION=VALUE",
        help="the daemon (default, or PREFETCHD_NAME), and what to change: memory-budget=1GiB num-workers=4",
    )
    parser.add_argument("--name", help="the daemon, as an option")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Change the daemon and say what its plan is now."""
    names = [word for word in arguments.words if "=" not in word]
    pairs = [word.removeprefix("--").split("=", 1) for word in arguments.words if "=" in word]
    options = {option.replace("-", "_"): value for option, value in pairs}
    if len(options) < len(pairs):
        raise ConfigError(f"cannot set {' '.join(arguments.words)}: an option is given twice; give it once")
    if len(names) > 1 or not options or "" in options:
        raise ConfigError(
            f"cannot set {' '.join(arguments.words)}: give at most one daemon's name, and then OPTION=VALUE, "
            "such as: prefetchd set train memory-budget=1GiB num-workers=4"
        )
    arguments.positional_name = names[0] if names else None
    print(change_options(name_of(arguments), options))
    return 0
