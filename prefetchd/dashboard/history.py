"""The history of one daemon, for charts: a bounded list of points that covers all the time since it was first seen.

When the list is full, each two points become one, so an hour takes as many as a minute. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MOST_POINTS = 480


@dataclass(frozen=True, slots=True)
class Point:
    """What was at one time, or on average up to it.

    Attributes:
        at_s: when, by the clock of the watcher.
        images_in: samples decoded a second.
        images_out: samples delivered a second.
        memory_bytes: the footprint; the most of it where points were joined.
        budget_bytes: the memory budget.
        loading: the share of the time that loops waited for the loader; `None` without a loop.
        slower: the share of the time that they waited for a slower loop; `None` without a loop.
    """

    at_s: float
    images_in: float
    images_out: float
    memory_bytes: int
    budget_bytes: int
    loading: float | None
    slower: float | None


class History:
    """The points of one daemon, oldest first; at most `most`."""

    def __init__(self, most: int = MOST_POINTS) -> None:
        self.points: list[Point] = []
        self._most = most
        self._step_s = 0.0  # the time that a point must be after the one before
        self._pending: list[Point] = []

    def add(self, point: Point) -> None:
        """Add the newest point."""
        self._pending.append(point)
        before_s = self.points[-1].at_s if self.points else float("-inf")
        if point.at_s - before_s < self._step_s:
            return
        self.points.append(join(self._pending))
        self._pending.clear()
        if len(self.points) >= self._most:
            self._step_s = 2 * (self.points[-1].at_s - self.points[0].at_s) / (len(self.points) - 1)
            self.points = [join(self.points[first : first + 2]) for first in range(0, len(self.points), 2)]


def join(points: list[Point]) -> Point:
    """Return one point for several that follow one another: the latest time, means of rates, the most memory."""
    last = points[-1]
    return Point(
        last.at_s,
        sum(point.images_in for point in points) / len(points),
        sum(point.images_out for point in points) / len(points),
        max(point.memory_bytes for point in points),
        last.budget_bytes,
        _mean(point.loading for point in points),
        _mean(point.slower for point in points),
    )


def _mean(shares: Iterable[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None
