"""`prefetchd completion`: a shell script that completes commands and options, made from the parser by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from prefetchd.cli.arguments import Subparsers, add_debug
from prefetchd.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "completion",
        help="print a shell script that completes commands and options",
        description="Print a shell script that completes prefetchd's commands and options. Needs the extra completion.",
        epilog='For this shell: eval "$(prefetchd completion bash)"; for every one, put that line into ~/.bashrc or '
        "~/.zshrc. Fish: prefetchd completion fish > ~/.config/fish/completions/prefetchd.fish",
    )
    parser.add_argument("shell", choices=SHELLS, help="which shell")
    add_debug(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError:
        raise ConfigError(
            "cannot make the script: shtab is not installed; pip install 'prefetchd[completion]'"
        ) from None
    if arguments.shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(f"cannot make the script for {arguments.shell}: this shtab is too old; upgrade it")
    parser = arguments.whole_parser
    for action in _actions(parser):
        words = action.metavar if isinstance(action.metavar, str) else ""
        if "DIR" in words:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif any(part in words for part in ("MANIFEST", "FILE", ".npy", ".png")):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
