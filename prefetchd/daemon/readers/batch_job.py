"""The making of a batch: a job of chunks, each of which is a task for a reader. Pure.

    Job (a slot, a batch) -> Chunk (some rows) -> reader -> Done(faults) -> job_tracker

The batch builder owns the jobs. A chunk is the job's until it is given to a reader, and comes back with the reader's
answer, or with its end.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from dataclasses import dataclass, field

from prefetchd.ipc.exit_status import RAISED_STATUS, describe_exit
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Key, Slot

_DECODER_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})


@dataclass(frozen=True, slots=True)
class Batching:
    """How much work is handed out at a time: batches begun together, rows in a chunk, chunks in a reader's hands.

    Each chunk costs the daemon half a millisecond, as after a pause nothing of its code is in the processor's caches;
    each round of planning costs as much. So cheap work goes out in large portions, and work that takes long in small
    ones, which keeps readers level and a batch's readers busy to its end. `row_s` is what a row takes on average, in
    seconds; 0 while that is not known.

    Attributes:
        chunk_s: what a chunk should take at most.
        chunk_cost_s: what it costs the daemon; a chunk should take at least so long for each reader.
        cheap_batch_s: a batch that takes less, in one chunk, is cheap.
        cheap_at_once: how many cheap batches are begun at once, for each reader.
        ring_parts: of the slots that come round, this part must have come back before batches are planned.
        roomy_slots: for each reader; a ring with so many lets readers work on batches of their own.
        in_hand: how many chunks a reader has at least: one at work, one to do next.
        most_in_hand: how many it has at most, where they are cheap or reads are slow.
        in_hand_s: what they should take together.
        reads_in_hand: how many reads' time they should take, where reads are slow: the estimate of the work is rough.
    """

    chunk_s: float = 0.04
    chunk_cost_s: float = 0.0005
    cheap_batch_s: float = 0.001
    cheap_at_once: int = 16
    ring_parts: int = 4
    roomy_slots: int = 4
    in_hand: int = 2
    most_in_hand: int = 32
    in_hand_s: float = 0.004
    reads_in_hand: int = 5

    def is_cheap(self, n_rows: int, row_s: float) -> bool:
        """Return whether `n_rows` samples take next to no time."""
        return 0 < row_s * n_rows < self.cheap_batch_s

    def chunk_rows(self, n_rows: int, row_s: float, n_readers: int, most_rows: int) -> int:
        """Return how many rows a chunk has, `most_rows` at most: an even share for each reader.

        A chunk takes some dozens of milliseconds at most. A cheap batch is not cut. Of many readers not all work on one
        batch: the daemon would be busy with chunks of a row each.
        """
        most = min(n_rows, most_rows)
        if self.is_cheap(most, row_s):
            return most
        share = min(most, -(-n_rows // n_readers))
        if not row_s:
            return -(-share // 2)
        least = min(most, round(min(self.chunk_s, n_readers * self.chunk_cost_s) / row_s))
        rows = max(1, min(most, max(share, least), round(self.chunk_s / row_s)))
        return -(-n_rows // -(-n_rows // rows))  # of one size

    def worth_planning(self, n_coming_round: int) -> int:
        """Return how many slots must have come back of `n_coming_round` before planning pays."""
        return n_coming_round // self.ring_parts

    def can_take(self, n_in_hand: int, in_hand_s: float, read_s: float) -> bool:
        """Return whether a reader can take one more chunk: it has one to do next, and more of cheap or slow reads."""
        enough_s = max(self.in_hand_s, self.reads_in_hand * read_s)
        return n_in_hand < self.in_hand or (n_in_hand < self.most_in_hand and in_hand_s < enough_s)

    def wants_more(self, n_in_hand: int, in_hand_s: float, read_s: float) -> bool:
        """Return whether more batches should be begun for a reader: of cheap ones many at a time, as planning costs."""
        if read_s:
            return self.can_take(n_in_hand, in_hand_s, read_s)
        few = n_in_hand <= self.most_in_hand // 2 and in_hand_s < self.in_hand_s / 2
        return n_in_hand < self.in_hand or few


BATCHING = Batching()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a batch cannot be made: the name of the error that its consumers get, and its text."""

    error: str
    text: str


