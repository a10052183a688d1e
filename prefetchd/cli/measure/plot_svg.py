"""A plot of throughput over memory as an SVG, a line for each number of readers. Pure, and by hand: one plot of few
points is no reason for a plotting library in everybody's environment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from prefetchd.cli.measure.measure import Measured

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 48, 56
# Okabe and Ito's colours, told apart also by those who do not see all of them.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
_MIB = 1 << 20


def plot(points: Sequence[Measured], marked: Measured, title: str, target: float | None = None) -> str:
    """Return the SVG of images a second over the budget in MiB; `marked` is ringed, `target` a dashed line."""
    right = _nice(max(point.budget_bytes for point in points) / _MIB)
    top = _nice(max([point.images_per_s for point in points] + [target or 0]))

    def x_of(point: Measured) -> float:
        return _LEFT + point.budget_bytes / _MIB / right * (_WIDTH - _LEFT - _RIGHT)

    def y_of(images_per_s: float) -> float:
        return _HEIGHT - _BOTTOM - images_per_s / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_WIDTH / 2, 24, title, size=15),
        _text(_WIDTH / 2, _HEIGHT - 14, "memory budget (MiB)"),
        f'<g transform="translate(18 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, "images/s")}</g>',
    ]
    for step in range(5):
        x = _LEFT + step / 4 * (_WIDTH - _LEFT - _RIGHT)
        y = y_of(step / 4 * top)
        parts += [
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" stroke="#ddd"/>',
            _text(_LEFT - 8, y + 4, f"{step / 4 * top:,.0f}", anchor="end"),
            _text(x, _HEIGHT - _BOTTOM + 20, f"{step / 4 * right:,.0f}"),
        ]
    if target is not None:
        parts += [
            f'<line x1="{_LEFT}" y1="{y_of(target):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y_of(target):.1f}" '
            'stroke="#666" stroke-dasharray="6 4"/>',
            _text(_WIDTH - _RIGHT, y_of(target) - 6, f"target {target:,.0f}", anchor="end"),
        ]
    for number, n_readers in enumerate(sorted({point.n_readers for point in points})):
        colour = _COLOURS[number % len(_COLOURS)]
        line = sorted((point for point in points if point.n_readers == n_readers), key=lambda point: point.budget_bytes)
        path = " ".join(f"{x_of(point):.1f},{y_of(point.images_per_s):.1f}" for point in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x_of(p):.1f}" cy="{y_of(p.images_per_s):.1f}" r="4" fill="{colour}"/>' for p in line]
        label = f"{n_readers} reader{'s' * (n_readers > 1)}"
        parts.append(_text(_LEFT + 12, y_of(0) - 12 - 18 * number, label, anchor="start", colour=colour))
    parts += [
        f'<circle cx="{x_of(marked):.1f}" cy="{y_of(marked.images_per_s):.1f}" r="9" fill="none" stroke="black"/>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 13, colour: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{escape(text)}</text>'
    )


def _nice(highest: float) -> float:
    """Return a number of two digits at most, with quarters that read well, a little over `highest`."""
    unit = 10.0 ** math.floor(math.log10(max(highest, 1)))
    return next(step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10, 12) if step * unit >= highest * 1.04)
