"""An agent as the daemon sees it: how much it has in hand, and when what it has is taken back."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.daemon.readers.remote_node import RemoteNode
from prefetchd.ipc.reader_messages import Done, Fault


def node(n_readers: int = 2, **other: Any) -> RemoteNode:
    return RemoteNode(7, 1, "cpu1:7777", n_readers, 0.0, **other)


def chunk(expected_s: float = 0.04) -> Chunk:
    slot = SimpleNamespace(number=3, layout=1)
    job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=5, n_rows=64)
    return Chunk(cast(Any, job), range(8, 24), expected_s=expected_s)


def test_two_to_six_chunks_for_each_reader_by_the_round_trip():
    assert node().in_hand == 4
    assert node(round_trip_s=0.03, chunk_s=0.04).in_hand == 6
    assert node(round_trip_s=0.1, chunk_s=0.04).in_hand == 10
    assert node(round_trip_s=9.0, chunk_s=0.04).in_hand == 12


def test_it_takes_as_much_as_it_should_have_in_hand_and_nothing_while_it_is_quiet_or_rests():
    one = node(1)
    assert one.can_take(0.0)
    one.assign(11, chunk(), 0.0)
    one.assign(12, chunk(), 0.0)
    assert not one.can_take(0.0)
    assert [(fill.task, fill.slot, fill.first_row, fill.n_rows, fill.layout) for fill in one.unsent] == [
        (11, 3, 8, 16, 1), (12, 3, 8, 16, 1),
    ]  # fmt: skip
    one.finished(Done(11, [], 0.04), 0.1)
    assert one.can_take(0.0)
    one.quiet_s = 3.0
    assert not one.can_take(0.0)
    one.quiet_s = 0.0
    one.rest(10.0)
    assert not one.can_take(12.0)
    one.finished(Done(12, [], 0.04), 12.5)
    assert one.can_take(12.5), "it has answered"


def test_rows_that_it_could_not_make_are_counted_apart():
    one = node(1)
    one.assign(11, chunk(), 0.0)
    faults = [Fault(row, row, "a.jpg", "the file is missing", True, False) for row in range(8, 13)]
    one.finished(Done(11, faults, 0.04, rows_left=2), 0.1)
    assert (one.samples, one.unread) == (9, 5)
    assert one.report(1.0)["unread"] == 5


@pytest.mark.parametrize(
    ("expected_s", "usual_s", "patience_s"),
    [
        (0.04, 0.0, 5.0),  # the least
        (1.0, 0.0, 10.0),
        (math.inf, 0.0, 30.0),  # nobody knows how long a row takes yet
        (0.04, 2.0, 20.0),  # all take as long: the way is busy
    ],
)
def test_patience_with_a_chunk(expected_s: float, usual_s: float, patience_s: float):
    one = node()
    one.assign(11, chunk(expected_s), 100.0)
    assert one.overdue(100.0 + 0.99 * patience_s, usual_s) == []
    assert one.overdue(100.0 + 1.01 * patience_s, usual_s) == [11]


def test_all_chunks_of_a_silent_node_are_taken_back():
    one = node(quiet_s=6.0)
    one.assign(11, chunk(), 0.0)
    one.assign(12, chunk(), 0.0)
    assert one.overdue(0.1, 0.0) == [11, 12]
    assert one.describe(0.1) == "silent for 6 s"