@dataclass(slots=True, eq=False)
class Chunk:
    """Some rows of a job for one reader.

    Attributes:
        job: the batch it belongs to.
        rows: the rows to fill.
        sample_id: the one sample to fill `rows[0]` with, or `None` to fill `rows` in the order's own sequence.
        fresh: whether only a fresh reader may take it.
        doubt: the fault of the sample's content that it is to confirm, if any.
        compact: whether this is the closing task that moves the rows of `rows` together.
        expected_s: how long it will take, in seconds, as far as is known.
        postponed: whether its reader was refused memory for now only, so that others can finish.
        waits_for_memory: whether its one sample was refused memory so before: the others finish without it.
        local: whether it was lost elsewhere, so that only readers of this machine may take it.
        is_planned: whether it is among the chunks that the batch builder gives out next.
    """

    job: Job
    rows: range | list[int]
    sample_id: int | None = None
    fresh: bool = False
    doubt: Fault | None = None
    compact: bool = False
    expected_s: float = math.inf
    postponed: bool = False
    waits_for_memory: bool = False
    local: bool = False
    is_planned: bool = False

    @property
    def leaves_fresh(self) -> bool:
        """Whether a fresh reader that finds the doubt confirmed is as good as fresh: the decoder refused a sample."""
        return self.fresh and self.doubt is not None and not self.doubt.this_epoch


@dataclass(slots=True, eq=False)
class Job:
    """The making of one batch in one slot.

    Attributes:
        turn: counts the jobs in the order in which they are needed.
        queued, out: its chunks that wait for a reader, and how many readers have.
        skipped: rows that are left out, with the policy `skip`.
        substitutes: how many samples were tried in place of a bad one, by row.
        failure: why the batch cannot be made; `None` while it can.
        compacted: whether the rows that are left were moved together, or need not be.
        first_row: the row of the batch with which the slot begins: not 0 where an agent makes a part of a batch.
        given_up: whether its slot is needed elsewhere; the batch is made again later.
    """

    slot: Slot
    dataset: int
    epoch: int
    batch: int
    n_rows: int
    turn: int = 0
    queued: deque[Chunk] = field(default_factory=deque)
    out: int = 0
    skipped: set[int] = field(default_factory=set)
    substitutes: dict[int, int] = field(default_factory=dict)
    failure: Failure | None = None
    given_up: bool = False
    compacted: bool = False
    first_row: int = 0

    def fail(self, text: str, error: str = "SampleError") -> None:
        """Give the batch up; its consumers get `error`."""
        self.failure = Failure(error, text)
        self.queued.clear()

    def skipped_bits(self) -> bytes:
        """Return a bit a row, set where the row is skipped; the first row is the lowest bit of the first byte."""
        bits = bytearray(-(-self.n_rows // 8))
        for row in self.skipped:
            bits[row // 8] |= 1 << row % 8
        return bytes(bits)

    @property
    def key(self) -> Key:
        """The batch that it makes."""
        return self.dataset, self.epoch, self.batch

    @property
    def finished(self) -> bool:
        """Whether nothing of it is queued or out."""
        return not self.queued and not self.out


@dataclass(frozen=True, slots=True)
class ReaderEnd:
    """How a reader ended that had chunks in hand.

    Attributes:
        exit_code: its exit status, or minus the signal.
        suspect: whether it was at work on the chunk.
        timeout_s: the `reader_timeout` for which it had made no progress, where it was killed for that; 0 otherwise.
        was_decoding: whether it was then at work on a sample's content, and not waiting for a read.
        was_reading: whether it aborted while it read, and no decoder did it.
    """

    exit_code: int
    suspect: bool
    timeout_s: float = 0.0
    was_decoding: bool = False
    was_reading: bool = False

    @property
    def is_by_decoder(self) -> bool:
        """Whether the decoder ended it: it crashed, or left. An exception of the reader's own is no verdict."""
        if self.timeout_s or self.was_reading or self.exit_code == RAISED_STATUS:
            return False
        return self.exit_code >= 0 or -self.exit_code in _DECODER_SIGNALS

    def __str__(self) -> str:
        if self.timeout_s:
            return f"it made no progress for reader_timeout={self.timeout_s:g} s"
        if self.was_reading:
            return f"{describe_exit(self.exit_code)}, while it read and decoded nothing"
        return describe_exit(self.exit_code)
