"""The batch builder: how many batches it begins, and how it cuts them into chunks. Pool and ring are real or small."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.batch_job import BATCHING, Chunk
from prefetchd.daemon.readers.histogram import Histogram
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import next_fills, ready_for
from prefetchd.ipc import reader_messages
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.order import Order
from prefetchd.sampling.sharding import Shard
from tests.unit.test_slots import ring_of


@pytest.fixture
def builder() -> BatchBuilder:
    """One of two readers and one data set, in batches of 64."""
    source = SimpleNamespace(facts=SimpleNamespace(n_samples=1000, max_task_rows=64), where=str)
    config = SimpleNamespace(on_error="raise", batch_size=64)
    order = Order(1024, 64, drop_last=False, shuffle=False, seed=0)
    dataset = SimpleNamespace(config=config, source=source, order=order)
    return BatchBuilder(
        cast(Any, [dataset]), Ring(), cast(Any, SimpleNamespace(n_readers=2, sharing=lambda n_slots, is_awaited: 2))
    )


def test_waiting_for_reads_makes_tasks_no_shorter(builder: BatchBuilder) -> None:
    """They would be few samples, and so would those that are read ahead."""
    slot = Slot(1, cast(Any, None), writers={1: 2})
    job = builder.trackers[0].start(slot, (0, 0, 0), 64, 32)
    job.out, chunk = 2, job.queued.popleft()
    builder.done(1, chunk, reader_messages.Done(1, [], took_s=32 * 0.021, waited_s=32 * 0.020))
    assert builder._chunk_rows(0, 64, is_awaited=True) == 32
    builder.done(1, chunk, reader_messages.Done(2, [], took_s=32 * 0.021))
    assert builder._chunk_rows(0, 64, is_awaited=True) < 10


@pytest.mark.parametrize(
    ("n_readers", "row_ms", "rows"),
    [(1, 1, 32), (2, 1, 32), (8, 1, 8), (16, 1, 8), (32, 1, 16), (128, 1, 32), (128, 100, 1), (4, 0.001, 64)],
)
def test_many_readers_do_not_work_on_one_batch(n_readers: int, row_ms: float, rows: int) -> None:
    """With a row for each, the daemon would do nothing but hand them out."""
    assert BATCHING.chunk_rows(64, row_ms / 1000, n_readers, 64) == rows


@pytest.mark.parametrize(
    ("n_slots", "awaited", "other"), [(2, 8, 8), (16, 8, 8), (32, 8, 1), (256, 8, 1)], ids=lambda number: str(number)
)
def test_a_batch_that_no_loop_awaits_is_cut_no_more_than_the_ring_asks_for(
    n_slots: int, awaited: int, other: int
) -> None:
    """In a small ring readers find work in one batch alone; in a large one each has a batch."""
    pool = cast(Any, SimpleNamespace(n_readers=8, remote=None))
    assert Pool.sharing(pool, n_slots, is_awaited=True) == awaited
    assert Pool.sharing(pool, n_slots, is_awaited=False) == other


class EagerPool:
    """Takes whatever it is given, and always wants more."""

    n_readers = 1

    def sharing(self, n_slots: int, *, is_awaited: bool) -> int:
        return self.n_readers

    wants_more = True

    def __init__(self) -> None:
        self.given: list[Chunk] = []

    def pick_reader(self, chunk: Chunk) -> Any:
        return SimpleNamespace(number=1)

    def give(self, reader: Any, chunk: Chunk) -> None:
        self.given.append(chunk)

    def flush(self) -> None:
        pass


def test_full_ring_is_planned_again_only_once_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers report every few rows, and planning looks at every slot."""
    planned: list[Any] = []

    def counted(*given: Any, **named: Any) -> Any:
        planned.append(next_fills(*given, **named))
        return planned[-1]

    monkeypatch.setattr("prefetchd.daemon.readers.batch_builder.next_fills", counted)
    source = SimpleNamespace(facts=SimpleNamespace(n_samples=640, max_task_rows=64), where=str)
    order = Order(640, 64, drop_last=False, shuffle=False, seed=0)
    dataset = SimpleNamespace(
        number=0, config=SimpleNamespace(on_error="raise", batch_size=64), source=source, order=order
    )
    ring, pool, cursor = ring_of(2), EagerPool(), Cursor(1, 1, 0, Shard(10))
    builder = BatchBuilder(cast(Any, [dataset]), ring, cast(Any, pool))

    def look() -> int:
        planned.clear()
        builder.give_work([cursor])
        return len(planned)

    assert look() == 2  # two batches: with the second it is known that no slot is left for another
    assert look() == 0
    for task, chunk in enumerate(pool.given):
        builder.done(1, chunk, reader_messages.Done(task, [], took_s=0.04))
    assert look() == 1  # they are ready now, and could be given up
    assert look() == 0
    cursor.waiting = True
    assert look() == 1
    slot = ready_for(ring, cursor)
    assert slot is not None
    lease = ring.grant(slot, 1)
    cursor.advance()
    assert (look(), look()) == (1, 0)
    ring.release(lease, 1)
    assert (look(), look()) == (1, 0)  # the slot that came back is filled again
    other = Cursor(2, 1, 0, Shard(10), epoch=5)
    planned.clear()
    builder.give_work([cursor, other])
    assert planned


