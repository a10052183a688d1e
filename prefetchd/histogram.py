"""Counts of durations by size, as a Prometheus histogram has them: cheap to add to, plain to report. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

# A cheap row of an array to a huge image; a wait for a batch that is ready to one for slow storage.
BOUNDS_S = (1e-5, 1e-4, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """How many durations were at most as long as each of `bounds_s`, and their sum."""

    def __init__(self, bounds_s: Sequence[float] = BOUNDS_S) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)  # the last is for those longer than every bound
        self._sum_s = 0.0

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count `times` durations of `duration_s` seconds each."""
        self._counts[bisect.bisect_left(self._bounds_s, duration_s)] += times
        self._sum_s += duration_s * times

    def report(self) -> dict[str, Any]:
        """Return `count`, `sum_s`, and `at_most`: pairs of a bound in seconds and how many were not longer."""
        at_most, so_far = [], 0
        for bound_s, count in zip(self._bounds_s, self._counts, strict=False):
            so_far += count
            at_most.append([bound_s, so_far])
        return {"count": so_far + self._counts[-1], "sum_s": self._sum_s, "at_most": at_most}
