"""What is given back when memory runs short, and when it is taken again: the policy, with injected readings."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from prefetchd.daemon.memory.limits import AMPLE_BYTES, SHORT_BYTES, Shortage
from prefetchd.daemon.memory.pressure import CALM_TICKS, MIB, Costs, PressurePolicy, Target

FULL = Target(16, 4)
COSTS = Costs(4 * MIB, 24 * MIB, least_slots=3)
SHORT = Shortage(SHORT_BYTES - 1, "test")
AMPLE = Shortage(AMPLE_BYTES + 1024 * MIB, "test")
BETWEEN = Shortage((SHORT_BYTES + AMPLE_BYTES) // 2, "test")


def run(policy: PressurePolicy, readings: list[Shortage], target: Target = FULL) -> list[Target]:
    """The target after each reading, the daemon being where it was told to be."""
    found = []
    for reading in readings:
        target = policy.step(reading, target, FULL, COSTS)
        found.append(target)
    return found


def test_slots_go_first_then_readers_then_it_pauses():
    """Each short reading costs one step, and what delivers one batch at a time is never given up."""
    stances = run(PressurePolicy(), [SHORT] * 12)
    slots = [target.n_slots for target in stances]
    assert slots == sorted(slots, reverse=True)
    assert min(slots) == COSTS.least_slots
    first_fewer_readers = next(i for i, target in enumerate(stances) if target.n_readers < FULL.n_readers)
    assert stances[first_fewer_readers].n_slots == COSTS.least_slots
    first_paused = next(i for i, target in enumerate(stances) if target.paused)
    assert stances[first_paused] == Target(COSTS.least_slots, 1, paused=True)
    assert stances[-1] == stances[first_paused]


def test_stalled_tasks_are_a_shortage_too():
    assert run(PressurePolicy(), [Shortage(1 << 40, "test", stalled_percent=30)])[0].n_slots < FULL.n_slots


def test_tasks_that_stall_while_a_quarter_is_free_stall_for_something_else():
    policy, plenty = PressurePolicy(), Shortage(1 << 33, "test", 1 << 35, stalled_percent=30)
    assert run(policy, [plenty])[-1] == FULL
    lowest = run(policy, [SHORT] * 12)[-1]
    assert run(policy, [plenty] * 20 * CALM_TICKS, lowest)[-1] == FULL
    less = Shortage((1 << 33) - 1, "test", 1 << 35, stalled_percent=30)
    assert run(policy, [less])[-1].n_slots < FULL.n_slots


def test_it_comes_back_step_by_step_after_a_calm():
    policy = PressurePolicy()
    lowest = run(policy, [SHORT] * 12)[-1]
    stances = run(policy, [AMPLE] * 20 * CALM_TICKS, lowest)
    assert stances[-1] == FULL
    assert policy.relieved
    steps = [i for i in range(1, len(stances)) if stances[i] != stances[i - 1]]
    assert all(b - a >= CALM_TICKS for a, b in itertools.pairwise(steps))
    assert stances[CALM_TICKS - 2] == lowest


def test_what_is_neither_short_nor_ample_changes_nothing():
    policy = PressurePolicy()
    given = run(policy, [SHORT])[-1]
    assert set(run(policy, [BETWEEN] * 100, given)) == {given}


def test_a_step_back_needs_room_for_what_it_takes():
    policy = PressurePolicy()
    given = run(policy, [SHORT])[-1]
    returning = (FULL.n_slots - given.n_slots) * COSTS.slot_bytes
    assert set(run(policy, [Shortage(AMPLE_BYTES + returning - 1, "test")] * 100, given)) == {given}
    assert run(policy, [Shortage(AMPLE_BYTES + returning, "test")] * CALM_TICKS, given)[-1] == FULL


def test_it_does_not_flap_where_its_own_memory_makes_the_shortage():
    """Back to full is short again at once: each try waits twice as long, so tries become rare."""
    policy, target, changes = PressurePolicy(), FULL, 0
    for _ in range(3000):
        after = policy.step(SHORT if target == FULL else AMPLE, target, FULL, COSTS)
        changes += after != target
        target = after
    assert 4 < changes < 30


def test_after_a_long_calm_it_forgets_that_it_once_relapsed():
    policy = PressurePolicy()
    target = run(policy, [SHORT])[-1]
    for _ in range(3):
        target = run(policy, [AMPLE] * 1000, target)[-1]
        target = run(policy, [SHORT], target)[-1]
    assert run(policy, [AMPLE] * CALM_TICKS, target)[-1] == FULL


@given(st.lists(st.sampled_from([SHORT, AMPLE, BETWEEN]), max_size=200), st.integers(3, 40), st.integers(1, 16))
def test_always_within_the_plan_and_never_below_the_least(readings, n_slots, n_readers):
    full = Target(n_slots, n_readers)
    policy, target = PressurePolicy(), full
    for reading in readings:
        target = policy.step(reading, target, full, COSTS)
        assert COSTS.least_slots <= target.n_slots <= n_slots
        assert 1 <= target.n_readers <= n_readers
        assert policy.relieved == (target == full) or policy.relieved is False
