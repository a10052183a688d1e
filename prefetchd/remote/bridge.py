"""The bridge: the daemon's process that has agents on other machines make rows, and receives those into the slots.

    child process prefetchd.remote.bridge SOCKET_FD

    daemon --Give--> bridge --Tasks--> agent          (TCP, a connection each)
           <--Answer--      <--Rows---                received into the slot, checked, then answered

It has one thread that waits for all connections, and one for each agent that is to be reached (`dialer`). It writes to
the rows of a task only until that is answered, recalled, or its agent gone. When the daemon dies its socket ends, and
so does the bridge. When the bridge dies the daemon starts another; no agent notices more than a closed connection.
"""

from __future__ import annotations

import functools
import os
import queue
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefetchd.errors import PrefetchdError, one_line
from prefetchd.ipc import bridge_messages, reader_messages, sockets
from prefetchd.ipc.parent_death import end_with_parent
from prefetchd.remote import wire
from prefetchd.remote.agent_link import AgentLink
from prefetchd.remote.dialer import Dialer, Dialled
from prefetchd.remote.joining import Own, Travelling, join, remote_dataset
from prefetchd.remote.link import LinkEnded
from prefetchd.remote.probe import marks
from prefetchd.remote.targets import Targets
from prefetchd.remote.tls import tls_context
from prefetchd.remote.travel import part_bytes
from prefetchd.ring.layout import BatchLayout, layout_from_wire

if TYPE_CHECKING:
    from prefetchd.remote.ray_placer import RayPlacer

_TICK_S = 0.5
_MOST_DONE = 32  # in one message
_MOST_REASON = 1000  # characters