def test_cheap_batches_are_begun_several_at_once_but_for_a_loop_that_stands_still() -> None:
    """Planning costs as much as one of them. What has come back waits for company, and never while anybody waits."""
    source = SimpleNamespace(facts=SimpleNamespace(n_samples=10_000, max_task_rows=64), where=str)
    order = Order(10_000, 10, drop_last=False, shuffle=False, seed=0)
    config = SimpleNamespace(on_error="raise", batch_size=10)
    dataset = SimpleNamespace(number=0, config=config, source=source, order=order)
    ring, pool = ring_of(16), EagerPool()
    builder = BatchBuilder(cast(Any, [dataset]), ring, cast(Any, pool))
    builder._seconds_per_sample[0] = 1e-6
    cursor = Cursor(1, 1, 0, Shard(1000))

    def finish_all() -> int:
        for task, chunk in enumerate(pool.given):
            builder.done(1, chunk, reader_messages.Done(task, [], took_s=1e-5))
        n_done = len(pool.given)
        pool.given.clear()
        return n_done

    def take(n: int) -> None:
        for _ in range(n):
            slot = ready_for(ring, cursor)
            assert slot is not None
            ring.release(ring.grant(slot, 1), 1)
            cursor.advance()
        builder.give_work([cursor])

    builder.give_work([cursor])
    assert finish_all() == 16
    take(3)
    assert finish_all() == 0
    take(1)
    assert finish_all() == 4
    cursor.waiting = True
    take(1)
    assert finish_all() == 1
    cursor.waiting = False
    take(3)
    assert finish_all() == 0
    ring.add(cast(Any, None))
    builder.give_work([cursor])
    assert finish_all() == 4


def test_each_bound_counts_all_that_were_not_longer():
    histogram = Histogram((0.1, 1.0))
    for duration_s, times in ((0.05, 3), (0.1, 1), (0.5, 2), (7.0, 1)):
        histogram.observe(duration_s, times)
    report = histogram.report()
    assert report["at_most"] == [[0.1, 4], [1.0, 6]]
    assert report["count"] == 7
    assert abs(report["sum_s"] - (0.15 + 0.1 + 1.0 + 7.0)) < 1e-9


def test_nothing_yet_is_all_zeros():
    assert Histogram((1.0,)).report() == {"count": 0, "sum_s": 0.0, "at_most": [[1.0, 0]]}


class PickyPool(EagerPool):
    """Has no fresh reader, and one for everything else."""

    wants_more = False

    def pick_reader(self, chunk: Chunk) -> Any:
        return None if chunk.fresh else SimpleNamespace(number=1)


def test_what_is_done_again_comes_in_the_order_of_need() -> None:
    """Samples in doubt of the batch that is needed first are confirmed first, though others were found sooner."""
    source = SimpleNamespace(facts=SimpleNamespace(n_samples=100, max_task_rows=64), where=str)
    order = Order(100, 4, drop_last=False, shuffle=False, seed=0)
    dataset = SimpleNamespace(
        number=0, config=SimpleNamespace(on_error="skip", batch_size=4), source=source, order=order
    )
    ring, pool = ring_of(3), PickyPool()
    builder = BatchBuilder(cast(Any, [dataset]), ring, cast(Any, pool))
    cursor = Cursor(1, 1, 0, Shard(25))
    while builder._begin_batches([cursor]):
        pass
    builder.give_work([cursor])
    given, pool.given = pool.given, []
    for task, chunk in reversed(list(enumerate(given))):
        faults = [
            reader_messages.Fault(row, 4 * chunk.job.batch + row, "w", "why", True, needs_fresh_reader=True)
            for row in chunk.rows
        ]
        builder.done(1, chunk, reader_messages.Done(task, faults, took_s=1.0))
    builder.give_work([cursor])
    assert [chunk.job.batch for chunk in builder._fresh_queue] == sorted(4 * [0, 1, 2])
    assert builder.has_queued
