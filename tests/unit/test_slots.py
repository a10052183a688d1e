"""The ring's bookkeeping: a slot is reused only when nobody holds it and nobody may still write into it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from prefetchd.ring.slots import Content, Key, Ring


class FakeSegment:
    n_bytes = 4096
    discarded = False

    def discard(self) -> None:
        assert not self.discarded
        self.discarded = True


def ring_of(n_slots: int) -> Ring:
    ring = Ring()
    for _ in range(n_slots):
        ring.add(FakeSegment())  # type: ignore[arg-type]
    return ring


def ready(ring: Ring, number: int, key: Key):
    slot = ring.slots[number]
    ring.start_fill(slot, key)
    ring.finish_fill(slot, rows=3)
    return slot


def test_slot_goes_from_free_over_filling_to_ready_and_is_found_by_its_batch():
    ring = ring_of(2)
    slot = ring.slots[1]
    assert slot.content is Content.FREE
    ring.start_fill(slot, (0, 0, 5))
    assert slot.content is Content.FILLING
    assert ring.find((0, 0, 5)) is slot
    assert not slot.reusable
    ring.finish_fill(slot, 3)
    assert (slot.content, slot.rows) == (Content.READY, 3)
    assert slot.reusable
    assert (ring.count(Content.FREE), ring.count(Content.READY)) == (1, 1)


def test_new_batch_in_a_ready_slot_forgets_the_old_one():
    ring = ring_of(1)
    slot = ready(ring, 1, (0, 0, 0))
    ring.start_fill(slot, (0, 0, 1))
    assert ring.find((0, 0, 0)) is None
    assert ring.find((0, 0, 1)) is slot


def test_leased_slot_is_not_reused_until_its_last_lease_ends():
    ring = ring_of(1)
    slot = ready(ring, 1, (0, 0, 0))
    one, other = ring.grant(slot, consumer=7), ring.grant(slot, consumer=8)
    assert one != other
    assert ring.leased_slots == 1
    assert ring.release(one, 7)
    assert not slot.reusable
    assert ring.release(other, 8)
    assert slot.reusable


def test_stale_doubled_and_foreign_releases_end_nothing():
    ring = ring_of(1)
    slot = ready(ring, 1, (0, 0, 0))
    old = ring.grant(slot, consumer=7)
    assert ring.release(old, 7)
    new = ring.grant(slot, consumer=7)
    assert not ring.release(old, 7)
    assert not ring.release(new, 8)
    assert not ring.release(999, 7)
    assert ring.held_by(7) == 1


def test_all_leases_of_a_consumer_that_is_gone_end_and_no_other():
    ring = ring_of(3)
    slots = [ready(ring, number, (0, 0, number)) for number in (1, 2, 3)]
    for slot in slots:
        ring.grant(slot, consumer=1)
    ring.grant(slots[0], consumer=1)
    ring.grant(slots[1], consumer=2)
    assert ring.release_all(1) == 4
    assert [slot.reusable for slot in slots] == [True, False, True]
    assert ring.held_by(2) == 1


def test_abandoned_slot_is_quarantined_until_its_writer_has_left():
    ring = ring_of(1)
    slot = ring.slots[1]
    ring.start_fill(slot, (0, 0, 0))
    ring.add_writer(slot, reader=4)
    ring.add_writer(slot, reader=4)
    ring.add_writer(slot, reader=5)
    ring.abandon(slot)
    assert ring.find((0, 0, 0)) is None
    assert not slot.reusable
    ring.drop_writer(slot, 4)
    ring.reader_exited(5)
    assert not slot.reusable
    ring.drop_writer(slot, 4)
    assert slot.reusable


def test_batch_is_not_ready_while_somebody_writes_into_it():
    ring = ring_of(1)
    ring.start_fill(ring.slots[1], (0, 0, 0))
    ring.add_writer(ring.slots[1], reader=4)
    with pytest.raises(AssertionError):
        ring.finish_fill(ring.slots[1], 3)


def test_removed_slot_gives_its_memory_back_and_its_number_is_never_used_again():
    ring = ring_of(2)
    slot = ready(ring, 2, (0, 0, 0))
    ring.remove(slot)
    assert slot.segment.discarded  # type: ignore[attr-defined]
    assert ring.find((0, 0, 0)) is None
    assert ring.add(FakeSegment()).number == 3  # type: ignore[arg-type]


class RingMachine(RuleBasedStateMachine):
    """Any sequence of events keeps the ring's promises; the model is what each lease was granted on."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = ring_of(4)
        self.leases: dict[int, tuple[int, object, object]] = {}  # lease -> consumer, slot, key
        self.next_batch = 0

    def pick(self, data, slots):
        return data.draw(st.sampled_from(slots)) if slots else None

    @rule(data=st.data())
    def start(self, data):
        slot = self.pick(data, [slot for slot in self.ring.slots.values() if slot.reusable])
        if slot is not None:
            self.ring.start_fill(slot, (0, 0, self.next_batch))
            self.next_batch += 1

    @rule(data=st.data(), reader=st.integers(1, 2))
    def write(self, data, reader):
        slot = self.pick(data, [s for s in self.ring.slots.values() if s.content is Content.FILLING])
        if slot is not None:
            self.ring.add_writer(slot, reader)

    @rule(data=st.data())
    def acknowledge(self, data):
        slot = self.pick(data, [slot for slot in self.ring.slots.values() if slot.writers])
        if slot is not None:
            self.ring.drop_writer(slot, next(iter(slot.writers)))

    @rule(reader=st.integers(1, 2))
    def reader_dies(self, reader):
        self.ring.reader_exited(reader)

    @rule(data=st.data(), good=st.booleans())
    def end_fill(self, data, good):
        filling = [s for s in self.ring.slots.values() if s.content is Content.FILLING and not (good and s.writers)]
        slot = self.pick(data, filling)
        if slot is not None:
            if good:
                self.ring.finish_fill(slot, 1)
            else:
                self.ring.abandon(slot)

    @rule(data=st.data(), consumer=st.integers(1, 3))
    def grant(self, data, consumer):
        slot = self.pick(data, [slot for slot in self.ring.slots.values() if slot.content is Content.READY])
        if slot is not None:
            self.leases[self.ring.grant(slot, consumer)] = consumer, slot, slot.key

    @rule(lease=st.integers(1, 30), consumer=st.integers(1, 3))
    def release(self, lease, consumer):
        expected = lease in self.leases and self.leases[lease][0] == consumer
        assert self.ring.release(lease, consumer) is expected
        if expected:
            del self.leases[lease]

    @rule(consumer=st.integers(1, 3))
    def consumer_dies(self, consumer):
        gone = [lease for lease, (holder, _, _) in self.leases.items() if holder == consumer]
        assert self.ring.release_all(consumer) == len(gone)
        for lease in gone:
            del self.leases[lease]

    @invariant()
    def held_slots_keep_their_batch(self):
        for _, slot, key in self.leases.values():
            assert slot.key == key
            assert slot.content is Content.READY
            assert not slot.reusable

    @invariant()
    def books_agree(self):
        ring = self.ring
        assert ring.leased_slots == len({slot.number for _, slot, _ in self.leases.values()})
        for consumer in (1, 2, 3):
            assert ring.held_by(consumer) == len({s.number for c, s, _ in self.leases.values() if c == consumer})
        for slot in ring.slots.values():
            assert (slot.key is None) == (slot.content is Content.FREE)
            assert slot.key is None or ring.find(slot.key) is slot


RingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestRingMachine = RingMachine.TestCase
