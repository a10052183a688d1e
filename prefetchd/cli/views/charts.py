"""Charts in text (bars, histograms, sparklines), durations, and the progress of a long command on stderr."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from typing import TextIO

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"

# The progress of a command: how often it is drawn on a terminal, and written elsewhere.
_REDRAW_S = 0.1
_LINE_S = 10.0
_BAR_WIDTH = 24


def bar(share: float, width: int) -> str:
    """Return a bar that fills `share` (0 to 1) of `width` characters, padded with spaces."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def histogram(rows: Sequence[tuple[str, int]], width: int = 30) -> list[str]:
    """Return a line for each (name, count), with a bar in proportion; a count above 0 shows at least a sliver."""
    most = max((count for _, count in rows), default=0) or 1
    widest = max((len(name) for name, _ in rows), default=0)
    digits = max((len(f"{count:,}") for _, count in rows), default=0)
    return [
        f"{name:>{widest}}  {count:>{digits},}  {bar(max(count / most, bool(count) / 8 / width), width)}".rstrip()
        for name, count in rows
    ]


def stacked_bar(parts: Sequence[tuple[str, int]], width: int) -> str:
    """Return one bar of `width` characters, each part in its letter and in proportion; a part above 0 shows."""
    total = sum(count for _, count in parts)
    if not total:
        return " " * width
    exact = [count * width / total for _, count in parts]
    cells = [max(int(share), count > 0) for share, (_, count) in zip(exact, parts, strict=True)]
    while sum(cells) != width:  # spread what rounding left or slivers took, where the error stays least
        step = 1 if sum(cells) < width else -1
        able = [n for n, cell in enumerate(cells) if exact[n] and (step > 0 or cell > 1)]
        if not able:
            break
        best = max(able, key=lambda n: step * (exact[n] - cells[n]))
        cells[best] += step
    return "".join(letter * cell for (letter, _), cell in zip(parts, cells, strict=True))[:width]


def sparkline(values: Sequence[float], top: float, width: int) -> str:
    """Return the last `width` of `values` as levels of 0 to `top`."""
    shown = list(values)[-width:]
    highest = len(_LEVELS) - 1
    return "".join(_LEVELS[max(0, min(highest, round(value / (top or 1) * highest)))] for value in shown)


def short_duration(seconds: float) -> str:
    """Return `4.2 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, left_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left_s} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """The progress of one task; close it (or use `with`) before other output.

    Args:
        what: the task, such as `verifying`.
        stream: the output; a terminal gets a bar that is redrawn, other streams a line now and then.
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
        """Show that `done` of `total` are done, if the last line is old enough; append `more`."""
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
        """Remove the bar."""
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
