"""What the status report says of a loop that waits: one reason, and the slower loop by pid and name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.daemon.consumers.consumer import Attachment, Consumer, ConsumerSocket, State
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.status import _waits_for
from prefetchd.ipc import messages
from prefetchd.sampling.sharding import Shard


def consumer(number: int, *, name: str = "") -> Consumer:
    made = Consumer(number, ConsumerSocket(None), 100 + number, -1, lambda: 0.0)  # type: ignore[arg-type]
    request = messages.Attach(messages.PROTOCOL, "", None, {}, 2, name=name)
    made.attachment = Attachment(request, None, None, None)  # type: ignore[arg-type]
    made.cursor = Cursor(number, 1, 0, Shard(10))
    for state in (State.IDLE, State.RUNNING, State.WAITING):
        made.become(state)
    return made


class Rig:
    """A consumer that waits, beside a slower one."""

    def __init__(self) -> None:
        self.mine, self.slow = consumer(1), consumer(2, name="slow.py")
        self.waits: dict[int, Cursor] = {}
        self.group: Any = None

    def report(self, *, is_short_of_memory: bool = False) -> dict[str, Any] | None:
        manager: Any = SimpleNamespace(
            consumers={1: self.mine, 2: self.slow},
            pacer=SimpleNamespace(waits=self.waits),
            groups=SimpleNamespace(of=lambda _: self.group),
        )
        return _waits_for(self.mine, manager, is_short_of_memory=is_short_of_memory)


def reason(report: dict[str, Any] | None) -> str:
    assert report is not None
    assert report["pid"] is report["name"] is None
    return report["reason"]


def test_a_loop_that_runs_waits_for_nothing():
    rig = Rig()
    rig.mine.become(State.RUNNING)
    assert rig.report() is None


def test_a_slower_loop_is_named_whatever_else_is_the_case():
    rig = Rig()
    assert rig.slow.cursor is not None
    rig.waits[1] = rig.slow.cursor
    rig.mine.socket.blocked = True
    assert rig.report(is_short_of_memory=True) == {"reason": "slower loop", "pid": 102, "name": "slow.py"}


def test_readers_or_memory_are_the_reason_where_no_other_is():
    assert reason(Rig().report()) == "readers"
    assert reason(Rig().report(is_short_of_memory=True)) == "memory"


@pytest.mark.parametrize("at_end", [True, False])
def test_a_group_waits_for_its_members_once_its_batches_are_all_granted(at_end):
    rig = Rig()
    rig.group = SimpleNamespace(cursor=SimpleNamespace(at_end=at_end, consumer=-1))
    assert reason(rig.report()) == ("members" if at_end else "readers")


def test_a_group_waits_for_a_slower_loop_and_a_loop_for_a_slower_group():
    rig = Rig()
    rig.group = SimpleNamespace(cursor=SimpleNamespace(at_end=False, consumer=-1))
    assert rig.slow.cursor is not None
    rig.waits[-1] = rig.slow.cursor
    assert rig.report() == {"reason": "slower loop", "pid": 102, "name": "slow.py"}
    rig.waits[-1] = SimpleNamespace(consumer=-2)
    assert rig.report() == {"reason": "slower loop", "pid": None, "name": None}


def test_stalled_held_back_and_unread_are_reasons():
    rig = Rig()
    rig.mine.socket.blocked = True
    assert reason(rig.report()) == "unread messages"
    rig.mine.become(State.STALLED)
    assert reason(rig.report()) == "slots"
    rig.mine.held_back = True
    assert reason(rig.report()) == "other loaders"
