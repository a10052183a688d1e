"""The batch builder: gives the readers what the cursors need next, and sees each batch through.

    scheduler.next_fills -> Job -> chunks in `queue` -> pool -> Done -> job tracker (policy) -> READY, or `failed`

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

import msgspec

from prefetchd.daemon.readers.batch_job import BATCHING, Chunk, Failure, Job, ReaderEnd
from prefetchd.daemon.readers.histogram import Histogram
from prefetchd.daemon.readers.job_tracker import JobTracker
from prefetchd.daemon.readers.known_samples import BadSample
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.scheduler import next_fills
from prefetchd.ipc import reader_messages
from prefetchd.ring.slots import Key, Ring

log = logging.getLogger("prefetchd")

_MAX_FAILED = 256


class BatchBuilder:
    """Work in hand: jobs, their chunks, and the batches that failed. A bad sample is logged, or given to `on_bad`."""

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
                dataset.order.n_samples,
                self._sample_ids,
                dataset.source.where,
                functools.partial(on_bad or _log_bad, dataset),
                dataset.order.batches_per_epoch,
                dataset.order.following,
            )
            for dataset in datasets
        ]
        self._queue: deque[Chunk] = deque()  # in the order of need
        self._fresh_queue: deque[Chunk] = deque()  # those for fresh readers
        self.failed: dict[Key, Failure] = {}
        self._most_failed = _MAX_FAILED
        self.batches_made = 0
        self.samples_made = 0
        self.sample_seconds = Histogram()
        self.busy_s = 0.0  # that readers spent on samples
        self._jobs: list[Job] = []
        self._n_begun = 0
        self._full_since: tuple[int, int] | None = None  # slots, and how often one had come back, when all was begun
        self._nothing_at: object = None  # how all stood when planning had found nothing more
        self._seconds_per_sample = [0.0 for _ in datasets]
        self._logged: set[str] = set()

    @property
    def has_jobs(self) -> bool:
        """Whether a batch is being made."""
        return bool(self._jobs)

    @property
    def has_queued(self) -> bool:
        """Whether a chunk waits for a reader."""
        return bool(self._queue or self._fresh_queue)

    # --- giving work

    def give_work(self, cursors: list[Cursor]) -> None:
        """Give queued chunks to readers that can take one, and begin new batches while some still can."""
        while self._give_queued() and self._is_worth_planning(cursors) and self._begin_batches(cursors):
            pass
        self._pool.flush()

    def repeat_late(self, cursors: Sequence[Cursor]) -> None:
        """Have others do what loops wait for and an agent does not answer."""
        needed = {cursor.next_key for cursor in cursors if cursor.waiting}
        if self._pool.remote is not None and needed:
            readers = [reader for reader in self._pool.readers.values() if reader.can_take]
            for node, chunk in self._pool.remote.repeat_late(needed, readers, self._pool.task_numbers):
                self._ring.add_writer(chunk.job.slot, node.number)

    def try_again(self) -> None:
        """Make the batches that failed again, for a new loop: a file may have been mended."""
        self.failed.clear()
        for tracker in self.trackers:
            tracker.try_again()

    def _is_worth_planning(self, cursors: list[Cursor]) -> bool:
        """Return whether to look for batches to begin; if all that fitted was begun the last time, perhaps not yet.

        Something must have changed since planning found nothing: readers report each few rows. Planning costs as much
        as a cheap batch. So while nobody waits, some slots must have come back, or been added.
        """
        if self._nothing_at is not None and self._nothing_at == self._standing(cursors):
            return False
        if self._full_since is None or self._batches_at_once() == 1 or any(cursor.waiting for cursor in cursors):
            return True
        n_slots, n_returned = self._full_since
        enough = BATCHING.worth_planning(n_slots - self._ring.leased_slots)
        return len(self._ring.slots) != n_slots or self._ring.n_returned - n_returned >= enough

    def _give_queued(self) -> bool:
        """Give queued chunks to readers; return whether some reader wants more than there are."""
        self._give_from(self._fresh_queue)  # before another chunk makes a fresh reader a used one
        self._give_from(self._queue)
        return self._pool.wants_more

    def _give_from(self, queue: deque[Chunk]) -> None:
        waiting: list[Chunk] = []
        while queue:
            chunk = queue.popleft()
            job, tracker = chunk.job, self.trackers[chunk.job.dataset]
            if job.failure is not None:
                continue
            if tracker.split(chunk) or tracker.settle(chunk):
                self._after(job)
                continue
            if tracker.must_wait(chunk):
                waiting.append(chunk)
                continue
            reader = self._pool.pick_reader(chunk)
            if reader is None:
                waiting.append(chunk)
                break
            tracker.give(chunk)
            self._ring.add_writer(job.slot, reader.number)
            self._pool.give(reader, chunk)
        queue.extendleft(reversed(waiting))

    def _begin_batches(self, cursors: list[Cursor]) -> bool:
        """Queue the chunks of the batches that are needed next; return whether there were any."""
        limit = self._batches_at_once()
        # One that is forgotten while a loop may still come to it would be tried again, over and over.
        self._most_failed = max(_MAX_FAILED, len(self._ring.slots) * len(cursors))
        # One more than will be begun: where there is none, planning need not come round to learn that.
        plans = next_fills(self._ring, cursors, self.failed, limit=limit + 1)
        awaited = {cursor.next_key for cursor in cursors if cursor.waiting}
        for plan in plans[:limit]:
            number, epoch, batch = plan.key
            order = self._datasets[number].order
            self._ring.start_fill(plan.slot, plan.key, order.bucket(epoch, batch))
            n_rows = order.rows(epoch, batch)
            row_s = self._seconds_per_sample[number] or math.inf
            self._n_begun += 1
            chunk_rows = self._chunk_rows(number, n_rows, is_awaited=plan.key in awaited)
            job = self.trackers[number].start(plan.slot, plan.key, n_rows, chunk_rows, row_s, self._n_begun)
            self._jobs.append(job)
            for chunk in job.queued:
                chunk.is_planned = True
            self._queue.extend(job.queued)
        has_more = len(plans) > limit
        self._nothing_at = None if has_more else self._standing(cursors)
        self._full_since = None if has_more else (len(self._ring.slots), self._ring.n_returned)
        return bool(plans)

    def _standing(self, cursors: list[Cursor]) -> tuple[object, ...]:
        """Return all that decides whether a batch can be begun."""
        return self._ring.n_changes, len(self.failed), [cursor.standing for cursor in cursors]

    def _batches_at_once(self) -> int:
        """Return one, unless every batch is a single cheap chunk."""
        for dataset, row_s in zip(self._datasets, self._seconds_per_sample, strict=True):
            n_rows = dataset.config.batch_size
            if n_rows > dataset.source.facts.max_task_rows or not BATCHING.is_cheap(n_rows, row_s):
                return 1
        return self._pool.n_readers * BATCHING.cheap_at_once

    def _chunk_rows(self, dataset: int, n_rows: int, *, is_awaited: bool) -> int:
        most = self._datasets[dataset].source.facts.max_task_rows
        row_s = self._seconds_per_sample[dataset]
        # The first ones too: who attaches later waits for them.
        n_readers = self._pool.sharing(len(self._ring.slots), is_awaited=is_awaited or not row_s)
        return BATCHING.chunk_rows(n_rows, row_s, n_readers, most)

    def _sample_ids(self, job: Job, first: int, n_rows: int) -> Sequence[int]:
        ids: list[int] = self._datasets[job.dataset].order.sample_ids(job.epoch, job.batch, first, n_rows).tolist()
        return ids

    def make_room(self, readers: Sequence[ReaderHandle]) -> None:
        """Resolve a deadlock: `readers` wait for memory, all slots are being filled, and no other reader is at work.

        A reader that has more in hand does its sample later, alone: so the others' batches get finished, and slots can
        be given up. Where all that the readers have in hand are such samples, the batch that is needed last is given
        up.
        """
        at_work = [(reader, next(iter(reader.chunks.values()))) for reader in readers if reader.chunks]
        postponed = [
            (reader, chunk)
            for reader, chunk in at_work
            if chunk.sample_id is None or any(not other.waits_for_memory for other in [*reader.chunks.values()][1:])
        ]
        for reader, chunk in postponed:
            chunk.postponed = True
            reader.deny_memory("others finish first")
        if postponed or len(self._jobs) < 2:
            return
        last = max(self._jobs, key=lambda job: job.turn)
        last.given_up = True
        last.fail("given up")
        for reader, chunk in at_work:
            if chunk.job is last:
                reader.deny_memory("its batch is made later")
        self._after(last)

    # --- what readers report

    def done(self, reader: int, chunk: Chunk, done: reader_messages.Done) -> None:
        """A reader has finished `chunk`."""
        self._ring.drop_writer(chunk.job.slot, reader)
        number = chunk.job.dataset
        n_done = len(chunk.rows) - done.rows_left
        self.busy_s += done.took_s
        self.samples_made += n_done
        if n_done > 0:
            # Without the waiting for reads, which decides how much to read ahead, and not how much work there is.
            cost, so_far = (done.took_s - done.waited_s) / n_done, self._seconds_per_sample[number]
            self._seconds_per_sample[number] += (cost - so_far) * (0.2 if so_far else 1)
            self.sample_seconds.observe(done.took_s / n_done, n_done)
        self.trackers[number].done(chunk, done.faults, done.rows_left)
        self._after(chunk.job)

    def done_elsewhere(self, reader: int, chunk: Chunk, done: reader_messages.Done) -> None:
        """An agent has finished `chunk`; which samples its faulty rows are for is looked up here, and not believed."""
        if done.faults:
            ids = self._sample_ids(chunk.job, chunk.rows[0], len(chunk.rows))
            faults = [msgspec.structs.replace(fault, sample_id=ids[fault.row - chunk.rows[0]]) for fault in done.faults]
            done = msgspec.structs.replace(done, faults=faults)
        self.done(reader, chunk, done)

    def lost(self, reader: int, chunk: Chunk, end: ReaderEnd) -> None:
        """The reader that had `chunk` is gone."""
        self.trackers[chunk.job.dataset].lost(chunk, end)
        self._after(chunk.job)

    def returned(self, reader: int, chunk: Chunk, end: ReaderEnd) -> None:
        """The agent that had `chunk` will not do it, and writes nothing more for it."""
        self._ring.drop_writer(chunk.job.slot, reader)
        self.lost(reader, chunk, end)

    def withdrawn(self, reader: int, chunk: Chunk) -> None:
        """An agent writes nothing more for `chunk`, which another has, or had."""
        self._ring.drop_writer(chunk.job.slot, reader)

    def stuck(self, pid: int, reader: int, chunk: Chunk) -> None:
        """The reader that had `chunk` cannot be ended: the batch fails; its slot is the reader's until it is gone."""
        job = chunk.job
        sample_id = chunk.sample_id if chunk.sample_id is not None else self._sample_ids(job, chunk.rows[0], 1)[0]
        where = self._datasets[job.dataset].source.where(sample_id)
        if job.failure is None:
            job.fail(
                f"cannot make epoch {job.epoch} batch {job.batch}: its reader (pid {pid}) hangs in the kernel and "
                f"cannot be ended, at one of {len(chunk.rows)} samples from {sample_id} ({where}) on; "
                "see to the file system, then start the epoch again"
            )
        self.lost(reader, chunk, ReaderEnd(0, suspect=False))

    def gone(self, reader: int) -> None:
        """A reader has exited: it writes nowhere any more."""
        self._ring.reader_exited(reader)

    def _after(self, job: Job) -> None:
        """Queue what a job needs done, in its turn; finish or abandon it when nothing is left."""
        for chunk in reversed([chunk for chunk in job.queued if not chunk.is_planned]):
            chunk.is_planned = True
            queue = self._fresh_queue if chunk.fresh else self._queue
            place = len(queue)
            # What is done again goes before its job's other chunks, and never before those of jobs needed sooner.
            while place and queue[place - 1].job.turn >= job.turn:
                place -= 1
            queue.insert(place, chunk)
        if not job.finished:
            return
        self._jobs.remove(job)
        if job.given_up:
            self._ring.abandon(job.slot)
            return
        if job.failure is None:
            self._ring.finish_fill(job.slot, job.n_rows - len(job.skipped))
            self.batches_made += 1
            return
        assert job.slot.key is not None
        while len(self.failed) >= self._most_failed:
            del self.failed[next(iter(self.failed))]
        self.failed[job.slot.key] = job.failure
        self._ring.abandon(job.slot)
        # Epochs made ahead meet the same samples again.
        if job.failure.text not in self._logged and len(self._logged) < _MAX_FAILED:
            self._logged.add(job.failure.text)
            name = self._datasets[job.dataset].name
            log.error("%sepoch %d batch %d: %s", name and f"{name}: ", job.epoch, job.batch, job.failure.text)


def _log_bad(dataset: Dataset, sample: BadSample) -> None:
    name = dataset.name and f" of {dataset.name}"
    detail = "\n" + sample.detail.rstrip() if sample.detail else ""
    log.warning("bad sample %d%s: %s: %s%s", sample.sample_id, name, sample.where, sample.reason, detail)
