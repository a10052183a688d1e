"""How long things took: counts of durations, as `status --json` and the metrics show them. Pure."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

# A cheap row of an array to a huge image; a wait for a batch that is ready to one for slow storage.
_BOUNDS_S = (1e-5, 1e-4, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """How many durations were at most as long as each of `bounds_s`, as Prometheus has them, and their sum."""

    def __init__(self, bounds_s: Sequence[float] = _BOUNDS_S) -> None:
        self._bounds_s = tuple(bounds_s)
        self._counts = [0] * (len(self._bounds_s) + 1)  # the last is for those longer than every bound
        self._sum_s = 0.0

    def observe(self, duration_s: float, times: int = 1) -> None:
        """Count `times` durations of `duration_s` seconds each."""
        self._counts[bisect.bisect_left(self._bounds_s, duration_s)] += times
        self._sum_s += duration_s * times

    def report(self) -> dict[str, Any]:
        """Return `count`, `sum_s`, and `at_most`: pairs of a bound in seconds and how many were not longer."""
        so_far = list(itertools.accumulate(self._counts))
        at_most = [[bound_s, n] for bound_s, n in zip(self._bounds_s, so_far, strict=False)]
        return {"count": so_far[-1], "sum_s": self._sum_s, "at_most": at_most}
