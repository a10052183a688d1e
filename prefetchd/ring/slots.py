"""The ring: slots, the batch in each, and the leases on them. The daemon's own record; no other process has one.

    FREE --start_fill--> FILLING --finish_fill--> READY --start_fill (another batch)--> FILLING
      ^                     |
      +------abandon--------+   a batch that cannot be made

The ring is a window over the sequence of batches, keyed by (data set, epoch, batch). A slot with any content may be
filled again only if no consumer holds it (`leases`) and no reader may still write into it (`writers`). A writer leaves
only by its acknowledgement or its observed exit. Pure: no clock, no socket, no map.
"""

from __future__ import annotations

import enum
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefetchd.ring.segment import Segment

Key = tuple[int, int, int]  # (data set, epoch, batch)


class Content(enum.Enum):
    """What a slot holds."""

    FREE = "free"
    FILLING = "filling"
    READY = "ready"


@dataclass(slots=True, eq=False)
class Slot:
    """One batch buffer.

    Attributes:
        number: the slot's name on the wire.
        segment: its memory, owned.
        content: what it holds.
        key: the batch it holds or is being filled with.
        rows: samples in a READY batch.
        layout: the number of the batch's layout, where its data set has several.
        leases: leases on it, each with the number of its consumer.
        writers: readers that may still write into it, each with the number of its tasks there.
    """

    number: int
    segment: Segment
    content: Content = Content.FREE
    key: Key | None = None
    rows: int = 0
    layout: int = 0
    leases: dict[int, int] = field(default_factory=dict)
    writers: dict[int, int] = field(default_factory=dict)

    @property
    def reusable(self) -> bool:
        """Whether a new batch may replace what the slot holds now."""
        return self.content is not Content.FILLING and not self.leases and not self.writers


