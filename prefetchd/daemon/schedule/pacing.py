"""Pacing: which loop waits for a slower one, and for how long it has to. Pure; the caller says what time it is.

    members wait --look--> the head's patience_left_s falls --0--> the head is left behind (`windows`) --> members go on

The consumers' manager calls `Pacer.look` after each round, and again when the patience that is left has passed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Needs
from prefetchd.daemon.schedule.windows import Window, arrange
from prefetchd.ring.slots import Content, Key, Ring

_LEAST_S = 0.001  # no clock has to tell less apart


class Pacer:
    """Charges the time that loops wait for a slower one to that one's patience.

    Attributes:
        waits: the cursor of the slower loop, by the number of each consumer that waits for one.
        waited_s: seconds that a consumer has waited for slower loops, until the last look, by its number.
    """

    def __init__(self) -> None:
        self.waits: dict[int, Cursor] = {}
        self.waited_s: defaultdict[int, float] = defaultdict(float)
        self._looked_s = 0.0

    def look(
        self, now_s: float, ring: Ring, cursors: Collection[Cursor], unmakeable: Collection[Key] = ()
    ) -> tuple[float | None, list[Cursor]]:
        """Charge the time since the last look to the loops that were waited for, and find those waited for now.

        Returns:
            The seconds after which to look again (`None`: only after the next event), and the cursors whose patience
            is used up now.
        """
        passed_s = now_s - self._looked_s
        self._looked_s = now_s
        for number in self.waits:
            self.waited_s[number] += passed_s
        spent = []
        for head in dict.fromkeys(self.waits.values()):
            if not head.patience_left_s:
                continue  # the ring is too small to leave it behind
            left_s = head.patience_left_s - passed_s
            if left_s < _LEAST_S:
                left_s = 0.0
                spent.append(head)
            head.patience_left_s = left_s
        self.waits = waits_for_slower(ring, cursors, unmakeable)
        left = [head.patience_left_s for head in self.waits.values() if 0 < head.patience_left_s < math.inf]
        return (min(left) if left else None), spent

    def forget(self, consumer: int) -> None:
        """Drop what is known of a consumer that is gone."""
        self.waits.pop(consumer, None)
        self.waited_s.pop(consumer, None)


def waits_for_slower(ring: Ring, cursors: Collection[Cursor], unmakeable: Collection[Key] = ()) -> dict[int, Cursor]:
    """Return the head of its window for each consumer that waits for a slower loop.

    A loop waits for the head of its window if the scheduler would fill no slot with its batch, though it could do so
    without the head's needs. The scheduler itself is asked what it would fill: slots that it keeps for loops elsewhere,
    or for those that rest, look free and are not.
    """
    if len(cursors) < 2 or not any(cursor.waiting for cursor in cursors):
        return {}
    windows = arrange(cursors, len(ring.slots))
    waiting = [
        (window, member, key)
        for window in windows
        for member in window.members[1:]
        if member.waiting and (key := member.next_key) is not None and ring.find(key) is None and key not in unmakeable
    ]
    if not waiting:
        return {}
    needs = Needs(ring, windows)
    begun = {plan.key for plan in needs.fills(unmakeable, len(ring.slots))}
    return {
        member.consumer: window.head
        for window, member, key in waiting
        if key not in begun and not _is_served(ring, window, begun) and needs.could_spare_slot(member)
    }


def _is_served(ring: Ring, window: Window, begun: Collection[Key]) -> bool:
    """Return whether the head waits for a batch that is being made: then all of the window wait for the readers."""
    key = window.head.next_key if window.head.waiting else None
    if key is None:
        return False
    slot = ring.find(key)
    return key in begun or (slot is not None and slot.content is Content.FILLING)
