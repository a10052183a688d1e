"""Granting: which of a consumer's next batches it is given now, and what it is told while it has to wait.

    ready_for, may_grant (scheduler) -> lease (ring) -> Grants | Failed | Stalled -> consumer

The front desk calls `grant` for every consumer after each round of events. Borrows all that it works with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from prefetchd import messages
from prefetchd.consumers import Consumer
from prefetchd.cursor import Cursor
from prefetchd.foreman import Foreman
from prefetchd.guard import Guard
from prefetchd.scheduler import Reserve, may_grant, ready_for
from prefetchd.slots import Key, Ring, Slot

_MAX_GRANTS_AHEAD = 16
_SLOTS_PER_GRANT = 8


class Granter:
    """Gives leases on ready batches to the consumers whose turn it is."""

    def __init__(self, ring: Ring, foreman: Foreman, guard: Guard, consumers: Mapping[int, Consumer]) -> None:
        self._ring = ring
        self._foreman = foreman
        self._guard = guard
        self._consumers = consumers

    def grant(self, consumer: Consumer, reserve: Reserve) -> None:
        """Grant the consumer its next batches as far as they are ready and can be spared; else say why it waits.

        `reserve` is what other loops are guaranteed, and is kept for them.
        """
        cursor = consumer.cursor
        if cursor is None or not cursor.open:
            return
        before: Cursor | None = None
        granted: list[messages.Granted] = []
        while len(consumer.untaken) < self._grants_ahead:
            slot = ready_for(self._ring, cursor)
            if slot is None or not may_grant(self._ring, cursor, reserve, slot) or not consumer.open_slot(slot):
                if cursor.waiting:
                    self._explain_own_wait(consumer, cursor, slot)
                break
            before = before or dataclasses.replace(cursor)
            lease = self._ring.grant(slot, consumer.number)
            reserve.granted(cursor)
            epoch, batch, repeated = cursor.advance()
            granted.append(messages.Granted(lease, slot.number, epoch, batch, slot.rows, repeated))
            consumer.untaken.append(lease)
            if cursor.waiting:
                cursor.waiting = consumer.stalled = False
        if not granted:
            return
        if consumer.send(messages.Grants(cursor.serial, granted)):
            consumer.batches += len(granted)
            return
        consumer.cursor = before  # it is gone, or does not read: its process ending, or its next message, will tell
        for grant in granted:
            consumer.untaken.remove(grant.lease)
            self._ring.release(grant.lease, consumer.number)

    @property
    def _grants_ahead(self) -> int:
        """One; more in a ring of many slots: its batches are cheap, and a message for each would cost as much."""
        return max(1, min(_MAX_GRANTS_AHEAD, len(self._ring.slots) // _SLOTS_PER_GRANT))

    def _explain_own_wait(self, consumer: Consumer, cursor: Cursor, slot: Slot | None) -> None:
        key = None if cursor.at_end else cursor.next_key
        if self.explain_wait(consumer, cursor.serial, key, slot):
            cursor.open = False

    def explain_wait(self, consumer: Consumer, serial: int, key: Key | None, slot: Slot | None) -> bool:
        """Tell a waiting consumer that its batch `key` cannot be made, or that no slot can be spared for it.

        Returns whether it cannot be made.
        """
        failure = self._foreman.failed.get(key) if key is not None and slot is None else None
        if failure is not None:
            consumer.send(messages.Failed(serial, failure.error, failure.text))
        elif key is not None:
            self._explain_stall(consumer, serial, key, slot)
        return failure is not None

    def _explain_stall(self, consumer: Consumer, serial: int, key: Key, ready: Slot | None) -> None:
        """Tell a waiting consumer if it waits for others' (or its own) leases, not for a reader."""
        if consumer.stalled:
            return
        if ready is None:
            coming = not self._guard.starved and (self._ring.find(key) is not None or self._guard.may_grow())
            if coming or any(slot.reusable for slot in self._ring.slots.values()):
                return
        consumer.stalled = True
        holders = []
        for other in self._consumers.values():
            held = self._ring.held_by(other.number)
            if held:
                who = "this loader" if other is consumer else f"the loader of pid {other.pid}"
                holders.append(f"{who} holds {held}")
        text = f"of {len(self._ring.slots)} slots " + (", ".join(holders) or "none is free")
        consumer.send(messages.Stalled(serial, text))
