"""A bar chart as SVG, without a plotting library: one bar a row, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_ROW_PX, _BAR_PX, _LEFT_PX, _WIDTH_PX, _RIGHT_PX = 28, 18, 210, 420, 90
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #57606a; dominant-baseline: middle }
.ours { fill: #1f883d } .peer { fill: #8c959f }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .ours { fill: #3fb950 } .peer { fill: #6e7681 } }
</style>"""


def bar_chart(title: str, rows: Sequence[tuple[str, float, bool]]) -> str:
    """Return an SVG image of `rows`: the label, the value, and whether the bar is to stand out."""
    most = max(value for _, value, _ in rows)
    width, height = _LEFT_PX + _WIDTH_PX + _RIGHT_PX, _ROW_PX * (len(rows) + 1) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">',
        _STYLE,
        f'<text x="{_LEFT_PX}" y="{_ROW_PX / 2:g}" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (label, value, stands_out) in enumerate(rows, 1):
        middle, length = _ROW_PX * (number + 0.5), value / most * _WIDTH_PX
        parts += [
            f'<text x="{_LEFT_PX - 8}" y="{middle:g}" text-anchor="end">{escape(label)}</text>',
            f'<rect class="{"ours" if stands_out else "peer"}" x="{_LEFT_PX}" y="{middle - _BAR_PX / 2:g}" '
            f'width="{length:.1f}" height="{_BAR_PX}" rx="2"/>',
            f'<text x="{_LEFT_PX + length + 8:.1f}" y="{middle:g}">{value:,.0f}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
