"""The memory manager: what it grants, refuses and takes back. Pool and readers are stand-ins, the ring is real."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from prefetchd.config.validate import make_config
from prefetchd.daemon.memory import manager as manager_module
from prefetchd.daemon.memory.limits import Footprint, Limit
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import (
    ALLOWANCE_BYTES,
    DAEMON_BYTES,
    MIB,
    MIN_SLOTS,
    READER_BYTES,
    Plan,
    make_plan,
)
from prefetchd.daemon.memory.pressure import Target
from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.sharding import Shard

SLOT_BYTES = MIB
PLENTY = Limit(1 << 40, "available memory")


@dataclass(eq=False)
class FakeReader:
    number: int
    pid: int
    needs_bytes: int = 0
    has_bytes: int = 0
    ready: bool = True
    retiring: bool = False
    stuck: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)

    denied: list[str] = field(default_factory=list)

    def retire(self) -> None:
        self.retiring = True

    def grant_memory(self, n_bytes: int, now_s: float) -> None:
        self.needs_bytes, self.has_bytes = 0, n_bytes

    def deny_memory(self, reason: str) -> None:
        self.needs_bytes = 0
        self.denied.append(reason)


class FakePool:
    remote = None

    def __init__(self, n_readers: int) -> None:
        self.readers = {number: FakeReader(number, 1000 + number) for number in range(n_readers)}
        self.n_readers = n_readers
        self.pids = [reader.pid for reader in self.readers.values()]
        self.closed: list[int] = []

    @property
    def denied(self) -> list[str]:
        return [text for reader in self.readers.values() for text in reader.denied]

    def resize(self, n_readers: int) -> None:
        """Those that are to go stay until the test lets them."""
        self.n_readers = n_readers
        for reader in list(self.readers.values())[n_readers:]:
            reader.retiring = True
        while len(self.readers) < n_readers:
            number = 1 + max(self.readers)
            self.readers[number] = FakeReader(number, 1000 + number)

    def remove_slot(self, slot: Slot) -> None:
        self.closed.append(slot.number)


@dataclass
class FakeDemand:
    """Consumers that need little, and remember which slots were removed."""

    removed: list[int]
    promised_slots: int = MIN_SLOTS
    comfortable_slots: int = MIN_SLOTS
    queue_bytes: int = 0

    def slot_removed(self, slot: Slot) -> None:
        self.removed.append(slot.number)


class Rig:
    """A memory manager with room for `n_slots` slots and no more, and every part that it touches."""

    def __init__(self, n_slots: int, n_readers: int = 2, *, plan: Plan | None = None) -> None:
        fixed = DAEMON_BYTES + n_readers * (READER_BYTES + ALLOWANCE_BYTES)
        self.plan = plan or make_plan(
            make_config(source="-", num_workers=n_readers, memory_budget=str(fixed + n_slots * SLOT_BYTES)),
            SLOT_BYTES,
            PLENTY,
        )
        self.ring, self.pool = Ring(), FakePool(n_readers)
        self.removed: list[int] = []
        self.limits = [PLENTY]
        self.memory = MemoryManager(
            self.plan,
            self.ring,
            self.pool,
            read_limits=lambda own_bytes: self.limits,
        )
        self.demand = FakeDemand(self.removed)
        self.memory.serve(self.demand)
        while self.memory.may_grow():
            self.memory.add_slot()

    def hold(self, slot: Slot) -> None:
        self.ring.start_fill(slot, (0, 0, slot.number))
        self.ring.finish_fill(slot, 1)
        self.ring.grant(slot, consumer=1)


@pytest.fixture
def rig():
    made: list[Rig] = []

    def make(n_slots: int, n_readers: int = 2, **options: Any) -> Rig:
        made.append(Rig(n_slots, n_readers, **options))
        return made[-1]

    yield make
    for one in made:
        one.ring.close()


def test_ring_grows_to_the_plan_and_no_further(rig):
    """Every slot is taken from the budget before it is made."""
    one = rig(6)
    assert len(one.ring.slots) == 6
    assert one.memory.budget.spare_bytes == 0


def test_large_decode_gets_its_memory_from_the_ring(rig):
    """Slots that nobody holds make room; the ring does not grow again between two large decodes."""
    one = rig(6)
    reader = one.pool.readers[0]
    reader.needs_bytes = 2 * SLOT_BYTES
    one.memory.serve_requests([])
    assert reader.has_bytes == 2 * SLOT_BYTES
    assert len(one.ring.slots) == 4
    assert len(one.removed) == 2
    reader.has_bytes = 0
    one.memory.serve_requests([])
    assert one.memory.budget.spare_bytes == 2 * SLOT_BYTES
    assert not one.memory.may_grow()


def test_loop_that_waits_gets_the_memory_that_is_kept_for_the_next_large_decode(rig):
    one = rig(6)
    reader = one.pool.readers[0]
    reader.needs_bytes = 2 * SLOT_BYTES
    one.memory.serve_requests([])
    reader.has_bytes = 0
    for slot in list(one.ring.slots.values()):
        one.hold(slot)
    one.memory.serve_requests([])
    assert not one.memory.may_grow()
    one.ring.n_returned += 1  # a loop goes on
    assert one.memory.help_stalled()
    assert one.memory.may_grow()
    reader.needs_bytes = 2 * SLOT_BYTES
    assert not one.memory.help_stalled()


def test_a_large_decode_takes_what_is_needed_last(rig):
    """The batch that a loop needs next stays, wherever it is."""
    one = rig(6)
    for number, slot in enumerate(one.ring.slots.values()):
        one.ring.start_fill(slot, (0, 0, number))
        one.ring.finish_fill(slot, 1)
    one.pool.readers[0].needs_bytes = 2 * SLOT_BYTES
    one.memory.serve_requests([Cursor(1, 1, 0, Shard(10))])
    assert [slot.key for slot in one.ring.slots.values()] == [(0, 0, number) for number in range(4)]


def test_large_decodes_take_turns(rig):
    """What does not fit beside another decode waits for it, and then has its turn."""
    one = rig(6)
    first, second = one.pool.readers.values()
    first.needs_bytes = second.needs_bytes = 2 * SLOT_BYTES
    one.memory.serve_requests([])
    assert (first.has_bytes, second.has_bytes) == (2 * SLOT_BYTES, 0)
    assert len(one.ring.slots) == MIN_SLOTS
    assert not one.memory.starved
    first.has_bytes = 0
    one.memory.serve_requests([])
    assert second.has_bytes == 2 * SLOT_BYTES


def test_held_slots_are_never_taken_and_the_wait_for_them_is_known(rig):
    """When only leases stand in the way, that is told, so that their holders can be named."""
    one = rig(6)
    for slot in one.ring.slots.values():
        one.hold(slot)
    one.pool.readers[0].needs_bytes = SLOT_BYTES
    one.memory.serve_requests([])
    assert len(one.ring.slots) == 6
    assert one.memory.starved


def test_decode_that_no_part_of_the_budget_can_hold_names_the_budget_that_would(rig):
    """It is refused at once, with a number that works; the reader names the sample."""
    one = rig(6)
    one.pool.readers[0].needs_bytes = 100 * MIB
    one.memory.serve_requests([])
    enough = one.plan.budget_bytes - 3 * SLOT_BYTES + 100 * MIB
    assert len(one.pool.denied) == 1
    assert f'memory_budget="{enough // MIB}MiB"' in one.pool.denied[0]
    assert f"prefetchd set memory-budget={enough // MIB}MiB" in one.pool.denied[0]
    assert len(one.ring.slots) == 6


def measured(monkeypatch: pytest.MonkeyPatch, one: Rig, process_bytes: dict[int, int]) -> None:
    monkeypatch.setattr(
        manager_module, "measure", lambda pids, ring_bytes, source_bytes, **_: Footprint(process_bytes, ring_bytes)
    )


def test_reader_that_outgrew_its_share_is_retired_first(rig, monkeypatch):
    """A leak costs its reader, not the ring."""
    one = rig(6)
    measured(monkeypatch, one, {1000: 10 * MIB, 1001: one.plan.budget_bytes})
    one.memory.verify([])
    assert [reader.retiring for reader in one.pool.readers.values()] == [False, True]
    assert len(one.ring.slots) == 6


def test_without_a_culprit_slots_go_down_to_the_least(rig, monkeypatch):
    """Over the budget, one slot goes at each look, never below what delivers batches."""
    one = rig(6)
    measured(monkeypatch, one, {1: one.plan.budget_bytes})
    for _ in range(10):
        one.memory.verify([])
    assert len(one.ring.slots) == MIN_SLOTS


def test_limit_of_the_control_group_that_was_lowered_counts(rig, monkeypatch):
    """What the kernel would kill for is as hard as the budget."""
    one = rig(6)
    measured(monkeypatch, one, {1000: MIB})
    monkeypatch.setattr(manager_module, "cgroup_limits", lambda: [Limit(2 * MIB, "cgroup")])
    one.memory.verify([])
    assert len(one.ring.slots) == 5


def test_within_the_budget_nothing_is_taken(rig, monkeypatch):
    """The check alone changes nothing."""
    one = rig(6)
    measured(monkeypatch, one, {1000: MIB})
    one.memory.verify([])
    assert len(one.ring.slots) == 6
    assert one.memory.max_footprint_bytes == MIB + 6 * SLOT_BYTES


def test_readers_that_were_added_make_room_for_a_large_decode(rig):
    """It was promised before there were more readers than asked for, so they are in the way, and it is not refused."""
    one = rig(40)
    one.memory.budget.adopt(one.plan.with_readers(3, MIN_SLOTS))
    one.memory.budget.n_readers = 3
    one.memory.follow(Target(one.memory.budget.plan.n_slots, 3), [])
    reader = one.pool.readers[0]
    reader.needs_bytes = need = one.memory.budget.largest_decode_bytes
    one.memory.serve_requests([])
    assert one.pool.denied == []
    assert one.memory.needs.fewer_readers
    one.memory.budget.adopt(one.memory.budget.plan.with_readers(2, MIN_SLOTS))
    one.memory.budget.n_readers = 2
    one.memory.serve_requests([])
    assert reader.has_bytes == need


def test_readers_that_were_added_make_room_for_a_loop_that_holds_many(rig):
    """The ring was larger before there were more readers than asked for: what was held then may be held now."""
    one = rig(40)
    one.memory.budget.adopt(one.plan.with_readers(3, MIN_SLOTS))
    one.memory.budget.n_readers = 3
    assert one.memory.help_stalled()
    assert one.memory.needs.fewer_readers
    one.memory.budget.n_readers = 2
    assert not one.memory.help_stalled(), "nothing was taken from the ring: the loop holds too many"


def test_slots_beyond_what_is_wanted_go_free_ones_first_and_held_ones_when_they_return(rig):
    one = rig(6)
    for slot in list(one.ring.slots.values())[:4]:
        one.hold(slot)
    one.memory.follow(Target(3, 2), [])
    assert set(one.removed) == {5, 6}
    one.ring.release_all(1)
    one.memory.follow(Target(3, 2), [])
    assert len(one.ring.slots) == 3
    assert not one.memory.may_grow()


# --- an automatic budget


@pytest.fixture
def auto(rig):
    """A manager with an automatic budget of 8 slots of 16 MiB, on a machine that can give 1 GiB."""
    machine = Limit(1 << 30, "available memory")
    plan = make_plan(make_config(source="-", num_workers=2), 16 * MIB, machine)
    one = rig(0, plan=plan)
    one.limits = [machine]
    return one


def test_auto_budget_grows_for_slots_up_to_its_ceiling_and_shrinks_again(auto):
    start = auto.plan
    assert auto.memory.budget.reserve_slots(14)
    assert auto.memory.budget.plan.n_slots == 14
    assert auto.memory.budget.plan.budget_bytes == start.budget_bytes + 6 * 16 * MIB
    assert not auto.memory.budget.reserve_slots(100)
    assert auto.memory.budget.plan.n_slots == 14, "what cannot be held changes nothing"
    assert "which may grow to 614 MiB (available memory)" in auto.memory.budget.too_few_slots(100)
    auto.memory.budget.fit_slots(3)
    assert auto.memory.budget.plan == start


def test_auto_budget_serves_loops_as_well_as_its_ceiling_allows(auto):
    auto.memory.budget.fit_slots(100)
    plan = auto.memory.budget.plan
    assert 14 < plan.n_slots < 100
    assert plan.ceiling_bytes - 16 * MIB < plan.budget_bytes <= plan.ceiling_bytes


def test_ceiling_follows_what_the_machine_can_spare(auto):
    auto.limits = [Limit(300 * MIB, "cgroup /x")]
    assert not auto.memory.budget.reserve_slots(14)
    assert auto.memory.budget.plan.budget_bytes == auto.plan.budget_bytes, "what was reserved stays"
    auto.limits = [Limit(2 << 30, "available memory")]
    assert auto.memory.budget.reserve_slots(40)


def test_auto_budget_grows_for_large_decodes_side_by_side_and_forgets_them(auto, monkeypatch):
    """The ring stays whole; half a minute later the budget is what it was."""
    measured(monkeypatch, auto, {1000: MIB})
    for reader in auto.pool.readers.values():
        reader.needs_bytes = 100 * MIB
    auto.memory.serve_requests([])
    assert [reader.has_bytes for reader in auto.pool.readers.values()] == 2 * [100 * MIB]
    assert len(auto.ring.slots) == 8
    assert auto.memory.is_grown
    for reader in auto.pool.readers.values():
        reader.has_bytes = 0
    auto.memory.serve_requests([])
    for _ in range(30):
        auto.memory.verify([])
    assert auto.memory.budget.plan.budget_bytes == auto.plan.budget_bytes
    assert not auto.memory.is_grown


def test_auto_budget_gives_slots_up_for_a_decode_near_its_ceiling_and_refuses_what_is_beyond(auto):
    reader = auto.pool.readers[0]
    reader.needs_bytes = need = auto.memory.budget.largest_decode_bytes
    auto.memory.serve_requests([])
    assert reader.has_bytes == need
    assert len(auto.ring.slots) == MIN_SLOTS
    assert auto.memory.budget.reserved_bytes <= auto.memory.budget.plan.ceiling_bytes
    auto.pool.readers[1].needs_bytes = 700 * MIB
    auto.memory.serve_requests([])
    assert len(auto.pool.denied) == 1


def test_a_stated_budget_stays_and_a_refusal_never_names_less_than_today(rig):
    one = rig(6)
    assert not one.memory.budget.reserve_slots(7)
    assert one.memory.budget.plan == one.plan
    today = -(-one.plan.budget_bytes // MIB)
    assert f'memory_budget="{today + 1}MiB"' in one.memory.budget.too_few_slots(7)
    one.memory.budget.adopt(one.plan.with_readers(1, MIN_SLOTS))
    assert f'memory_budget="{today}MiB"' in one.memory.budget.too_few_slots(4)
