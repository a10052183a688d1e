"""What a loader did so far: batches, samples, and how long its loops waited for it.

    connection.next_batch   counts every batch: two additions, no look at the clock
    with meter              around each wait for a batch: two looks at the clock, where a system call is made anyhow
    begin_loop, end_loop    one look at the clock each, for the time that the loops took in all

A batch that is ready when the loop asks costs the additions alone. A loop that waits for the loader more than half of
its time is told so once, with what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from prefetchd.client.user_warnings import warn_user
from prefetchd.ipc import system

_LEAST_S = 30.0  # of looping, before the share of the waits says anything
_LEAST_BATCHES = 50
_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """What a loader delivered, and how long its loops waited; `later - earlier` is what came between.

    Attributes:
        batches: how many batches the loops were given.
        samples: how many samples were in them.
        elapsed_s: seconds that the loops took in all, the time between two loops not counted.
        waited_s: seconds of those in which a loop waited for the loader.
    """

    batches: int
    samples: int
    elapsed_s: float
    waited_s: float

    def __sub__(self, earlier: LoaderStats) -> LoaderStats:
        """Return what came after `earlier`."""
        return LoaderStats(
            self.batches - earlier.batches,
            self.samples - earlier.samples,
            self.elapsed_s - earlier.elapsed_s,
            self.waited_s - earlier.waited_s,
        )

    @property
    def samples_per_s(self) -> float:
        """Samples a second of the loops' time; 0 before the first."""
        return self.samples / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def waiting_share(self) -> float:
        """The share of the loops' time, 0 to 1, in which they waited for the loader."""
        return min(1.0, self.waited_s / self.elapsed_s) if self.elapsed_s > 0 else 0.0


class Meter:
    """Counts what one loader delivers. The loader's connection owns it, and the next connection goes on with it.

    Attributes:
        batches, samples: what was delivered.
        advice: returns what to do about a loop that waits too long; set by the loader.
    """

    __slots__ = (
        "_asked_s", "_began_s", "_looped_s", "_mark", "_serial", "_start_s", "_started", "_waited_s", "advice",
        "batches", "samples",
    )  # fmt: skip

    def __init__(self) -> None:
        self.batches = 0
        self.samples = 0
        self.advice: Callable[[LoaderStats], str] | None = None  # none once it was given
        self._looped_s = 0.0  # of loops that have ended
        self._waited_s = 0.0
        self._start_s = 0.0  # of the waits, those for the first batch of each loop
        self._serial = 0  # of the loop that runs, or ran last
        self._began_s: float | None = None  # of the loop that runs
        self._asked_s = 0.0
        self._started = False
        self._mark = LoaderStats(0, 0, 0.0, 0.0)

    def begin_loop(self, serial: int) -> None:
        """Count the time from now on: loop number `serial` begins, and another one has ended."""
        self.end_loop(self._serial)
        self._serial, self._began_s = serial, system.monotonic()
        self._started = False

    def end_loop(self, serial: int) -> None:
        """Count no more time, if loop `serial` is the one that runs."""
        if self._began_s is not None and serial == self._serial:
            self._looped_s += system.monotonic() - self._began_s
            self._began_s = None

    def __enter__(self) -> None:
        """A wait for a batch begins."""
        self._asked_s = system.monotonic()
        if self.advice is not None:
            self._judge(self.advice)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The wait ends."""
        lasted_s = system.monotonic() - self._asked_s
        self._waited_s += lasted_s
        if not self._started:
            self._started = True
            self._start_s += lasted_s

    def read(self) -> LoaderStats:
        """Return what was delivered so far."""
        running_s = system.monotonic() - self._began_s if self._began_s is not None else 0.0
        return LoaderStats(self.batches, self.samples, self._looped_s + running_s, self._waited_s)

    def _judge(self, advice: Callable[[LoaderStats], str]) -> None:
        """Warn once if the loop waited more than half of the last half minute or more, starts of loops not counted."""
        running_s = self._asked_s - self._began_s if self._began_s is not None else 0.0
        steady_s = self._looped_s + running_s - self._start_s
        if steady_s - self._mark.elapsed_s < _LEAST_S or self.batches - self._mark.batches < _LEAST_BATCHES:
            return
        now = LoaderStats(self.batches, self.samples, steady_s, self._waited_s - self._start_s)
        lately, self._mark = now - self._mark, now
        if lately.waiting_share > _SHARE:
            self.advice = None
            warn_user(advice(lately))
