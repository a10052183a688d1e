"""Which connections are accepted when there are too many, and when a daemon without consumers ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.daemon.consumers.attach import Acceptor
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


class Rig:
    """An acceptor of two connections, and what it does."""

    def __init__(self, consumers: list[Any], linger_s: float | None = None) -> None:
        self.loop = Loop()
        self.consumers: dict[int, Any] = dict(enumerate(consumers))
        self.removed: list[Any] = []
        self.stopped = False
        self.acceptor = Acceptor(
            self.consumers,
            2,
            self.loop,  # type: ignore[arg-type]
            self,  # type: ignore[arg-type]
            lambda consumer: None,
            self.removed.append,
            linger_s,
        )

    def stop(self) -> None:
        self.stopped = True


def consumer(*, attached: bool, since_s: float) -> Any:
    return SimpleNamespace(attachment=object() if attached else None, connected_s=since_s)


@pytest.mark.parametrize(
    ("consumers", "has_room", "n_removed"),
    [
        ([consumer(attached=False, since_s=80.0)], True, 0),
        ([consumer(attached=False, since_s=80.0), consumer(attached=True, since_s=0.0)], True, 1),
        ([consumer(attached=True, since_s=0.0), consumer(attached=False, since_s=95.0)], False, 0),
    ],
)
def test_connections_that_have_not_attached_make_room(consumers: list[Any], has_room: bool, n_removed: int) -> None:
    """Only one that has not attached for a while is removed, and only when there are too many."""
    rig = Rig(consumers)
    assert rig.acceptor._has_room() is has_room
    assert rig.removed == consumers[:n_removed]


def test_a_daemon_without_consumers_ends_after_its_linger_time_and_not_before() -> None:
    rig = Rig([], linger_s=3.0)
    rig.acceptor.emptied()
    rig.loop.pass_time(2.9)
    assert not rig.stopped
    rig.loop.pass_time(0.1)
    assert rig.stopped


def test_a_consumer_that_came_and_left_restarts_the_linger_time() -> None:
    rig = Rig([], linger_s=3.0)
    rig.acceptor.emptied()
    rig.loop.pass_time(2.0)
    rig.consumers[1] = consumer(attached=True, since_s=102.0)
    rig.loop.pass_time(0.5)
    del rig.consumers[1]
    rig.acceptor.emptied()
    rig.loop.pass_time(0.5)  # three seconds after it was empty first
    assert not rig.stopped
    rig.loop.pass_time(2.5)
    assert rig.stopped


def test_a_daemon_that_does_not_linger_stays() -> None:
    rig = Rig([])
    rig.acceptor.emptied()
    rig.loop.pass_time(1e6)
    assert not rig.stopped
