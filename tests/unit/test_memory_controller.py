"""The memory controller: from one plan to another, with a real manager and ring, stand-ins for pool and machine."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import pytest

from prefetchd.config.validate import make_config
from prefetchd.daemon.memory.controller import WINDOW_S, MemoryController
from prefetchd.daemon.memory.limits import SHORT_BYTES, Limit, Shortage
from prefetchd.daemon.memory.plan import MIB, MIN_SLOTS, make_plan
from prefetchd.daemon.server import Daemon
from tests.unit.test_memory_manager import Rig


@dataclass
class Agents:
    """What agents on other machines have done so far."""

    busy_s: float = 0.0
    samples: int = 0
    n_wanted: int = 1
    n_placed: int = 1

    @property
    def n_readers(self) -> int:
        return 4 * self.n_placed

    def want(self, n_nodes: int) -> None:
        """Have nodes come and go at once."""
        self.n_wanted = self.n_placed = n_nodes


@dataclass
class Work:
    """What readers have done so far."""

    busy_s: float = 0.0
    samples_made: int = 0


@pytest.fixture
def rig():
    one = Rig(40)
    one.shortage = Shortage(1 << 40, "test")
    one.controller = MemoryController(
        make_config(source="-", num_workers=2),
        one.memory,
        one.ring,
        one.pool,
        Work(),
        one.demand,
        plan_for=lambda config, least, own_bytes: one.plan.with_readers(config.num_workers, least),
        idle_s=lambda: 0.0,
        read_shortage=lambda: one.shortage,
        n_cores=2,
        clock=lambda: 0.0,
    )
    yield one
    one.ring.close()


def test_readers_wait_for_the_room_of_slots_that_are_held(rig):
    """More readers need slots' memory; those that users hold are not taken, so the reader comes when they return."""
    for slot in rig.ring.slots.values():
        rig.hold(slot)
    rig.controller.change(make_config(source="-", num_workers=3))
    rig.memory.follow(rig.controller.decide(), [])
    assert len(rig.pool.readers) == 2
    assert rig.memory.budget.in_force_bytes == rig.plan.budget_bytes
    rig.ring.release_all(1)
    rig.memory.follow(rig.controller.decide(), [])
    assert len(rig.pool.readers) == 3
    assert rig.memory.budget.reserved_bytes <= rig.plan.budget_bytes
    assert len(rig.ring.slots) < 40


def test_readers_that_are_to_go_are_counted_until_they_are_gone(rig):
    rig.controller.change(make_config(source="-", num_workers=1))
    rig.memory.follow(rig.controller.decide(), [])
    assert rig.memory.budget.n_readers == 2
    del rig.pool.readers[1]
    rig.memory.follow(rig.controller.decide(), [])
    assert rig.memory.budget.n_readers == 1


def test_pressure_takes_slots_and_readers_and_pauses_and_each_step_is_logged(rig, caplog):
    rig.shortage = Shortage(SHORT_BYTES - MIB, "cgroup /x")
    for _ in range(20):
        rig.controller.tick()
        rig.memory.follow(rig.controller.decide(), [])
        for number in [number for number, reader in rig.pool.readers.items() if reader.retiring]:
            del rig.pool.readers[number]
    assert len(rig.ring.slots) == MIN_SLOTS
    assert rig.pool.n_readers == 1
    assert rig.memory.target.paused
    assert "63.0 MiB left (cgroup /x)" in caplog.text
    steps = caplog.text.count("short of memory")
    rig.shortage = Shortage(1 << 40, "test")
    for _ in range(200):
        rig.controller.tick()
        rig.memory.follow(rig.controller.decide(), [])
    assert rig.controller.relieved
    assert rig.pool.n_readers == 2
    assert caplog.text.count("memory is there again") == steps


def test_loop_that_holds_many_goes_on_while_memory_is_short(rig):
    """What it holds is as much as the plan allows; the ring is smaller for want of memory alone."""
    slots = list(rig.ring.slots.values())
    for slot in slots[:8]:
        rig.hold(slot)
    rig.shortage = Shortage(SHORT_BYTES - MIB, "cgroup /x")
    for _ in range(20):
        rig.controller.tick()
        rig.memory.follow(rig.controller.decide(), [])
    assert len(rig.ring.slots) == 8
    assert not rig.memory.may_grow()
    assert rig.memory.help_stalled()
    rig.memory.follow(rig.controller.decide(), [])
    assert rig.memory.target.n_slots == 10
    assert rig.memory.may_grow()
    assert not rig.memory.help_stalled(), "that is all there is to do"


def test_automatic_budget_follows_the_loops_that_are_attached():
    """Many that go through the same batches need no slots each; those that are promised more have more."""
    plan = make_plan(make_config(source="-", num_workers=2), 4 * MIB, Limit(8 << 30, "test"))
    one = Rig(0, plan=plan)
    one.limits = [Limit(8 << 30, "test")]
    controller = MemoryController(
        make_config(source="-", num_workers=2), one.memory, one.ring, one.pool, Work(), one.demand,
        plan_for=lambda config, least, own_bytes: plan, read_shortage=lambda: Shortage(1 << 40, "test"),
        idle_s=lambda: 0.0, n_cores=2, clock=lambda: 0.0,
    )  # fmt: skip
    for n_comfortable, n_promised, n_slots in ((2, 3, 8), (14, 3, 14), (1000, 3, 64), (1001, 99, 99), (2, 3, 8)):
        one.demand.comfortable_slots, one.demand.promised_slots = n_comfortable, n_promised
        one.memory.follow(controller.decide(), [])
        assert one.memory.target.n_slots == one.memory.budget.plan.n_slots == n_slots
    assert one.memory.budget.plan == plan
    one.ring.close()


