"""Windows and patience: thousands of random schedules, in which time is a number that the test turns on."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.pacing import Pacer
from prefetchd.daemon.schedule.scheduler import Reserve, may_grant, next_fills, ready_for
from prefetchd.daemon.schedule.windows import arrange, arrange_patiently, most_windows, n_places
from prefetchd.ring.slots import Content, Key
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import ring_of


@dataclass(eq=False)
class Loop:
    """A training loop: asks, computes for a while, drops the batch before the last one, asks again."""

    cursor: Cursor
    step_s: float
    keeps: int = 1  # batches that it holds while it asks
    pauses: dict[int, float] = field(default_factory=dict)  # after so many batches it does not ask for that long
    held: list[int] = field(default_factory=list)
    ahead: list[tuple[int, Key]] = field(default_factory=list)  # granted and not taken
    seen: list[Key] = field(default_factory=list)
    asked_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    stays: bool = False  # attached, after its last batch
    rests: bool = False  # attached, and begins no loop
    done: bool = False

    @property
    def runs(self) -> bool:
        return not self.done and not self.rests


class Box:
    """A ring, readers that take `decode_s` a batch, and loops; runs until all are done, or nothing can go on."""

    def __init__(self, n_slots: int, loops: list[Loop], *, n_readers: int = 2, decode_s: float = 1.0, seed: int = 0):
        self.ring = ring_of(n_slots)
        self.loops = loops
        self.pacer = Pacer()
        self.now_s = 0.0
        self.decode_s = decode_s
        self.idle = n_readers
        self.made: list[Key] = []
        self.rng = random.Random(seed)
        self._events: list[tuple[float, int, object]] = []
        self._number = itertools.count()

    def later(self, delay_s: float, what: object) -> None:
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._number), what))

    @property
    def cursors(self) -> list[Cursor]:
        return [loop.cursor for loop in self.loops if loop.stays or not loop.done]

    def run(self, until_s: float = math.inf) -> None:
        for loop in self.loops:
            if loop.runs:
                self.later(0, loop)
        while self._events and self._events[0][0] <= until_s and any(loop.runs for loop in self.loops):
            self.now_s, _, what = heapq.heappop(self._events)
            if isinstance(what, Loop):
                self.ask(what)
            elif what is not None:
                self.ring.finish_fill(what, 1)
                self.idle += 1
            self.settle()

    def settle(self) -> None:
        self.fill()
        while sum(self.grant(loop) for loop in self.rng.sample(self.loops, len(self.loops))):
            self.fill()
        look_s, spent = self.pacer.look(self.now_s, self.ring, self.cursors)
        if spent or look_s is not None:
            self.later(0 if spent else look_s, None)  # those that waited go on
        if not self._events or self._events[0][0] > self.now_s:  # the daemon sleeps now
            self.check_that_each_wait_has_a_reason()

    def fill(self) -> None:
        while self.idle:
            plans = next_fills(self.ring, self.cursors, limit=self.idle)
            if not plans:
                break
            for plan in plans:
                self.ring.start_fill(plan.slot, plan.key)
                self.made.append(plan.key)
                self.idle -= 1
                self.later(self.decode_s * self.rng.uniform(0.5, 1.5), plan.slot)

    def check_that_each_wait_has_a_reason(self) -> None:
        """A loop waits for a batch that is being made, for a reader, for a slower loop, or for what it holds itself."""
        for loop in self.loops:
            cursor = loop.cursor
            if not cursor.waiting or cursor.consumer in self.pacer.waits or self.is_being_made(cursor):
                continue
            windows = arrange(self.cursors, len(self.ring.slots))
            head = next(window.head for window in windows if cursor in window.members)
            is_being_made = head.waiting and self.is_being_made(head)
            holds_too_much = self.ring.held_by(cursor.consumer) >= cursor.guaranteed_slots
            assert is_being_made or not self.idle or holds_too_much or not self.ring.reusable_slots(), loop

    def is_being_made(self, cursor: Cursor) -> bool:
        slot = self.ring.find(cursor.next_key)
        return slot is not None and slot.content is Content.FILLING

    def grant(self, loop: Loop) -> bool:
        cursor = loop.cursor
        if not loop.runs or loop.ahead or cursor.at_end:
            return False
        slot = ready_for(self.ring, cursor)
        if slot is None or not may_grant(self.ring, cursor, Reserve(self.ring, self.cursors), slot):
            return False
        loop.ahead.append((self.ring.grant(slot, cursor.consumer), slot.key))
        cursor.advance()
        if cursor.waiting:
            cursor.waiting = False
            self.take(loop)
        return True

    def ask(self, loop: Loop) -> None:
        while len(loop.held) > loop.keeps:
            self.ring.release(loop.held.pop(0), loop.cursor.consumer)
        loop.asked_s = self.now_s
        if loop.ahead:
            self.take(loop)
        elif loop.cursor.at_end:
            self.ring.release_all(loop.cursor.consumer)
            loop.done, loop.cursor.open = True, False
        else:
            loop.cursor.waiting = True

    def take(self, loop: Loop) -> None:
        lease, key = loop.ahead.pop()
        loop.waits_s.append(self.now_s - loop.asked_s)
        loop.held.append(lease)
        while len(loop.held) > loop.keeps:  # `x, y = next(...)` drops the one before
            self.ring.release(loop.held.pop(0), loop.cursor.consumer)
        self.later(0, None)  # its release wakes the daemon
        loop.seen.append(key)
        self.later(loop.step_s * self.rng.uniform(0.5, 1.5) + loop.pauses.get(len(loop.seen), 0.0), loop)


def loop(number: int, *, n_batches: int = 12, epochs: int = 1, patience_s: float = 10.0, step_s=1.0, **more) -> Loop:
    names = ("keeps", "pauses", "stays", "rests")
    shard = more.pop("shard", Shard(n_batches))
    about_loop = {name: more.pop(name) for name in names if name in more}
    cursor = Cursor(number, 1, more.pop("dataset", 0), shard, patience_s=patience_s, **more)
    cursor.stop_epoch = cursor.epoch + epochs
    made = Loop(cursor, step_s, **about_loop)
    cursor.open = not made.rests
    return made


def expected(one: Loop, epochs: range) -> list[Key]:
    shard = one.cursor.shard
    dataset = one.cursor.dataset
    return [(dataset, epoch, shard.batch(step)[0]) for epoch in epochs for step in range(shard.steps())]


def test_slow_and_fast_loop_share_every_batch_within_the_patience():
    box = Box(6, [loop(1, n_batches=40, patience_s=1000, step_s=0.1), loop(2, n_batches=40, patience_s=1000, step_s=3)])
    box.run()
    assert len(box.made) == len(set(box.made))  # decoded once for both
    assert [one.seen for one in box.loops] == [expected(one, range(1)) for one in box.loops]


def test_without_patience_the_fast_loop_does_not_wait():
    fast, slow = loop(1, n_batches=60, patience_s=0, step_s=0.1), loop(2, n_batches=60, patience_s=0, step_s=50)
    box = Box(8, [fast, slow], n_readers=4)
    box.run()
    assert max(fast.waits_s) < 10
    assert slow.seen == expected(slow, range(1))


def test_who_sits_in_a_debugger_costs_its_patience_once_and_shares_again_when_it_has_caught_up():
    fast, stopped = loop(1, n_batches=100, step_s=1, patience_s=1000), loop(2, n_batches=100, step_s=0.2)
    stopped.pauses = {20: 40.0}  # and then it is the faster one, and waits for the other
    box = Box(8, [fast, stopped], n_readers=4, decode_s=0.5)
    box.run()
    assert 8 < max(fast.waits_s) < 12  # the patience, and at most a batch being made
    assert sum(wait for wait in fast.waits_s if wait > 2) < 12  # cumulative
    assert stopped.seen == expected(stopped, range(1))
    again = [key for key in set(box.made) if box.made.count(key) > 1]
    assert 0 < len(again) < 60  # decoded for it alone, and not to the end
    assert (0, 0, 99) not in again


def test_patience_is_whole_again_in_the_next_epoch():
    cursor = loop(1, n_batches=2, epochs=2, patience_s=5).cursor
    cursor.patience_left_s = 0
    cursor.advance()
    assert not cursor.is_waited_for
    cursor.advance()
    assert cursor.is_waited_for


def test_a_loop_that_is_closed_or_at_its_end_is_not_waited_for():
    fast, other = loop(1, n_batches=50, step_s=0.1), loop(2, n_batches=50)
    other.cursor.open = False
    box = Box(4, [fast, other])
    box.later = lambda delay_s, what, later=box.later: what is other or later(delay_s, what)  # it never asks
    box.run()
    assert fast.done
    assert max(fast.waits_s) < 2


def test_a_head_that_waits_for_the_readers_is_not_to_blame():
    ring = ring_of(4)
    head, leader = loop(1).cursor, loop(2, step=2).cursor
    head.waiting = leader.waiting = True
    pacer = Pacer()
    assert pacer.look(0, ring, [head, leader]) == (None, [])
    assert pacer.look(100, ring, [head, leader]) == (None, [])
    assert head.patience_left_s == 10


def test_patience_is_charged_by_the_time_that_was_waited():
    ring = ring_of(3)
    head, leader = loop(1).cursor, loop(2, step=3).cursor
    for number in range(3):
        ring.start_fill(ring.slots[number + 1], (0, 0, number))
        ring.finish_fill(ring.slots[number + 1], 1)
    pacer = Pacer()
    assert pacer.look(0, ring, [head, leader]) == (None, [])
    leader.waiting = True
    assert pacer.look(50, ring, [head, leader]) == (10, [])
    assert pacer.look(54, ring, [head, leader]) == (6, [])
    leader.waiting = False
    assert pacer.look(55, ring, [head, leader]) == (None, [])
    assert pacer.look(80, ring, [head, leader]) == (None, [])
    leader.waiting = True
    assert pacer.look(81, ring, [head, leader]) == (5, [])
    assert pacer.look(86, ring, [head, leader]) == (None, [head])
    assert len(arrange([head, leader], 8)) == 2
    head.patience_left_s = math.inf
    assert pacer.look(90, ring, [head, leader]) == (None, [])  # no timer is that long
    assert pacer.waits == {2: head}


def test_a_ring_too_small_for_another_window_paces_whatever_the_patience():
    cursors = [loop(n, n_batches=1000, step=n * 2, patience_s=0).cursor for n in range(6)]
    assert len(arrange(cursors, 16)) == 6
    assert len(arrange(cursors, 4)) <= 3


@given(
    n_slots=st.integers(3, 12),
    n_readers=st.integers(1, 4),
    n_batches=st.integers(1, 15),
    loops=st.lists(
        st.tuples(
            st.integers(0, 2),  # epoch
            st.integers(1, 3),  # epochs
            st.sampled_from([0.01, 0.3, 1.0, 5.0]),  # step
            st.sampled_from([0.0, 2.0, 10.0, math.inf]),  # patience
            st.integers(0, 14),  # rotation
            st.dictionaries(st.integers(1, 30), st.sampled_from([0.5, 5.0, 30.0]), max_size=3),  # pauses
            st.integers(0, 2),  # data set
            st.sampled_from(["leaves", "stays", "rests"]),
        ),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 2**32),
)
@example(
    3, 1, 3,
    [
        (0, 1, 5.0, 0.0, 13, {}, 0, "leaves"),
        (1, 1, 1.0, 0.0, 0, {}, 0, "leaves"),
        (2, 1, 0.01, 0.0, 0, {}, 0, "leaves"),
    ],
    0,
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_every_loop_sees_its_epochs_in_order_and_none_stands_still_for_ever(n_slots, n_readers, n_batches, loops, seed):
    made = []
    for number, (epoch, epochs, step_s, patience_s, rotation, pauses, dataset, then) in enumerate(loops, 1):
        made.append(
            loop(
                number, epochs=epochs, epoch=epoch, step_s=step_s, patience_s=patience_s, pauses=pauses,
                dataset=dataset, stays=then != "leaves", rests=then == "rests",
                shard=Shard(n_batches, rotation=rotation % n_batches if rotation > 9 else 0),
            )
        )  # fmt: skip
    while n_places(arrange_patiently([one.cursor for one in made], n_slots)) > most_windows(n_slots):
        made.pop()  # the daemon refuses it, with numbers
    box = Box(n_slots, made, n_readers=n_readers, seed=seed)
    firsts = {id(one): one.cursor.epoch for one in made}
    box.run(until_s=1e6)
    for one in made:
        if one.rests:
            continue
        assert one.done, (one, box.now_s)
        assert one.seen == expected(one, range(firsts[id(one)], one.cursor.stop_epoch))


@given(
    patience_s=st.sampled_from([0.0, 1.0, 10.0]),
    n_batches=st.integers(5, 40),
    step_s=st.sampled_from([0.1, 1.0]),
    spare_slots=st.integers(0, 12),
    loops=st.lists(
        st.tuples(
            st.sampled_from(["runs", "runs", "stops", "crawls", "ends", "rests"]),
            st.integers(0, 2),  # data set
            st.integers(0, 2),  # epoch
            st.integers(1, 20),  # batches after which it stops
        ),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=100, deadline=None)
def test_loops_that_stop_crawl_or_rest_cost_the_others_their_patience_and_no_more(
    patience_s, n_batches, step_s, spare_slots, loops, seed
):
    """Whatever else is attached: loops of other data sets, at other epochs, between two loops, or stopped for ever."""
    made = [loop(0, n_batches=n_batches, patience_s=patience_s, step_s=step_s)]
    for number, (kind, dataset, epoch, after) in enumerate(loops, 1):
        made.append(
            loop(
                number, n_batches=n_batches, patience_s=patience_s, dataset=dataset, epoch=epoch,
                step_s=1e4 if kind == "crawls" else 0.01 if kind == "ends" else step_s,
                pauses={after: 1e9} if kind == "stops" else {}, stays=True, rests=kind == "rests",
            )
        )  # fmt: skip
    slow = {one.cursor.consumer for one, (kind, *_) in zip(made[1:], loops, strict=True) if kind in ("stops", "crawls")}
    box = Box(2 * len(made) + 1 + spare_slots, made, n_readers=4, decode_s=0.1, seed=seed)
    box.run(until_s=2e5)
    work_s = len(made) * n_batches * 0.2 + n_batches * step_s * 1.5
    for one in made:
        if one.cursor.consumer in slow or one.rests:
            continue
        assert one.done, (one, box.pacer.waits)
        # Each of the others is waited for up to its patience; one that goes on, only for a moment.
        assert sum(one.waits_s) < len(made) * patience_s + work_s
        assert max(one.waits_s) < len(made) * patience_s + 3 * len(made)


def test_ranks_are_windows_of_their_own_and_never_wait_for_each_other():
    loops = [loop(rank, step_s=0.1 if rank else 3.0, shard=Shard(24, rank, 4)) for rank in range(4)]
    box = Box(9, loops, n_readers=4, decode_s=0.1)
    box.run()
    assert [one.seen for one in loops] == [expected(one, range(1)) for one in loops]
    assert max(max(one.waits_s) for one in loops) < 5


def test_ring_that_holds_one_batch_beyond_the_heads_reach_is_still_waited_with():
    ring = ring_of(3)
    head = loop(1, n_batches=100).cursor
    leader = loop(2, n_batches=100, step=3).cursor  # holds batch 2, the ring's last
    for number in range(3):
        ring.start_fill(ring.slots[number + 1], (0, 0, number))
        ring.finish_fill(ring.slots[number + 1], 1)
    ring.grant(ring.slots[3], 2)
    leader.waiting = True
    assert next_fills(ring, [head, leader]) == []
    assert ring.count(Content.READY) == 3
