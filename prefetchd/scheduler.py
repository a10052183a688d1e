"""Which batch to fill next, into which slot, and who may have a lease. Pure, so that it can be tested by the million.

The ring is a cache of the sequence of batches whose future is known, so the rule is Belady's (IBM Systems Journal 5,
1966): what is needed soonest by any cursor is filled first, and what is needed last is given up first.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from prefetchd.shard import Shard
from prefetchd.slots import Content, Key, Ring, Slot

Urgency = tuple[int, bool]  # batches until it is needed, and whether nobody stands still for it


@dataclass(slots=True)
class Cursor:
    """Where one consumer is: the next batch that it has not been granted yet.

    Attributes:
        consumer: the consumer's number.
        serial: the consumer's name for this cursor; a later `iter()` has another.
        dataset: the data set that it reads.
        shard: which batches of an epoch it sees.
        epoch: the epoch of the next batch.
        start: the batch from which its shard is counted in this epoch: 0, but where an epoch is resumed.
        step: the step, from `start` on, of the next batch.
        stop_epoch: the epoch before which it ends; `None` for never.
        waiting: whether the loop is blocked, waiting for the next batch.
        guaranteed_slots: how many slots it may hold whatever the others do.
        open: whether the loop goes on; a closed cursor only shows where the next epoch would start.
    """

    consumer: int
    serial: int
    dataset: int
    shard: Shard
    epoch: int = 0
    start: int = 0
    step: int = 0
    guaranteed_slots: int = 2
    stop_epoch: int | None = None
    waiting: bool = False
    open: bool = True

    @property
    def at_end(self) -> bool:
        """Whether every batch of the last epoch has been granted."""
        return self.stop_epoch is not None and self.epoch >= self.stop_epoch

    def advance(self) -> None:
        """Go on to the next batch, of the next epoch after the last of one."""
        self.step += 1
        if self.step >= self.shard.steps(self.start):
            self.begin_epoch(self.epoch + 1)

    def begin_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`."""
        self.epoch, self.start, self.step = epoch, 0, 0

    def upcoming(self, horizon: int) -> Iterator[Key]:
        """Yield the next `horizon` batches in the order of need, running on into the next epoch."""
        dataset, epoch, n_batches, stride = self.dataset, self.epoch, self.shard.n_batches, self.shard.world_size
        left = self.shard.steps(self.start) - self.step  # of this epoch
        index = self._position
        steps = self.shard.steps()
        if not steps:
            return
        for _ in range(horizon):
            if left <= 0:
                epoch, left, index = epoch + 1, steps, self.shard.rank
            yield dataset, epoch, index % n_batches  # as `Shard.batch`, which would take half of all the time here
            left, index = left - 1, index + stride

    def shares_with(self, other: Cursor, n_slots: int) -> bool:
        """Whether both go on through the same batches within a ring of `n_slots` slots of each other."""
        stride = self.shard.world_size
        apart = abs(self._position - other._position)
        return (
            (self.dataset, self.epoch, stride) == (other.dataset, other.epoch, other.shard.world_size)
            and apart % stride == 0
            and apart < n_slots * stride
        )

    @property
    def _position(self) -> int:
        return self.start + self.step * self.shard.world_size + self.shard.rank


@dataclass(frozen=True, slots=True)
class FillPlan:
    """Fill `slot` with the batch `key`."""

    slot: Slot
    key: Key


def next_fills(
    ring: Ring, cursors: Sequence[Cursor], unmakeable: Container[Key] = (), *, limit: int = 1
) -> list[FillPlan]:
    """Return the fills to begin next, `limit` at most, soonest needed first; none if all that fits is there or coming.

    Batches in `unmakeable` are known to fail and are passed over.
    """
    horizon = len(ring.slots)
    never = (horizon, True)
    any_open = any(cursor.open for cursor in cursors)
    need: dict[Key, Urgency] = {}
    for cursor in cursors:
        # Of two batches that are needed next, the one whose loop stands still for it comes first.
        in_no_hurry = not cursor.waiting or ring.held_by(cursor.consumer) >= cursor.guaranteed_slots
        # A loop that rests finds its first batches when it begins; it takes no more from those that run.
        resting = any_open and not cursor.open
        for distance, key in enumerate(cursor.upcoming(cursor.guaranteed_slots if resting else horizon)):
            need[key] = min(need.get(key, never), (distance, in_no_hurry))
    wanted = sorted((urgency, key) for key, urgency in need.items() if ring.find(key) is None and key not in unmakeable)
    if not wanted:
        return []
    # What is needed last is given up first; an empty slot costs nothing.
    empty = [slot for slot in ring.slots.values() if slot.key is None and slot.reusable]
    full = [(need.get(slot.key, never), slot) for slot in ring.slots.values() if slot.key is not None and slot.reusable]
    full.sort(key=lambda victim: victim[0])
    plans: list[FillPlan] = []
    for urgency, key in wanted[:limit]:
        if empty:
            plans.append(FillPlan(empty.pop(0), key))
        elif full and full[-1][0] > urgency:
            plans.append(FillPlan(full.pop()[1], key))
        else:
            break
    return plans


def needed_last(ring: Ring, cursors: Sequence[Cursor]) -> Slot | None:
    """Return the reusable slot whose batch is needed last, an empty one before all; `None` if none is reusable."""
    horizon = len(ring.slots)
    distance: dict[Key, int] = {}
    for cursor in cursors:
        for position, key in enumerate(cursor.upcoming(horizon)):
            distance[key] = min(position, distance.get(key, horizon))

    def when(slot: Slot) -> int:
        return horizon + 1 if slot.key is None else distance.get(slot.key, horizon)

    return max((slot for slot in ring.slots.values() if slot.reusable), key=when, default=None)


def may_grant(ring: Ring, cursor: Cursor, cursors: Sequence[Cursor], slot: Slot) -> bool:
    """Whether `cursor` may be given a lease on the READY `slot` now.

    A slot that somebody holds already costs nothing more. A loop that stands still within its guarantee gets its batch.
    Whatever is granted ahead must leave the other cursors what they are guaranteed, and what goes beyond the cursor's
    own guarantee must besides leave a slot for the readers to fill.
    """
    if slot.leases:
        return True
    within_guarantee = ring.held_by(cursor.consumer) < cursor.guaranteed_slots
    if within_guarantee and cursor.waiting:
        return True
    spare_after = len(ring.slots) - ring.leased_slots - 1
    reserved = sum(
        max(0, other.guaranteed_slots - ring.held_by(other.consumer))
        for other in cursors
        if other is not cursor and other.open
    )
    return spare_after >= reserved + (0 if within_guarantee else 1)


def slots_promised(n_slots: int, cursors: Sequence[Cursor]) -> int:
    """Return how many slots a ring of `n_slots` must have for `cursors`: each window's guarantee, and one to fill.

    Cursors that are served from the same slots count as one window.
    """
    windows: list[Cursor] = []
    for cursor in sorted(cursors, key=lambda cursor: -cursor.guaranteed_slots):
        if not any(cursor.shares_with(other, n_slots) for other in windows):
            windows.append(cursor)
    return sum(window.guaranteed_slots for window in windows) + 1


def ready_for(ring: Ring, cursor: Cursor) -> Slot | None:
    """Return the slot with the cursor's next batch if it is READY."""
    key = next(cursor.upcoming(1), None)
    slot = ring.find(key) if key is not None and not cursor.at_end else None
    return slot if slot is not None and slot.content is Content.READY else None
