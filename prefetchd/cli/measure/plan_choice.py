"""Choose among measured plans: the points to measure, the knee, the cheapest plan that holds a rate, and their plot.

`tune` measures and calls this. Pure.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Sequence
from html import escape

from prefetchd.cli.measure.measure import Measured
from prefetchd.config.options import OPTIONS, Config, flag_of
from prefetchd.config.units import format_bytes, format_count

KNEE_SHARE = 0.9
RING_SLOTS = (3, 4, 6, 10, 16)
_NOT_WORTH = 1.04  # growth of the rate below which a larger budget, or more readers, are not tried further
_WAITS_FOR_DISK = 0.6


def reader_counts(n_cores: int) -> list[int]:
    """Return the numbers of readers to try: powers of two below the cores, and the cores."""
    counts = [1 << power for power in range(n_cores.bit_length()) if 1 << power < n_cores]
    return [*counts, n_cores]


def is_worth_more(rates: Sequence[float]) -> bool:
    """Return whether to measure the next larger step: not after two steps that gained next to nothing."""
    return len(rates) < 3 or max(rates[-2:]) > max(rates[:-2]) * _NOT_WORTH


def best(points: Sequence[Measured]) -> Measured:
    """Return the fastest point."""
    return max(points, key=lambda point: point.images_per_s)


def knee(points: Sequence[Measured]) -> Measured:
    """Return the cheapest point with most of the best rate."""
    return cheapest(points, KNEE_SHARE * best(points).images_per_s) or best(points)


def cheapest(points: Sequence[Measured], images_per_s: float) -> Measured | None:
    """Return the point with the smallest budget, of those the one with fewest readers, that holds the rate."""
    able = [point for point in points if point.images_per_s >= images_per_s]
    return min(able, key=lambda point: (point.budget_bytes, point.n_readers), default=None)


def table(points: Sequence[Measured]) -> list[str]:
    """Return the points as lines, the knee and the best marked."""
    at_knee, at_best = knee(points), best(points)
    lines = [f"{'readers':>7} {'budget':>9} {'slots':>5} {'images/s':>9} {'of best':>7} {'footprint':>10} {'busy':>5}"]
    for point in points:
        mark = " <- knee" if point is at_knee else " <- best" if point is at_best else ""
        lines.append(
            f"{point.n_readers:>7} {format_bytes(point.budget_bytes):>9} {point.n_slots:>5} "
            f"{point.images_per_s:>9,.0f} {point.images_per_s / at_best.images_per_s:>7.0%} "
            f"{format_bytes(point.footprint_bytes):>10} {point.readers_busy:>5.0%}{mark}"
        )
    return lines


def advise(
    points: Sequence[Measured], target: float | None, n_cores: int, config: Config
) -> tuple[Measured, list[str]]:
    """Return the plan to use, and lines that explain it.

    Args:
        points: what was measured, one point at least.
        target: images a second that the model consumes; `None` to take the knee.
        n_cores: cores that readers may run on.
        config: the options measured; nothing they contain already is advised.
    """
    chosen, at_best = knee(points), best(points)
    share = chosen.images_per_s / at_best.images_per_s
    said = [
        f"knee: {share:.0%} of the best ({chosen.images_per_s:,.0f} of {at_best.images_per_s:,.0f} images/s) with "
        f"{format_bytes(chosen.budget_bytes)} and {format_count(chosen.n_readers, 'reader')}"
    ]
    if target is None:
        return chosen, said
    enough = cheapest(points, target)
    if enough is not None:
        said.append(
            f"target: {target:,.0f} images/s are held with {format_bytes(enough.budget_bytes)} and "
            f"{format_count(enough.n_readers, 'reader')} ({enough.images_per_s:,.0f} images/s)"
        )
        return enough, said
    said.append(
        f"target: decoding cannot hold {target:,.0f} images/s here: the best is {at_best.images_per_s:,.0f} "
        f"({target / at_best.images_per_s:.1f} times too slow); what would help:"
    )
    return at_best, said + [f"  - {remedy}" for remedy in _remedies(at_best, target, n_cores, config)]


def _remedies(at_best: Measured, target: float, n_cores: int, config: Config) -> list[str]:
    per_reader = at_best.images_per_s / at_best.n_readers
    remedies = []
    if at_best.on_cpu < _WAITS_FOR_DISK and at_best.n_readers <= n_cores:
        remedies.append(
            f"a faster disk, or more readers than cores: readers are on a processor for {at_best.on_cpu:.0%} of their "
            "time, and wait for files (or for others' work on this machine) for the rest"
        )
    remedies.append(
        f"more cores: at {per_reader:,.0f} images/s a reader it takes about {math.ceil(target / per_reader)}, "
        f"and there are {n_cores}"
    )
    if config.cache is None:
        remedies.append(
            "--cache DIR, if the decoded samples fit on a fast disk: epochs after the first then decode nothing "
            "(with random crops see --cache-image-size)"
        )
    height_px, width_px = config.image_size
    if height_px * width_px > 128 * 128:
        remedies.append(
            f"a smaller size: files stored at about the delivered {width_px}x{height_px} decode several times as fast; "
            "so does a smaller --image-size, if files are much larger"
        )
    if not config.shrink_on_load:
        remedies.append("--shrink-on-load, which decodes large JPEGs at 1/2, 1/4 or 1/8")
    if config.transform is not None:
        remedies.append("a cheaper --transform: it runs for every image")
    return remedies


def command_line(config: Config, chosen: Measured) -> str:
    """Return the command that serves `config` by the chosen plan."""
    config = dataclasses.replace(
        config, num_workers=chosen.n_readers, memory_budget=f"{-(-chosen.budget_bytes // (1 << 20))}MiB"
    )
    words = ["prefetchd", "serve", *([] if config.mix else [config.source])]
    for name, field in OPTIONS.items():
        value = getattr(config, name)
        if name == "source" or value == field.default or (name == "image_size" and config.bucket_sizes):
            continue
        option = "--" + flag_of(name)
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif field.metadata.get("flag") is not None:
            is_secret = name == "store_options"
            words += [f"{option}={each.partition('=')[0]}=..." if is_secret else f"{option}={each}" for each in value]
        elif name == "bucket_sizes":
            words.append(f"{option}={','.join(f'{height}x{width}' for height, width in value)}")
        elif isinstance(value, tuple):
            joint = (
                "x"
                if name == "image_size"
                else ":"
                if name == "python_path"
                else ", "
                if name in ("augment", "views")
                else ","
            )
            words.append(f"{option}={joint.join(map(str, value))}")
        else:
            words += [option, str(value)]
    return shlex.join(words)


# --- the plot: an SVG by hand, since one plot of few points is worth no plotting library

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 48, 56
# Okabe and Ito's colours, which colour-blind readers can tell apart.
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