class Bridge:
    """The loop of the bridge.

    Args:
        sock: its end of the socket to the daemon, owned.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._datasets: list[Travelling] = []
        self._layouts: dict[int, Sequence[BatchLayout]] = {}  # by the daemon's number of the data set
        self._numbers: dict[int, int] = {}  # of the daemon's data sets: which of those that travel it is
        self._targets = Targets(self._layouts)
        self._repeats: dict[int, int] = {}  # of two tasks with the same rows: the other one
        self._links: dict[int, AgentLink] = {}
        self._dialers: dict[int, Dialer] = {}  # of each link
        self._done: dict[int, list[reader_messages.Done]] = {}  # to be sent, by node
        self._n_nodes = 0
        self._placer: RayPlacer | None = None
        self._dialled: queue.SimpleQueue[Dialled] = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(sock, selectors.EVENT_READ, self._on_daemon)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_dialled)
        self._events: dict[int, int] = {}  # what is waited for, by node
        self._tick_s = 0.0

    def run(self) -> None:
        """Serve the daemon until it is gone.

        Raises:
            ConnectionEnded: when it is.
            PrefetchdError: if the bridge cannot work.
        """
        setup = self._receive_setup()
        try:
            context = tls_context(setup.tls_cert, setup.tls_key, setup.tls_ca, is_agent=False)
            own = Own(*marks())
        except PrefetchdError as error:
            for name in setup.agents:
                self._down(0, name, str(error))
            raise
        reach = functools.partial(join, setup=setup, context=context, own=own, datasets=self._datasets)
        dial = functools.partial(Dialer, join=reach, results=self._dialled, wake=self._wake_up)
        for address in setup.agents:
            dial(address)
        if setup.ray is not None:
            self._placer = self._ask_ray(setup, setup.ray, dial)
        while True:
            for key, events in self._selector.select(_TICK_S):
                if isinstance(key.data, AgentLink):
                    self._on_link(key.data, events)
                else:
                    key.data()
            if time.monotonic() >= self._tick_s:
                self._tick_s = time.monotonic() + _TICK_S
                self._tick()
            self._flush()

    def _ask_ray(self, setup: bridge_messages.Setup, address: str, dial: Callable[..., Dialer]) -> RayPlacer:
        from prefetchd.remote.ray_placer import RayPlacer

        dialers: dict[str, Dialer] = {}  # used in the placer's thread alone

        def joined(agent: str) -> None:
            dialers[agent] = dial(agent, is_placed=True)

        def left(agent: str, is_left_out: bool) -> None:
            dialers.pop(agent).stop(is_left_out=is_left_out)

        return RayPlacer(
            address,
            setup.remote_workers,
            (setup.token, setup.allow_code, setup.python_path),
            joined=joined,
            left=left,
            failed=self._ray_failed,
        )

    def _ray_failed(self, reason: str) -> None:
        """Have the daemon say why Ray places nothing; called in a thread."""
        self._dialled.put(Dialled(None, reason=reason))
        self._wake_up()

    def _receive_setup(self) -> bridge_messages.Setup:
        setup: bridge_messages.Setup | None = None
        opened: tuple[reader_messages.OpenDataset, list[int]] | None = None
        while True:
            data, fds = sockets.receive(self._sock)
            match bridge_messages.decode_to_bridge(data):
                case bridge_messages.Setup() as setup:
                    pass
                case reader_messages.OpenDataset() as message:
                    opened = message, fds
                case bridge_messages.Travels() as travels:
                    assert opened is not None
                    self._numbers[opened[0].dataset] = len(self._datasets)
                    self._datasets.append(remote_dataset(*opened, travels))
                    layouts = self._datasets[-1].remote.layouts
                    self._layouts[opened[0].dataset] = [layout_from_wire(each) for each in layouts]
                case bridge_messages.Start():
                    assert setup is not None
                    return setup

    # --- the daemon

    def _send(self, message: bridge_messages.FromBridge) -> None:
        sockets.send(self._sock, reader_messages.encode(message))

    def _down(self, node: int, name: str, reason: str, *, is_left_out: bool = False) -> None:
        """Say why an agent is not there: on one line and not long, as a stranger may have written it."""
        self._send(bridge_messages.NodeDown(node, name, one_line(reason[:_MOST_REASON]), is_left_out))

    def _on_daemon(self) -> None:
        for _ in range(256):
            try:
                data, fds = sockets.receive(self._sock, wait=False)
            except BlockingIOError:
                return
            match bridge_messages.decode_to_bridge(data):
                case bridge_messages.Give() as give:
                    self._give(give.node, give.fills)
                case bridge_messages.Repeat() as repeat:
                    self._repeat(repeat)
                case bridge_messages.Recall() as recall:
                    self._recall(recall.tasks)
                case bridge_messages.Place(n_nodes=n_nodes) if self._placer is not None:
                    self._placer.n_nodes = n_nodes
                case reader_messages.MapSlot() as mapped:
                    self._targets.map(mapped.slot, fds[0], mapped.slot_bytes)
                    sockets.close_all(fds)
                case reader_messages.UnmapSlots() as unmapped:
                    self._targets.unmap(unmapped.slots)

    def _give(self, node: int, fills: Sequence[reader_messages.Fill]) -> None:
        link = self._links.get(node)
        if link is None:  # it is gone, and the daemon learns it next
            return
        tasks = []
        for fill in fills:
            task = wire.Task(
                fill.task, self._numbers[fill.dataset], fill.epoch, fill.batch, fill.first_row, fill.n_rows, fill.layout
            )
            tasks.append((task, self._targets.of(fill)))
        link.give(tasks)

    def _repeat(self, repeat: bridge_messages.Repeat) -> None:
        if repeat.node not in self._links or not any(repeat.of in link.targets for link in self._links.values()):
            self._send(bridge_messages.Returned(repeat.node, repeat.fill.task))
            return
        self._repeats[repeat.of], self._repeats[repeat.fill.task] = repeat.fill.task, repeat.of
        self._give(repeat.node, [repeat.fill])

    def _begins(self, task: int) -> None:
        """Take back the other task with the rows of `task` if those come just now: two may not write to them."""
        other = self._repeats.get(task)
        if other is not None and any(link.is_receiving(other) for link in self._links.values()):
            self._recall([other])

    def _part(self, task: int) -> int | None:
        """Return the other task with the rows of `task`, if there is one; they are a pair no more."""
        other = self._repeats.pop(task, None)
        if other is not None:
            del self._repeats[other]
        return other

    def _drop_repeat(self, task: int) -> None:
        """Write nothing more for the other task with the rows of `task`, if there is one."""
        other = self._part(task)
        if other is not None:
            for link in self._links.values():
                link.recall(other)

    def _recall(self, tasks: list[int]) -> None:
        for task in tasks:
            for link in self._links.values():
                if link.recall(task):
                    self._part(task)
                    self._send(bridge_messages.Returned(link.node, task))

    # --- agents

    def _wake_up(self) -> None:
        """Have the loop look at what became of dialling; called in threads."""
        self._wake.send(b"\0")

    def _on_dialled(self) -> None:
        try:
            while self._woken.recv(64):
                pass
        except BlockingIOError:
            pass
        while not self._dialled.empty():
            dialled = self._dialled.get()
            name = "ray" if dialled.dialer is None else dialled.dialer.address
            if dialled.dialer is None or dialled.sock is None or dialled.joined is None:
                is_over = dialled.dialer is not None and dialled.dialer.is_stopped
                self._down(0, name, dialled.reason, is_left_out=is_over)
                continue
            self._n_nodes += 1
            node = self._n_nodes
            most = max(
                each.remote.chunk_rows * sum(part_bytes(layout))
                for each, layouts in zip(self._datasets, self._layouts.values(), strict=True)
                for layout in layouts
            )
            link = AgentLink(
                node, name, dialled.sock, dialled.joined.n_readers, most, self._begins, self._answered, self._lost
            )  # fmt: skip
            self._links[node], self._dialers[node] = link, dialled.dialer
            self._events[node] = selectors.EVENT_READ
            self._selector.register(link, selectors.EVENT_READ, link)
            self._send_up(link)

    def _send_up(self, link: AgentLink) -> None:
        is_placed = self._dialers[link.node].is_placed
        self._send(bridge_messages.NodeUp(link.node, link.name, link.n_readers, is_placed))

    def _on_link(self, link: AgentLink, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                link.read()
        except LinkEnded as error:
            self._ended(link, str(error))

    def _answered(self, link: AgentLink, done: reader_messages.Done) -> None:
        self._drop_repeat(done.task)
        ready = self._done.setdefault(link.node, [])
        ready.append(done)
        if done.faults or len(ready) >= _MOST_DONE:  # reports of faults are long
            self._send_done(link.node)

    def _send_done(self, node: int) -> None:
        if done := self._done.pop(node, None):
            self._send(bridge_messages.Answer(node, done))

    def _lost(self, link: AgentLink, lost: wire.Lost) -> None:
        self._part(lost.task)
        self._send_done(link.node)
        self._send(bridge_messages.Returned(link.node, lost.task, lost.exit_code, lost.suspect))

    def _flush(self) -> None:
        """Send what is ready: answers to the daemon, tasks to agents."""
        for node in list(self._done):
            self._send_done(node)
        for link in list(self._links.values()):
            try:
                link.flush()
            except LinkEnded as error:
                self._ended(link, str(error))
                continue
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.is_sending else 0)
            if wanted != self._events[link.node]:
                self._events[link.node] = wanted
                self._selector.modify(link, wanted, link)

    def _tick(self) -> None:
        for link in list(self._links.values()):
            try:
                link.tick()
            except LinkEnded as error:
                self._ended(link, str(error))
                continue
            if link.resized:
                link.resized = False
                self._send_up(link)
            pong = link.seen
            self._send(
                bridge_messages.Seen(
                    link.node, link.received_bytes, link.round_trip_s, pong.memory_bytes, pong.budget_bytes,
                    pong.crashes, link.quiet_s,
                )
            )  # fmt: skip

    def _ended(self, link: AgentLink, reason: str) -> None:
        self._send_done(link.node)
        self._selector.unregister(link)
        for task in link.targets:
            self._part(task)
        link.close()
        del self._links[link.node], self._events[link.node]
        dialer = self._dialers.pop(link.node)
        self._down(link.node, link.name, reason, is_left_out=dialer.is_left_out)
        if dialer.is_stopped:  # Ray knew before: an agent that it has placed anew has another address
            self._down(0, link.name, "it is asked no more", is_left_out=True)
        dialer.link_ended()


def main(argv: list[str]) -> int:
    """Be the bridge of the daemon at the other end of SOCKET_FD."""
    end_with_parent(os.getppid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        Bridge(socket.socket(fileno=int(argv[0]))).run()
    except sockets.ConnectionEnded:
        os._exit(0)  # threads may wait for agents
    except PrefetchdError as error:
        print(f"prefetchd: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    return 1
