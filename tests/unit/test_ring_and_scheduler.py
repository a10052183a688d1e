"""Ring, scheduler and granting rules together, under any sequence of events: readers and loops that come, go and die.

Hypothesis chooses what happens next; the model is what each loop has been promised. Only public functions are used.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import Reserve, may_grant, next_fills, ready_for, slots_promised
from prefetchd.ring.slots import Content, Key, Ring, Slot
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import FakeSegment

N_READERS = 3
MAX_LOOPS = 4


@dataclass
class Loop:
    """A consumer's loop: all that it must see, once and in order from where it began, and the leases that it holds."""

    cursor: Cursor
    expected: Iterator[Key]
    leases: list[tuple[int, Slot, Key]] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """The daemon's decisions, without its processes."""

    @initialize(n_slots=st.integers(5, 12), n_batches=st.integers(1, 9))
    def begin(self, n_slots: int, n_batches: int) -> None:
        self.ring = Ring()
        for _ in range(n_slots):
            self.ring.add(FakeSegment())  # type: ignore[arg-type]
        self.n_batches = n_batches
        self.loops: dict[int, Loop] = {}
        self.numbers = itertools.count(1)
        self.jobs: dict[int, tuple[Slot, Key]] = {}  # by reader; one task each
        self.stuck: dict[int, Slot] = {}  # killed readers that have not ended
        self.old_leases: list[tuple[int, int]] = []

    @property
    def cursors(self) -> list[Cursor]:
        return [loop.cursor for loop in self.loops.values()]

    # --- loops

    @precondition(lambda self: len(self.loops) < MAX_LOOPS)
    @rule(
        world=st.integers(1, 3),
        rank=st.integers(0, 2),
        dataset=st.integers(0, 2),
        epoch=st.integers(0, 2),
        batch=st.integers(0, 8),
        patience_s=st.sampled_from([0.0, 10.0]),
        rests=st.booleans(),
    )
    def attach(
        self, world: int, rank: int, dataset: int, epoch: int, batch: int, patience_s: float, rests: bool
    ) -> None:
        number = next(self.numbers)
        shard = Shard(self.n_batches, rank % world, world)
        start = batch if batch < self.n_batches and shard.steps(batch) else 0
        cursor = Cursor(number, 1, dataset, shard, epoch, start, patience_s=patience_s, open=not rests)
        if slots_promised(len(self.ring.slots), [*self.cursors, cursor]) <= len(self.ring.slots):
            self.loops[number] = Loop(cursor, dataclasses.replace(cursor).upcoming(10**6))

    @property
    def open_loops(self) -> list[Loop]:
        return [loop for loop in self.loops.values() if loop.cursor.open]

    @precondition(lambda self: self.loops)
    @rule(data=st.data())
    def rest_or_begin(self, data: st.DataObject) -> None:
        """A loop ends, and its next one begins where the cursor is."""
        cursor = data.draw(st.sampled_from(list(self.loops.values()))).cursor
        cursor.open, cursor.waiting = not cursor.open, False

    @precondition(lambda self: self.open_loops)
    @rule(data=st.data(), ahead=st.booleans())
    def take(self, data: st.DataObject, ahead: bool) -> None:
        """The daemon grants a loop its next batch, ahead of the asking or since it waits, if the rules let it."""
        loop = data.draw(st.sampled_from(self.open_loops))
        cursor = loop.cursor
        cursor.waiting = cursor.waiting or not ahead
        slot = ready_for(self.ring, cursor)
        if slot is None or not may_grant(self.ring, cursor, Reserve(self.ring, self.cursors), slot):
            return
        key = next(cursor.upcoming(1))
        assert slot.content is Content.READY
        assert slot.key == key == next(loop.expected)
        loop.leases.append((self.ring.grant(slot, cursor.consumer), slot, key))
        cursor.advance()
        cursor.waiting = False

    @precondition(lambda self: any(loop.leases for loop in self.loops.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A loop drops a batch, any of those that it holds."""
        number = data.draw(st.sampled_from([number for number, loop in self.loops.items() if loop.leases]))
        leases = self.loops[number].leases
        lease, _, _ = leases.pop(data.draw(st.integers(0, len(leases) - 1)))
        assert self.ring.release(lease, number)
        self.old_leases.append((lease, number))

    @precondition(lambda self: self.old_leases)
    @rule(data=st.data(), more=st.integers(0, 3))
    def release_again(self, data: st.DataObject, more: int) -> None:
        lease, number = data.draw(st.sampled_from(self.old_leases))
        assert not self.ring.release(lease, number)
        assert not self.ring.release(lease, number + more)

    @precondition(lambda self: self.loops)
    @rule(data=st.data())
    def consumer_dies(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(list(self.loops)))
        loop = self.loops.pop(number)
        assert self.ring.release_all(number) == len(loop.leases)
        self.old_leases += [(lease, number) for lease, _, _ in loop.leases]
        assert self.ring.held_by(number) == 0

    # --- readers

    @rule(limit=st.integers(1, 3))
    def begin_fills(self, limit: int) -> None:
        idle = [reader for reader in range(N_READERS) if reader not in self.jobs and reader not in self.stuck]
        cursors = self.cursors or [Cursor(0, 0, 0, Shard(self.n_batches), open=False)]
        plans = next_fills(self.ring, cursors, limit=min(limit, len(idle)) or 1) if idle else []
        for reader, plan in zip(idle, plans, strict=False):
            assert plan.slot.reusable
            assert not plan.slot.leases
            assert plan.slot not in self.stuck.values()
            assert self.ring.find(plan.key) is None  # nothing is made twice at once
            self.ring.start_fill(plan.slot, plan.key)
            self.ring.add_writer(plan.slot, reader)
            self.jobs[reader] = plan.slot, plan.key

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def reader_finishes(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(list(self.jobs)))
        slot, _ = self.jobs.pop(reader)
        self.ring.drop_writer(slot, reader)
        self.ring.finish_fill(slot, 1)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def reader_dies(self, data: st.DataObject) -> None:
        """Another does its task again, in the same slot."""
        reader = data.draw(st.sampled_from(list(self.jobs)))
        slot, key = self.jobs[reader]
        self.ring.reader_exited(reader)
        assert not slot.writers
        self.ring.add_writer(slot, reader)
        assert self.ring.find(key) is slot

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def reader_hangs_in_the_kernel(self, data: st.DataObject) -> None:
        """Its batch fails; it may write into the slot still."""
        reader = data.draw(st.sampled_from(list(self.jobs)))
        slot, key = self.jobs.pop(reader)
        self.ring.abandon(slot)
        self.stuck[reader] = slot
        assert self.ring.find(key) is None

    @precondition(lambda self: self.stuck)
    @rule(data=st.data())
    def stuck_reader_ends(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(list(self.stuck)))
        slot = self.stuck.pop(reader)
        assert not slot.reusable
        self.ring.reader_exited(reader)
        assert slot.reusable

    # --- what always holds

    @invariant()
    def no_slot_is_both_held_and_filled(self) -> None:
        for slot in self.ring.slots.values():
            assert not (slot.leases and slot.content is not Content.READY)
            assert not (slot.leases and slot.writers)
            assert slot.reusable == (slot.content is not Content.FILLING and not slot.leases and not slot.writers)

    @invariant()
    def what_is_held_is_what_was_granted(self) -> None:
        for loop in self.loops.values():
            for lease, slot, key in loop.leases:
                assert slot.key == key
                assert slot.leases[lease] == loop.cursor.consumer

    @invariant()
    def quarantine_lasts_until_the_reader_ends(self) -> None:
        for slot in self.stuck.values():
            assert not slot.reusable
            assert slot.key is None

    def teardown(self) -> None:
        """Whatever has happened, those who are left get on: nobody starves."""
        if not hasattr(self, "ring"):
            return
        for reader in list(self.stuck):
            self.ring.reader_exited(reader)
        for reader, (slot, _) in self.jobs.items():
            self.ring.drop_writer(slot, reader)
            self.ring.finish_fill(slot, 1)
        for number, loop in self.loops.items():
            for lease, _, _ in loop.leases:
                self.ring.release(lease, number)
            loop.cursor.waiting = loop.cursor.open
        for loop in self.open_loops:
            loop.cursor.patience_left_s = 0.0  # nobody waits for it any more
        for loop in self.open_loops:
            for _ in range(len(self.ring.slots) * len(self.loops) + 1):
                slot = ready_for(self.ring, loop.cursor)
                if slot is not None:
                    assert may_grant(self.ring, loop.cursor, Reserve(self.ring, self.cursors), slot)
                    break
                for plan in next_fills(self.ring, self.cursors, limit=1):
                    self.ring.start_fill(plan.slot, plan.key)
                    self.ring.finish_fill(plan.slot, 1)
            assert ready_for(self.ring, loop.cursor) is not None


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestMachine = Machine.TestCase
