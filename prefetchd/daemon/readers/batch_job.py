"""Turning a batch into tasks for readers, and their answers into a batch: chunks, retries, and the bad-sample policy.

    Job (a slot, a batch) -> Chunk (some rows) -> reader -> Done(faults) -> retry | confirm | skip | substitute | fail

A `Job` is done when no chunk is queued or out. What decides a batch's content is only which samples are bad:
- a fault of the content that needs no fresh reader (a missing file) counts when it is seen twice;
- one that does (a decoder's refusal) counts when it is seen again, alone, in a fresh reader;
- what a user's function raises holds for that epoch alone: it draws other numbers in the next, and is asked again;
- a sample that takes its reader down while it is alone there, twice, is bad, if the decoder did it both times (SIGSEGV
  and the like, an exit of its own); SIGKILL is the environment's doing;
- what the environment does is tried again `ENVIRONMENT_TRIES` times and then fails the batch under any policy.
Pure: it knows neither processes nor sockets.

A set of sample numbers that takes a bit a sample at most, and nothing where there are none. Pure; the tracker's.
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from prefetchd.config.options import OnError
from prefetchd.ipc.reader_messages import Fault, describe_exit
from prefetchd.ring.slots import Key, Slot

_BLOCK_SAMPLES = 1 << 15


class SampleSet:
    """Sample numbers from 0 on. Blocks of bits are made as numbers of theirs come in.

    One bitmap for all samples would be made at start whatever is in it: 512 MiB for the 2**32 rows of a large array.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}

    def add(self, sample_id: int) -> None:
        """Put a number in."""
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.setdefault(number, bytearray(_BLOCK_SAMPLES // 8))
        block[bit // 8] |= 1 << bit % 8

    def __contains__(self, sample_id: int) -> bool:
        number, bit = divmod(sample_id, _BLOCK_SAMPLES)
        block = self._blocks.get(number)
        return block is not None and bool(block[bit // 8] >> bit % 8 & 1)


ENVIRONMENT_TRIES = 4
CRASH_TRIES = 2
_MAX_SUBSTITUTES = 1000
_REMEMBERED_BAD = 100
_TOLD_BAD = 100_000
_DECODER_SIGNALS = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})


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
        fresh: whether only a reader that has done nothing yet may take it.
        compact: whether this is the closing task that moves the rows of `rows` together.
        expected_s: how long it will take, in seconds, as far as is known.
    """

    job: Job
    rows: range | list[int]
    sample_id: int | None = None
    fresh: bool = False
    compact: bool = False
    expected_s: float = math.inf


@dataclass(slots=True, eq=False)
class Job:
    """The making of one batch in one slot."""

    slot: Slot
    dataset: int
    epoch: int
    batch: int
    n_rows: int
    queued: deque[Chunk] = field(default_factory=deque)
    out: int = 0
    skipped: set[int] = field(default_factory=set)
    substitutes: dict[int, int] = field(default_factory=dict)
    failure: Failure | None = None
    compacted: bool = False

    def fail(self, text: str, error: str = "SampleError") -> None:
        """Give the batch up; its consumers get `error`."""
        self.failure = Failure(error, text)
        self.queued.clear()

    def skipped_bits(self) -> bytes:
        """A bit a row, set where the row is skipped; the first row is the lowest bit of the first byte."""
        bits = bytearray(-(-self.n_rows // 8))
        for row in self.skipped:
            bits[row // 8] |= 1 << row % 8
        return bytes(bits)

    @property
    def finished(self) -> bool:
        """Whether nothing of it is queued or out."""
        return not self.queued and not self.out


@dataclass(slots=True)
class BadSample:
    """A sample found bad: what the log and `status` say of it."""

    sample_id: int
    where: str
    reason: str
    detail: str = ""


class JobTracker:
    """Applies the policy to what the readers report; remembers which samples are bad."""

    def __init__(
        self,
        policy: OnError,
        n_samples: int,
        sample_id_at: Callable[[Job, int], int],
        where: Callable[[int], str],
        on_bad: Callable[[BadSample], None],
    ) -> None:
        self._policy = policy
        self._n_samples = n_samples
        self._sample_id_at = sample_id_at
        self._where = where
        self._on_bad = on_bad
        self.first_bad: list[BadSample] = []
        self.n_bad = 0
        self._known_bad = SampleSet()
        self._bad_in_some_epoch: set[int] = set()  # by functions that draw other numbers in each; told of already
        self._seen: dict[int, int] = {}  # content faults of a sample not yet confirmed
        self._environment: dict[tuple[int, int, int], int] = {}
        self._crashes: dict[int, list[int]] = {}  # exit codes of the readers that ended with a sample alone

    def start(self, slot: Slot, key: Key, n_rows: int, chunk_rows: int, row_s: float = math.inf) -> Job:
        """Return a job with its rows, each of which takes about `row_s` seconds, cut into chunks."""
        job = Job(slot, *key, n_rows)
        for first in range(0, n_rows, chunk_rows):
            rows = range(first, min(n_rows, first + chunk_rows))
            job.queued.append(Chunk(job, rows, expected_s=row_s * len(rows)))
        return job

    def done(self, chunk: Chunk, faults: list[Fault], rows_left: int = 0) -> None:
        """A reader finished `chunk`, all rows but the faulty ones and the last `rows_left` being right."""
        chunk.job.out -= 1
        if chunk.compact:
            chunk.job.compacted = True
            self._environment.pop((chunk.job.epoch, chunk.job.batch, -1), None)
        if rows_left and chunk.job.failure is None:
            left = chunk.rows[len(chunk.rows) - rows_left :]
            chunk.job.queued.appendleft(Chunk(chunk.job, left, chunk.sample_id, fresh=chunk.fresh))
        elif chunk.sample_id is not None and not faults:
            self._seen.pop(chunk.sample_id, None)
            self._crashes.pop(chunk.sample_id, None)
            self._environment.pop((chunk.job.epoch, chunk.job.batch, chunk.rows[0]), None)
        for fault in faults:
            self._fault(chunk, fault)
        self._close(chunk.job)

    def lost(self, chunk: Chunk, *, suspect: bool, exit_code: int) -> None:
        """The reader that had `chunk` is gone; `suspect` if it was at work on it."""
        job = chunk.job
        job.out -= 1
        if job.failure is not None:
            return
        if chunk.compact and suspect:
            self._lost_in_closing(chunk, exit_code)
        elif not suspect:
            job.queued.appendleft(chunk)
        elif chunk.sample_id is None:
            # Each row alone, so that a second crash names its sample.
            for row in reversed(chunk.rows):
                job.queued.appendleft(Chunk(job, [row], self._sample_id_at(job, row)))
        else:
            self._crashed_alone(chunk, chunk.sample_id, exit_code)
        self._close(job)

    # --- one fault

    def _fault(self, chunk: Chunk, fault: Fault) -> None:
        job = chunk.job
        if job.failure is not None:
            return
        if not fault.content:
            key = (job.epoch, job.batch, fault.row)
            self._environment[key] = self._environment.get(key, 0) + 1
            if self._environment[key] >= ENVIRONMENT_TRIES:
                del self._environment[key]
                job.fail(
                    f"cannot read sample {fault.sample_id} ({fault.where}): {fault.reason}, {ENVIRONMENT_TRIES} times; "
                    "see to the machine, then start the epoch again",
                )
            else:
                job.queued.append(Chunk(job, [fault.row], fault.sample_id, fresh=fault.needs_fresh_reader))
            return
        seen = self._seen.get(fault.sample_id, 0) + 1
        alone = chunk.sample_id is not None and (chunk.fresh or not fault.needs_fresh_reader)
        if fault.sample_id in self._known_bad or (alone and seen > 1):
            self._seen.pop(fault.sample_id, None)
            sample = BadSample(fault.sample_id, fault.where, fault.reason, fault.detail)
            self._bad(job, fault.row, sample, lasting=not fault.this_epoch)
        else:
            self._seen[fault.sample_id] = seen
            job.queued.append(Chunk(job, [fault.row], fault.sample_id, fresh=fault.needs_fresh_reader))

    def _crashed_alone(self, chunk: Chunk, sample_id: int, exit_code: int) -> None:
        job = chunk.job
        crashes = self._crashes.setdefault(sample_id, [])
        crashes.append(exit_code)
        by_decoder = sum(code >= 0 or -code in _DECODER_SIGNALS for code in crashes)
        if by_decoder >= CRASH_TRIES:
            del self._crashes[sample_id]
            reason = f"it ends the reader that decodes it ({describe_exit(exit_code)}), {by_decoder} times alone"
            self._bad(job, chunk.rows[0], BadSample(sample_id, self._where(sample_id), reason))
        elif len(crashes) >= ENVIRONMENT_TRIES:
            del self._crashes[sample_id]
            job.fail(
                f"cannot read sample {sample_id} ({self._where(sample_id)}): its reader was ended {len(crashes)} times "
                f"({describe_exit(exit_code)}); see what kills it (the kernel's log, memory), then start again",
            )
        else:
            job.queued.appendleft(Chunk(job, chunk.rows, sample_id))

    def _lost_in_closing(self, chunk: Chunk, exit_code: int) -> None:
        """The reader ended while it moved rows together, in which no sample has a part."""
        job = chunk.job
        key = (job.epoch, job.batch, -1)
        self._environment[key] = self._environment.get(key, 0) + 1
        if self._environment[key] >= ENVIRONMENT_TRIES:
            del self._environment[key]
            job.fail(
                f"cannot make epoch {job.epoch} batch {job.batch}: its reader was ended {ENVIRONMENT_TRIES} times "
                f"({describe_exit(exit_code)}); see what kills it (the kernel's log, memory), then start again"
            )
        else:
            job.queued.appendleft(chunk)

    # --- the policy

    def _bad(self, job: Job, row: int, sample: BadSample, lasting: bool = True) -> None:
        """Apply the policy to a bad sample; a verdict that is not `lasting` is found again in every epoch."""
        if sample.sample_id not in self._known_bad:
            is_new = sample.sample_id not in self._bad_in_some_epoch
            if lasting:
                self._known_bad.add(sample.sample_id)
            elif len(self._bad_in_some_epoch) < _TOLD_BAD:
                self._bad_in_some_epoch.add(sample.sample_id)
            if is_new:
                self.n_bad += 1
                if len(self.first_bad) < _REMEMBERED_BAD:
                    self.first_bad.append(sample)
                self._on_bad(sample)
        if self._policy == "raise":
            job.fail(
                f"cannot use sample {sample.sample_id} ({sample.where}): {sample.reason}; "
                "mend or remove it, or pass over bad samples with --on-error skip (or substitute)",
            )
        elif self._policy == "skip":
            job.skipped.add(row)
        else:
            self._substitute(job, row, sample)

    def _substitute(self, job: Job, row: int, sample: BadSample) -> None:
        tried = job.substitutes[row] = job.substitutes.get(row, 0) + 1
        candidate = (sample.sample_id + 1) % self._n_samples
        while candidate in self._known_bad and tried < min(self._n_samples, _MAX_SUBSTITUTES):
            candidate = (candidate + 1) % self._n_samples
            tried = job.substitutes[row] = tried + 1
        if tried >= min(self._n_samples, _MAX_SUBSTITUTES):
            job.fail(
                f"cannot substitute sample {sample.sample_id}: the {tried} samples from there on are all bad; "
                "check the manifest's paths and --root",
            )
        else:
            job.queued.append(Chunk(job, [row], candidate))

    def _close(self, job: Job) -> None:
        """When the last row is in and some were skipped, queue the task that closes the gaps."""
        if not job.finished or job.failure is not None or not job.skipped or job.compacted:
            return
        kept = [row for row in range(job.n_rows) if row not in job.skipped]
        if not kept or kept == list(range(len(kept))):
            job.compacted = True
        else:
            job.queued.append(Chunk(job, kept, compact=True))
