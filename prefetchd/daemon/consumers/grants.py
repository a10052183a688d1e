"""Grants: which of its next batches a consumer gets now, and what the daemon says while it waits.

    ready_for, may_grant (scheduler) -> lease (ring) -> grant queue, GrantReady | Failed | Stalled -> consumer

The consumers' manager calls `grant` for each consumer after each round of events. The granter borrows all its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prefetchd.daemon.consumers.consumer import Consumer, State
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.histogram import Histogram
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Reserve, can_spare, may_grant, ready_for
from prefetchd.ipc import messages
from prefetchd.ring.queues import MAX_GRANTS_AHEAD
from prefetchd.ring.slots import Content, Key, Ring, Slot

_MANY_SLOTS = 16
_SLOTS_PER_GRANT = 2
_MAX_BYTES_AHEAD = 4 << 20  # a loop that stops keeps its grants from the others, and from a budget that was lowered


@dataclass(eq=False)
class Granter:
    """Gives consumers leases on ready batches."""

    _ring: Ring
    _builder: BatchBuilder
    _memory: MemoryManager
    _consumers: Mapping[int, Consumer]
    _clock: Callable[[], float]
    delivered: int = 0
    wait_seconds: Histogram = field(default_factory=Histogram)

    def grant(self, consumer: Consumer, reserve: Reserve) -> None:
        """Grant the consumer its next batches as far as they are ready and can be spared; if none, say why it waits.

        `reserve` is what stays for other loops.
        """
        cursor = consumer.own_cursor
        if cursor is None or not cursor.open or consumer.socket.blocked:
            return  # the manager tries a blocked socket again
        grants_ahead = self.grants_ahead + consumer.is_polled
        while len(consumer.untaken) < grants_ahead:
            slot = ready_for(self._ring, cursor)
            if slot is None or not may_grant(self._ring, cursor, reserve, slot) or not consumer.socket.open_slot(slot):
                if cursor.waiting:
                    self.explain_wait(consumer, None if cursor.at_end else cursor.next_key, slot, reserve)
                break
            lease = self._ring.grant(slot, consumer.number)
            reserve.granted(cursor)
            self.hand_over(consumer, slot, lease, cursor.advance())

    def hand_over(self, consumer: Consumer, slot: Slot, lease: int, place: tuple[int, int, bool]) -> None:
        """Write a grant of `place` (epoch, batch, repeated) into the consumer's queue; wake a loop that waits."""
        assert consumer.attachment is not None
        assert consumer.cursor is not None
        epoch, batch, repeated = place
        consumer.attachment.grants.write(
            lease,
            slot.number,
            epoch,
            batch,
            slot.rows,
            repeated=repeated,
            n_sent=consumer.socket.n_sent,
            layout=slot.layout,
        )
        consumer.untaken.append(lease)
        consumer.batches += 1
        consumer.samples += slot.rows
        self.delivered += 1
        if consumer.is_waiting:
            self.wait_seconds.observe(self._clock() - consumer.waiting_since_s)
            consumer.become(State.RUNNING)
            consumer.socket.send_surely(messages.GrantReady(consumer.cursor.serial))

    @property
    def grants_ahead(self) -> int:
        """How many grants a loop may have ahead: one, or more where batches are small and the ring is large.

        There a message for each batch would cost as much as the batch.
        """
        n_slots = len(self._ring.slots)
        if n_slots < _MANY_SLOTS:
            return 1
        enough = _MAX_BYTES_AHEAD // self._memory.budget.plan.slot_bytes
        return max(1, min(MAX_GRANTS_AHEAD, n_slots // _SLOTS_PER_GRANT, enough))

    def explain_wait(self, consumer: Consumer, key: Key | None, ready: Slot | None, reserve: Reserve) -> None:
        """Tell a waiting consumer that its batch `key` cannot be made, or that no slot can be spared for it."""
        assert consumer.cursor is not None
        failure = self._builder.failed.get(key) if key is not None and ready is None else None
        if failure is not None:
            if consumer.socket.send(messages.Failed(consumer.cursor.serial, failure.error, failure.text)):
                consumer.become(State.IDLE)
        elif key is not None and (consumer.state is State.STALLED or self._is_stalled(consumer, ready, reserve)):
            self._stall(consumer)
        elif consumer.told_stalled and (key is None or self._is_slot_coming(consumer, ready, reserve)):
            self._end_stall(consumer)

    def _end_stall(self, consumer: Consumer) -> None:
        """Tell a loop that it waits for no slot: one has come back, or no batch is left."""
        assert consumer.cursor is not None
        if consumer.socket.send(messages.Stalled(consumer.cursor.serial, "")):
            consumer.told_stalled = False
            if consumer.state is State.STALLED:
                consumer.become(State.WAITING)

    def _stall(self, consumer: Consumer) -> None:
        """Tell a loop, unless it knows, that it waits for a slot, and who holds them."""
        assert consumer.cursor is not None
        text = f"of {len(self._ring.slots)} slots {self._holders(consumer) or 'none is free'}"
        if consumer.state is not State.STALLED and consumer.socket.send(messages.Stalled(consumer.cursor.serial, text)):
            consumer.become(State.STALLED)
            consumer.told_stalled = True

    def _is_stalled(self, consumer: Consumer, ready: Slot | None, reserve: Reserve) -> bool:
        """Return whether a consumer waits for leases to end, others' or its own, and not for a reader."""
        assert consumer.cursor is not None
        if ready is None:
            # A slot that is being filled with another batch is free for this one after that.
            coming = not self._memory.starved and (self._memory.may_grow() or self._ring.count(Content.FILLING))
            if coming or self._has_slot_for(consumer.cursor, reserve):
                return False
        return not self._memory.help_stalled()

    def _is_slot_coming(self, consumer: Consumer, ready: Slot | None, reserve: Reserve) -> bool:
        """Return whether a reader, or the patience with a slower loop, is all that a consumer waits for now."""
        assert consumer.cursor is not None
        if self._ring.count(Content.FILLING):
            return True
        return ready is None and self._has_slot_for(consumer.cursor, reserve)

    def _has_slot_for(self, cursor: Cursor, reserve: Reserve) -> bool:
        """Return whether a slot is free that does not stay for others, however long it lies there."""
        return bool(self._ring.reusable_slots()) and can_spare(self._ring, cursor, reserve)

    def _holders(self, consumer: Consumer) -> str:
        holders = [
            f"{'this loader' if other is consumer else f'the loader of pid {other.pid}'} holds {held}"
            for other in self._consumers.values()
            if (held := self._ring.held_by(other.number))
        ]
        left = sum(slot.content is Content.FREE and bool(slot.writers) for slot in self._ring.slots.values())
        return ", ".join([*holders, *([f"readers that do not end keep {left}"] if left else [])])
