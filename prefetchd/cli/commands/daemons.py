"""The commands that ask a running daemon: `prefetchd list`, `status`, `top`, `set` and `stop`."""

from __future__ import annotations

import argparse
import contextlib
import json
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

from prefetchd.cli.arguments import Subparsers, add_debug, add_name, add_pid, ask, check_range, daemon_of, name_of
from prefetchd.client.admin import ask_over, change_options
from prefetchd.config.options import LIVE_OPTIONS, flag_of
from prefetchd.errors import ConfigError, PrefetchdError

if TYPE_CHECKING:
    from prefetchd.cli.measure.rates import Report


_STOP_S = 10.0


def add_list(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare `list`."""
    parser = commands.add_parser(
        "list",
        help="list your running daemons",
        description="List every running daemon of this user: those with a name, shared ones, and the private ones "
        "that prefetchd.batches(MANIFEST) starts. status, top and set take their --pid.",
    )
    parser.add_argument("--json", action="store_true", help="print the status report of each, as JSON")
    add_debug(parser)
    parser.set_defaults(run=run_list)


def run_list(arguments: argparse.Namespace) -> int:
    """Print a line for each daemon."""
    from prefetchd.cli.views.reports import daemon_table
    from prefetchd.client.admin import ask_all

    found = ask_all()
    if arguments.json:
        answer = [
            {"name": name, "pid": pid, **({"report": report} if isinstance(report, dict) else {"error": report})}
            for name, pid, report in found
        ]
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(daemon_table(found)) if found else "no daemon is running")
    return 0


def add_status(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare `status`."""
    parser = commands.add_parser(
        "status", help="show what a daemon is doing", description="Show what a daemon is doing."
    )
    add_name(parser)
    add_pid(parser)
    parser.add_argument("--json", action="store_true", help="print everything, as JSON")
    parser.set_defaults(run=run_status)


def run_status(arguments: argparse.Namespace) -> int:
    """Print the daemon's report."""
    from prefetchd.cli.views.reports import describe
    from prefetchd.ipc import messages

    answer = ask(arguments, messages.AskStatus(messages.PROTOCOL))
    print(json.dumps(answer.report, indent=2) if arguments.json else describe(answer.report))
    return 0


def add_set(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare `set`."""
    parser = commands.add_parser(
        "set",
        help="change the memory budget or the readers of a daemon",
        description="Change options of a running daemon: memory-budget=SIZE, num-workers=N (or auto).",
        epilog="Trainers are not disturbed, and the batches that they hold stay valid. A smaller ring gives up its "
        "free slots at once, and the others when their batches are released. A budget that cannot work is refused; "
        "the error names the smallest one that can.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[NAME] OPTION=VALUE",
        help="the daemon (default, or PREFETCHD_NAME), and what to change: memory-budget=1GiB num-workers=4",
    )
    for option in LIVE_OPTIONS:
        parser.add_argument(
            f"--{flag_of(option)}", dest=option, metavar="VALUE", help=f"the same as {flag_of(option)}=VALUE"
        )
    parser.add_argument("--name", help="the daemon, as an option")
    add_pid(parser)
    add_debug(parser)
    parser.set_defaults(run=run_set)


def run_set(arguments: argparse.Namespace) -> int:
    """Change the daemon's options and print its new plan."""
    names = [word for word in arguments.words if "=" not in word]
    pairs = [word.split("=", 1) for word in arguments.words if "=" in word]
    pairs += [[name, value] for name in LIVE_OPTIONS if (value := getattr(arguments, name)) is not None]
    options = {option.replace("-", "_"): value for option, value in pairs}
    if len(options) < len(pairs):
        raise ConfigError(f"cannot set {' '.join(arguments.words)}: an option is given twice; give it once")
    if len(names) > 1 or not options or "" in options:
        raise ConfigError(
            f"cannot set {' '.join(arguments.words) or 'nothing'}: give at most one daemon's name, and then "
            "OPTION=VALUE, such as: prefetchd set train memory-budget=1GiB num-workers=4"
        )
    arguments.positional_name = names[0] if names else None
    print(change_options(daemon_of(arguments), options))
    return 0


def add_stop(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare `stop`."""
    parser = commands.add_parser("stop", help="stop a daemon", description="Stop a daemon and wait until it has ended.")
    add_name(parser)
    parser.set_defaults(run=run_stop)


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop the daemon and wait for its end."""
    from prefetchd.client import launch
    from prefetchd.ipc import messages, sockets
    from prefetchd.ipc.process import describe_process

    name = name_of(arguments)
    with launch.connect(name, timeout_s=0) as sock:
        _, _, pidfd = sockets.peer(sock)  # not its pid: if it runs in a container, that is another process's here
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


_ONCE_S = 0.5
_KEPT_REPORTS = 240
_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"


def add_top(commands: Subparsers, datasets: Iterable[str]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="watch a daemon at work",
        description="Watch a daemon: images a second, who waits for whom, the ring, readers, trainers, memory. "
        "On a terminal the screen is drawn over; q or Ctrl-C ends it. Elsewhere frames follow one another.",
    )
    add_name(parser)
    add_pid(parser)
    parser.add_argument("--once", action="store_true", help="print one frame, of half a second, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds from frame to frame (1)")
    parser.set_defaults(run=run_top)


def run_top(arguments: argparse.Namespace) -> int:
    """Show frames until a key or the end of the daemon ends it."""
    from prefetchd.cli.views.reports import frame

    check_range(arguments, "interval", 0.1, 3600, " seconds")
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
