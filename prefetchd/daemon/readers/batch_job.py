"""The making of a batch: a job of chunks, each of which is a task for a reader. Pure.

    Job (a slot, a batch) -> Chunk (some rows) -> reader -> Done(faults) -> job_tracker

The batch builder owns the jobs. A chunk is the job's until it is given to a reader, and comes back with the reader's
answer, or with its end. The job tracker keeps the numbers of bad samples in a `SampleSet`.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from dataclasses import dataclass, field

from prefetchd.ipc.exit_status import RAISED_STATUS, describe_exit
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Slot

_BLOCK_SAMPLES = 1 << 15
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
        cheap_batch_s: a batch that takes less, in one chunk, is cheap.
        cheap_at_once: how many cheap batches are begun at once, for each reader.
        ring_parts: of the slots that come round, this part must have come back before batches are planned.
        in_hand: how many chunks a reader has at least: one at work, one to do next.
        most_in_hand: how many it has at most, where they are cheap or reads are slow.
        in_hand_s: what they should take together.
        reads_in_hand: how many reads' time they should take, where reads are slow: the estimate of the work is rough.
    """

    chunk_s: float = 0.04
    cheap_batch_s: float = 0.001
    cheap_at_once: int = 16
    ring_parts: int = 4
    in_hand: int = 2
    most_in_hand: int = 32
    in_hand_s: float = 0.004
    reads_in_hand: int = 5

    def is_cheap(self, n_rows: int, row_s: float) -> bool:
        """Return whether `n_rows` samples take next to no time."""
        return 0 < row_s * n_rows < self.cheap_batch_s

    def chunk_rows(self, n_rows: int, row_s: float, n_readers: int, most_rows: int) -> int:
        """Return how many rows a chunk has, `most_rows` at most: an even share for each reader.

        A chunk takes some milliseconds at most. A cheap batch is not cut.
        """
        most = min(n_rows, most_rows)
        if self.is_cheap(most, row_s):
            return most
        share = min(most, -(-n_rows // n_readers))
        return max(1, min(share, round(self.chunk_s / row_s))) if row_s else -(-share // 2)

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
    """

    exit_code: int
    suspect: bool
    timeout_s: float = 0.0
    was_decoding: bool = False

    @property
    def is_by_decoder(self) -> bool:
        """Whether the decoder ended it: it crashed, or left. An exception of the reader's own is no verdict."""
        if self.timeout_s or self.exit_code == RAISED_STATUS:
            return False
        return self.exit_code >= 0 or -self.exit_code in _DECODER_SIGNALS

    def __str__(self) -> str:
        if self.timeout_s:
            return f"it made no progress for reader_timeout={self.timeout_s:g} s"
        return describe_exit(self.exit_code)


class SampleSet:
    """Sample numbers from 0 on, in blocks of bits that are made as numbers of theirs come in.

    It takes a bit a sample at most, and nothing where there are none. One bitmap for all samples would be made at the
    start also for no bad sample: 512 MiB for the 2**32 rows of a large array.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, sample_id: int) -> None:
        """Add a number."""
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.setdefault(number, bytearray(_BLOCK_SAMPLES // 8))
        block[bit // 8] |= 1 << bit % 8

    def __contains__(self, sample_id: int) -> bool:
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.get(number)
        return block is not None and bool(block[bit // 8] >> bit % 8 & 1)
