"""Which batch to fill next, in which slot, and which grant may be made. Pure, so that tests run millions of schedules.

The ring is a cache of a sequence of batches whose future is known, so the rule is Belady's (IBM Systems Journal 5,
1966): fill first what any cursor needs soonest, and give up first what is needed last.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.windows import Window, arrange, arrange_patiently
from prefetchd.ring.slots import Content, Key, Ring, Slot

# Twice the distance in batches, plus one if no loop waits for it. Smaller is more urgent. It is a number, since the
# daemon makes one for each slot of a large ring whenever it plans, and pairs take three times as long.
Urgency = int

# Up to so many batches of all windows together, each window is looked at as far as the ring reaches.
_ALL = 1024


@dataclass(frozen=True, slots=True)
class FillPlan:
    """Fill `slot` with the batch `key`."""

    slot: Slot
    key: Key


class Needs:
    """How urgent each batch is that some window needs, as far as the ring reaches."""

    def __init__(self, ring: Ring, windows: Collection[Window]) -> None:
        self._ring = ring
        n_slots = len(ring.slots)
        self._never = 2 * n_slots + 1
        self._in_order = len(windows) == 1  # what is needed first comes first in `_urgency`
        # Of many windows in a large ring it is enough to look as far as the ring can hold all that they need.
        reach = n_slots if n_slots * len(windows) <= _ALL else -(-2 * n_slots // len(windows))
        self._urgency = self._needed(windows, reach)
        while reach < n_slots and len(self._urgency) < n_slots:
            reach = min(n_slots, 2 * reach)
            self._urgency = self._needed(windows, reach)

    def _needed(self, windows: Collection[Window], reach: int) -> dict[Key, Urgency]:
        """Return the urgency of the next `reach` batches of each window."""
        need: dict[Key, Urgency] = {}
        for window in windows:
            needed = dict(zip(window.keys(reach), itertools.count(1, 2), strict=False))
            for member in window.members:
                # Of two batches that are needed next, the one for which a loop waits comes first. Not all of its
                # window: what a loop that has stopped needs next would be kept from one that waits elsewhere.
                if _is_in_a_hurry(self._ring, member) and (key := member.next_key) in needed:
                    needed[key] &= ~1
            if need:
                needed.update({key: min(need[key], needed[key]) for key in need.keys() & needed.keys()})
            need.update(needed)
        return need

    def of(self, slot: Slot) -> Urgency:
        """Return how urgent the batch in a slot is; an empty slot is least urgent of all."""
        return self._never + 2 if slot.key is None else self._urgency.get(slot.key, self._never)

    def could_spare_slot(self, cursor: Cursor) -> bool:
        """Return whether a slot would be given up for the cursor's next batch if the cursor had a window of its own."""
        urgency = 0 if _is_in_a_hurry(self._ring, cursor) else 1
        return any(self.of(slot) > urgency for slot in self._ring.reusable_slots())

    def fills(self, unmakeable: Collection[Key], limit: int) -> list[FillPlan]:
        """Return the fills to begin next; see `next_fills`."""
        wanted = self._most_urgent(unmakeable, limit)
        slots = self._ring.reusable_without(self._urgency) if wanted else []
        plans = [FillPlan(slot, key) for slot, key in zip(slots, wanted, strict=False)]
        if len(plans) == len(wanted):
            return plans
        # No more slots whose batch nobody needs: give up those that are needed last.
        later = self._needed_after(wanted[len(plans)])
        for key in wanted[len(plans) :]:
            if not later or self.of(later[-1]) <= self._urgency[key]:
                break
            plans.append(FillPlan(later.pop(), key))
        return plans

    def _most_urgent(self, unmakeable: Collection[Key], limit: int) -> list[Key]:
        """Return the batches that no slot has and that are needed soonest, `limit` at most, in order."""
        keys = self._ring.missing(self._urgency)
        if unmakeable:
            keys = [key for key in keys if key not in unmakeable]
        if self._in_order:
            return keys[:limit]
        urgencies = zip(map(self._urgency.__getitem__, keys), keys, strict=True)
        return [key for _, key in heapq.nsmallest(limit, urgencies)]

    def _needed_after(self, key: Key) -> list[Slot]:
        """Return the reusable slots whose batches are needed, but later than `key`, the last one last."""
        urgency = self._urgency[key]
        later = [slot for slot in self._ring.reusable_slots() if urgency < self.of(slot) < self._never]
        later.sort(key=self.of)
        return later


def _is_in_a_hurry(ring: Ring, cursor: Cursor) -> bool:
    return cursor.waiting and ring.held_by(cursor.consumer) < cursor.guaranteed_slots


def next_fills(
    ring: Ring, cursors: Collection[Cursor], unmakeable: Collection[Key] = (), *, limit: int = 1
) -> list[FillPlan]:
    """Return the fills to begin next, `limit` at most, the soonest needed first; none if no slot can be spared.

    Batches in `unmakeable` are known to fail and are left out.
    """
    return Needs(ring, arrange(cursors, len(ring.slots))).fills(unmakeable, limit)


def needed_last(ring: Ring, cursors: Collection[Cursor]) -> Slot | None:
    """Return the reusable slot whose batch is needed last, an empty slot first; `None` if no slot is reusable."""
    return max(ring.reusable_slots(), key=Needs(ring, arrange(cursors, len(ring.slots))).of, default=None)


