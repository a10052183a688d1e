"""The readers on other machines: gives agents chunks through the bridge, and takes chunks back that do not come.

    pool --assign--> RemoteNode --Give--> bridge --> agent
         <--done, returned-- <--Answer, Returned--

Agents get plain chunks alone. What is done once more, since a sample is in doubt or its agent was lost, is done by the
readers of this machine: so every verdict is theirs, and a machine that cannot read the data makes no sample bad. The
bridge is started again when it dies, with rests that grow; meanwhile the readers of this machine go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from prefetchd.config.units import format_count
from prefetchd.daemon.readers.batch_job import Chunk, ReaderEnd
from prefetchd.daemon.readers.bridge_handle import BridgeHandle, Briefing
from prefetchd.daemon.readers.pool_events import PoolEvents
from prefetchd.daemon.readers.quarantine import Quarantine
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.readers.remote_node import RemoteNode, least_busy
from prefetchd.daemon.readers.stragglers import Stragglers, take_back, usual_answer_s
from prefetchd.ipc import bridge_messages, sockets
from prefetchd.ring.slots import Key, Slot

log = logging.getLogger("prefetchd")

_BRIDGE = "the bridge"
_FIRST_REST_S = 0.5
_MOST_REST_S = 30.0
_STEADY_S = 60.0
_FLUSH_S = 0.02
_MOST_FILLS = 512  # in one message
_LOST = ReaderEnd(0, suspect=False)


class RemoteReaders:
    """All agents of one daemon, and the bridge to them.

    Args:
        briefing: what each bridge is told first: messages and their descriptors, borrowed.
        events: what is reported, and to whom.
        travels: whether chunks of a data set, by number, may be made elsewhere.
        next_reader: returns a number that no reader had.
        watch, unwatch, call_later, clock: the loop's.
    """

    def __init__(
        self,
        briefing: Briefing,
        events: PoolEvents,
        *,
        travels: Callable[[int], bool],
        next_reader: Callable[[], int],
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        call_later: Callable[[float, Callable[[], object]], None],
        clock: Callable[[], float],
    ) -> None:
        self.nodes: dict[int, RemoteNode] = {}
        self.bridge_deaths = 0
        self.busy_s, self.samples = 0.0, 0  # of all agents so far, also of those that are gone
        self.n_wanted = 1  # nodes that Ray is to place agents on, where their number is automatic
        self._briefing, self._events, self._travels = briefing, events, travels
        self._next_reader = next_reader
        self._watch, self._unwatch, self._call_later, self._clock = watch, unwatch, call_later, clock
        self._buffer = bytearray(sockets.MAX_MESSAGE_BYTES)
        self._stragglers = Stragglers()
        self._quarantine = Quarantine(watch, unwatch, events.gone)
        self._logged: dict[str, str] = {}  # by address: why it is not there
        self._rest_s = _FIRST_REST_S
        self._started_s = 0.0
        self._stopping = self._is_flushing = False
        self._bridge: BridgeHandle | None = None
        self._start()

    def _start(self) -> None:
        if self._stopping:
            return
        self._started_s = self._clock()
        try:
            self._bridge = BridgeHandle(self._briefing, self._clock())
        except OSError as error:  # no memory, or too many processes
            log.warning("cannot start the bridge to other machines: %s; trying again", error.strerror)
            self._start_later()
            return
        self._watch(self._bridge.fileno(), self._on_bridge)
        if self.n_wanted > 1:
            self.want(self.n_wanted)
        self._flush_later()

    def _start_later(self) -> None:
        self._call_later(self._rest_s, self._start)
        self._rest_s = min(_MOST_REST_S, 2 * self._rest_s)

    # --- how many

    def want(self, n_nodes: int) -> None:
        """Have Ray place agents on so many nodes."""
        self.n_wanted = n_nodes
        if self._bridge is not None:
            self._bridge.send(bridge_messages.Place(n_nodes), (), self._clock())
            self._flush_later()

    @property
    def n_placed(self) -> int:
        """Agents that Ray has placed, and that have joined."""
        return sum(node.is_placed for node in self.nodes.values())

    @property
    def n_readers(self) -> int:
        """Readers on other machines."""
        return sum(node.n_readers for node in self.nodes.values())

    # --- work

    def pick(self, chunk: Chunk) -> RemoteNode | None:
        """Return the least busy agent that can take `chunk`."""
        if chunk.sample_id is not None or chunk.compact or chunk.fresh or chunk.local:
            return None
        if not self._travels(chunk.job.dataset):
            return None
        return least_busy(self.nodes.values(), self._clock())

    @property
    def wants_more(self) -> bool:
        """Whether some agent is about to run out of work."""
        now_s = self._clock()
        return any(node.can_take(now_s) for node in self.nodes.values())

    @property
    def busy(self) -> bool:
        """Whether some agent has work."""
        return any(node.chunks for node in self.nodes.values())

    def flush(self) -> None:
        """Send what agents were given."""
        if self._bridge is None:
            return
        now_s = self._clock()
        for node in self.nodes.values():
            if not node.unsent:
                continue
            for task in node.unsent:
                self._bridge.open_slot(node.chunks[task.task].job.slot, now_s)
            for first in range(0, len(node.unsent), _MOST_FILLS):
                fills = node.unsent[first : first + _MOST_FILLS]
                self._bridge.send(bridge_messages.Give(node.node, fills), (), now_s)
            node.unsent = []
        self._flush_later()

    def _flush_later(self) -> None:
        if self._bridge is not None and self._bridge.is_sending and not self._is_flushing:
            self._is_flushing = True
            self._call_later(_FLUSH_S, self._flush_again)

    def _flush_again(self) -> None:
        self._is_flushing = False
        if self._bridge is not None:
            self._bridge.flush(self._clock())
            self._flush_later()

    def close_slot(self, slot: Slot) -> None:
        """Have the bridge unmap a slot, to which nothing is written any more."""
        if self._bridge is not None:
            self._bridge.close_slot(slot)

    def repeat_late(
        self, needed: Collection[Key | None], readers: Sequence[ReaderHandle], task_numbers: Iterator[int]
    ) -> list[tuple[RemoteNode, Chunk]]:
        """Have late chunks done by others too; return the agents that were given one, with the chunk.

        Args:
            needed: the batches that loops wait for.
            readers: those of this machine that can take a chunk: what they are to do is first taken back.
            task_numbers: numbers that no task had.
        """
        if self._bridge is None:
            return []
        given = self._stragglers.repeat(
            self._bridge, self.nodes.values(), needed, readers, task_numbers, self._clock()
        )  # fmt: skip
        self._flush_later()
        return given

    def tick(self) -> None:
        """Take back what does not come; call about twice a second while `busy`. See `RemoteNode.overdue`."""
        if self._bridge is None:
            return
        now_s = self._clock()
        self._bridge.check(now_s)
        usual_s = usual_answer_s(self.nodes.values())
        for node in self.nodes.values():
            overdue = node.overdue(now_s, usual_s)
            if overdue:
                take_back(self._bridge, node, overdue, now_s)
        self._flush_later()

    # --- the bridge

    def _on_bridge(self) -> None:
        assert self._bridge is not None
        for _ in range(64):
            try:
                message = self._bridge.receive(self._buffer)
            except sockets.ConnectionEnded:
                self._bridge_died()
                return
            if message is None:
                return
            self._handle(message)

    def _handle(self, message: bridge_messages.FromBridge) -> None:
        node = self.nodes.get(message.node)
        match message:
            case bridge_messages.NodeUp():
                self._node_up(message)
            case bridge_messages.NodeDown():
                self._node_down(message)
            case bridge_messages.Answer() if node is not None:
                for done in message.done:
                    if done.task in node.chunks:
                        self._withdraw(self._stragglers.part(done.task))
                        chunk = node.finished(done, self._clock())
                        node.look_at_faults(done.faults)
                        self.busy_s += done.took_s
                        self.samples += len(chunk.rows) - done.rows_left
                        self._events.done(node.number, chunk, done)
            case bridge_messages.Returned() if node is not None and message.task in node.chunks:
                end = ReaderEnd(message.exit_code, message.suspect)
                self._return(node, message.task, end)
            case bridge_messages.Seen() if node is not None:
                node.received_bytes, node.round_trip_s = message.received_bytes, message.round_trip_s
                node.memory_bytes, node.budget_bytes = message.memory_bytes, message.budget_bytes
                node.quiet_s, node.crashes = message.quiet_s, message.crashes

    def _return(self, node: RemoteNode, task: int, end: ReaderEnd) -> None:
        chunk = node.take_back(task)
        node.unsent = [fill for fill in node.unsent if fill.task != task]
        if self._stragglers.part(task) is not None:  # another agent has it too
            self._events.withdrawn(node.number, chunk)
            return
        chunk.local = True  # so that it ends: those of this machine try as often as it takes
        self._events.returned(node.number, chunk, end)

    def _withdraw(self, task: int | None) -> None:
        """Forget a task, if any, that another agent was quicker with; the bridge writes nothing more for it."""
        for node in self.nodes.values():
            if task in node.chunks:
                self._events.withdrawn(node.number, node.take_back(task))

    def _node_up(self, up: bridge_messages.NodeUp) -> None:
        node = self.nodes.get(up.node)
        if node is not None:
            node.n_readers = up.n_readers
            return
        self._logged.pop(up.name, None)
        self._logged.pop(_BRIDGE, None)
        if up.is_placed:
            self._logged.pop("ray", None)  # why it had placed none
        self.nodes[up.node] = RemoteNode(
            self._next_reader(), up.node, up.name, up.n_readers, self._clock(), is_placed=up.is_placed
        )
        log.info("agent %s has joined with %s", up.name, format_count(up.n_readers, "reader"))

    def _node_down(self, down: bridge_messages.NodeDown) -> None:
        if down.node in self.nodes:
            self._lose(self.nodes.pop(down.node))
        if down.is_left_out:
            was_missing = self._logged.pop(down.name, None) is not None
            if down.node or was_missing:
                log.info("agent %s is asked no more", down.name)
            return
        if self._logged.get(down.name) == down.reason:
            return
        self._logged[down.name] = down.reason
        left = "others do its work" if self.nodes else "the readers of this machine go on without it"
        log.warning("agent %s does not serve: %s; %s, and it is asked again", down.name, down.reason, left)

    def _lose(self, node: RemoteNode) -> None:
        for task in reversed(list(node.chunks)):
            self._return(node, task, _LOST)
        self._events.gone(node.number)

    def _bridge_died(self) -> None:
        assert self._bridge is not None
        self.bridge_deaths += 1
        self._unwatch(self._bridge.fileno())
        pid = self._bridge.pid
        pidfd, how = self._bridge.end()
        self._bridge = None
        nodes, self.nodes = list(self.nodes.values()), {}
        # Ray's library ends the process that uses it while the head of the cluster is gone, again and again.
        log.log(
            logging.INFO if _BRIDGE in self._logged else logging.WARNING,
            "the bridge to other machines (pid %d) has ended (%s); the readers of this machine go on, and another is "
            "started",
            pid,
            how,
        )
        self._logged[_BRIDGE] = f"it has ended ({how}), and another is started"
        if pidfd >= 0:  # it may write into its slots yet
            self._quarantine.add(pidfd, [node.number for node in nodes])
            for node in nodes:
                for task, chunk in node.chunks.items():
                    if self._stragglers.part(task) is None:  # once, where two agents have it
                        self._events.stuck(pid, node.number, chunk)
        else:
            for node in nodes:
                self._lose(node)
        if self._clock() - self._started_s > _STEADY_S:
            self._rest_s = _FIRST_REST_S
        self._start_later()

    @property
    def pids(self) -> list[int]:
        """The bridge."""
        return [] if self._bridge is None else [self._bridge.pid]

    def report(self) -> list[dict[str, Any]]:
        """Return what `status` shows of each agent that has joined."""
        now_s = self._clock()
        return [node.report(now_s) for node in self.nodes.values()]

    @property
    def missing(self) -> dict[str, str]:
        """Why agents are not there, by their address; why none may be, by `ray` and `the bridge`."""
        return dict(self._logged)

    def stop(self) -> None:
        """End the bridge."""
        self._stopping = True
        if self._bridge is not None:
            self._unwatch(self._bridge.fileno())
            pidfd, _ = self._bridge.end()
            if pidfd >= 0:
                self._quarantine.add(pidfd, [])
            self._bridge = None
        self._quarantine.close()
