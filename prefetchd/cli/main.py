"""The command line: parse the arguments, run the command, and turn every failure into one clear line."""

from __future__ import annotations

import argparse
import io
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence

from prefetchd._version import __version__
from prefetchd.cli.arguments import Parser
from prefetchd.cli.commands import COMMANDS
from prefetchd.cli.spelling import FlagFormatter, as_flags
from prefetchd.errors import PrefetchdError, one_line
from prefetchd.ipc.descriptors import open_standard_descriptors
from prefetchd.ipc.failures import explained

_DATASET_OPTION = re.compile(r"--(?:no-)?([\w-]+)\.[a-z]")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for a failure, 2 for arguments that make no sense."""
    open_standard_descriptors()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: names of files may be bytes that are not text
    words = sys.argv[1:] if argv is None else argv
    parser = make_parser(sorted({match[1] for match in map(_DATASET_OPTION.match, words) if match}))
    arguments = argparse.Namespace()
    try:
        with explained("go on"):
            parser.parse_args(words, arguments)
            _log_to_stderr()
            status: int = arguments.run(arguments)
            _flush_output()
    except PrefetchdError as error:
        if getattr(arguments, "debug", False):
            raise
        _discard_output()
        print(f"prefetchd: {as_flags(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()  # its reader has ended
        return 1
    except OSError as error:
        if getattr(arguments, "debug", False):
            raise
        where = f" ({error.filename})" if error.filename is not None else ""
        why = error.strerror or type(error).__name__
        print(
            f"prefetchd: cannot go on: {one_line(f'{why}{where}')}; check that the working directory and the files can "
            "be read (--debug shows where)",
            file=sys.stderr,
        )
        return 1
    return status


def _flush_output() -> None:
    if sys.stdout is not None:  # it was closed at the start
        sys.stdout.flush()


def _discard_output() -> None:
    """Write what is left for stdout, or drop it: Python would fail on it again at the end, with a status of its own."""
    try:
        _flush_output()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(FlagFormatter("prefetchd: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def make_parser(datasets: Iterable[str] = ()) -> Parser:
    """Return the parser of all commands, with options for single data sets of these names."""
    parser = Parser(prog="prefetchd", description="A shared-memory prefetching loader daemon for training data.")
    parser.add_argument("--version", action="version", version=f"prefetchd {__version__}")
    parser.set_defaults(whole_parser=parser)  # for `completion`
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    names = tuple(datasets)
    for add in COMMANDS:
        add(commands, names)
    return parser
