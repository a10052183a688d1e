"""How far a long command is, on stderr: one line that is written over on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from prefetchd.cli.views.charts import bar, short_duration

_REDRAW_S = 0.1
_LINE_S = 10.0
_BAR_WIDTH = 24


class Progress:
    """The progress of one thing; end it with `close()`, or `with`, before anything else is written.

    Args:
        what: what is being done, such as `verifying`.
        stream: where to write; a terminal gets a bar.
        clock: seconds, monotonic.
    """

    def __init__(self, what: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._stream = stream
        self._clock = clock
        self._is_terminal = stream.isatty()
        self._started_s = self._shown_s = clock()
        self._drawn = False

    def update(self, done: int, total: int, more: str = "") -> None:
        """Say that `done` of `total` are done, if it is time to say something; `more` is appended."""
        now_s = self._clock()
        if now_s - self._shown_s < (_REDRAW_S if self._is_terminal else _LINE_S):
            return
        self._shown_s = now_s
        took_s = now_s - self._started_s
        share = done / total if total else 1.0
        text = f"{done:,} of {total:,} ({share:.0%})" + (f", {done / took_s:,.0f}/s" if done > took_s else "")
        if 0 < done < total:
            text += f", {short_duration(took_s / done * (total - done))} left"
        text += f", {more}" if more else ""
        if self._is_terminal:
            line = f"{self._what} {bar(share, _BAR_WIDTH)}| {text}"
            self._stream.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
            self._drawn = True
        else:
            self._stream.write(f"prefetchd: {self._what}: {text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
