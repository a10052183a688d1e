"""`prefetchd top`: what a daemon is doing, live, over the whole terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prefetchd.cli.arguments import Subparsers, add_name, add_pid, ask
from prefetchd.errors import ConfigError

if TYPE_CHECKING:
    from prefetchd.cli.measure.rates import Report

_ONCE_S = 0.5
_KEPT_REPORTS = 240
_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"


def add(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="watch a daemon at work",
        description="Watch a daemon: images a second, who waits for whom, the ring, readers, consumers, memory. "
        "On a terminal the screen is drawn over; q or Ctrl-C ends it. Elsewhere frames follow one another.",
    )
    add_name(parser)
    add_pid(parser)
    parser.add_argument("--once", action="store_true", help="print one frame, of half a second, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds from frame to frame (1)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show frames until a key or the end of the daemon ends it."""
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
    with _full_screen() as screen:
        while True:
            columns, lines = screen.size
            screen.draw(frame(history, width=columns, height=lines))
            if screen.wait_for_key(arguments.interval) in ("q", "Q", "\x1b", "\x04"):
                return 0
            history.append(_report(arguments))


def _report(arguments: argparse.Namespace) -> Report:
    from prefetchd.ipc import messages

    report: Report = ask(arguments, messages.AskStatus(messages.PROTOCOL)).report
    return report


class _Screen:
    """The terminal of stdin and stdout as a screen that is drawn over."""

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines)."""
        size = shutil.get_terminal_size()
        return size.columns, size.lines

    def draw(self, lines: Sequence[str]) -> None:
        """Draw `lines` over what was there. Nothing is cleared first, so nothing flickers."""
        columns, n_lines = self.size
        shown = [line[:columns] + "\x1b[K" for line in lines[:n_lines]]
        sys.stdout.write("\x1b[H" + "\n".join(shown) + "\x1b[J")
        sys.stdout.flush()

    def wait_for_key(self, timeout_s: float) -> str:
        """Return the key that was pressed, or "" after `timeout_s`. A terminal that is gone counts as `q`."""
        if not select.select([sys.stdin], [], [], timeout_s)[0]:
            return ""
        return os.read(sys.stdin.fileno(), 1).decode("latin-1") or "q"


@contextlib.contextmanager
def _full_screen() -> Iterator[_Screen]:
    """Take the terminal over, and restore it at the end. Ctrl-C still interrupts."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield _Screen()
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
