"""Stragglers: find chunks that a loop waits for and an agent does not answer, and give them to others.

    late chunk --+-- a reader here is free:    taken back from the agent; the reader does it
                 +-- another agent has room:   both do it, into the same rows; the first answer counts
                 +-- nobody has:               waited for; looked at again a moment later

The bridge receives both answers of a pair, so it can stop the one as the other is whole. A reader of this machine
writes to the slot itself: nobody else may write there meanwhile.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Sequence

from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.daemon.readers.bridge_handle import BridgeHandle
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.readers.remote_node import RemoteNode, least_busy
from prefetchd.ipc import bridge_messages
from prefetchd.ring.slots import Key

log = logging.getLogger("prefetchd")

_LATE_TURNS = 3
_LATE_S = 0.2
_UNKNOWN_LATE_S = 2.0  # while nobody knows how long a row takes


class Stragglers:
    """Which chunks are late, and which are repeated."""

    def __init__(self) -> None:
        self._pairs: dict[int, int] = {}  # of a task that is repeated, and its repeat: the other one

    def late(
        self, nodes: Collection[RemoteNode], needed: Collection[Key | None], now_s: float, *, is_idle_here: bool
    ) -> list[tuple[RemoteNode, int]]:
        """Return the late tasks that are not repeated yet, and of a pair that is late altogether the older one.

        Args:
            nodes: the agents.
            needed: the batches that loops wait for.
            now_s: the time, by the monotonic clock.
            is_idle_here: whether a reader of this machine has nothing to do. If not, a chunk is late only if it takes
                much longer than those of other agents: the network, or this machine, may be busy.
        """
        usual_s = 0.0 if is_idle_here else usual_answer_s(nodes)
        found = {
            task: node
            for node in nodes
            for task, (given_s, turn_s) in node.turns.items()
            if now_s - given_s > _patience(max(turn_s, usual_s)) and node.chunks[task].job.key in needed
        }
        return [
            (node, task)
            for task, node in found.items()
            if task not in self._pairs or (self._pairs[task] in found and task < self._pairs[task])
        ]

    def repeat(
        self,
        bridge: BridgeHandle,
        nodes: Collection[RemoteNode],
        needed: Collection[Key | None],
        readers: Sequence[ReaderHandle],
        task_numbers: Iterator[int],
        now_s: float,
    ) -> list[tuple[RemoteNode, Chunk]]:
        """Have late chunks done by others; return the agents that were given one, with the chunk.

        Args:
            bridge: to the agents.
            nodes, needed, now_s: as for `late`.
            readers: those of this machine that can take a chunk: what they are to do is taken back first.
            task_numbers: numbers that no task had.
        """
        given = []
        n_idle, n_able = sum(not reader.chunks for reader in readers), len(readers)
        for node, task in self.late(nodes, needed, now_s, is_idle_here=n_idle > 0):
            chunk, is_paired = node.chunks[task], task in self._pairs
            others = [] if n_idle or is_paired else [each for each in nodes if each is not node]
            other = least_busy(others, now_s)
            if other is not None:
                repeat = next(task_numbers)
                self._pairs[task], self._pairs[repeat] = repeat, task
                bridge.open_slot(chunk.job.slot, now_s)
                bridge.send(bridge_messages.Repeat(other.node, other.take(repeat, chunk, now_s), task), (), now_s)
                _note_late(node, 1, now_s)
                given.append((other, chunk))
            elif is_paired:  # the other of the pair goes on
                take_back(bridge, node, [task], now_s)
            elif n_able:
                n_idle, n_able = max(0, n_idle - 1), n_able - 1
                take_back(bridge, node, [task], now_s)
        return given

    def part(self, task: int) -> int | None:
        """Return the other task of the pair that `task` belongs to, if any; they are a pair no more."""
        other = self._pairs.pop(task, None)
        if other is not None:
            del self._pairs[other]
        return other


def usual_answer_s(nodes: Collection[RemoteNode]) -> float:
    """Return how long agents usually take to answer, in seconds."""
    import statistics  # takes milliseconds to load, and few daemons have agents

    return statistics.median([node.answer_s for node in nodes]) if nodes else 0.0


def take_back(bridge: BridgeHandle, node: RemoteNode, tasks: list[int], now_s: float) -> None:
    """Have the bridge give back tasks of a node, unless they are answered meanwhile."""
    _note_late(node, len(tasks), now_s)
    for task in tasks:
        node.turns[task] = now_s, node.turns[task][1]  # asked for once, until the bridge answers
    bridge.send(bridge_messages.Recall(tasks), (), now_s)


def _note_late(node: RemoteNode, n_chunks: int, now_s: float) -> None:
    if not node.rests_until > now_s:
        log.log(
            logging.WARNING if node.is_silent else logging.INFO,
            "agent %s: %s not come in time (%s); others do that", node.name,
            "a chunk has" if n_chunks == 1 else f"{n_chunks} chunks have", node.describe(now_s),
        )  # fmt: skip
    node.rest(now_s)
    node.recalled += n_chunks


def _patience(turn_s: float) -> float:
    return max(_LATE_S, _LATE_TURNS * turn_s) if math.isfinite(turn_s) else _UNKNOWN_LATE_S
