"""Who is let in while the house is full, and when a daemon that nobody is in ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.daemon.consumers.acceptor import Door
from prefetchd.ipc.event_loop import Callback


class Loop:
    """A clock that is moved by hand, and the timers that were set."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._timers: list[tuple[float, Callback]] = []

    def clock(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, callback: Callback) -> None:
        self._timers.append((self.now_s + delay_s, callback))

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        due = [callback for when_s, callback in self._timers if when_s <= self.now_s]
        self._timers = [timer for timer in self._timers if timer[0] > self.now_s]
        for callback in due:
            callback()


class House:
    """A door that lets two in, and what comes of it."""

    def __init__(self, inside: list[Any], linger_s: float | None = None) -> None:
        self.loop = Loop()
        self.inside: dict[int, Any] = dict(enumerate(inside))
        self.sent_away: list[Any] = []
        self.stopped = False
        self.door = Door(
            self.inside,
            2,
            self.loop,  # type: ignore[arg-type]
            enter=lambda consumer: None,
            send_away=self.sent_away.append,
            stop=self._stop,
            linger_s=linger_s,
        )

    def _stop(self) -> None:
        self.stopped = True


def consumer(*, attached: bool, since_s: float) -> Any:
    return SimpleNamespace(attached=attached, since_s=since_s)


@pytest.mark.parametrize(
    ("inside", "has_room", "n_sent_away"),
    [
        ([consumer(attached=False, since_s=80.0)], True, 0),
        ([consumer(attached=False, since_s=80.0), consumer(attached=True, since_s=0.0)], True, 1),
        ([consumer(attached=True, since_s=0.0), consumer(attached=False, since_s=95.0)], False, 0),
    ],
)
def test_silent_ones_make_room_in_a_full_house(inside: list[Any], has_room: bool, n_sent_away: int) -> None:
    """Only who has not introduced itself for a while is sent away, and only when the house is full."""
    house = House(inside)
    assert house.door._has_room() is has_room
    assert house.sent_away == inside[:n_sent_away]


def test_a_daemon_that_nobody_is_in_ends_after_its_linger_time_and_not_before() -> None:
    house = House([], linger_s=3.0)
    house.door.nobody_inside()
    house.loop.pass_time(2.9)
    assert not house.stopped
    house.loop.pass_time(0.1)
    assert house.stopped


def test_who_came_and_left_meanwhile_lets_the_linger_time_begin_anew() -> None:
    house = House([], linger_s=3.0)
    house.door.nobody_inside()
    house.loop.pass_time(2.0)
    house.inside[1] = consumer(attached=True, since_s=102.0)
    house.loop.pass_time(0.5)
    del house.inside[1]
    house.door.nobody_inside()
    house.loop.pass_time(0.5)  # three seconds after it was empty first
    assert not house.stopped
    house.loop.pass_time(2.5)
    assert house.stopped


def test_a_daemon_that_does_not_linger_stays() -> None:
    house = House([])
    house.door.nobody_inside()
    house.loop.pass_time(1e6)
    assert not house.stopped
