"""Which batch to fill next, into which slot, and who may have a lease. Pure, so that it can be tested by the million.

The ring is a cache of the sequence of batches whose future is known, so the rule is Belady's (IBM Systems Journal 5,
1966): what is needed soonest by any cursor is filled first, and what is needed last is given up first.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.pacing import Window, arrange, reaches
from prefetchd.ring.slots import Content, Key, Ring, Slot

Urgency = tuple[int, bool]  # batches until it is needed, and whether nobody stands still for it


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
    need = _needs(ring, cursors)
    wanted = sorted([(need[key], key) for key in ring.missing(need) if key not in unmakeable])
    if not wanted:
        return []
    never = (len(ring.slots), True)
    # What is needed last is given up first; an empty slot costs nothing.
    reusable = ring.reusable_slots()
    empty = [slot for slot in reusable if slot.key is None]
    full = [(need.get(slot.key, never), slot) for slot in reusable if slot.key is not None]
    full.sort(key=_urgency)
    plans: list[FillPlan] = []
    for urgency, key in wanted[:limit]:
        if empty:
            plans.append(FillPlan(empty.pop(0), key))
        elif full and full[-1][0] > urgency:
            plans.append(FillPlan(full.pop()[1], key))
        else:
            break
    return plans


_urgency = operator.itemgetter(0)


def _needs(ring: Ring, cursors: Sequence[Cursor]) -> dict[Key, Urgency]:
    """Return how urgent each batch is that some cursor needs, as far as the ring reaches."""
    need: dict[Key, Urgency] = {}
    for window in arrange(cursors, len(ring.slots)):
        # Of two batches that are needed next, the one for which a loop stands still comes first.
        in_no_hurry = not any(
            member.waiting and ring.held_by(member.consumer) < member.guaranteed_slots for member in window.members
        )
        needed = {key: (distance, in_no_hurry) for distance, key in enumerate(window.keys)}
        if need:
            needed.update({key: min(need[key], needed[key]) for key in need.keys() & needed.keys()})
        need.update(needed)
    return need


def needed_last(ring: Ring, cursors: Collection[Cursor]) -> Slot | None:
    """Return the reusable slot whose batch is needed last, an empty one before all; `None` if none is reusable."""
    horizon = len(ring.slots)
    distance: dict[Key, int] = {}
    for window in arrange(cursors, horizon):
        for position, key in enumerate(window.keys):
            distance[key] = min(position, distance.get(key, horizon))

    def when(slot: Slot) -> int:
        return horizon + 1 if slot.key is None else distance.get(slot.key, horizon)

    return max(ring.reusable_slots(), key=when, default=None)


def to_give_back(ring: Ring, cursors: Collection[Cursor], n_wanted: int) -> Slot | None:
    """Return the slot to give up in a ring that should have `n_wanted`; `None` if it may give up none now.

    What a loop has beyond its guarantee, as it lies granted ahead while the loop stands still, cannot be taken back. It
    is no reason for others to have less than they were promised: it comes on top until it is returned.
    """
    if len(ring.slots) <= n_wanted:
        return None
    beyond = sum(max(0, ring.held_by(cursor.consumer) - cursor.guaranteed_slots) for cursor in cursors)
    if len(cursors) > 1 and len(ring.slots) <= n_wanted + min(beyond, ring.leased_slots):  # loops may hold the same
        return None
    return needed_last(ring, cursors)


class Reserve:
    """What the loops that hold less than they are guaranteed must find, window by window.

    Made for a round of granting, and worked out when it is first asked for: most rounds grant nothing that is short.
    """

    def __init__(self, ring: Ring, cursors: Collection[Cursor]) -> None:
        self._ring = ring
        self._cursors = cursors
        self._of: dict[int, Window] = {}
        self._short: dict[int, int] = {}
        self._total = 0
        # A loop that is alone need leave nothing to others; the cursor of a group (below 0) stands for several loops.
        self._is_known = len(cursors) < 2 and all(cursor.consumer >= 0 for cursor in cursors)

    def _find_out(self) -> None:
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
        """How many slots loops of other windows than the cursor's may still claim."""
        if not self._is_known:
            self._find_out()
        window = self._of.get(id(cursor))
        return self._total - (self._short[id(window)] if window is not None else 0)

    def beside(self, cursor: Cursor) -> int:
        """How many slots another loop of the cursor's own window may still claim."""
        if not self._is_known:
            self._find_out()
        window = self._of.get(id(cursor))
        others = (other for other in window.members if other is not cursor and other.open) if window else ()
        return max((0, *(other.guaranteed_slots - self._ring.held_by(other.consumer) for other in others)))

    def wanted_beside(self, cursor: Cursor) -> bool:
        """Whether another loop stands still."""
        return any(other.waiting and other is not cursor for other in self._cursors)

    def granted(self, cursor: Cursor) -> None:
        """The cursor's consumer holds one more."""
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
    """Whether `cursor` may be given a lease on the READY `slot` now.

    A slot that somebody holds already costs nothing more. A loop that stands still within its guarantee gets its batch.
    Whatever is granted ahead must leave the other windows what they are guaranteed, and what goes beyond the cursor's
    own guarantee must besides leave a slot for the readers to fill, and another if it is granted ahead while some other
    loop stands still: that one has the better claim, however much it holds.
    """
    return bool(slot.leases) or can_spare(ring, cursor, reserve)


def can_spare(ring: Ring, cursor: Cursor, reserve: Reserve) -> bool:
    """Whether `cursor` may have one more slot to itself now: the rule of `may_grant`, whatever its next batch is."""
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
    return sum(window.guaranteed_slots for window in reaches(cursors, n_slots)) + 1


def ready_for(ring: Ring, cursor: Cursor) -> Slot | None:
    """Return the slot with the cursor's next batch if it is READY."""
    key = None if cursor.at_end else cursor.next_key
    slot = ring.find(key) if key is not None else None
    return slot if slot is not None and slot.content is Content.READY else None
