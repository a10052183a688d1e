"""Charts in text: bars, histograms, sparklines, and numbers as people read them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LEVELS = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int) -> str:
    """Return a bar that fills `share` (0 to 1) of `width` characters, padded with spaces."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def histogram(rows: Sequence[tuple[str, int]], width: int = 30) -> list[str]:
    """Return a line for each (name, count), with a bar in proportion; one that is not 0 shows at least a sliver."""
    most = max((count for _, count in rows), default=0) or 1
    widest = max((len(name) for name, _ in rows), default=0)
    digits = max((len(f"{count:,}") for _, count in rows), default=0)
    return [
        f"{name:>{widest}}  {count:>{digits},}  {bar(max(count / most, bool(count) / 8 / width), width)}".rstrip()
        for name, count in rows
    ]


def stacked_bar(parts: Sequence[tuple[str, int]], width: int) -> str:
    """Return one bar of `width` characters, each part in its own letter and in proportion; one that is not 0 shows."""
    total = sum(count for _, count in parts)
    if not total:
        return " " * width
    exact = [count * width / total for _, count in parts]
    cells = [max(int(share), count > 0) for share, (_, count) in zip(exact, parts, strict=True)]
    while sum(cells) != width:  # hand out what rounding left, or take back what slivers took, where it hurts least
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