def test_reader_that_the_budget_has_no_room_for_is_left_out():
    """A loop waits and one more reader would help, but slots hold the budget: each window finds the same readers."""
    one, now_s, work = Rig(MIN_SLOTS, 1), [0.0], Work()
    controller = MemoryController(
        make_config(source="-"), one.memory, one.ring, one.pool, work, one.demand,
        plan_for=lambda config, least, own_bytes: one.plan, read_shortage=lambda: Shortage(1 << 40, "test"),
        idle_s=lambda: now_s[0], n_cores=2, clock=lambda: now_s[0],
    )  # fmt: skip
    assert controller.is_auto
    controller.note_waiting(True)
    for _ in range(10):
        now_s[0] += WINDOW_S
        work.busy_s, work.samples_made = now_s[0], int(100 * now_s[0])
        controller.tick()
    assert controller.waited_s == 10 * WINDOW_S
    assert one.memory.budget.plan.n_readers == 1
    one.ring.close()


def test_work_of_agents_does_not_make_readers_here_look_busy():
    """Loops are served by agents and eight readers idle: these become fewer, however much the agents do."""
    now_s, work, agents = [0.0], Work(), Agents()
    plan = make_plan(make_config(source="-", num_workers=8), 4 * MIB, Limit(8 << 30, "test"))
    one = Rig(8, 8, plan=plan)
    one.pool.remote = agents
    controller = MemoryController(
        make_config(source="-"), one.memory, one.ring, one.pool, work, one.demand,
        plan_for=lambda config, least, own_bytes: plan, read_shortage=lambda: Shortage(1 << 40, "test"),
        idle_s=lambda: now_s[0], n_cores=8, clock=lambda: now_s[0],
    )  # fmt: skip
    for _ in range(8):
        now_s[0] += WINDOW_S
        agents.busy_s, agents.samples = 16 * now_s[0], int(1600 * now_s[0])
        work.busy_s, work.samples_made = 17 * now_s[0], int(1700 * now_s[0])
        controller.tick()
    assert one.memory.budget.plan.n_readers < 8
    one.ring.close()


def test_nodes_go_while_there_is_no_work_and_readers_here_stay():
    now_s, agents = [0.0], Agents(n_wanted=3, n_placed=3)
    plan = make_plan(make_config(source="-", num_workers=8), 4 * MIB, Limit(8 << 30, "test"))
    one = Rig(8, 8, plan=plan)
    one.pool.remote = agents
    controller = MemoryController(
        make_config(source="-", ray="auto", remote_workers="auto"), one.memory, one.ring, one.pool, Work(), one.demand,
        plan_for=lambda config, least, own_bytes: plan, read_shortage=lambda: Shortage(1 << 40, "test"),
        idle_s=lambda: now_s[0], n_cores=8, clock=lambda: now_s[0],
    )  # fmt: skip
    assert controller.is_auto
    for _ in range(30):
        if controller.has_spare_nodes:
            now_s[0] += 10.0
            controller.tick_at_rest()
            controller.tick_at_rest()  # no window has passed
    assert agents.n_wanted == 1, "one stays"
    assert 100.0 <= now_s[0] <= 150.0
    assert one.memory.budget.plan.n_readers == 8
    one.ring.close()


def test_number_of_nodes_that_was_asked_for_stays():
    one = Rig(40)
    one.pool.remote = Agents(n_placed=3)
    controller = MemoryController(
        make_config(source="-", ray="auto", remote_workers=12), one.memory, one.ring, one.pool, Work(), one.demand,
        plan_for=lambda config, least, own_bytes: one.plan, read_shortage=lambda: Shortage(1 << 40, "test"),
        idle_s=lambda: 0.0, n_cores=2, clock=lambda: 0.0,
    )  # fmt: skip
    assert not controller.has_spare_nodes
    one.ring.close()


@pytest.mark.parametrize("is_resting", [False, True])
def test_daemon_without_work_looks_at_its_nodes_now_and_then(is_resting: bool):
    daemon = mock.MagicMock(_is_resting=is_resting)
    daemon._pool.busy = daemon._builder.has_queued = daemon._memory.is_grown = daemon._memory.making_room = False
    daemon._memory.needs.fewer_readers = daemon._memory.may_grow.return_value = False
    Daemon._pump(daemon)
    asked = [] if is_resting else [mock.call(10.0, daemon._tick_at_rest)]
    assert daemon._loop.call_later.call_args_list == asked
    for daemon._ticking in (True, False):
        assert not daemon._controller.tick_at_rest.called, "there is work again: those windows show it all"
        Daemon._tick_at_rest(daemon)
        assert not daemon._is_resting
    assert daemon._controller.tick_at_rest.called
