"""Chunks that an agent does not answer: which are late, who repeats them, and that one answer counts."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefetchd.daemon.readers.batch_job import Chunk, Job
from prefetchd.daemon.readers.bridge_handle import BridgeHandle
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.readers.remote_node import RemoteNode
from prefetchd.daemon.readers.stragglers import Stragglers
from prefetchd.ipc.bridge_messages import Recall, Repeat
from prefetchd.ring.slots import Slot

NEEDED = [(0, 2, 5)]


def node(number: int) -> RemoteNode:
    return RemoteNode(10 + number, number, f"cpu{number}:7777", 2, 0.0)


def chunk(expected_s: float = 0.04, batch: int = 5) -> Chunk:
    slot = SimpleNamespace(number=3, layout=0)
    return Chunk(Job(cast(Slot, slot), 0, 2, batch, 64), range(8, 24), expected_s=expected_s)


def reader(n_chunks: int) -> ReaderHandle:
    return cast(ReaderHandle, SimpleNamespace(chunks=dict.fromkeys(range(n_chunks))))


class Bridge:
    """Notes what it is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def open_slot(self, slot: object, now_s: float) -> None:
        pass

    def send(self, message: Any, fds: object, now_s: float) -> None:
        self.sent.append(message)


def repeat(stragglers: Stragglers, nodes: list[RemoteNode], *readers: ReaderHandle, now_s: float = 1.0) -> Any:
    """Return what the bridge is sent, and which agents were given the chunk."""
    bridge = Bridge()
    given = stragglers.repeat(cast(BridgeHandle, bridge), nodes, NEEDED, readers, itertools.count(100), now_s)
    return bridge.sent, [each.number for each, _ in given]


@pytest.mark.parametrize(
    ("expected_s", "usual_s", "is_idle_here", "patience_s"),
    [
        (0.01, 0.0, False, 0.2),  # the least
        (1.0, 0.0, False, 3.0),
        (math.inf, 0.0, False, 2.0),  # nobody knows how long a row takes yet
        (0.04, 2.0, False, 6.0),  # all agents take as long: the way is busy
        (0.1, 2.0, True, 0.3),  # but a reader here has nothing to do
    ],
)
def test_chunk_is_late_after_some_times_as_long_as_it_should_take(
    expected_s: float, usual_s: float, is_idle_here: bool, patience_s: float
):
    one = node(1)
    one.take(11, chunk(expected_s), 100.0)
    one.answer_s = usual_s

    def late(after_s: float) -> list[int]:
        found = Stragglers().late([one], NEEDED, 100.0 + after_s, is_idle_here=is_idle_here)
        return [task for _, task in found]

    assert late(0.99 * patience_s) == []
    assert late(1.01 * patience_s) == [11]


def test_chunk_that_no_loop_waits_for_is_not_late():
    one = node(1)
    one.take(11, chunk(batch=6), 0.0)
    assert Stragglers().late([one], NEEDED, 4.0, is_idle_here=True) == []


def test_reader_here_that_has_nothing_to_do_is_first_then_an_agent_then_a_reader_with_room():
    slow, other = node(1), node(2)
    slow.take(11, chunk(), 0.0)
    assert repeat(Stragglers(), [slow, other], reader(0)) == ([Recall([11])], [])
    slow.turns[11] = (0.0, 0.04)
    (message,), given = repeat(Stragglers(), [slow, other], reader(1))
    assert (type(message), message.node, message.of, message.fill.task) == (Repeat, 2, 11, 100)
    assert given == [12]
    assert repeat(Stragglers(), [slow], reader(1)) == ([Recall([11])], [])
    slow.turns[11] = (0.0, 0.04)
    assert repeat(Stragglers(), [slow]) == ([], []), "nobody has room: it may still answer first"


def test_one_of_a_pair_that_is_taken_back_leaves_the_others_waiting_where_nobody_has_room():
    slow, other = node(1), node(2)
    stragglers = Stragglers()
    slow.take(11, chunk(), 0.0)
    repeat(stragglers, [slow, other], now_s=0.3)
    slow.take(12, chunk(), 0.0)
    for task in itertools.count(20):
        if not other.can_take(1.0):
            break
        other.take(task, chunk(batch=6), 0.9)
    assert repeat(stragglers, [slow, other], now_s=1.0) == ([Recall([11])], []), "12 may still be answered"


def test_slow_agent_gets_nothing_more_until_it_answers():
    slow = node(1)
    slow.take(11, chunk(), 0.0)
    repeat(Stragglers(), [slow, node(2)], now_s=1.0)
    assert not slow.can_take(1.5)
    assert slow.recalled == 1
    assert slow.describe(1.5) == "resting"


def test_chunk_is_repeated_once_and_taken_back_from_the_first_where_both_are_late():
    slow, other, third = node(1), node(2), node(3)
    stragglers = Stragglers()
    slow.take(11, chunk(), 0.0)
    (message,), _ = repeat(stragglers, [slow, other, third], now_s=0.3)
    assert message.node == 2
    assert repeat(stragglers, [slow, other, third], now_s=0.4) == ([], []), "the other has just begun"
    assert repeat(stragglers, [slow, other, third], now_s=1.0) == ([Recall([11])], [])
    assert stragglers.part(11) == 100
    assert stragglers.part(100) is None
    slow.take_back(11)
    (message,), _ = repeat(stragglers, [slow, other, third], now_s=1.1)
    assert (message.node, message.of) == (3, 100), "it is alone now, and another one is asked"
