"""How many readers, or nodes of other machines, work for the loops: more while they wait, fewer while they are served.

`num_workers=auto` counts readers, and `remote_workers=auto` nodes, by the same policy. Pure: the memory controller
measures the windows, and has the steps taken.
"""

from __future__ import annotations

from dataclasses import dataclass

_WAITING = 0.2  # of the window: loops wait for batches
RESTING = 0.02
_LEAST_GAIN = 0.35  # of what one more reader brings at best: a window's count of samples varies by some percent
_LEAST_BUSY = 0.9  # of the readers: those of other machines wait for the network between two chunks
_IDLE_CORES = 0.5  # readers beyond the cores help only while the cores wait, such as for storage
_IDLE_WINDOWS = 5
_FIRST_REST_WINDOWS = 8
_MAX_REST_WINDOWS = 256


@dataclass(frozen=True, slots=True)
class Window:
    """What was seen in one window.

    Attributes:
        waited: the part of it in which some loop waited for its next batch, 0 to 1.
        busy: how many readers, or nodes, were at work, on average.
        samples_per_s: samples that these made.
        idle_cores: how many of the usable cores had nothing to do, on average.
    """

    waited: float
    busy: float
    samples_per_s: float
    idle_cores: float


class Meter:
    """Turns totals into what was seen in each window.

    Args:
        totals: at the start of the first one; see `window`.
    """

    def __init__(self, *totals: float) -> None:
        self._before = totals

    def window(self, elapsed_s: float, *totals: float) -> Window:
        """Return what was seen in the last `elapsed_s` seconds.

        Args:
            elapsed_s: the window's length.
            totals: so far: seconds that loops waited, and readers were busy; samples; seconds that cores were idle.
        """
        before, self._before = self._before, totals
        return Window(*((now - then) / elapsed_s for now, then in zip(totals, before, strict=True)))


class Autoscale:
    """Choose how many readers, or nodes, there should be: more while loops wait and it helps, fewer while some idle.

    The text says readers. It climbs a step at a time and looks at the result. A step up that brought too few samples,
    or a step down after which loops wait, is taken back, and the next try in that direction waits twice as long. So it
    settles, and still follows a loop that changes its pace. Beyond the cores it climbs only while cores are idle: where
    decoding keeps them busy, one more reader brings nothing but noise.

    Args:
        most: how many there may be at most; there is one at least.
        n_cores: usable ones; of nodes `most`, as they have cores of their own.
    """

    def __init__(self, most: int, n_cores: int) -> None:
        self.most = most
        self._n_cores = n_cores
        self._before: tuple[int, float] | None = None  # readers, and samples a second, before the last step up
        self._came_down = False
        self._idle_windows = 0
        self._rest = {1: 0, -1: 0}  # windows until the next try up, or down
        self._next_rest = {1: _FIRST_REST_WINDOWS, -1: _FIRST_REST_WINDOWS}

    def step(self, n_readers: int, window: Window) -> int:
        """Return how many readers there should be after a window with `n_readers`."""
        for direction, left in self._rest.items():
            self._rest[direction] = max(0, left - 1)
        before, self._before = self._before, None
        if before is not None and n_readers > before[0] and window.waited >= _WAITING:
            n_before, rate = before
            if window.samples_per_s < rate + _LEAST_GAIN * rate * (n_readers / n_before - 1):
                return self._take_back(n_readers, 1)
        came_down, self._came_down = self._came_down, False
        if window.waited >= _WAITING:
            self._idle_windows = 0
            if came_down:
                return self._take_back(n_readers, -1)
            helps = n_readers < self._n_cores or window.idle_cores >= _IDLE_CORES
            is_busy = window.busy > min(n_readers - 0.5, _LEAST_BUSY * n_readers)
            if helps and n_readers < self.most and not self._rest[1] and is_busy:
                self._before = n_readers, window.samples_per_s
                return n_readers + 1
            return n_readers
        is_idle = window.waited <= RESTING and window.busy < n_readers - 1.2
        self._idle_windows = self._idle_windows + 1 if is_idle else 0
        if self._idle_windows >= _IDLE_WINDOWS and n_readers > 1 and not self._rest[-1]:
            self._idle_windows = 0
            self._came_down = True
            return n_readers - 1
        return n_readers

    def refused(self) -> None:
        """Forget the last step: it was not taken, so the next window does not show what it brought."""
        self._before, self._came_down = None, False

    def _take_back(self, n_readers: int, direction: int) -> int:
        self._rest[direction] = self._next_rest[direction]
        self._next_rest[direction] = min(_MAX_REST_WINDOWS, 2 * self._next_rest[direction])
        return max(1, min(self.most, n_readers - direction))
