"""Turning a batch into chunks, and the answers of readers into a batch: retries, and the bad-sample policy.

    Job -> chunks -> reader -> Done(faults) | its end -> retry | confirm | skip | substitute | fail

A `Job` is done when no chunk is queued or out. A batch's content depends only on which samples are bad:
- a fault of the content that needs no fresh reader (a missing file) counts when it is seen twice;
- one that does (a decoder's refusal) counts when it is seen again, alone, in a fresh reader;
- what a user's function raises holds for that epoch alone: it draws other numbers in the next, and is asked again;
- a sample that ends its reader while it is alone there, twice, is bad, if the decoder did it both times (SIGSEGV
  and the like, an exit of its own); SIGKILL from outside is the environment's doing;
- so is a sample whose decode takes longer than `reader_timeout` alone, at last in a fresh reader; a read that does is
  the environment's doing;
- what the environment does is tried again `ENVIRONMENT_TRIES` times and then fails the batch under any policy.
Pure: it knows neither processes nor sockets.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence

from prefetchd.config.options import OnError
from prefetchd.daemon.readers.batch_job import Chunk, Job, ReaderEnd
from prefetchd.daemon.readers.known_samples import BadSample, SampleSet
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Key, Slot

ENVIRONMENT_TRIES = 4
CRASH_TRIES = 2
_MAX_SUBSTITUTES = 1000
_REMEMBERED_BAD = 100
_LISTED_BAD = 10_000
_REPORTED_BAD = 100_000


class JobTracker:
    """Applies the policy to what the readers report; remembers which samples are bad.

    Args:
        policy: the option `on_error`.
        n_samples: of an epoch.
        sample_ids: the samples of a job's rows: (job, first row, rows).
        where: names a sample, such as by its file and line.
        on_bad: called with each bad sample, once.
        batches_per_epoch: of the data set.
        following: the samples that can stand in for one, in turn, over and over, or as many as there are.
    """

    def __init__(
        self,
        policy: OnError,
        n_samples: int,
        sample_ids: Callable[[Job, int, int], Sequence[int]],
        where: Callable[[int], str],
        on_bad: Callable[[BadSample], None],
        batches_per_epoch: int,
        following: Callable[[int], Iterator[int]],
    ) -> None:
        self._policy = policy
        self._n_samples = n_samples
        self._following = following
        self._sample_ids = sample_ids
        self._where = where
        self._on_bad = on_bad
        self._batches_per_epoch = batches_per_epoch
        self._any_good = False
        self._empty: dict[int, set[int]] = {}  # batches by epoch without a good sample, until there is one
        self.first_bad: list[BadSample] = []
        self.reasons: dict[int, str] = {}  # of many more, by number
        self.n_bad = 0
        self._known_bad = SampleSet()
        self._deadly: dict[int, BadSample] = {}  # bad ones that end or hang their readers: none is sent there again
        self._bad_in_some_epoch: set[int] = set()  # by functions that draw other numbers in each; reported already
        self._seen: dict[int, int] = {}  # content faults of a sample not yet confirmed
        self._environment: dict[tuple[int, int, int], int] = {}
        self._ends: dict[int, list[ReaderEnd]] = {}  # of readers that ended with a sample alone
        self._tried: set[int] = set()  # samples that a reader has alone now

    def start(self, slot: Slot, key: Key, n_rows: int, chunk_rows: int, row_s: float = math.inf, turn: int = 0) -> Job:
        """Return a job with its rows, each of which takes about `row_s` seconds, cut into chunks."""
        job = Job(slot, *key, n_rows, turn)
        for first in range(0, n_rows, chunk_rows):
            rows = range(first, min(n_rows, first + chunk_rows))
            job.queued.append(Chunk(job, rows, expected_s=row_s * len(rows)))
        return job

    def try_again(self) -> None:
        """Have a new loop try the samples again that ended the last one, and their readers: they may be mended."""
        if self._policy == "raise":
            self._deadly.clear()

    def give(self, chunk: Chunk) -> None:
        """`chunk` is given to a reader."""
        chunk.is_planned = False
        chunk.job.queued.remove(chunk)
        chunk.job.out += 1
        if chunk.sample_id is not None:
            self._tried.add(chunk.sample_id)

    def must_wait(self, chunk: Chunk) -> bool:
        """Return whether another reader tries the one sample of `chunk` now: its answer may settle this one too."""
        return chunk.sample_id in self._tried

    def split(self, chunk: Chunk) -> bool:
        """Cut `chunk` where a sample may end its reader, as it did others; return whether it was cut."""
        if chunk.sample_id is not None or chunk.compact or not (self._deadly or self._ends):
            return False
        job, first = chunk.job, chunk.rows[0]
        ids = self._sample_ids(job, first, len(chunk.rows))
        suspects = self._deadly.keys() | self._ends.keys()
        alone = [row for row, sample_id in zip(chunk.rows, ids, strict=True) if sample_id in suspects]
        if not alone:
            return False
        row_s = chunk.expected_s / len(chunk.rows)
        pieces: list[Chunk] = []
        for row in [*alone, chunk.rows[-1] + 1]:
            if row > first:
                pieces.append(Chunk(job, range(first, row), expected_s=row_s * (row - first)))
            if row in alone:
                pieces.append(Chunk(job, [row], ids[row - chunk.rows[0]]))
            first = row + 1
        job.queued.remove(chunk)
        job.queued.extendleft(reversed(pieces))
        return True

    def settle(self, chunk: Chunk) -> bool:
        """Apply the policy without a reader if the sample of `chunk` was found bad meanwhile; return whether it was."""
        sample_id, doubt = chunk.sample_id, chunk.doubt
        if sample_id is None or sample_id not in self._known_bad or (doubt is None and sample_id not in self._deadly):
            return False
        chunk.job.queued.remove(chunk)
        sample = self._deadly.get(sample_id)
        if sample is None:
            assert doubt is not None
            sample = BadSample(sample_id, doubt.where, doubt.reason, doubt.detail)
        self._bad(chunk.job, chunk.rows[0], sample)
        self._close(chunk.job)
        return True

    def done(self, chunk: Chunk, faults: list[Fault], rows_left: int = 0) -> None:
        """Record that a reader finished `chunk`, all rows but the faulty ones and the last `rows_left` being right."""
        self._back(chunk)
        if chunk.compact:
            chunk.job.compacted = True
            self._environment.pop((chunk.job.epoch, chunk.job.batch, -1), None)
        if rows_left and chunk.job.failure is None:
            left = chunk.rows[len(chunk.rows) - rows_left :]
            chunk.job.queued.appendleft(Chunk(chunk.job, left, chunk.sample_id, chunk.fresh, chunk.doubt))
        elif chunk.sample_id is not None and not faults:
            self._seen.pop(chunk.sample_id, None)
            self._ends.pop(chunk.sample_id, None)
            self._environment.pop((chunk.job.epoch, chunk.job.batch, chunk.rows[0]), None)
        for fault in faults:
            self._fault(chunk, fault)
        self._close(chunk.job)

    def lost(self, chunk: Chunk, end: ReaderEnd) -> None:
        """The reader that had `chunk` is gone."""
        job = chunk.job
        self._back(chunk)
        if job.failure is not None:
            return
        if chunk.compact and end.suspect:
            self._lost_in_closing(chunk, end)
        elif not end.suspect:
            job.queued.appendleft(chunk)
        elif chunk.sample_id is None:
            # Each row alone, so that a second crash names its sample.
            ids = self._sample_ids(job, chunk.rows[0], len(chunk.rows))
            alone = [Chunk(job, [row], sample_id) for row, sample_id in zip(chunk.rows, ids, strict=True)]
            job.queued.extendleft(reversed(alone))
        else:
            self._ended_alone(chunk, chunk.sample_id, end)
        self._close(job)

    def _back(self, chunk: Chunk) -> None:
        chunk.job.out -= 1
        if chunk.sample_id is not None:
            self._tried.discard(chunk.sample_id)

    # --- one fault

    def _fault(self, chunk: Chunk, fault: Fault) -> None:
        job = chunk.job
        if job.failure is not None:
            return
        if not fault.content:
            self._environment_fault(chunk, fault)
            return
        seen = self._seen.get(fault.sample_id, 0) + 1
        alone = chunk.sample_id is not None and (chunk.fresh or not fault.needs_fresh_reader)
        if fault.sample_id in self._known_bad or (alone and seen > 1):
            self._seen.pop(fault.sample_id, None)
            sample = BadSample(fault.sample_id, fault.where, fault.reason, fault.detail)
            self._bad(job, fault.row, sample, lasting=not fault.this_epoch)
        else:
            self._seen[fault.sample_id] = seen
            job.queued.append(Chunk(job, [fault.row], fault.sample_id, fault.needs_fresh_reader, fault))

    def _environment_fault(self, chunk: Chunk, fault: Fault) -> None:
        job, sample = chunk.job, f"sample {fault.sample_id} ({fault.where or self._where(fault.sample_id)})"
        is_alone = chunk.sample_id is not None and not chunk.postponed
        if fault.over_budget and is_alone:  # the refusal was for this sample
            job.fail(f"cannot decode {sample}: {fault.reason}", "BudgetError")
        elif fault.over_budget:  # no count: each new loop asks again, and what was postponed is no fault
            job.queued.append(Chunk(job, [fault.row], fault.sample_id, waits_for_memory=chunk.postponed))
        elif self._try_again(job, fault.row):
            job.queued.append(Chunk(job, [fault.row], fault.sample_id, fault.needs_fresh_reader))
        else:
            job.fail(
                f"cannot read {sample}: {fault.reason}, {ENVIRONMENT_TRIES} times; "
                "see to the machine, then start the epoch again",
            )

    def _try_again(self, job: Job, row: int) -> bool:
        """Count a fault of the environment; return whether it is tried again."""
        key = job.epoch, job.batch, row
        self._environment[key] = self._environment.get(key, 0) + 1
        if self._environment[key] < ENVIRONMENT_TRIES:
            return True
        del self._environment[key]
        return False

    def _ended_alone(self, chunk: Chunk, sample_id: int, end: ReaderEnd) -> None:
        """A reader ended that had this one sample to fill."""
        job, row = chunk.job, chunk.rows[0]
        ends = self._ends.setdefault(sample_id, [])
        ends.append(end)
        crashes = sum(each.is_by_decoder for each in ends)
        hangs = sum(each.was_decoding for each in ends)
        reason = ""
        if crashes >= CRASH_TRIES:
            reason = f"it ends the reader that decodes it ({end}), {crashes} times alone"
        elif hangs >= CRASH_TRIES and chunk.fresh:
            reason = f"its decode takes longer than reader_timeout={end.timeout_s:g} s, {hangs} times alone"
        if reason:
            del self._ends[sample_id]
            self._deadly[sample_id] = BadSample(sample_id, self._where(sample_id), reason)
            self._bad(job, row, self._deadly[sample_id])
        elif len(ends) >= ENVIRONMENT_TRIES:
            del self._ends[sample_id]
            remedy = "see what kills it (the kernel's log, memory), then start again"
            if end.timeout_s:
                remedy = "see in the log what it waited for, or give a longer reader_timeout"
            job.fail(
                f"cannot read sample {sample_id} ({self._where(sample_id)}): its reader was ended {len(ends)} times "
                f"({end}); {remedy}",
            )
        else:
            job.queued.appendleft(Chunk(job, chunk.rows, sample_id, chunk.fresh or end.was_decoding))

    def _lost_in_closing(self, chunk: Chunk, end: ReaderEnd) -> None:
        """The reader ended while it moved rows together, in which no sample has a part."""
        job = chunk.job
        if self._try_again(job, -1):
            job.queued.appendleft(chunk)
        else:
            job.fail(
                f"cannot make epoch {job.epoch} batch {job.batch}: its reader was ended {ENVIRONMENT_TRIES} times "
                f"({end}); see what kills it (the kernel's log, memory), then start again"
            )

    # --- the policy

    def _bad(self, job: Job, row: int, sample: BadSample, lasting: bool = True) -> None:
        """Apply the policy to a bad sample; a verdict that is not `lasting` is found again in every epoch."""
        self._ends.pop(sample.sample_id, None)  # else each epoch would ask for it alone
        if sample.sample_id not in self._known_bad:
            is_new = sample.sample_id not in self._bad_in_some_epoch
            if lasting:
                self._known_bad.add(sample.sample_id)
            elif len(self._bad_in_some_epoch) < _REPORTED_BAD:
                self._bad_in_some_epoch.add(sample.sample_id)
            if is_new:
                self.n_bad += 1
                if len(self.first_bad) < _REMEMBERED_BAD:
                    self.first_bad.append(sample)
                if len(self.reasons) < _LISTED_BAD:
                    self.reasons[sample.sample_id] = sys.intern(sample.reason)  # most have the reason of another
                self._on_bad(sample)
        if self._policy == "raise":
            job.fail(
                f"cannot use sample {sample.sample_id} ({sample.where}): {sample.reason}; "
                'mend or remove it, or pass over bad samples with on_error="skip" (or "substitute")',
            )
        elif self._policy == "skip":
            job.skipped.add(row)
        else:
            self._substitute(job, row, sample)

    def _substitute(self, job: Job, row: int, sample: BadSample) -> None:
        """Queue the next sample that is not known to be bad."""
        most = min(self._n_samples, _MAX_SUBSTITUTES)
        tried = job.substitutes.get(row, 0)
        candidate = sample.sample_id
        for candidate in self._following(sample.sample_id):
            tried += 1
            if tried >= most or candidate not in self._known_bad:
                break
        else:
            job.fail(
                f"cannot substitute sample {sample.sample_id}: all samples of its bucket are bad; check the manifest's "
                "paths and root, or give fewer buckets"
            )
            return
        job.substitutes[row] = tried
        if tried >= most:
            job.fail(
                f"cannot substitute sample {sample.sample_id}: the {tried} samples from there on are all bad; "
                "check the manifest's paths and root",
            )
        else:
            job.queued.append(Chunk(job, [row], candidate))

    def _close(self, job: Job) -> None:
        """When the last row is in and some were skipped, queue the task that closes the gaps."""
        if not job.finished or job.failure is not None:
            return
        if not self._any_good:
            self._look_for_good(job)
        if not job.skipped or job.compacted or job.failure is not None:
            return
        kept = [row for row in range(job.n_rows) if row not in job.skipped]
        if not kept or kept == list(range(len(kept))):
            job.compacted = True
        else:
            job.queued.append(Chunk(job, kept, compact=True))

    def _look_for_good(self, job: Job) -> None:
        """Fail a batch that completes an epoch without a good sample: a loop would go on without data."""
        if len(job.skipped) < job.n_rows:
            self._any_good = True
            self._empty.clear()
            return
        empty = self._empty.setdefault(job.epoch, set())
        empty.add(job.batch)
        if len(empty) == self._batches_per_epoch:
            first = self.first_bad[0]
            job.fail(
                f"cannot serve an epoch: none of its samples is good ({self.n_bad} bad), such as sample "
                f"{first.sample_id} ({first.where}): {first.reason}; check the paths and root"
            )
