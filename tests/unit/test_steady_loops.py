"""Steady loops: the daemon looks by itself about once a take, and not at all once the loop has stopped."""

from __future__ import annotations

import heapq
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.daemon.consumers.consumer import State
from prefetchd.daemon.consumers.steady import SteadyLoops
from prefetchd.ring.queues import Ended


class Loop:
    """An event loop whose clock the test moves; it counts its rounds."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.timers: list[tuple[float, int, Any]] = []
        self.rounds = 0
        self._numbers = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Any) -> None:
        heapq.heappush(self.timers, (self.now_s + delay_s, next(self._numbers), callback))


class Rig:
    """One loop that takes batches, and the daemon's rounds: at each timer, and at each message."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.how: list[Ended] = []
        grants = SimpleNamespace(say_how_leases_end=self.how.append)
        self.consumer: Any = SimpleNamespace(
            number=1, state=State.RUNNING, own_cursor=object(), n_taken=0, untaken=[1],
            attachment=SimpleNamespace(grants=grants),
        )  # fmt: skip
        self.taken = 0  # by the loop; the daemon sees it in its next round
        self.steady = SteadyLoops({1: self.consumer}, self.loop)  # type: ignore[arg-type]

    @property
    def is_quiet(self) -> bool:
        return bool(self.how) and self.how[-1] is Ended.BY_QUEUE

    def round(self, *, has_plenty: bool = True) -> None:
        self.loop.rounds += 1
        self.consumer.n_taken = self.taken
        self.steady.look(has_plenty=has_plenty)

    def pass_time(self, seconds: float) -> None:
        end_s = self.loop.now_s + seconds
        while self.loop.timers and self.loop.timers[0][0] <= end_s:
            self.loop.now_s, _, callback = heapq.heappop(self.loop.timers)
            callback()
            self.round()
        self.loop.now_s = end_s

    def take(self, step_s: float) -> None:
        """Take a batch, and work on it; without messages the daemon is not woken for that."""
        self.taken += 1
        if not self.is_quiet:
            self.round()
        self.pass_time(step_s)


@pytest.mark.parametrize("step_s", [0.005, 0.09, 0.4])
def test_steady_loop_costs_the_daemon_little_more_than_a_round_a_batch(step_s: float) -> None:
    rig = Rig()
    for _ in range(8):
        rig.take(step_s)
    assert rig.is_quiet
    before, late = rig.loop.rounds, 0
    for number in range(200):
        rig.take(step_s * (1 + 0.05 * (-1) ** number))
        late += rig.consumer.n_taken < rig.taken  # the daemon should have looked before the next take
    assert rig.how == [Ended.BY_QUEUE]
    assert rig.loop.rounds - before <= 1.5 * 200
    assert late == 0


def test_daemon_sleeps_once_a_steady_loop_has_stopped() -> None:
    rig = Rig()
    for _ in range(20):
        rig.take(0.1)
    before = rig.loop.rounds
    rig.pass_time(1000)
    assert rig.how == [Ended.BY_QUEUE, Ended.AS_USUAL]
    assert rig.loop.rounds - before <= 8
    assert rig.loop.timers == []


@pytest.mark.parametrize("steps_s", [[0.001], [0.8], [0.01, 0.1], [0.3, 0.02, 0.02]])
def test_loop_that_is_fast_slow_or_uneven_sends_messages(steps_s: list[float]) -> None:
    rig = Rig()
    for step_s in steps_s * 30:
        rig.take(step_s)
    assert Ended.BY_QUEUE not in rig.how


@pytest.mark.parametrize("ends", ["waits", "other waits"])
def test_loop_sends_messages_again_once_one_waits(ends: str) -> None:
    rig = Rig()
    for _ in range(20):
        rig.take(0.1)
    if ends == "waits":
        rig.consumer.state = State.WAITING
    rig.round(has_plenty=False)
    assert rig.how == [Ended.BY_QUEUE, Ended.AS_USUAL]
    rig.pass_time(0.01)  # one look at what it wrote down before it knew
    rig.consumer.state = State.RUNNING
    for _ in range(20):
        rig.take(0.1)
    assert rig.is_quiet


def test_loop_that_is_gone_is_forgotten() -> None:
    rig = Rig()
    for _ in range(20):
        rig.take(0.1)
    consumers = rig.steady._consumers
    assert isinstance(consumers, dict)
    consumers.clear()
    rig.pass_time(10)
    assert rig.loop.timers == []
