"""The bridge with two agents that have the same rows to make: the first whole answer counts, the other is dropped."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefetchd.daemon.readers.remote_readers import RemoteReaders
from prefetchd.ipc import bridge_messages, sockets
from prefetchd.ipc.reader_messages import Fault, Fill
from prefetchd.remote import wire
from prefetchd.remote.agent_link import AgentLink
from prefetchd.remote.bridge import Bridge
from prefetchd.remote.dialer import Dialled
from prefetchd.remote.link import Peer
from prefetchd.ring.layout import BatchLayout, FieldLayout
from prefetchd.ring.segment import Segment, map_read_only

LAYOUT = BatchLayout(4, (FieldLayout("x", (1000,), "uint8"),))


class Rig:
    """A bridge with a slot and two agents, numbers 1 and 2, whose ends of the connections are `peers`."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.daemon, theirs = sockets.socket_pair()
        self.bridge = Bridge(theirs)
        for sock in (self.daemon, theirs, self.bridge._wake, self.bridge._woken):
            stack.enter_context(sock)
        stack.callback(self.bridge._selector.close)
        self.bridge._layouts[0], self.bridge._numbers[0] = [LAYOUT], 0
        segment = Segment.create(LAYOUT.slot_bytes)
        stack.callback(segment.discard)
        root = np.frombuffer(map_read_only(segment.fd, segment.n_bytes), np.uint8)
        self.x = LAYOUT.arrays(root, 4)[0]
        self.bridge._targets.map(3, segment.fd, segment.n_bytes)
        self.peers: dict[int, Peer] = {}
        for node in (1, 2):
            ours, agents = socket.socketpair()
            self.peers[node] = Peer(stack.enter_context(agents))
            link = AgentLink(node, f"cpu{node}", ours, 2, 10_000, *self.calls())
            stack.callback(link.close)
            self.bridge._links[node], self.bridge._events[node] = link, 0
            self.bridge._selector.register(link, selectors.EVENT_READ, link)
            self.bridge._dialers[node] = SimpleNamespace(
                is_left_out=False, is_stopped=False, is_placed=True, link_ended=lambda: None
            )
        self.bridge._events = dict.fromkeys(self.peers, 1)

    def calls(self) -> tuple[Any, Any, Any]:
        return self.bridge._begins, self.bridge._answered, self.bridge._lost

    def fill(self, task: int) -> Fill:
        return Fill(task, 3, 0, 0, 0, 1, 2, 0)

    def rows(self, task: int, value: int) -> tuple[wire.Rows, list[memoryview]]:
        return wire.Rows(task, [], 0.1, 0.0, 0, 0.0), [memoryview(bytes([value]) * 2000), memoryview(bytes(16))]

    def answer(self, node: int, task: int, value: int) -> None:
        """Have an agent answer, and the bridge take it in."""
        message, parts = self.rows(task, value)
        self.peers[node].send(message, parts, deadline_s=5)
        self.bridge._links[node].read()

    def half(self, node: int, task: int, value: int, faults: Sequence[Fault] = ()) -> Callable[[], None]:
        """Have half an answer come; return what has the rest come."""
        message, parts = self.rows(task, value)
        message.faults.extend(faults)
        data = wire.frame_head(message, parts) + b"".join(parts)

        def send(part: bytes) -> None:
            self.peers[node].sock.sendall(part)
            self.bridge._on_link(self.bridge._links[node], selectors.EVENT_READ)

        send(data[: len(data) // 2])
        return lambda: send(data[len(data) // 2 :])

    def sent(self) -> list[bridge_messages.FromBridge]:
        """What the daemon gets."""
        for node in list(self.bridge._done):
            self.bridge._send_done(node)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(bridge_messages.decode_from_bridge(sockets.receive(self.daemon, wait=False)[0]))
        return found

    def told(self, node: int) -> list[wire.FromDaemon]:
        """What an agent gets."""
        self.bridge._links[node].flush()
        found = []
        with contextlib.suppress(Exception):
            while True:
                found.append(self.peers[node].receive(wire.decode_from_daemon, deadline_s=0.1)[0])
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        yield Rig(stack)


@pytest.mark.parametrize("first", [1, 2])
def test_first_answer_counts_and_the_late_one_is_dropped(rig: Rig, first: int):
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    late, tasks = 3 - first, {1: 11, 2: 12}
    rig.answer(first, tasks[first], 7)
    (answer,) = rig.sent()
    assert isinstance(answer, bridge_messages.Answer)
    assert (answer.node, [done.task for done in answer.done]) == (first, [tasks[first]])
    assert rig.told(late)[-1] == wire.Drop([tasks[late]])
    rig.answer(late, tasks[late], 9)
    assert rig.sent() == []
    assert (rig.x[1:3] == 7).all()
    assert (rig.x[[0, 3]] == 0).all()
    assert not rig.bridge._repeats


def test_half_an_answer_writes_nothing_more_once_the_other_is_there(rig: Rig):
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    rest_of_one = rig.half(1, 11, 9)
    assert (rig.x[1] == 9).any()
    rig.answer(2, 12, 7)
    assert (rig.x[1:3] == 7).all()
    rest_of_one()
    assert (rig.x[1:3] == 7).all()
    returned, answer = rig.sent()
    assert returned == bridge_messages.Returned(1, 11)
    assert isinstance(answer, bridge_messages.Answer)
    assert answer.node == 2


def test_of_two_that_come_at_once_the_answer_that_counts_names_every_fault(rig: Rig):
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    rest_of_one = rig.half(1, 11, 7)
    rest_of_other = rig.half(2, 12, 9, [Fault(1, 0, "a.jpg", "truncated", content=True, needs_fresh_reader=False)])
    rest_of_one()
    rest_of_other()
    returned, answer = rig.sent()
    assert returned == bridge_messages.Returned(1, 11), "two may not write to the same rows"
    assert isinstance(answer, bridge_messages.Answer)
    (done,) = answer.done
    assert done.task == 12
    assert [fault.row for fault in done.faults] == [1]
    assert (rig.x[1:3] == 9).all(), "all rows are of the answer that counts"
    assert wire.Drop([11]) in rig.told(1)


@pytest.mark.parametrize("is_begun", [True, False])
def test_rows_whose_agent_is_lost_half_way_are_made_again(rig: Rig, is_begun: bool):
    """The daemon keeps a chunk with the other of a pair until that is given back, or lost, too."""
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    rest_of_one = rig.half(1, 11, 7) if is_begun else None
    rig.half(2, 12, 9)
    rig.peers[2].close()
    rig.bridge._on_link(rig.bridge._links[2], selectors.EVENT_READ)
    *returned, down = rig.sent()
    assert isinstance(down, bridge_messages.NodeDown)
    assert down.node == 2
    if rest_of_one is not None:
        rest_of_one()
        assert returned == [bridge_messages.Returned(1, 11)], "neither has it, so the daemon does it anew"
        assert rig.sent() == []
    else:
        assert returned == []
        rig.answer(1, 11, 7)
        (answer,) = rig.sent()
        assert isinstance(answer, bridge_messages.Answer)
        assert answer.node == 1
        assert (rig.x[1:3] == 7).all()


def test_repeat_of_what_is_answered_or_lost_already_is_given_back(rig: Rig):
    rig.bridge._give(1, [rig.fill(11)])
    rig.answer(1, 11, 7)
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    assert bridge_messages.Returned(2, 12) in rig.sent()
    assert rig.told(2) == []


def test_one_of_two_that_is_lost_leaves_the_other(rig: Rig):
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(2, rig.fill(12), 11))
    rig.peers[1].send(wire.Lost(11, 1, False), deadline_s=5)
    rig.bridge._links[1].read()
    assert rig.sent() == [bridge_messages.Returned(1, 11, 1, False)]
    rig.answer(2, 12, 7)
    (answer,) = rig.sent()
    assert isinstance(answer, bridge_messages.Answer)
    assert (rig.x[1:3] == 7).all()


@pytest.mark.parametrize("how", ["reader lost", "taken back", "agent gone", "agent of the other never there"])
def test_pair_is_forgotten_with_either_of_the_two(rig: Rig, how: str):
    rig.bridge._give(1, [rig.fill(11)])
    rig.bridge._repeat(bridge_messages.Repeat(5 if "never" in how else 2, rig.fill(12), 11))
    match how:
        case "reader lost":
            rig.peers[1].send(wire.Lost(11, 1, False), deadline_s=5)
            rig.bridge._links[1].read()
        case "taken back":
            rig.bridge._recall([12])
        case "agent gone":
            rig.bridge._ended(rig.bridge._links[2], "it closed the connection")
    assert not rig.bridge._repeats


def test_agent_that_is_left_out_as_it_joins_is_not_missed(rig: Rig):
    """Neither for the try that its end spoils, nor for those before, of which the daemon was told."""
    dialer = SimpleNamespace(address="cpu3:7777", is_stopped=True)
    rig.bridge._dialled.put(Dialled(dialer, reason="it closed the connection"))
    rig.bridge._on_dialled()
    (down,) = rig.sent()
    assert down == bridge_messages.NodeDown(0, "cpu3:7777", "it closed the connection", is_left_out=True)
    daemon = SimpleNamespace(nodes={}, _logged={"cpu3:7777": "it cannot be reached"})
    RemoteReaders._node_down(daemon, down)
    assert daemon._logged == {}


def test_agent_that_ray_has_placed_elsewhere_before_its_connection_ended_is_not_missed(rig: Rig):
    rig.bridge._dialers[1].is_stopped = True
    rig.bridge._ended(rig.bridge._links[1], "it closed the connection")
    first, second = rig.sent()
    assert (first.node, first.is_left_out) == (1, False)
    assert (second.node, second.is_left_out) == (0, True)
    daemon = SimpleNamespace(nodes={}, _logged={})
    for down in (first, second):
        RemoteReaders._node_down(daemon, down)
    assert daemon._logged == {}


def test_what_ray_could_not_do_is_forgotten_once_an_agent_that_it_placed_joins():
    daemon = SimpleNamespace(
        nodes={},
        _logged={"ray": "no node", "cpu9:1": "it cannot be reached"},
        _next_reader=lambda: 7,
        _clock=lambda: 1.0,
    )
    RemoteReaders._node_up(daemon, bridge_messages.NodeUp(1, "cpu1:1", 2, False))
    assert "ray" in daemon._logged, "one of the user's own"
    RemoteReaders._node_up(daemon, bridge_messages.NodeUp(2, "cpu2:1", 2, True))
    assert daemon._logged == {"cpu9:1": "it cannot be reached"}


def test_agent_whose_rows_a_full_network_delays_is_not_quiet(rig: Rig, monkeypatch: pytest.MonkeyPatch):
    """The answer to the question stands behind them."""
    now_s = time.monotonic()
    monkeypatch.setattr("prefetchd.remote.agent_link.time.monotonic", lambda: now_s)
    link = rig.bridge._links[1]
    now_s += 1.5
    link.tick()
    rig.bridge._give(1, [rig.fill(11)])
    for _ in range(3):
        now_s += 4.0
        assert link.quiet_s == pytest.approx(4.0)
        rig.peers[1].send(wire.Readers(2), deadline_s=5)
        link.read()
        assert link.quiet_s == 0
    rig.peers[1].send(wire.Pong(1, 0, 0, 0), deadline_s=5)
    link.read()
    assert link.round_trip_s == pytest.approx(12.0)
    now_s += 2.0
    link.tick()
    now_s += 0.5
    rig.peers[1].send(wire.Pong(2, 0, 0, 0), deadline_s=5)
    link.read()
    now_s += 2.0
    link.tick()
    now_s += 3.0
    rig.peers[1].send(wire.Pong(3, 0, 0, 0), deadline_s=5)
    link.read()
    assert link.round_trip_s == pytest.approx(0.5), "the shortest of late"
