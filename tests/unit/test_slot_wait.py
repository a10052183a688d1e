"""A wait for a slot that others hold: warned of once, and ended after the hold time-out."""

from __future__ import annotations

import warnings

import pytest

from prefetchd import RingExhausted
from prefetchd.client.channel import SlotWait
from prefetchd.ipc import system


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(system, "monotonic", lambda: clock.now_s)
    return clock


def test_it_warns_once_and_then_ends_naming_who_holds_what(clock: Clock) -> None:
    wait = SlotWait(hold_timeout_s=10.0)
    wait.begin("of 3 slots this loader holds 2")
    assert wait.look() == 1.0  # when to warn
    clock.now_s += 1.0
    with pytest.warns(RuntimeWarning, match=r"this loader holds 2; drop batches.*RingExhausted in 9 s"):
        wait.look()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not a second time
        clock.now_s += 8.5
        assert wait.look() == 0.5  # what is left of the time
        clock.now_s += 0.5
        with pytest.raises(RingExhausted, match=r"of 3 slots this loader holds 2, and none came back in 10 s"):
            wait.look()


def test_the_time_runs_anew_when_a_slot_came_back_to_somebody(clock: Clock) -> None:
    wait = SlotWait(hold_timeout_s=1.0)
    wait.begin("of 3 slots the loader of pid 7 holds 2")
    clock.now_s += 0.9
    with pytest.warns(RuntimeWarning, match="pid 7 holds 2"):
        wait.look()
    wait.begin("of 3 slots the loader of pid 8 holds 1")
    clock.now_s += 0.9
    assert wait.look() == pytest.approx(0.1)
    clock.now_s += 0.1
    with pytest.raises(RingExhausted, match="pid 8 holds 1"):
        wait.look()