def to_give_back(ring: Ring, cursors: Collection[Cursor], n_wanted: int) -> Slot | None:
    """Return the slot to remove from a ring that should have `n_wanted` slots; `None` if none may go now.

    A loop that has stopped may hold grants beyond its guarantee, which cannot be taken back. Others must not have less
    than they were promised for that, so those slots come on top until they are returned.
    """
    if len(ring.slots) <= n_wanted:
        return None
    beyond = sum(max(0, ring.held_by(cursor.consumer) - cursor.guaranteed_slots) for cursor in cursors)
    if len(cursors) > 1 and len(ring.slots) <= n_wanted + min(beyond, ring.leased_slots):  # loops may hold the same
        return None
    return needed_last(ring, cursors)


class Reserve:
    """The slots that must stay for loops that hold less than they are guaranteed, by window.

    Made for one round of grants, and computed at the first question: most rounds have no shortage.
    """

    def __init__(self, ring: Ring, cursors: Collection[Cursor]) -> None:
        self._ring = ring
        self._cursors = cursors
        self._of: dict[int, Window] = {}
        self._short: dict[int, int] = {}
        self._total = 0
        # A loop that is alone leaves nothing to others. The cursor of a group (below 0) stands for several loops.
        self._is_known = len(cursors) < 2 and all(cursor.consumer >= 0 for cursor in cursors)

    def _compute(self) -> None:
        self._is_known = True
        windows = [
            window
            for window in arrange(self._cursors, len(self._ring.slots))
            if any(member.open for member in window.members)
        ]
        self._of = {id(member): window for window in windows for member in window.members}
        self._short = {id(window): self._shortfall(window) for window in windows}
        self._total = sum(self._short.values())

    def for_others(self, cursor: Cursor) -> int:
        """Return how many slots loops of windows other than the cursor's may still claim."""
        if not self._is_known:
            self._compute()
        window = self._of.get(id(cursor))
        return self._total - (self._short[id(window)] if window is not None else 0)

    def beside(self, cursor: Cursor) -> int:
        """Return how many slots another loop of the cursor's own window may still claim."""
        if not self._is_known:
            self._compute()
        window = self._of.get(id(cursor))
        others = (other for other in window.members if other is not cursor and other.open) if window else ()
        return max((0, *(other.guaranteed_slots - self._ring.held_by(other.consumer) for other in others)))

    def wanted_beside(self, cursor: Cursor) -> bool:
        """Return whether another loop waits."""
        return any(other.waiting and other is not cursor for other in self._cursors)

    def granted(self, cursor: Cursor) -> None:
        """Take into account that the cursor's consumer holds one slot more."""
        window = self._of.get(id(cursor))
        if window is not None:
            short = self._shortfall(window)
            self._total += short - self._short[id(window)]
            self._short[id(window)] = short

    def _shortfall(self, window: Window) -> int:
        return max(
            0,
            min(
                member.guaranteed_slots - self._ring.held_by(member.consumer)
                for member in window.members
                if member.open
            ),
        )


def may_grant(ring: Ring, cursor: Cursor, reserve: Reserve, slot: Slot) -> bool:
    """Return whether `cursor` may be given a lease on the READY `slot` now.

    A slot that a consumer holds already costs nothing more now. It may later: where a loop stops that has it ahead,
    beyond its guarantee, it keeps the slot after all others have given it back. A loop that waits within its guarantee
    gets its batch. A grant ahead must leave the other windows what they are guaranteed. A grant beyond the cursor's own
    guarantee must also leave a slot for the readers to fill, and one more if it is ahead while another loop waits: that
    loop has the better claim, however much it holds.
    """
    if slot.leases and (cursor.waiting or ring.held_by(cursor.consumer) < cursor.guaranteed_slots):
        return True
    return can_spare(ring, cursor, reserve)


def can_spare(ring: Ring, cursor: Cursor, reserve: Reserve) -> bool:
    """Return whether `cursor` may have one more slot to itself now: the rule of `may_grant` for any batch."""
    within_guarantee = ring.held_by(cursor.consumer) < cursor.guaranteed_slots
    if within_guarantee and cursor.waiting:
        return True
    spare_after = len(ring.slots) - ring.leased_slots - 1
    needed = reserve.for_others(cursor)
    if not within_guarantee:
        needed += reserve.beside(cursor) + 1
        needed += not cursor.waiting and reserve.wanted_beside(cursor)
    return spare_after >= needed


def slots_promised(n_slots: int, cursors: Sequence[Cursor]) -> int:
    """Return how many slots a ring of `n_slots` must have for `cursors`: each window's guarantee, and one to fill.

    Cursors that are served from the same slots count as one window.
    """
    return sum(window.guaranteed_slots for window in arrange_patiently(cursors, n_slots)) + 1


def ready_for(ring: Ring, cursor: Cursor) -> Slot | None:
    """Return the slot with the cursor's next batch if it is READY."""
    key = None if cursor.at_end else cursor.next_key
    slot = ring.find(key) if key is not None else None
    return slot if slot is not None and slot.content is Content.READY else None
