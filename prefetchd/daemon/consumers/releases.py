"""Releases: takes leases back that have ended, from messages and from the return queues.

    the last view dies -> `Release`, or a record in the return queue -> ring, group -> stalled loops wait again

The ring ignores numbers of leases that are old or another consumer's. A record in a queue wakes nobody, so the daemon
reads the queues in every round, and comes round to read them while a loop or the budget needs slots. The leases of a
consumer that died are no release: the manager ends them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefetchd.daemon.consumers.consumer import Consumer, State
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.queues import ENOUGH_AHEAD
from prefetchd.ring.slots import Ring

_POLL_S = 0.005


class Releases:
    """Takes leases back into the ring; borrows all its parts."""

    def __init__(
        self,
        consumers: Mapping[int, Consumer],
        ring: Ring,
        groups: Groups,
        memory: MemoryManager,
        loop: EventLoop,
    ) -> None:
        self._consumers = consumers
        self._ring = ring
        self._groups = groups
        self._memory = memory
        self._loop = loop
        self._polling = False

    def take_back(self, consumer: Consumer, leases: Sequence[int], taken: int) -> None:
        """End the consumer's `leases`; it has taken every lease up to `taken`."""
        consumer.take(taken)
        group = self._groups.of(consumer)
        for lease in leases:
            if self._ring.release(lease, consumer.number) and group is not None:
                group.released(consumer, lease)
        for other in self._consumers.values():
            if other.state is State.STALLED:
                other.become(State.WAITING)  # it gets `Stalled` again if it still gets no slot

    def read_queues(self) -> None:
        """Take back the leases in every consumer's return queue."""
        for consumer in self._consumers.values():
            self.read_queue(consumer)

    def read_queue(self, consumer: Consumer) -> None:
        """Take back the leases in one consumer's return queue."""
        if consumer.attachment is None:
            return
        returns = consumer.attachment.returns
        consumer.take(returns.taken)
        if new := returns.read_new():
            self.take_back(consumer, [lease for lease, _ in new], max(taken for _, taken in new))

    def poll_queues(self) -> None:
        """Make the loop come round soon, while slots are needed that a queue may give back."""
        if self._polling or not any(len(consumer.untaken) >= ENOUGH_AHEAD for consumer in self._consumers.values()):
            return
        too_many = len(self._ring.slots) > self._memory.target.n_slots
        if too_many or any(consumer.is_waiting for consumer in self._consumers.values()):
            self._polling = True
            self._loop.call_later(_POLL_S, self._polled)

    def _polled(self) -> None:
        self._polling = False
