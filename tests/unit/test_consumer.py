"""A consumer's states: the changes that are allowed, and what goes with them."""

from __future__ import annotations

import pytest

from prefetchd.daemon.consumers.consumer import Consumer, ConsumerSocket, State
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.sampling.sharding import Shard


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def consumer(clock: Clock) -> Consumer:
    made = Consumer(1, ConsumerSocket(None), 1, -1, clock)  # type: ignore[arg-type]
    made.cursor = Cursor(1, 1, 0, Shard(10), open=False)
    return made


def test_the_time_of_a_wait_counts_until_the_grant_also_while_it_is_stalled(consumer, clock):
    for state in (State.IDLE, State.RUNNING, State.WAITING):
        consumer.become(state)
    clock.now_s += 2
    consumer.become(State.STALLED)
    clock.now_s += 3
    assert consumer.waiting_since_s == 100.0
    assert consumer.waited_s == 5
    consumer.become(State.RUNNING)
    clock.now_s += 10
    assert consumer.waited_s == 5


def test_the_cursor_follows_the_state(consumer):
    seen = []
    for state in (State.IDLE, State.RUNNING, State.WAITING, State.STALLED, State.RUNNING, State.IDLE):
        consumer.become(state)
        seen.append((consumer.cursor.open, consumer.cursor.waiting))
    assert seen == [(False, False), (True, False), (True, True), (True, True), (True, False), (False, False)]


@pytest.mark.parametrize("state", [State.RUNNING, State.WAITING, State.STALLED])
def test_no_loop_runs_before_it_has_attached_or_after_it_has_disconnected(consumer, state):
    with pytest.raises(AssertionError):
        consumer.become(state)
    consumer.become(State.DISCONNECTED)
    with pytest.raises(AssertionError):
        consumer.become(state)
