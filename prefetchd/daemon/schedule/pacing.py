"""Windows: which loops are served from the same slots, and how long the foremost waits for the hindmost. Pure.

    hindmost (head) ---- keys that it needs next, as many as the ring has slots ----
        ^ m                  ^ another loop                       ^ the leader: waits here for the head

A window begins with a loop that is needed to go on, its *head*. Every loop whose next batch is among those that the
head needs next is served from the head's window, as long as the head is waited for: then only the head's needs count,
so nothing is given up that it has yet to see, and the leader comes to a stand where the ring ends. That costs the
head's patience (`Pacer`). Once this is used up the leader has a window of its own; whatever slots the two still share,
they share. A loop that is level again with the others is served with them again.

A window needs a slot to go on at all, and the ring one more to fill. So where leaving a laggard would make more windows
than that, it is waited for whatever its patience: a ring that is too small paces its loops, rather than starve one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.ring.slots import Key, Ring

_LEAST_S = 0.001  # a clock need not tell less apart


@dataclass(slots=True, eq=False)
class Window:
    """Loops that are served from the same slots.

    Attributes:
        head: the hindmost of them.
        keys: what the head needs next, in its order.
        members: all of them, the head first.
    """

    head: Cursor
    keys: Sequence[Key]
    members: list[Cursor] = field(default_factory=list)

    @property
    def guaranteed_slots(self) -> int:
        """What the window may hold whatever the others do."""
        return max(member.guaranteed_slots for member in self.members)


def arrange(cursors: Collection[Cursor], n_slots: int) -> list[Window]:
    """Return the windows of a ring of `n_slots` slots, the hindmost first."""
    windows = _arrange(cursors, n_slots, everyone=False)
    if n_places(windows) > most_windows(n_slots):
        windows = _arrange(cursors, n_slots, everyone=True)
    return windows


def reaches(cursors: Collection[Cursor], n_slots: int) -> list[Window]:
    """Return the windows as they were if every loop was waited for."""
    return _arrange(cursors, n_slots, everyone=True)


def most_windows(n_slots: int) -> int:
    """Return how many windows can go on in a ring: each with a slot that its loops hold, and one to fill."""
    return max(1, n_slots - 1)


def n_places(windows: Sequence[Window]) -> int:
    """Return how many windows the loops that run may come to need: one that began elsewhere wraps round elsewhere."""
    return sum(len({member.shard.rotation for member in window.members if member.open}) for window in windows)


def _arrange(cursors: Collection[Cursor], n_slots: int, *, everyone: bool) -> list[Window]:
    windows: list[Window] = []
    led: dict[tuple[int, int, int, Key], Window] = {}  # by lane and batch: the window of a loop that stands there
    any_open = any(cursor.open for cursor in cursors)
    for cursor in sorted(cursors, key=_place) if len(cursors) > 1 else cursors:
        key = cursor.next_key
        # In a ring too small for all, what a loop holds must be what the others of its window come to: epochs that
        # begin elsewhere go through the same batches in another order.
        lane = (*cursor.lane, cursor.shard.rotation if everyone else 0)
        window = led.get((*lane, key)) if key is not None else None
        if window is None:
            # A loop that rests finds its first batches when it begins; it takes no more from those that run.
            resting = any_open and not cursor.open
            # The leader may hold the ring's last batch, and then stands at the one behind.
            reach = tuple(cursor.upcoming(cursor.guaranteed_slots if resting else n_slots + 1))
            window = Window(cursor, reach[:n_slots])
            windows.append(window)
            if not (cursor.is_waited_for or (everyone and cursor.open)):
                reach = reach[:1]  # who stands at the same batch goes on through the same ones
            # What a group gives again is not where it goes on; and a loop that is alone is met by nobody.
            if not cursor.again and len(cursors) > 1:
                for ahead in reach:
                    led.setdefault((*lane, ahead), window)
        window.members.append(cursor)
    return windows


def _place(cursor: Cursor) -> tuple[bool, tuple[int, int, int, int]]:
    return not cursor.open, cursor.place


def join_window(cursor: Cursor, running: Collection[Cursor]) -> None:
    """Put a cursor that is about to begin where the hindmost of those that run is, its epochs rotated to begin there.

    It goes to no epoch before its own, so that a loop that has had an epoch does not get it again.
    """
    there = [
        other
        for other in running
        if (other.dataset, other.shard.world_size) == (cursor.dataset, 1) and other.epoch >= cursor.epoch
    ]
    there = [other for other in there if not other.at_end]
    key = min(there, key=_place).next_key if there else None
    if key is None or cursor.shard.world_size > 1:
        return
    _, epoch, batch = key
    cursor.shard = dataclasses.replace(cursor.shard, rotation=batch)
    if cursor.stop_epoch is not None:
        cursor.stop_epoch += epoch - cursor.epoch
    cursor.begin_epoch(epoch)


class Pacer:
    """Takes the time that leaders stand still from the patience of those whom they wait for.

    It has no clock: whoever calls `look` says what time it is.
    """

    def __init__(self) -> None:
        self._blamed: list[Cursor] = []
        self._looked_s = 0.0

    def look(
        self, now_s: float, ring: Ring, cursors: Collection[Cursor], unmakeable: Container[Key] = ()
    ) -> tuple[float | None, list[Cursor]]:
        """Charge what was waited since the last look to those who were to blame, and see who is to blame now.

        Returns:
            The seconds after which to look again (`None`: when something has changed), and the cursors whose patience
            is now used up.
        """
        spent = []
        for cursor in self._blamed:
            left_s = cursor.patience_left_s - (now_s - self._looked_s)
            if left_s < _LEAST_S:
                left_s = 0.0
                spent.append(cursor)
            cursor.patience_left_s = left_s
        self._looked_s = now_s
        self._blamed = blamed(ring, cursors, unmakeable)
        waits = [cursor.patience_left_s for cursor in self._blamed if 0 < cursor.patience_left_s < math.inf]
        return (min(waits) if waits else None), spent

    @property
    def waited_for(self) -> Sequence[Cursor]:
        """Whom somebody stands still for now."""
        return self._blamed


def blamed(ring: Ring, cursors: Collection[Cursor], unmakeable: Container[Key] = ()) -> list[Cursor]:
    """Return the heads that a loop stands still for: it waits for a batch that the ring keeps no slot for.

    A head that waits for a batch itself is not to blame: the readers are.
    """
    if len(cursors) < 2 or not any(cursor.waiting for cursor in cursors):
        return []
    return [
        window.head
        for window in arrange(cursors, len(ring.slots))
        if window.head.is_waited_for
        and not window.head.waiting
        and any(_stands_still(ring, window, member, unmakeable) for member in window.members[1:])
    ]


def _stands_still(ring: Ring, window: Window, member: Cursor, unmakeable: Container[Key]) -> bool:
    """Whether the member waits for a batch that the ring keeps no slot for while the window's head is where it is."""
    key = member.next_key if member.waiting else None
    return key is not None and ring.find(key) is None and key not in unmakeable and not _has_room(ring, window, key)


def _has_room(ring: Ring, window: Window, key: Key) -> bool:
    """Whether `key` could be filled now without giving up what the window's head needs sooner."""
    place = {kept: distance for distance, kept in enumerate(window.keys)}
    needed_in = place.get(key)
    if needed_in is None:
        return False
    return any(
        slot.reusable and (slot.key is None or place.get(slot.key, len(place)) > needed_in)
        for slot in ring.slots.values()
    )
