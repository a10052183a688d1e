"""Windows: which loops are served from the same slots. Pure.

    slowest loop (head) ---- the batches that it needs next, as many as the ring has slots ----
        ^ member                  ^ member                       ^ the fastest: waits here for the head

A window begins with its slowest loop, the *head*. A loop whose next batch is among those that the head needs next is
a member, as long as the head is waited for. Only the head's needs count in a window. So the ring drops nothing that the
head has yet to see, and the fastest loop stops where the ring ends. That costs the head's patience (`pacing`). A head
without patience left is alone: the loop behind which it fell has a window of its own. A loop that has caught up is in
the others' window again.

A window needs a slot to go on at all, and the ring one more to fill. Where leaving a head behind would make more
windows than that, it is waited for at any patience: a ring that is too small paces its loops and starves none.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.ring.slots import Key


@dataclass(slots=True, eq=False)
class Window:
    """Loops that are served from the same slots.

    Attributes:
        head: the slowest of them.
        n_keys: how many batches of the head count, those that it needs next.
        members: all of them, the head first.
    """

    head: Cursor
    n_keys: int
    members: list[Cursor] = field(default_factory=list)

    def keys(self, most: int) -> Iterator[Key]:
        """Yield the batches that the head needs next, in order, `most` at most."""
        return self.head.upcoming(min(most, self.n_keys))

    @property
    def guaranteed_slots(self) -> int:
        """How many slots the window may hold, however many the others hold."""
        return max(member.guaranteed_slots for member in self.members)


def arrange(cursors: Collection[Cursor], n_slots: int) -> list[Window]:
    """Return the windows of a ring of `n_slots` slots, the slowest loop's first."""
    windows = _arrange(cursors, n_slots, wait_for_all=False)
    if n_places(windows) > most_windows(n_slots):
        windows = _arrange(cursors, n_slots, wait_for_all=True)
    return windows


def arrange_patiently(cursors: Collection[Cursor], n_slots: int) -> list[Window]:
    """Return the windows as they would be if every loop was waited for."""
    return _arrange(cursors, n_slots, wait_for_all=True)


def most_windows(n_slots: int) -> int:
    """Return how many windows can go on in a ring: each with a slot that its loops hold, and one slot to fill."""
    return max(1, n_slots - 1)


def n_places(windows: Sequence[Window]) -> int:
    """Return how many windows the open loops may need later: loops with other rotations wrap round elsewhere."""
    return sum(len({member.shard.rotation for member in window.members if member.open}) for window in windows)


def _arrange(cursors: Collection[Cursor], n_slots: int, *, wait_for_all: bool) -> list[Window]:
    windows: list[Window] = []
    by_key: dict[tuple[int, int, int, Key], Window] = {}  # by lane and batch: the window of a loop that stands there
    any_open = any(cursor.open for cursor in cursors)
    readers_of = Counter(cursor.dataset for cursor in cursors)
    for cursor in sorted(cursors, key=_slowest_first) if len(cursors) > 1 else cursors:
        key = cursor.next_key
        # In a ring too small for all, loops of one window must come to the same batches in the same order: epochs with
        # another rotation do not.
        lane = (*cursor.lane, cursor.shard.rotation if wait_for_all else 0)
        window = by_key.get((*lane, key)) if key is not None else None
        if window is None:
            # A loop that rests finds its first batches when it begins; it takes no more from the open ones.
            resting = any_open and not cursor.open
            # The fastest may hold the ring's last batch, and then stands at the one behind it.
            reach = cursor.guaranteed_slots if resting else n_slots + 1
            window = Window(cursor, min(reach, n_slots))
            windows.append(window)
            if not (cursor.is_waited_for or (wait_for_all and cursor.open)):
                reach = 1  # a loop at the same batch needs the same ones
            # A group's cursor does not go on behind what it gives again. A loop that is alone meets nobody.
            if not cursor.again and readers_of[cursor.dataset] > 1:
                for ahead in cursor.upcoming(reach):
                    by_key.setdefault((*lane, ahead), window)
        window.members.append(cursor)
    return windows


def _slowest_first(cursor: Cursor) -> tuple[bool, tuple[int, int, int, int]]:
    return not cursor.open, cursor.place


def join_window(cursor: Cursor, running: Collection[Cursor]) -> None:
    """Put a cursor that is about to begin where the slowest of `running` is, and rotate its epochs to begin there.

    It goes to no epoch before its own, so that a loop never gets an epoch twice.
    """
    there = [
        other
        for other in running
        if (other.dataset, other.shard.world_size) == (cursor.dataset, 1) and other.epoch >= cursor.epoch
    ]
    there = [other for other in there if not other.at_end]
    key = min(there, key=_slowest_first).next_key if there else None
    if key is None or cursor.shard.world_size > 1:
        return
    _, epoch, batch = key
    cursor.shard = dataclasses.replace(cursor.shard, rotation=batch)
    if cursor.stop_epoch is not None:
        cursor.stop_epoch += epoch - cursor.epoch
    cursor.begin_epoch(epoch)