class Ring:
    """All slots, and where each batch is.

    Attributes:
        slots: by number.
        leased_slots: how many have a holder.
        n_returned: how often the last lease on a slot has ended.
        n_changes: counts every change that can alter what is filled next.
    """

    def __init__(self) -> None:
        self.slots: dict[int, Slot] = {}
        self._by_key: dict[Key, Slot] = {}
        self._lease_slots: dict[int, Slot] = {}
        self._held: dict[int, dict[int, int]] = {}  # by consumer: how many leases it has on each slot
        self.leased_slots = self.n_returned = self.n_changes = 0
        self._next_lease = 1
        self._next_number = 1

    # --- slots

    def add(self, segment: Segment) -> Slot:
        """Add a segment as a FREE slot."""
        slot = Slot(self._next_number, segment)
        self._next_number += 1
        self.slots[slot.number] = slot
        self.n_changes += 1
        return slot

    def remove(self, slot: Slot) -> None:
        """Give a reusable slot's segment back to the machine."""
        assert slot.reusable
        self._forget_key(slot)
        del self.slots[slot.number]
        self.n_changes += 1
        slot.segment.discard()

    def close(self) -> None:
        """Close every segment, at the daemon's end; maps of consumers live on."""
        for slot in self.slots.values():
            slot.segment.close()
        self.slots.clear()

    def find(self, key: Key) -> Slot | None:
        """Return the slot that holds the batch, or is being filled with it."""
        return self._by_key.get(key)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Return those of the batches that no slot holds, or is being filled with."""
        held = self._by_key
        return [key for key in keys if key not in held]

    def reusable_slots(self) -> list[Slot]:
        """Return the slots that are `Slot.reusable`."""
        filling = Content.FILLING
        return [
            slot for slot in self.slots.values() if slot.content is not filling and not slot.leases and not slot.writers
        ]

    def reusable_without(self, keys: Container[Key]) -> list[Slot]:
        """Return the reusable slots that hold none of the batches `keys`, empty ones first."""
        empty = []
        if len(self._by_key) < len(self.slots):
            empty = [slot for slot in self.slots.values() if slot.key is None and slot.reusable]
        return empty + [slot for key, slot in self._by_key.items() if key not in keys and slot.reusable]

    def count(self, content: Content) -> int:
        """Return how many slots are in that state."""
        return sum(slot.content is content for slot in self.slots.values())

    # --- content

    def start_fill(self, slot: Slot, key: Key, layout: int = 0) -> None:
        """Drop what a reusable slot holds and begin to fill it with the batch `key`, as this layout lies."""
        assert slot.reusable, slot
        assert key not in self._by_key, key
        self._forget_key(slot)
        slot.content, slot.key, slot.rows, slot.layout = Content.FILLING, key, 0, layout
        self._by_key[key] = slot
        self.n_changes += 1

    def finish_fill(self, slot: Slot, rows: int) -> None:
        """Make a filled slot READY, with `rows` samples."""
        assert slot.content is Content.FILLING
        assert not slot.writers
        slot.content, slot.rows = Content.READY, rows
        self.n_changes += 1

    def abandon(self, slot: Slot) -> None:
        """Drop a batch that cannot be made; the slot is reusable when its last writer has left."""
        assert slot.content is Content.FILLING
        self._forget_key(slot)
        slot.content = Content.FREE
        self.n_changes += 1

    def _forget_key(self, slot: Slot) -> None:
        if slot.key is not None:
            del self._by_key[slot.key]
        slot.key, slot.content = None, Content.FREE

    # --- writers

    def add_writer(self, slot: Slot, reader: int) -> None:
        """Count one more task of `reader` that writes here."""
        slot.writers[reader] = slot.writers.get(reader, 0) + 1

    def drop_writer(self, slot: Slot, reader: int) -> None:
        """Count one task of `reader` less: it has acknowledged it."""
        slot.writers[reader] -= 1
        if not slot.writers[reader]:
            del slot.writers[reader]
            self.n_changes += slot.content is not Content.FILLING

    def reader_exited(self, reader: int) -> None:
        """Drop `reader` from every slot: its exit was observed, so it writes nowhere."""
        for slot in self.slots.values():
            slot.writers.pop(reader, None)
        self.n_changes += 1

    # --- leases

    def grant(self, slot: Slot, consumer: int) -> int:
        """Lease a READY slot to a consumer; return the lease's number, used once only."""
        assert slot.content is Content.READY
        lease = self._next_lease
        self._next_lease += 1
        self.leased_slots += not slot.leases
        slot.leases[lease] = consumer
        held = self._held.setdefault(consumer, {})
        held[slot.number] = held.get(slot.number, 0) + 1
        self._lease_slots[lease] = slot
        self.n_changes += 1
        return lease

    def release(self, lease: int, consumer: int) -> bool:
        """End a lease; `False` if there is no such lease of this consumer (a stale or foreign message)."""
        slot = self._lease_slots.get(lease)
        if slot is None or slot.leases.get(lease) != consumer:
            return False
        del slot.leases[lease], self._lease_slots[lease]
        self.n_changes += 1
        if not slot.leases:
            self.leased_slots -= 1
            self.n_returned += 1
        held = self._held[consumer]
        held[slot.number] -= 1
        if not held[slot.number]:
            del held[slot.number]
            if not held:
                del self._held[consumer]
        return True

    def release_all(self, consumer: int) -> int:
        """End every lease of a consumer that is gone; return how many there were."""
        slots = [self.slots[number] for number in self._held.get(consumer, ())]
        gone = [lease for slot in slots for lease, holder in slot.leases.items() if holder == consumer]
        for lease in gone:
            self.release(lease, consumer)
        return len(gone)

    def rows_in(self, leases: Iterable[int]) -> int:
        """Return how many samples the batches of `leases` have, without leases that have ended."""
        return sum(self._lease_slots[lease].rows for lease in leases if lease in self._lease_slots)

    def held_by(self, consumer: int) -> int:
        """Return how many slots a consumer holds."""
        return len(self._held.get(consumer, ()))
