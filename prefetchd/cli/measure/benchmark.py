"""A benchmark of loaders that take turns, A B C A B C: rate, first batch, handoff of a ready batch, footprint.

`bench` names the contenders. `take_turn` runs one for a few seconds, `summarise` makes the table, and `limit_of` names
what limits prefetchd.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prefetchd.cli.measure.measure import Measured
from prefetchd.cli.measure.peers import Opens, children_bytes
from prefetchd.config.units import format_bytes

_WARM_UP_S = 0.3
_PART_S = 0.25
_HANDOFFS = 20
_PAUSE_S = (0.02, 0.25)  # the least and the most time that a batch gets to become ready
_BUSY = 0.6
_ON_CPU = 0.6
_WAITS = 0.1


@dataclass(slots=True)
class Figures:
    """The figures of one loader, one value per turn."""

    images_per_s: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)
    footprint_bytes: list[int] = field(default_factory=list)
    handoff_s: list[float] = field(default_factory=list)


def take_turn(opens: Opens, figures: Figures, seconds: float, step_s: float = 0.0, *, prepares: bool = True) -> None:
    """Run one loader for `seconds`, and add its figures to `figures`.

    Args:
        opens: returns a context manager of endless batches.
        figures: added to.
        seconds: how long to take batches.
        step_s: how long the loop sleeps at each batch, in place of a model's step.
        prepares: whether the loader works ahead in other processes; otherwise there is no handoff and no footprint.
    """
    begun_s = time.perf_counter()
    with opens() as batches:
        touch(next(batches)[0])
        figures.first_batch_s.append(time.perf_counter() - begun_s)
        end_s = time.perf_counter() + _WARM_UP_S
        while time.perf_counter() < end_s:
            touch(next(batches)[0])
        n_images, footprint_bytes = 0, 0
        started_s = part_s = time.perf_counter()
        while (now_s := time.perf_counter()) - started_s < seconds:
            x = next(batches)[0]
            touch(x)
            n_images += len(x)
            if step_s:
                time.sleep(step_s)
            if prepares and now_s - part_s > _PART_S:
                part_s = now_s
                footprint_bytes = max(footprint_bytes, children_bytes())
        rate = n_images / (time.perf_counter() - started_s)
        figures.images_per_s.append(rate)
        if prepares:
            figures.footprint_bytes.append(max(footprint_bytes, children_bytes()))
            figures.handoff_s += _handoffs(batches, 2 * len(x) / max(rate, 1e-9))


def _handoffs(batches: Any, pause_s: float) -> list[float]:
    """Return the seconds that `next()` takes when the batch is ready."""
    pause_s = min(max(pause_s, _PAUSE_S[0]), _PAUSE_S[1])
    taken_s = []
    for _ in range(_HANDOFFS):
        time.sleep(pause_s)
        started_s = time.perf_counter()
        x = next(batches)[0]
        taken_s.append(time.perf_counter() - started_s)
        touch(x)
    return taken_s


def touch(x: Any) -> int:
    """Read a byte of every page, so that no loader gains by pages that are not mapped yet."""
    return int(np.asarray(x).reshape(-1).view(np.uint8)[::4096].sum(dtype=np.int64))


def summarise(rows: Mapping[str, Figures]) -> list[dict[str, Any]]:
    """Return the medians of each loader, and how many times slower than the first it is, turn by turn."""
    first = next(iter(rows.values()))
    return [
        {
            "loader": name,
            "images_per_s": statistics.median(figures.images_per_s),
            "times_slower": statistics.median(
                a / max(b, 1e-9) for a, b in zip(first.images_per_s, figures.images_per_s, strict=True)
            ),
            "first_batch_s": statistics.median(figures.first_batch_s),
            "handoff_p50_s": float(np.percentile(figures.handoff_s, 50)) if figures.handoff_s else None,
            "handoff_p99_s": float(np.percentile(figures.handoff_s, 99)) if figures.handoff_s else None,
            "footprint_bytes": max(figures.footprint_bytes) if figures.footprint_bytes else None,
        }
        for name, figures in rows.items()
    ]


def table(summary: Sequence[dict[str, Any]]) -> list[str]:
    """Return `summarise` as lines."""
    width = max(len(row["loader"]) for row in summary)
    lines = [
        f"{'loader':<{width}} {'images/s':>9} {'prefetchd is':>13} {'first batch':>11} {'ready p50':>10} "
        f"{'ready p99':>10} {'footprint':>10}"
    ]
    for number, row in enumerate(summary):
        versus = f"{row['times_slower']:.2f} times" if number else ""
        footprint = "-" if row["footprint_bytes"] is None else format_bytes(row["footprint_bytes"])
        lines.append(
            f"{row['loader']:<{width}} {row['images_per_s']:>9,.0f} {versus:>13} {row['first_batch_s']:>9.2f} s "
            f"{_ms(row['handoff_p50_s']):>10} {_ms(row['handoff_p99_s']):>10} {footprint:>10}"
        )
    return lines


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f} ms"


def limit_of(measured: Measured) -> tuple[str, str]:
    """Return what limits prefetchd (`consumer`, `decode`, `disk` or `daemon`), and a line that explains it."""
    waits, busy, on_cpu = measured.loader_bound, measured.readers_busy, measured.on_cpu
    if waits < _WAITS:
        return "consumer", f"the consumer: it waited for batches {waits:.0%} of the time; the loader keeps up"
    if busy < _BUSY:
        return "daemon", (
            f"neither decoding nor the consumer alone: readers were busy {busy:.0%} of the time and the loop waited "
            f"{waits:.0%}; try a larger --memory-budget or --batch-size"
        )
    if on_cpu < _ON_CPU:
        return "disk", (
            f"the disk, or other work on this machine: readers were busy {busy:.0%} of the time, and had a processor "
            f"for {on_cpu:.0%} of that"
        )
    return "decode", (
        f"decoding: readers were busy {busy:.0%} of the time, {on_cpu:.0%} of that on a processor, and the loop waited "
        f"{waits:.0%}; more cores, a smaller size or a cache would help (prefetchd tune says how much)"
    )
