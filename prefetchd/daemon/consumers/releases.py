"""Releases: takes back leases that have ended, by what consumers tell and what they note. A part of the front desk.

    last view dies -> Release (told), or a note in a page (`returns`) -> ring, group -> who waits is told again

Numbers of leases that are others', or old, are ignored by the ring. A note wakes nobody: so the daemon looks at the
notes whenever it looks at anything, and comes round to look while slots are wanted that somebody may note as returned.
What a consumer holds when it dies is no release: the front desk takes that back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.queues import ENOUGH_AHEAD
from prefetchd.ring.slots import Ring

_LOOK_FOR_NOTES_S = 0.005


class Releases:
    """Takes leases back into the ring; borrows all that it works with.

    Args:
        consumers: who is here.
        ring: where the leases are from.
        groups: told of what a member is done with.
        loop: brings the daemon round to the notes.
        wants_slots: whether somebody waits for slots that may lie with consumers.
    """

    def __init__(
        self,
        consumers: Mapping[int, Consumer],
        ring: Ring,
        groups: Groups,
        loop: EventLoop,
        wants_slots: Callable[[], bool],
    ) -> None:
        self._consumers = consumers
        self._ring = ring
        self._groups = groups
        self._loop = loop
        self._wants_slots = wants_slots
        self._looking = False

    def take_back(self, consumer: Consumer, leases: Sequence[int], taken: int) -> None:
        """The consumer's `leases` have ended, and it has taken every lease up to `taken`."""
        consumer.took(taken)
        group = self._groups.of(consumer)
        for lease in leases:
            if self._ring.release(lease, consumer.number) and group is not None:
                group.released(consumer, lease)
        for other in self._consumers.values():
            other.stalled = False  # who waits still is told again

    def take_back_noted(self) -> None:
        """Take back the leases that consumers have noted, and not told yet, to have ended."""
        for consumer in self._consumers.values():
            self.take_back_noted_by(consumer)

    def take_back_noted_by(self, consumer: Consumer) -> None:
        """Take back what one consumer has noted."""
        if consumer.returned is None:
            return
        consumer.took(consumer.returned.taken)
        if noted := consumer.returned.read_new():
            self.take_back(consumer, [lease for lease, _ in noted], max(taken for _, taken in noted))

    def look_for_notes(self) -> None:
        """See that the loop comes round again while slots are wanted that somebody may note as returned."""
        if self._looking or not any(len(consumer.untaken) >= ENOUGH_AHEAD for consumer in self._consumers.values()):
            return
        if self._wants_slots():
            self._looking = True
            self._loop.call_later(_LOOK_FOR_NOTES_S, self._looked)

    def _looked(self) -> None:
        self._looking = False
