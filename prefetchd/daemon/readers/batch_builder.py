"""The batch builder: keeps the readers busy with what the cursors need next, and sees each batch through.

    scheduler.next_fills -> Job -> chunks in `queue` -> pool -> Done -> tracker (policy) -> READY, or `failed`

Owned by the daemon's loop. A batch that cannot be made is kept in `failed`, for every loop that asks for it, until a
new loop begins (the file may have been mended by then); its slot goes back to the ring. It borrows ring and pool;
nothing of it outlives the daemon.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence

from prefetchd.daemon.readers.batch_job import BadSample, Chunk, Failure, Job, JobTracker
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.reader_handle import Histogram
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.scheduler import next_fills
from prefetchd.ipc import reader_messages
from prefetchd.ring.slots import Key, Ring

log = logging.getLogger("prefetchd")

_CHUNK_S = 0.04
_CHEAP_BATCH_S = 0.001
_CHEAP_AT_ONCE = 16
_RING_PARTS = 4
_MAX_FAILED = 256


class BatchBuilder:
    """Work in hand: jobs, their chunks, and the batches that failed. A bad sample is logged, or told to `on_bad`."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        ring: Ring,
        pool: Pool,
        on_bad: Callable[[Dataset, BadSample], None] | None = None,
    ) -> None:
        self._datasets = datasets
        self._ring = ring
        self._pool = pool
        self.trackers = [
            JobTracker(
                dataset.config.on_error,
                dataset.source.n_samples,
                self._sample_id_at,
                dataset.source.where,
                functools.partial(on_bad or _report_bad, dataset),
            )
            for dataset in datasets
        ]
        self.queue: deque[Chunk] = deque()
        self.failed: dict[Key, Failure] = {}
        self.batches_made = 0
        self.samples_made = 0
        self.sample_seconds = Histogram()
        self.busy_s = 0.0  # that readers spent on samples
        self._jobs: list[Job] = []
        self._full_since: tuple[int, int] | None = None  # slots, and how often one had come back, when all was begun
        self._seconds_per_sample = [0.0 for _ in datasets]
        self._logged: set[str] = set()

    def give_work(self, cursors: list[Cursor]) -> None:
        """Give queued chunks to readers that can take one, and begin new batches while some still can."""
        while self._give_queued() and self._is_worth_planning(cursors) and self._begin_batches(cursors):
            pass
        self._pool.flush()

    def _is_worth_planning(self, cursors: list[Cursor]) -> bool:
        """Whether to look for batches to begin: where all that fitted was begun the last time, perhaps not yet.

        Planning costs as much as a cheap batch: so while nobody stands still, some slots must have come back, or been
        added.
        """
        if self._full_since is None or self._batches_at_once() == 1 or any(cursor.waiting for cursor in cursors):
            return True
        n_slots, n_returned = self._full_since
        enough = (n_slots - self._ring.leased_slots) // _RING_PARTS  # of those that come round
        return len(self._ring.slots) != n_slots or self._ring.n_returned - n_returned >= enough

    @property
    def has_jobs(self) -> bool:
        """Whether a batch is being made."""
        return bool(self._jobs)

    def _give_queued(self) -> bool:
        """Give queued chunks to readers; return whether some reader wants more than there are."""
        waiting: list[Chunk] = []  # for a reader that has done nothing yet
        while self.queue:
            chunk = self.queue.popleft()
            if chunk.job.failure is not None:
                continue
            reader = self._pool.pick_reader(chunk)
            if reader is None:
                waiting.append(chunk)
                if chunk.fresh:
                    continue
                break
            chunk.job.queued.remove(chunk)
            chunk.job.out += 1
            self._ring.add_writer(chunk.job.slot, reader.number)
            self._pool.give(reader, chunk)
        self.queue.extendleft(reversed(waiting))
        return self._pool.wants_more

    def _begin_batches(self, cursors: list[Cursor]) -> bool:
        """Queue the chunks of the batches that are needed next, as many as readers can take; whether there were any."""
        limit = self._batches_at_once()
        plans = next_fills(self._ring, cursors, self.failed, limit=limit)
        self._full_since = (len(self._ring.slots), self._ring.n_returned) if len(plans) < limit else None
        for plan in plans:
            self._ring.start_fill(plan.slot, plan.key)
            number, _, batch = plan.key
            n_rows = self._datasets[number].order.rows(batch)
            row_s = self._seconds_per_sample[number] or math.inf
            job = self.trackers[number].start(plan.slot, plan.key, n_rows, self._chunk_rows(number, n_rows), row_s)
            self._jobs.append(job)
            self.queue.extend(job.queued)
        return bool(plans)

    def _batches_at_once(self) -> int:
        """One, unless every batch is a single cheap chunk."""
        cheap = all(self._is_cheap(dataset.number, dataset.config.batch_size) for dataset in self._datasets)
        return self._pool.n_readers * _CHEAP_AT_ONCE if cheap else 1

    def _is_cheap(self, dataset: int, n_rows: int) -> bool:
        """Whether `n_rows` samples are one chunk that takes next to no time."""
        row_s = self._seconds_per_sample[dataset]
        return 0 < row_s * n_rows < _CHEAP_BATCH_S and n_rows <= self._datasets[dataset].source.max_task_rows

    def _chunk_rows(self, dataset: int, n_rows: int) -> int:
        """An even share for each reader, some milliseconds of work at most; a cheap batch is not cut.

        Each chunk costs the daemon half a millisecond: after a pause nothing of its code is in the processor's caches.
        """
        most = min(n_rows, self._datasets[dataset].source.max_task_rows)
        if self._is_cheap(dataset, most):
            return most
        row_s = self._seconds_per_sample[dataset]
        share = min(most, -(-n_rows // self._pool.n_readers))
        return max(1, min(share, round(_CHUNK_S / row_s))) if row_s else -(-share // 2)

    def _sample_id_at(self, job: Job, row: int) -> int:
        order = self._datasets[job.dataset].order
        return int(order.sample_ids(job.epoch, job.batch, row, 1)[0])

    def done(self, reader: int, chunk: Chunk, done: reader_messages.Done) -> None:
        """A reader has finished `chunk`."""
        self._ring.drop_writer(chunk.job.slot, reader)
        number = chunk.job.dataset
        n_done = len(chunk.rows) - done.rows_left
        self.busy_s += done.took_s
        self.samples_made += n_done
        if n_done > 0:
            # Without the waiting for reads: it says how much should be read ahead, and not how much there is to do.
            cost, so_far = (done.took_s - done.waited_s) / n_done, self._seconds_per_sample[number]
            self._seconds_per_sample[number] += (cost - so_far) * (0.2 if so_far else 1)
            self.sample_seconds.observe(done.took_s / n_done, n_done)
        self.trackers[number].done(chunk, done.faults, done.rows_left)
        self._after(chunk.job)

    def lost(self, reader: int, chunk: Chunk, suspect: bool, exit_code: int) -> None:
        """The reader that had `chunk` is gone; `suspect` if it was at work on it."""
        self.trackers[chunk.job.dataset].lost(chunk, suspect=suspect, exit_code=exit_code)
        self._after(chunk.job)

    def stuck(self, pid: int, reader: int, chunk: Chunk) -> None:
        """The reader that had `chunk` cannot be ended: the batch fails; its slot is the reader's until it is gone."""
        job = chunk.job
        first = chunk.rows[0]
        sample_id = self._sample_id_at(job, first) if chunk.sample_id is None else chunk.sample_id
        where = self._datasets[job.dataset].source.where(sample_id)
        if job.failure is None:
            job.fail(
                f"cannot make epoch {job.epoch} batch {job.batch}: its reader (pid {pid}) hangs in the kernel and "
                f"cannot be ended, at one of {len(chunk.rows)} samples from {sample_id} ({where}) on; "
                "see to the file system, then start the epoch again"
            )
        self.lost(reader, chunk, suspect=False, exit_code=0)

    def gone(self, reader: int) -> None:
        """A reader has exited: it writes nowhere any more."""
        self._ring.reader_exited(reader)

    def _after(self, job: Job) -> None:
        """Queue what a job needs done again; finish or abandon it when nothing is left."""
        if job.queued:
            known = set(map(id, self.queue))
            self.queue.extendleft(chunk for chunk in reversed(job.queued) if id(chunk) not in known)
        if not job.finished:
            return
        self._jobs.remove(job)
        if job.failure is None:
            self._ring.finish_fill(job.slot, job.n_rows - len(job.skipped))
            self.batches_made += 1
            return
        assert job.slot.key is not None
        if len(self.failed) >= _MAX_FAILED:
            del self.failed[next(iter(self.failed))]
        self.failed[job.slot.key] = job.failure
        self._ring.abandon(job.slot)
        # Epochs made ahead meet the same samples again.
        if job.failure.text not in self._logged and len(self._logged) < _MAX_FAILED:
            self._logged.add(job.failure.text)
            name = self._datasets[job.dataset].name
            log.error("%sepoch %d batch %d: %s", name and f"{name}: ", job.epoch, job.batch, job.failure.text)


def _report_bad(dataset: Dataset, sample: BadSample) -> None:
    name = dataset.name and f" of {dataset.name}"
    detail = "\n" + sample.detail.rstrip() if sample.detail else ""
    log.warning("bad sample %d%s: %s: %s%s", sample.sample_id, name, sample.where, sample.reason, detail)
