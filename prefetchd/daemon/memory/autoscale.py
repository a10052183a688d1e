"""How many readers `num_workers=auto` has: more while loops wait and it helps, fewer while readers idle. Pure.

The memory controller feeds it once a window of some seconds. It climbs a step at a time and looks at the result: a step
up that brought no more samples, or a step down after which loops wait, is taken back, and the next try in that
direction waits twice as long. So it settles, and still follows a loop that changes its pace.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 2.0
_WAITING = 0.2  # of the window: loops stand still for batches
_RESTING = 0.02
_GAIN = 1.03
_IDLE_WINDOWS = 5
_MAX_REST_WINDOWS = 256


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one window.

    Attributes:
        waited: the part of it in which some loop stood still for its next batch, 0 to 1.
        busy_readers: how many readers were at work, on average.
        samples_per_s: samples made.
    """

    waited: float
    busy_readers: float
    samples_per_s: float


class AutoReaders:
    """The climb. `most` readers at most, and one at least."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._before: float | None = None  # samples a second before the last step up
        self._came_down = False
        self._idle_windows = 0
        self._rest = {1: 0, -1: 0}  # windows until the next try up, or down
        self._next_rest = {1: 4, -1: 4}

    def step(self, n_readers: int, window: Window) -> int:
        """Return how many readers there should be after a window with `n_readers`."""
        for direction, left in self._rest.items():
            self._rest[direction] = max(0, left - 1)
        before, self._before = self._before, None
        if before is not None and window.waited >= _WAITING and window.samples_per_s < before * _GAIN:
            return self._take_back(n_readers, 1)
        came_down, self._came_down = self._came_down, False
        if window.waited >= _WAITING:
            self._idle_windows = 0
            if came_down:
                return self._take_back(n_readers, -1)
            if n_readers < self.most and not self._rest[1] and window.busy_readers > n_readers - 0.5:
                self._before = window.samples_per_s
                return n_readers + 1
            return n_readers
        is_idle = window.waited <= _RESTING and window.busy_readers < n_readers - 1.2
        self._idle_windows = self._idle_windows + 1 if is_idle else 0
        if self._idle_windows >= _IDLE_WINDOWS and n_readers > 1 and not self._rest[-1]:
            self._idle_windows = 0
            self._came_down = True
            return n_readers - 1
        return n_readers

    def _take_back(self, n_readers: int, direction: int) -> int:
        self._rest[direction] = self._next_rest[direction]
        self._next_rest[direction] = min(_MAX_REST_WINDOWS, 2 * self._next_rest[direction])
        return max(1, min(self.most, n_readers - direction))
