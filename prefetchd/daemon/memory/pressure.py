"""What to give back when the machine runs short of memory: the daemon's slots and readers, and the caches' pages.

    full --short--> fewer slots --short--> fewer readers --short--> paused     a step at each reading that is short
    full <--ample-- fewer slots <--ample-- fewer readers <--ample-- paused     a step after a calm that lasted

`PressurePolicy` is pure: the memory controller gives it a reading at each tick, and gets a target. *Short* and *ample*
are far apart. A step up is taken only after `CALM_TICKS` ample readings in a row, in a machine that can spare what the
step takes. If it is short again soon, the next calm must last twice as long. So it neither flaps nor gives up for good.
It never goes below what delivers one batch at a time: paused means that batches are made for loops that wait, and not
ahead.

`CachePages` is called in the daemon's tick. The kernel drops pages of files when a control group reaches its limit, but
page by page, while somebody waits for memory. It cannot know that a cache's pages are the cheapest to read again. So
when what a group cannot give up (all but the pages of files) comes near its limit, the caches' pages go at once. A
group that is merely full of pages of files is as it should be: nothing is dropped then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prefetchd.daemon.memory.limits import CgroupMemory, Shortage, ample_bytes, cgroups, short_bytes
from prefetchd.data.cache.daemon_side import CacheInDaemon
from prefetchd.data.cache.several import SeveralCaches

MIB = 1 << 20
SHORT_STALLED_PERCENT = 10.0
AMPLE_STALLED_PERCENT = 1.0
CALM_TICKS = 10
_MAX_CALM_TICKS = 640
_RELAPSE_TICKS = 60


@dataclass(frozen=True, slots=True)
class Target:
    """How much the daemon may use: slots, readers, and whether it makes batches ahead."""

    n_slots: int
    n_readers: int
    paused: bool = False


@dataclass(frozen=True, slots=True)
class Costs:
    """What a slot and a reader take, in bytes, and how few slots deliver the batches that were promised."""

    slot_bytes: int
    reader_bytes: int
    least_slots: int


class PressurePolicy:
    """Remembers what was given back, and for how long it has been calm."""

    def __init__(self) -> None:
        self._given_back: list[Target] = []  # the targets that were left, in order; the last is the next to return to
        self._target = Target(0, 0)  # in force while something is given back
        self._calm_ticks = 0
        self._wanted_calm = CALM_TICKS
        self._since_recovery = _RELAPSE_TICKS

    @property
    def relieved(self) -> bool:
        """Whether nothing is given back."""
        return not self._given_back

    def step(self, shortage: Shortage, now: Target, full: Target, costs: Costs) -> Target:
        """Return the target after a reading; `now` is what is in use (never more than allowed), `full` the plan."""
        self._since_recovery += 1
        is_little = shortage.headroom_bytes < short_bytes(shortage.limit_bytes)
        # With that much free, others' limits or storage stall the tasks: what the daemon gives back would help nobody.
        stalled_percent = 0.0 if shortage.headroom_bytes >= shortage.limit_bytes // 4 else shortage.stalled_percent
        if is_little or stalled_percent >= SHORT_STALLED_PERCENT:
            return self._give_back(now, full, costs)
        if not self._given_back:
            return full
        back = self._capped(self._given_back[-1], full)
        more = max(0, back.n_slots - now.n_slots) * costs.slot_bytes
        more += max(0, back.n_readers - now.n_readers) * costs.reader_bytes
        is_ample = shortage.headroom_bytes >= ample_bytes(shortage.limit_bytes) + more
        if not is_ample or stalled_percent > AMPLE_STALLED_PERCENT:
            self._calm_ticks = 0
        else:
            self._calm_ticks += 1
        if self._calm_ticks < self._wanted_calm:
            return self._capped(self._target, full)
        self._calm_ticks = 0
        self._since_recovery = 0
        self._target = self._given_back.pop()
        return full if not self._given_back else back

    def under(self, full: Target) -> Target:
        """Return the target in force under a plan that has changed."""
        return full if self.relieved else self._capped(self._target, full)

    def _give_back(self, now: Target, full: Target, costs: Costs) -> Target:
        self._calm_ticks = 0
        if self._since_recovery < _RELAPSE_TICKS:
            self._wanted_calm = min(_MAX_CALM_TICKS, 2 * self._wanted_calm)
            self._since_recovery = _RELAPSE_TICKS
        elif not self._given_back:
            self._wanted_calm = CALM_TICKS
        held = self._capped(self._target, full) if self._given_back else full
        slots = min(held.n_slots, max(now.n_slots, costs.least_slots))
        readers = min(held.n_readers, max(now.n_readers, 1))
        if slots > costs.least_slots:
            lower = Target(max(costs.least_slots, (slots + costs.least_slots) // 2), held.n_readers)
        elif readers > 1:
            lower = Target(held.n_slots, readers // 2)
        elif not held.paused:
            lower = Target(held.n_slots, held.n_readers, paused=True)
        else:
            return held
        self._given_back.append(held)
        self._target = lower
        return lower

    @staticmethod
    def _capped(target: Target, full: Target) -> Target:
        """Return a target as it is under a plan that has changed meanwhile."""
        return Target(min(target.n_slots, full.n_slots), min(target.n_readers, full.n_readers), target.paused)


_NEAR = 0.9
_EVERY_S = 5.0  # dropped pages are read again soon, so dropping them at every tick would be worse than either


class CachePages:
    """Drops the pages of the caches of one daemon, borrowed, where a control group is short of memory.

    Args:
        caches: all of them.
        read: how groups are read.
        clock: seconds.
    """

    def __init__(
        self,
        caches: Sequence[CacheInDaemon | SeveralCaches],
        read: Callable[[], Iterable[CgroupMemory]] = cgroups,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._caches = caches
        self._read = read
        self._clock = clock
        self._dropped_s = -_EVERY_S

    def tick(self) -> None:
        """Drop the caches' pages if memory is short; let each cache log its news."""
        for cache in self._caches:
            cache.tick()
        if not self._caches or self._clock() - self._dropped_s < _EVERY_S:
            return
        if any(group.used_bytes > _NEAR * group.limit_bytes for group in self._read()):
            self._dropped_s = self._clock()
            for cache in self._caches:
                cache.drop_pages()
