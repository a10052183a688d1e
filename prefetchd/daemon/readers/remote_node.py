"""An agent on another machine, as the daemon sees it: like one reader with many hands."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.errors import one_line
from prefetchd.ipc import reader_messages

log = logging.getLogger("prefetchd")

_LEAST_IN_HAND = 2  # chunks for each of its readers: one at work, one to do next
_MOST_IN_HAND = 6  # where the way there and back takes as long as some chunks
_SILENT_S = 5.0
_QUIET_S = 2.0
_DEADLINE_TURNS = 10
_DEADLINE_S = 5.0
_UNKNOWN_DEADLINE_S = 30.0  # while nobody knows how long a row takes
_REST_S = 5.0
_DOUBTED_FROM = 16  # samples that an agent could not make
_MOST_QUOTED = 300  # characters of what an agent says of one


@dataclass(slots=True, eq=False)
class RemoteNode:
    """One agent that has joined.

    Attributes:
        number: its number among the daemon's readers.
        node: its number to the bridge.
        name: its address.
        n_readers: readers that it has for this daemon.
        chunks: what it was given and has not answered, by task.
        turns: when each of these was given, by the monotonic clock, and how long it should take, in seconds.
        unsent: fills that it was given and that are still to be sent.
        rests_until: until when it gets nothing: what it had was taken back, as it did not come.
        quiet_s: for how long it has not answered the bridge.
        round_trip_s: how long an answer took the last time.
        chunk_s: how long one of its chunks takes a reader, roughly; 0 while that is not known.
        answer_s: how long it takes until one is there, from when it was given, roughly.
        samples, busy_s, recalled: rows that it made, seconds that its readers took, chunks that were taken back.
        unread: rows that it could not make, as with a sample that it cannot read.
        received_bytes: all that came from it.
        joined_s: since when it is there.
        is_placed: whether Ray has placed it.
        is_doubted: whether it was said that it cannot make most samples.
        memory_bytes, budget_bytes, crashes: the agent's own memory, its budget for this daemon, its readers' crashes.
    """

    number: int
    node: int
    name: str
    n_readers: int
    joined_s: float
    is_placed: bool = False
    is_doubted: bool = False
    chunks: dict[int, Chunk] = field(default_factory=dict)
    turns: dict[int, tuple[float, float]] = field(default_factory=dict)
    unsent: list[reader_messages.Fill] = field(default_factory=list)
    rests_until: float = 0.0
    quiet_s: float = 0.0
    round_trip_s: float = 0.0
    chunk_s: float = 0.0
    answer_s: float = 0.0
    samples: int = 0
    busy_s: float = 0.0
    recalled: int = 0
    unread: int = 0
    received_bytes: int = 0
    memory_bytes: int = 0
    budget_bytes: int = 0
    crashes: int = 0

    @property
    def in_hand(self) -> int:
        """How many chunks it should have: two to six for each of its readers, by the round trip."""
        ways = math.ceil(self.round_trip_s / self.chunk_s) if self.chunk_s else 0
        return self.n_readers * min(_MOST_IN_HAND, _LEAST_IN_HAND + ways)

    @property
    def load(self) -> float:
        """Chunks in hand for each of its readers."""
        return len(self.chunks) / max(1, self.n_readers)

    @property
    def is_silent(self) -> bool:
        """Whether it has not answered the bridge for so long that what it has is taken back."""
        return self.quiet_s > _SILENT_S

    def can_take(self, now_s: float) -> bool:
        """Whether it can take another chunk."""
        return len(self.chunks) < self.in_hand and self.quiet_s < _QUIET_S and now_s >= self.rests_until

    def assign(self, task: int, chunk: Chunk, now_s: float) -> None:
        """Give it a chunk under the task number `task`; it goes out with the next flush."""
        self.unsent.append(self.take(task, chunk, now_s))

    def take(self, task: int, chunk: Chunk, now_s: float) -> reader_messages.Fill:
        """Note that it has a chunk from now on; return what it is to be sent."""
        turn_s = chunk.expected_s * (1 + self.load) + self.round_trip_s
        self.chunks[task], self.turns[task] = chunk, (now_s, turn_s)
        job, n_rows, slot = chunk.job, len(chunk.rows), chunk.job.slot
        return reader_messages.Fill(
            task, slot.number, job.dataset, job.epoch, job.batch, chunk.rows[0], n_rows, slot.layout
        )

    def finished(self, done: reader_messages.Done, now_s: float) -> Chunk:
        """Take in its answer to a task; return what that was."""
        self.answer_s += (now_s - self.turns[done.task][0] - self.answer_s) * (0.2 if self.answer_s else 1)
        chunk = self.take_back(done.task)
        self.busy_s += done.took_s
        self.samples += len(chunk.rows) - done.rows_left - len(done.faults)
        self.unread += len(done.faults)
        self.chunk_s += (done.took_s - self.chunk_s) * (0.2 if self.chunk_s else 1)
        self.rests_until = 0.0
        return chunk

    def look_at_faults(self, faults: Sequence[reader_messages.Fault]) -> None:
        """Warn once of an agent that cannot make most of what it is given, such as one without the data."""
        if not faults or self.is_doubted or self.unread < max(_DOUBTED_FROM, self.samples):
            return
        self.is_doubted = True
        where, reason = (one_line(text[:_MOST_QUOTED]) for text in (faults[0].where, faults[0].reason))
        log.warning(
            "agent %s cannot make %d of its first %d samples, such as %s: %s; the readers of this machine make them; "
            "see that the agent has the same data under the same paths",
            self.name,
            self.unread,
            self.unread + self.samples,
            where,
            reason,
        )

    def take_back(self, task: int) -> Chunk:
        """Return what a task was; it has it no more."""
        del self.turns[task]
        return self.chunks.pop(task)

    def overdue(self, now_s: float, usual_s: float) -> list[int]:
        """Return the tasks that are to be taken back: all of a node that is silent, those that take far too long.

        Args:
            now_s: the time, by the monotonic clock.
            usual_s: how long agents take to answer: where the network or this machine is busy, that is longer.
        """
        if self.is_silent:
            return list(self.chunks)
        return [
            task for task, (given_s, turn_s) in self.turns.items() if now_s - given_s > _patience(max(turn_s, usual_s))
        ]

    def rest(self, now_s: float) -> None:
        """Give it nothing for a while, or until it answers."""
        self.rests_until = now_s + _REST_S

    def describe(self, now_s: float) -> str:
        """Return what it does: `working`, `idle`, `silent for 7 s`, `resting`."""
        if self.quiet_s >= _QUIET_S:
            return f"silent for {self.quiet_s:.0f} s"
        if now_s < self.rests_until:
            return "resting"
        return "working" if self.chunks else "idle"

    def report(self, now_s: float) -> dict[str, Any]:
        """Return what `status` shows of it."""
        return {
            "name": self.name,
            "readers": self.n_readers,
            "state": self.describe(now_s),
            "tasks": len(self.chunks),
            "samples": self.samples,
            "busy_s": round(self.busy_s, 3),
            "received_bytes": self.received_bytes,
            "round_trip_s": round(self.round_trip_s, 6),
            "recalled": self.recalled,
            "unread": self.unread,
            "joined_s": round(now_s - self.joined_s, 3),
            "memory_bytes": self.memory_bytes,
            "budget_bytes": self.budget_bytes,
            "reader_crashes": self.crashes,
        }


def least_busy(nodes: Iterable[RemoteNode], now_s: float) -> RemoteNode | None:
    """Return the least busy node that can take a chunk, if any can."""
    return min((node for node in nodes if node.can_take(now_s)), key=lambda node: node.load, default=None)


def _patience(turn_s: float) -> float:
    return max(_DEADLINE_S, _DEADLINE_TURNS * turn_s) if math.isfinite(turn_s) else _UNKNOWN_DEADLINE_S
