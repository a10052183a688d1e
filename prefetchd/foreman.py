"""The foreman: keeps the readers busy with what the cursors need next, and sees each batch through.

    scheduler.next_fill -> Job -> chunks in `queue` -> pool -> Done -> filler (policy) -> READY, or `failed`

Owned by the daemon's loop. A batch that cannot be made is kept in `failed`, for every loop that asks for it, until a
new loop begins (the file may have been mended by then); its slot goes back to the ring. It borrows ring and pool;
nothing of it outlives the daemon.
"""

from __future__ import annotations

import logging
from collections import deque

from prefetchd import messages
from prefetchd.config import Config
from prefetchd.filling import BadSample, Chunk, Failure, Filler, Job
from prefetchd.order import Order
from prefetchd.pool import Pool
from prefetchd.scheduler import Cursor, next_fill
from prefetchd.slots import Key, Ring
from prefetchd.sources import Source

log = logging.getLogger("prefetchd")

_CHUNK_S = 0.008
_CHUNK_ROWS = 64  # so that a report of faults in every row fits in a message
_MAX_FAILED = 256


class Foreman:
    """Work in hand: jobs, their chunks, and the batches that failed."""

    def __init__(self, config: Config, source: Source, order: Order, ring: Ring, pool: Pool) -> None:
        self._order = order
        self._ring = ring
        self._pool = pool
        self.filler = Filler(config.on_error, source.n_samples, self._sample_id_at, source.where, self._report_bad)
        self.queue: deque[Chunk] = deque()
        self.failed: dict[Key, Failure] = {}
        self.batches_made = 0
        self._jobs: list[Job] = []
        self._seconds_per_sample = 0.0
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
            epoch, batch = plan.key
            job = self.filler.start(plan.slot, epoch, batch, self._order.rows(batch), self._chunk_rows(batch))
            self._jobs.append(job)
            self.queue.extend(job.queued)

    def _chunk_rows(self, batch: int) -> int:
        """Some milliseconds of work, and at most an even share for each reader."""
        rows = self._order.rows(batch)
        share = min(_CHUNK_ROWS, -(-rows // (2 * self._pool.n_readers)))
        if not self._seconds_per_sample:
            return share
        return max(1, min(share, round(_CHUNK_S / self._seconds_per_sample)))

    def _sample_id_at(self, job: Job, row: int) -> int:
        return int(self._order.sample_ids(job.epoch, job.batch, row, 1)[0])

    def done(self, reader: int, chunk: Chunk, done: messages.Done) -> None:
        """A reader has finished `chunk`."""
        self._ring.drop_writer(chunk.job.slot, reader)
        cost = done.took_s / len(chunk.rows)
        self._seconds_per_sample += (cost - self._seconds_per_sample) * (0.2 if self._seconds_per_sample else 1)
        self.filler.done(chunk, done.faults)
        self._after(chunk.job)

    def lost(self, reader: int, chunk: Chunk, suspect: bool, exit_code: int) -> None:
        """The reader that had `chunk` is gone; `suspect` if it was at work on it."""
        self.filler.lost(chunk, suspect=suspect, exit_code=exit_code)
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
            log.error("epoch %d batch %d: %s", job.epoch, job.batch, job.failure.text)

    def _report_bad(self, sample: BadSample) -> None:
        detail = "\n" + sample.detail.rstrip() if sample.detail else ""
        log.warning("bad sample %d: %s: %s%s", sample.sample_id, sample.where, sample.reason, detail)
