"""The scheduler: what is needed soonest is made first, nobody starves, and every cursor sees its epoch in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.daemon.schedule import scheduler
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import FillPlan, Reserve, may_grant, next_fills, ready_for, slots_promised
from prefetchd.ring.slots import Content, Key, Ring
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import ready, ring_of


def cursor(step: int = 0, *, consumer: int = 1, epoch: int = 0, n_batches: int = 10, **more) -> Cursor:
    return Cursor(consumer, 1, 0, Shard(n_batches), epoch, 0, step, **more)


def next_fill(ring: Ring, cursors: list[Cursor], unmakeable: tuple[Key, ...] = ()) -> FillPlan | None:
    """Return the one fill to begin next."""
    return next(iter(next_fills(ring, cursors, unmakeable)), None)


def keys(*pairs: tuple[int, int]) -> list[Key]:
    """Return (epoch, batch) pairs as keys of the data set 0."""
    return [(0, *pair) for pair in pairs]


def fill_all(ring: Ring, cursors: list[Cursor]) -> list[Key]:
    made = []
    while (plan := next_fill(ring, cursors)) is not None:
        ring.start_fill(plan.slot, plan.key)
        ring.finish_fill(plan.slot, 1)
        made.append(plan.key)
    return made


def test_ring_is_filled_from_the_cursor_onwards_and_then_it_rests():
    ring = ring_of(4)
    assert fill_all(ring, [cursor(3)]) == keys((0, 3), (0, 4), (0, 5), (0, 6))
    assert next_fill(ring, [cursor(3)]) is None


@given(
    positions=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    held=st.sets(st.integers(1, 8), max_size=5),
    limit=st.integers(1, 9),
)
def test_several_fills_at_once_are_those_that_would_be_begun_one_by_one(positions, held, limit):
    def one_ring() -> tuple[Ring, list[Cursor]]:
        ring = ring_of(8)
        for number in held:
            ready(ring, number, (0, 0, number * 2))
        ring.grant(ring.slots[1], 7) if 1 in held else None
        return ring, [cursor(at, consumer=number, n_batches=30) for number, at in enumerate(positions)]

    ring, cursors = one_ring()
    at_once = [(plan.key, plan.slot.number) for plan in next_fills(ring, cursors, limit=limit)]
    ring, cursors = one_ring()
    one_by_one = []
    while len(one_by_one) < limit and (plan := next_fill(ring, cursors)) is not None:
        ring.start_fill(plan.slot, plan.key)
        one_by_one.append((plan.key, plan.slot.number))
    assert [key for key, _ in at_once] == [key for key, _ in one_by_one]
    assert sorted(slot for _, slot in at_once) == sorted(slot for _, slot in one_by_one)


@given(
    positions=st.lists(st.integers(0, 90), min_size=2, max_size=6),
    n_slots=st.integers(2, 12),
    n_made=st.integers(0, 12),
)
def test_looking_less_far_where_many_windows_need_much_chooses_the_same(positions, n_slots, n_made):
    def made(most_looked_at: int) -> list[Key]:
        ring = ring_of(n_slots)
        cursors = [cursor(at, consumer=n, n_batches=100, patience_left_s=0.0) for n, at in enumerate(positions)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scheduler, "_ALL", most_looked_at)
            for _ in range(n_made):
                if (plan := next_fill(ring, cursors)) is None:
                    break
                ring.start_fill(plan.slot, plan.key)
                ring.finish_fill(plan.slot, 1)
            return sorted(slot.key for slot in ring.slots.values() if slot.key is not None)

    assert made(0) == made(10_000)


def test_end_of_an_epoch_runs_on_into_the_next():
    assert fill_all(ring_of(4), [cursor(8)]) == keys((0, 8), (0, 9), (1, 0), (1, 1))


def test_two_cursors_in_one_window_share_what_is_made():
    made = fill_all(ring_of(6), [cursor(0, consumer=1), cursor(2, consumer=2)])
    assert len(made) == len(set(made)) == 6
    assert set(made) >= set(keys((0, 0), (0, 1), (0, 2), (0, 3)))


def test_two_cursors_far_apart_are_filled_in_turn():
    made = fill_all(ring_of(4), [cursor(0, consumer=1, n_batches=100), cursor(50, consumer=2, n_batches=100)])
    assert sorted(made) == keys((0, 0), (0, 1), (0, 50), (0, 51))


def test_what_is_needed_last_is_given_up_first():
    ring = ring_of(3)
    for number, key in ((1, (0, 0, 2)), (2, (0, 0, 9)), (3, (0, 0, 1))):
        ready(ring, number, key)
    plan = next_fill(ring, [cursor(0)])
    assert plan is not None
    assert (plan.key, plan.slot.number) == ((0, 0, 0), 2)


def test_held_and_written_slots_are_never_given_up():
    ring = ring_of(3)
    ring.grant(ready(ring, 1, (0, 5, 0)), consumer=9)
    ring.start_fill(ring.slots[2], (0, 5, 1))
    ring.add_writer(ring.slots[3], reader=1)
    assert next_fill(ring, [cursor(0)]) is None


def test_batch_that_cannot_be_made_is_passed_over():
    plan = next_fill(ring_of(3), [cursor(0)], unmakeable=((0, 0, 0),))
    assert plan is not None
    assert plan.key == (0, 0, 1)


def test_sharded_cursor_is_filled_with_its_own_batches_only():
    mine = Cursor(1, 1, 0, Shard(10, rank=1, world_size=4))
    assert fill_all(ring_of(3), [mine]) == keys((0, 1), (0, 5), (0, 9))


def test_only_the_ready_batch_of_the_cursor_itself_is_ready_for_it():
    ring = ring_of(3)
    ready(ring, 1, (0, 0, 4))
    ring.start_fill(ring.slots[2], (0, 0, 5))
    assert ready_for(ring, cursor(4)) is ring.slots[1]
    assert ready_for(ring, cursor(5)) is None
    assert ready_for(ring, cursor(6)) is None
    ready(ring, 3, (0, 1, 0))
    ended = cursor(10)
    ended.epoch, ended.step, ended.stop_epoch = 1, 0, 1
    assert ready_for(ring, ended) is None  # the loop ends before the next epoch
    ended.stop_epoch = 2
    assert ready_for(ring, ended) is ring.slots[3]


def test_waiting_cursor_gets_what_it_is_guaranteed_and_surplus_leaves_a_slot_to_fill():
    ring = ring_of(4)
    slots = [ready(ring, number, (0, 0, number - 1)) for number in (1, 2, 3, 4)]
    mine = cursor(0, waiting=True)
    for granted in range(3):
        assert may_grant(ring, mine, Reserve(ring, [mine]), slots[granted])
        ring.grant(slots[granted], consumer=1)
    assert not may_grant(ring, mine, Reserve(ring, [mine]), slots[3])


def test_surplus_never_takes_what_another_is_guaranteed():
    ring = ring_of(5)
    slots = [ready(ring, number, (0, 0, number - 1)) for number in (1, 2, 3, 4, 5)]
    mine, other = cursor(0, consumer=1, waiting=True), cursor(0, consumer=2)
    for slot in slots[:2]:
        assert may_grant(ring, mine, Reserve(ring, [mine, other]), slot)
        ring.grant(slot, consumer=1)
    assert not may_grant(ring, mine, Reserve(ring, [mine, other]), slots[2])
    other.open = False
    assert may_grant(ring, mine, Reserve(ring, [mine, other]), slots[2])


def test_what_is_granted_ahead_leaves_a_slot_for_a_loop_that_stands_still_with_as_many():
    ring = ring_of(6)
    slots = [ready(ring, number, (0, 0, number - 1)) for number in (1, 2, 3, 4)]
    mine, other = cursor(3, consumer=1), cursor(0, consumer=2)
    for slot in slots[:2]:
        ring.grant(slot, consumer=1)
        ring.grant(slot, consumer=2)
    ring.grant(slots[2], consumer=2)
    assert may_grant(ring, mine, Reserve(ring, [mine, other]), slots[3])
    ring.grant(ready(ring, 5, (0, 1, 0)), consumer=2)
    other.waiting = True
    assert not may_grant(ring, mine, Reserve(ring, [mine, other]), slots[3])
    mine.waiting = True
    assert may_grant(ring, mine, Reserve(ring, [mine, other]), slots[3])


def test_slot_that_somebody_holds_already_costs_nothing():
    ring = ring_of(3)
    slot = ready(ring, 1, (0, 0, 0))
    for number in (2, 3):
        ring.grant(ready(ring, number, (0, 0, number)), consumer=2)
    ring.grant(slot, consumer=2)
    assert may_grant(ring, cursor(0, consumer=1), Reserve(ring, []), slot)


def test_loop_keeps_no_slot_ahead_beyond_its_guarantee_that_others_give_back():
    ring = ring_of(4)
    slots = [ready(ring, number, (0, 0, number)) for number in (1, 2, 3, 4)]
    for slot in slots[:2]:
        ring.grant(slot, consumer=1)
    ring.grant(slots[2], consumer=2)
    mine, other = cursor(2, consumer=1), cursor(3, consumer=2)
    assert not may_grant(ring, mine, Reserve(ring, [mine, other]), slots[2])
    mine.waiting = True
    assert may_grant(ring, mine, Reserve(ring, [mine, other]), slots[2])


def test_each_window_of_loops_is_promised_its_slots_and_one_to_fill():
    assert slots_promised(8, []) == 1
    assert slots_promised(8, [cursor(0)]) == 3
    together = [cursor(step, consumer=step) for step in range(4)]
    assert slots_promised(5, together) == 3
    assert slots_promised(5, [*together, cursor(0, consumer=9, guaranteed_slots=3)]) == 4
    apart = [cursor(50 * number, consumer=number, n_batches=1000) for number in range(3)]
    assert slots_promised(8, apart) == 7
    assert slots_promised(8, [cursor(0), cursor(0, consumer=2, epoch=1)]) == 5


@given(
    n_consumers=st.integers(1, 4),
    surplus=st.integers(0, 5),
    n_batches=st.integers(1, 12),
    n_epochs=st.integers(1, 3),
    fill_limit=st.integers(1, 3),
    starts=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_every_loop_that_holds_two_batches_sees_every_epoch_in_order_and_never_stands_still(
    n_consumers, surplus, n_batches, n_epochs, fill_limit, starts, seed
):
    rng = random.Random(seed)
    ring = ring_of(2 * n_consumers + 1 + surplus)
    cursors = [cursor(0, consumer=i, epoch=starts[i], n_batches=n_batches) for i in range(n_consumers)]
    ends = {one.consumer: one.epoch + n_epochs for one in cursors}
    for one in cursors:
        one.stop_epoch = ends[one.consumer]
    held: dict[int, list[int]] = {one.consumer: [] for one in cursors}
    seen: dict[int, list[Key]] = {one.consumer: [] for one in cursors}

    def fill() -> bool:
        filling = ring.count(Content.FILLING)
        plan = next_fill(ring, cursors) if filling < fill_limit else None
        if plan is not None:
            ring.start_fill(plan.slot, plan.key)
        return plan is not None

    def finish() -> bool:
        filling = [slot for slot in ring.slots.values() if slot.content is Content.FILLING]
        if filling:
            ring.finish_fill(rng.choice(filling), 1)
        return bool(filling)

    def take(one: Cursor) -> bool:
        """The loop drops the batch before the one at hand, keeps that, and asks for the next."""
        if one.epoch == ends[one.consumer]:
            one.open = False
            for lease in held[one.consumer]:
                ring.release(lease, one.consumer)
            held[one.consumer].clear()
            return False
        while len(held[one.consumer]) > 1:
            ring.release(held[one.consumer].pop(0), one.consumer)
        one.waiting = True
        slot = ready_for(ring, one)
        if slot is None or not may_grant(ring, one, Reserve(ring, cursors), slot):
            return False
        held[one.consumer].append(ring.grant(slot, one.consumer))
        seen[one.consumer].append(slot.key)
        one.waiting = False
        one.advance()
        return True

    while any(one.epoch < ends[one.consumer] for one in cursors):
        actions = [fill, finish, *[lambda one=one: take(one) for one in cursors]]
        rng.shuffle(actions)
        went_on = [action() for action in actions]
        assert any(went_on), "nothing can go on"
    for number, one in enumerate(cursors):
        epochs = range(starts[number], starts[number] + n_epochs)
        assert seen[one.consumer] == [(0, epoch, batch) for epoch in epochs for batch in range(n_batches)]
