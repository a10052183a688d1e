"""Granting: which of a consumer's next batches it is given now, and what it is told while it has to wait.

    ready_for, may_grant (scheduler) -> lease (ring) -> outbox, Mail | Failed | Stalled -> consumer

The front desk calls `grant` for every consumer after each round of events. Borrows all that it works with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prefetchd import messages
from prefetchd.consumers import Consumer
from prefetchd.foreman import Foreman
from prefetchd.guard import Guard
from prefetchd.histogram import Histogram
from prefetchd.mailbox import MAX_GRANTS_AHEAD
from prefetchd.scheduler import Cursor, may_grant, ready_for
from prefetchd.slots import Key, Ring, Slot

_SLOTS_PER_GRANT = 8


class Granter:
    """Gives leases on ready batches to the consumers whose turn it is."""

    def __init__(self, ring: Ring, foreman: Foreman, guard: Guard, consumers: Mapping[int, Consumer]) -> None:
        self._ring = ring
        self._foreman = foreman
        self._guard = guard
        self._consumers = consumers
        self.delivered = 0
        self.wait_seconds = Histogram()

    def grant(self, consumer: Consumer, cursors: Sequence[Cursor]) -> None:
        """Grant the consumer its next batches as far as they are ready and can be spared; else say why it waits.

        `cursors` are all that there are: what they are guaranteed is kept for them.
        """
        if consumer.blocked:
            return  # it does not read: the desk hears when it does
        cursor = consumer.cursor
        outbox = consumer.outbox
        if cursor is None or outbox is None:
            return
        while cursor.open and not cursor.at_end and len(consumer.untaken) < self._grants_ahead:
            key = next(cursor.upcoming(1), None)
            if key is None:
                break
            slot = ready_for(self._ring, cursor)
            if slot is None or not may_grant(self._ring, cursor, cursors, slot) or not consumer.open_slot(slot):
                self._explain_wait(consumer, cursor, key, slot)
                break
            lease = self._ring.grant(slot, consumer.number)
            batch, repeated = cursor.shard.batch(cursor.step, cursor.start)
            outbox.put(lease, slot.number, cursor.epoch, batch, slot.rows, repeated=repeated, told=consumer.told)
            consumer.untaken.append(lease)
            consumer.batches += 1
            consumer.samples += slot.rows
            self.delivered += 1
            cursor.advance()
            if cursor.waiting:
                consumer.stalled = False
                consumer.set_waiting(False)
                self.wait_seconds.observe(time.monotonic() - consumer.wanted_s)
                consumer.send_sooner_or_later(messages.Mail(cursor.serial))

    @property
    def _grants_ahead(self) -> int:
        """One; more in a ring of many slots: its batches are cheap, and a message for each would cost as much."""
        return max(1, min(MAX_GRANTS_AHEAD, len(self._ring.slots) // _SLOTS_PER_GRANT))

    def _explain_wait(self, consumer: Consumer, cursor: Cursor, key: Key, slot: Slot | None) -> None:
        """Tell a waiting consumer that its batch cannot be made, or that no slot can be spared for it."""
        failure = self._foreman.failed.get(key)
        if failure is None or slot is not None:
            self._explain_stall(consumer, cursor, key, slot)
        elif cursor.waiting and consumer.send(messages.Failed(cursor.serial, failure.error, failure.text)):
            consumer.set_waiting(False)
            cursor.open = False

    def _explain_stall(self, consumer: Consumer, cursor: Cursor, key: Key, ready: Slot | None) -> None:
        """Tell a waiting consumer if it waits for others' (or its own) leases, not for a reader."""
        if not cursor.waiting or consumer.stalled:
            return
        if ready is None:
            coming = not self._guard.starved and (self._ring.find(key) is not None or self._guard.may_grow())
            if coming or any(slot.reusable for slot in self._ring.slots.values()):
                return
        holders = []
        for other in self._consumers.values():
            held = self._ring.held_by(other.number)
            if held:
                who = "this loader" if other is consumer else f"the loader of pid {other.pid}"
                holders.append(f"{who} holds {held}")
        text = f"of {len(self._ring.slots)} slots " + (", ".join(holders) or "none is free")
        consumer.stalled = consumer.send(messages.Stalled(cursor.serial, text))
