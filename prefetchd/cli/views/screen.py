"""A full screen of text on a terminal, drawn again and again; the terminal is given back as it was, however it ends."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator, Sequence

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, without a cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"


class Screen:
    """What `full_screen` gives."""

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines)."""
        size = shutil.get_terminal_size()
        return size.columns, size.lines

    def draw(self, lines: Sequence[str]) -> None:
        """Show `lines` in place of what was there; nothing flickers, as nothing is cleared first."""
        columns, n_lines = self.size
        shown = [line[:columns] + "\x1b[K" for line in lines[:n_lines]]
        sys.stdout.write("\x1b[H" + "\n".join(shown) + "\x1b[J")
        sys.stdout.flush()

    def wait_for_key(self, timeout_s: float) -> str:
        """Return the key that was pressed, or nothing after `timeout_s`; a terminal that is gone presses `q`."""
        if not select.select([sys.stdin], [], [], timeout_s)[0]:
            return ""
        return os.read(sys.stdin.fileno(), 1).decode("latin-1") or "q"


@contextlib.contextmanager
def full_screen() -> Iterator[Screen]:
    """Take over the terminal of stdin and stdout; Ctrl-C stays Ctrl-C."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write(_ENTER)
        yield Screen()
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
