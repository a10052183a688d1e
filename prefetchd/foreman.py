"""The foreman: keeps the readers busy with what the cursors need next, and sees each batch through.

    scheduler.next_fill -> Job -> chunks in `queue` -> pool -> Done -> filler (policy) -> READY, or `failed`

Owned by the daemon's loop. A batch that cannot be made is kept in `failed`, for every loop that asks for it, until a
new loop begins (the file may have been mended by then); its slot goes back to the ring. It borrows ring and pool;
nothing of it outlives the daemon.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Sequence

from prefetchd import messages
from prefetchd.datasets import Dataset
from prefetchd.filling import BadSample, Chunk, Failure, Filler, Job
from prefetchd.pool import Pool
from prefetchd.scheduler import Cursor, next_fill
from prefetchd.slots import Key, Ring

log = logging.getLogger("prefetchd")

_CHUNK_S = 0.008
_CHUNK_ROWS = 64  # so that a report of faults in every row fits in a message
_MAX_FAILED = 256


class Foreman:
    """Work in hand: jobs, their chunks, and the batches that failed."""

    def __init__(self, datasets: Sequence[Dataset], ring: Ring, pool: Pool) -> None:
        self._datasets = datasets
        self._ring = ring
        self._pool = pool
        self.fillers = [
            Filler(
                dataset.config.on_error,
                dataset.source.n_samples,
                self._sample_id_at,
                dataset.source.where,
                functools.partial(_report_bad, dataset),
            )
            for dataset in datasets
        ]
        self.queue: deque[Chunk] = deque()
        self.failed: dict[Key, Failure] = {}
        self.batches_made = 0
        self._jobs: list[Job] = []
        self._seconds_per_sample = [0.0 for _ in datasets]
        self._logged: Failure | None = None

    def give_work(self, cursors: list[Cursor]) -> None:
        """Give queued chunks to readers that can take one, and begin new batches while some still can."""
        while True:
            for chunk in list(self.queue):
                if chunk.job.failure is not None:
                    self.queue.remove(chunk)
                    continue
                reader = self._pool.take_idle(chunk)
                if reader is None:
                    if chunk.fresh:
                        continue
                    return
                self.queue.remove(chunk)
                chunk.job.queued.remove(chunk)
                chunk.job.out += 1
                self._ring.add_writer(chunk.job.slot, reader.number)
                self._pool.give(reader, chunk)
            if self._pool.take_idle() is None:
                return
            plan = next_fill(self._ring, cursors, self.failed)
            if plan is None:
                return
            self._ring.start_fill(plan.slot, plan.key)
            number, _, batch = plan.key
            n_rows = self._datasets[number].order.rows(batch)
            job = self.fillers[number].start(plan.slot, plan.key, n_rows, self._chunk_rows(number, n_rows))
            self._jobs.append(job)
            self.queue.extend(job.queued)

    def _chunk_rows(self, dataset: int, n_rows: int) -> int:
        """Some milliseconds of work, and at most an even share for each reader."""
        share = min(_CHUNK_ROWS, -(-n_rows // (2 * self._pool.n_readers)))
        seconds_per_sample = self._seconds_per_sample[dataset]
        return max(1, min(share, round(_CHUNK_S / seconds_per_sample))) if seconds_per_sample else share

    def _sample_id_at(self, job: Job, row: int) -> int:
        order = self._datasets[job.dataset].order
        return int(order.sample_ids(job.epoch, job.batch, row, 1)[0])

    def done(self, reader: int, chunk: Chunk, done: messages.Done) -> None:
        """A reader has finished `chunk`."""
        self._ring.drop_writer(chunk.job.slot, reader)
        number = chunk.job.dataset
        cost, so_far = done.took_s / len(chunk.rows), self._seconds_per_sample[number]
        self._seconds_per_sample[number] += (cost - so_far) * (0.2 if so_far else 1)
        self.fillers[number].done(chunk, done.faults)
        self._after(chunk.job)

    def lost(self, reader: int, chunk: Chunk, suspect: bool, exit_code: int) -> None:
        """The reader that had `chunk` is gone; `suspect` if it was at work on it."""
        self.fillers[chunk.job.dataset].lost(chunk, suspect=suspect, exit_code=exit_code)
        self._after(chunk.job)

    def gone(self, reader: int) -> None:
        """A reader has exited: it writes nowhere any more."""
        self._ring.reader_exited(reader)

    def _after(self, job: Job) -> None:
        """Queue what a job needs done again; finish or abandon it when nothing is left."""
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
        if self._logged != job.failure:  # epochs made ahead meet the same sample again
            self._logged = job.failure
            name = self._datasets[job.dataset].name
            log.error("%sepoch %d batch %d: %s", name and f"{name}: ", job.epoch, job.batch, job.failure.text)


def _report_bad(dataset: Dataset, sample: BadSample) -> None:
    name = dataset.name and f" of {dataset.name}"
    log.warning("bad sample %d%s: %s: %s", sample.sample_id, name, sample.where, sample.reason)
