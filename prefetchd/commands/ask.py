"""The words that name a daemon, and one question to it: what `status`, `stop` and their like have in common."""

from __future__ import annotations

import argparse
from typing import Any

from prefetchd.client.admin import ask_daemon
from prefetchd.ipc.run_directory import choose_name


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the words that name a daemon, and `--debug`."""
    parser.add_argument("positional_name", nargs="?", metavar="NAME", help="the daemon (default, or PREFETCHD_NAME)")
    parser.add_argument("--name", help="the same, as an option")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def name_of(arguments: argparse.Namespace) -> str:
    """Return the name of the daemon that the arguments name."""
    return choose_name(arguments.positional_name or arguments.name)


def ask(arguments: argparse.Namespace, question: Any) -> tuple[str, Any]:
    """Send one question to the daemon that the arguments name; return its name and the answer."""
    name = name_of(arguments)
    return name, ask_daemon(name, question)
