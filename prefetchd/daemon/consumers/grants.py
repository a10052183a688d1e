"""Granting: which of a consumer's next batches it is given now, and what it is told while it has to wait.

    ready_for, may_grant (scheduler) -> lease (ring) -> outbox, Mail | Failed | Stalled -> consumer

The front desk calls `grant` for every consumer after each round of events. Borrows all that it works with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.reader_handle import Histogram
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Reserve, can_spare, may_grant, ready_for
from prefetchd.ipc import messages
from prefetchd.ring.queues import MAX_GRANTS_AHEAD
from prefetchd.ring.slots import Content, Key, Ring, Slot

_MANY_SLOTS = 16
_SLOTS_PER_GRANT = 2
_MAX_BYTES_AHEAD = 4 << 20  # what a loop that stands still keeps from the others, and from a budget that was lowered


class Granter:
    """Gives leases on ready batches to the consumers whose turn it is."""

    def __init__(
        self, ring: Ring, builder: BatchBuilder, memory: MemoryManager, consumers: Mapping[int, Consumer]
    ) -> None:
        self._ring = ring
        self._builder = builder
        self._memory = memory
        self._consumers = consumers
        self.delivered = 0
        self.wait_seconds = Histogram()

    def grant(self, consumer: Consumer, reserve: Reserve) -> None:
        """Grant the consumer its next batches as far as they are ready and can be spared; else say why it waits.

        `reserve` is what other loops are guaranteed, and is kept for them.
        """
        if consumer.blocked:
            return  # it does not read: the desk hears when it does
        cursor = consumer.cursor
        if cursor is None or not cursor.open:
            return
        grants_ahead = self._grants_ahead
        while len(consumer.untaken) < grants_ahead:
            slot = ready_for(self._ring, cursor)
            if slot is None or not may_grant(self._ring, cursor, reserve, slot) or not consumer.open_slot(slot):
                if cursor.waiting:
                    self._explain_own_wait(consumer, cursor, slot, reserve)
                break
            lease = self._ring.grant(slot, consumer.number)
            reserve.granted(cursor)
            waited = cursor.waiting
            if waited:
                consumer.set_waiting(False)
            self.hand_over(consumer, cursor.serial, slot, lease, cursor.advance(), waited=waited)

    def hand_over(
        self, consumer: Consumer, serial: int, slot: Slot, lease: int, place: tuple[int, int, bool], *, waited: bool
    ) -> None:
        """Leave a grant of `place` (epoch, batch, repeated) in the consumer's mailbox; tell it if it waits for one."""
        assert consumer.outbox is not None
        epoch, batch, repeated = place
        consumer.outbox.write(lease, slot.number, epoch, batch, slot.rows, repeated=repeated, n_sent=consumer.told)
        consumer.untaken.append(lease)
        consumer.batches += 1
        consumer.samples += slot.rows
        self.delivered += 1
        if waited:
            consumer.stalled = False
            self.wait_seconds.observe(time.monotonic() - consumer.wanted_s)
            consumer.send_sooner_or_later(messages.Mail(serial))

    @property
    def _grants_ahead(self) -> int:
        """One; more of small batches in a ring of many: they are cheap, and a message for each would cost as much."""
        n_slots = len(self._ring.slots)
        if n_slots < _MANY_SLOTS:
            return 1
        enough = _MAX_BYTES_AHEAD // self._memory.budget.plan.slot_bytes
        return max(1, min(MAX_GRANTS_AHEAD, n_slots // _SLOTS_PER_GRANT, enough))

    def _explain_own_wait(self, consumer: Consumer, cursor: Cursor, slot: Slot | None, reserve: Reserve) -> None:
        key = None if cursor.at_end else cursor.next_key
        if self.explain_wait(consumer, cursor, key, slot, reserve):
            consumer.set_waiting(False)
            cursor.open = False

    def explain_wait(
        self, consumer: Consumer, cursor: Cursor, key: Key | None, slot: Slot | None, reserve: Reserve
    ) -> bool:
        """Tell a waiting consumer that its batch `key` cannot be made, or that no slot can be spared for it.

        `cursor` is the consumer's standing with the ring. Returns whether it cannot be made, and was told so.
        """
        failure = self._builder.failed.get(key) if key is not None and slot is None else None
        if failure is not None:
            return consumer.send(messages.Failed(cursor.serial, failure.error, failure.text))
        if key is not None:
            self._explain_stall(consumer, cursor, slot, reserve)
        return False

    def _explain_stall(self, consumer: Consumer, cursor: Cursor, ready: Slot | None, reserve: Reserve) -> None:
        """Tell a waiting consumer if it waits for others' (or its own) leases, not for a reader."""
        if consumer.stalled:
            return
        if ready is None:
            # A slot that is being filled with another batch is free for this one when that is done.
            coming = not self._memory.starved and (self._memory.may_grow() or self._ring.count(Content.FILLING))
            # One that is kept for others is not to be had, however long it lies there.
            if coming or (self._ring.reusable_slots() and can_spare(self._ring, cursor, reserve)):
                return
        if self._memory.help_stalled():
            return
        holders = []
        for other in self._consumers.values():
            held = self._ring.held_by(other.number)
            if held:
                who = "this loader" if other is consumer else f"the loader of pid {other.pid}"
                holders.append(f"{who} holds {held}")
        text = f"of {len(self._ring.slots)} slots " + (", ".join(holders) or "none is free")
        consumer.stalled = consumer.send(messages.Stalled(cursor.serial, text))
