"""The bad-sample policy as a table: reports of readers in, what becomes of the batch out. No process, no socket."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.daemon.readers.batch_job import Chunk, Job, ReaderEnd
from prefetchd.daemon.readers.job_tracker import JobTracker
from prefetchd.daemon.readers.known_samples import BadSample, SampleSet
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Slot
from prefetchd.sampling.order import Order

N_SAMPLES = 20
BATCHES_PER_EPOCH = 4  # of 5
SEGV = -signal.SIGSEGV


def in_order(job: Job, first: int, n: int) -> range:
    """Row r holds sample r, in every batch."""
    return range(first, first + n)


@dataclass
class Readers:
    """Fake readers: each kind of sample answers in its own way; `order` decides which queued chunk goes next.

    Attributes:
        missing: the file system says no.
        undecodable: the decoder says no, in every reader.
        shaky: the decoder says no in a used reader, and decodes it in a fresh one.
        sick: sample id -> how often the environment fails it.
        deadly: sample id -> the exit code of each reader that decodes it.
        deadly_times: how often they do so before they are well (for ever by default).
    """

    missing: set[int] = field(default_factory=set)
    undecodable: set[int] = field(default_factory=set)
    shaky: set[int] = field(default_factory=set)
    sick: dict[int, int] = field(default_factory=dict)
    deadly: dict[int, int] = field(default_factory=dict)
    deadly_times: int = 10**9
    last_first: bool = False
    delivered: dict[int, int] = field(default_factory=dict)
    tasks: int = 0

    def run(self, tracker: JobTracker, job: Job) -> None:
        """Work until the job is finished."""
        while not job.finished:
            self.tasks += 1
            assert self.tasks < 5000, "it never ends"
            assert not job.out
            chunk = job.queued[-1 if self.last_first else 0]
            if not tracker.split(chunk) and not tracker.settle(chunk):
                tracker.give(chunk)
                self._answer(tracker, chunk)

    def _answer(self, tracker: JobTracker, chunk: Chunk) -> None:
        job = chunk.job
        if chunk.compact:
            kept = list(chunk.rows)
            moved = {to: self.delivered[row] for to, row in enumerate(kept)}
            self.delivered = moved
            tracker.done(chunk, [])
            return
        faults = []
        for row in chunk.rows:
            sample = chunk.sample_id if chunk.sample_id is not None else job.batch * job.n_rows + row
            if sample in self.deadly and self.deadly_times > 0:
                self.deadly_times -= 1
                tracker.lost(chunk, ReaderEnd(self.deadly[sample], suspect=True))
                return
            if sample in self.missing:
                faults.append(self._fault(row, sample, content=True, fresh=False))
            elif sample in self.undecodable or (sample in self.shaky and not chunk.fresh):
                faults.append(self._fault(row, sample, content=True, fresh=True))
            elif self.sick.get(sample, 0) > 0:
                self.sick[sample] -= 1
                faults.append(self._fault(row, sample, content=False, fresh=False))
            else:
                self.delivered[row] = sample
        tracker.done(chunk, faults)

    @staticmethod
    def _fault(row: int, sample: int, *, content: bool, fresh: bool) -> Fault:
        return Fault(row, sample, f"list.txt line {sample + 1}: {sample}.jpg", "why", content, fresh)


def following(n_samples: int) -> Callable[[int], Iterator[int]]:
    """Return what stands in for a sample in a plain order."""
    return Order(n_samples, 1, drop_last=False, shuffle=False, seed=0).following


class Bench:
    """A tracker of `N_SAMPLES` in order, and what it reported."""

    def __init__(self, policy: Any) -> None:
        self.reported: list[BadSample] = []
        self.tracker = JobTracker(
            policy,
            N_SAMPLES,
            lambda job, first, n: [job.batch * job.n_rows + row for row in range(first, first + n)],
            lambda sample: f"list.txt line {sample + 1}: {sample}.jpg",
            self.reported.append,
            BATCHES_PER_EPOCH,
            following(N_SAMPLES),
        )

    def fill(self, readers: Readers, *, batch: int = 0, rows: int = 5, chunk_rows: int = 2, epoch: int = 0) -> Job:
        readers.delivered = {}
        job = self.tracker.start(Slot(1, None), (0, epoch, batch), rows, chunk_rows)  # type: ignore[arg-type]
        readers.run(self.tracker, job)
        return job

    @property
    def bad(self) -> list[int]:
        return [sample.sample_id for sample in self.reported]


def rows_of(readers: Readers, job: Job) -> list[int]:
    n_rows = job.n_rows - len(job.skipped)
    return [readers.delivered[row] for row in range(n_rows)]


@pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
@pytest.mark.parametrize("chunk_rows", [1, 2, 5, 9])
def test_good_batch(policy: str, chunk_rows: int) -> None:
    bench, readers = Bench(policy), Readers()
    job = bench.fill(readers, chunk_rows=chunk_rows)
    assert rows_of(readers, job) == [0, 1, 2, 3, 4]
    assert job.failure is None
    assert not bench.bad
    assert readers.tasks == -(-5 // chunk_rows)


CONTENT = [
    {"missing": {1, 4}},
    {"undecodable": {1, 4}},
    {"missing": {1}, "undecodable": {4}},
    {"deadly": {1: SEGV}, "missing": {4}},
    {"deadly": {1: 0, 4: -signal.SIGABRT}},
    {"deadly": {1: 3}, "undecodable": {4}},
]


@pytest.mark.parametrize("last_first", [False, True])
@pytest.mark.parametrize("kinds", CONTENT)
def test_policies_on_faults_of_the_content(kinds: dict[str, Any], last_first: bool) -> None:
    """Whatever is wrong with samples 1 and 4, each policy makes the same of it, in any order of the answers."""
    bench, readers = Bench("skip"), Readers(**kinds, last_first=last_first)
    job = bench.fill(readers)
    assert rows_of(readers, job) == [0, 2, 3]
    assert sorted(bench.bad) == [1, 4]
    assert job.skipped == {1, 4}

    bench, readers = Bench("substitute"), Readers(**kinds, last_first=last_first)
    job = bench.fill(readers)
    assert rows_of(readers, job) == [0, 2, 2, 3, 5]
    assert sorted(bench.bad) == [1, 4]

    bench, readers = Bench("raise"), Readers(**kinds, last_first=last_first)
    job = bench.fill(readers)
    assert job.failure is not None
    assert job.failure.error == "SampleError"
    assert 'on_error="skip"' in job.failure.text
    assert bench.bad[0] in (1, 4)
    assert f"list.txt line {bench.bad[0] + 1}: {bench.bad[0]}.jpg" in job.failure.text


def test_all_bad_is_an_empty_batch() -> None:
    bench, readers = Bench("skip"), Readers(missing={0, 1, 2, 3, 4})
    job = bench.fill(readers)
    assert job.failure is None
    assert rows_of(readers, job) == []
    assert sorted(bench.bad) == [0, 1, 2, 3, 4]


def test_bad_at_the_end_needs_no_closing_task() -> None:
    bench, readers = Bench("skip"), Readers(missing={4})
    job = bench.fill(readers)
    assert rows_of(readers, job) == [0, 1, 2, 3]
    assert readers.tasks == 4


def test_each_bad_sample_is_reported_once_over_epochs() -> None:
    bench, readers = Bench("skip"), Readers(missing={1}, undecodable={3}, deadly={4: SEGV})
    for epoch in range(4):
        assert rows_of(readers, bench.fill(readers, epoch=epoch)) == [0, 2]
    assert sorted(bench.bad) == [1, 3, 4]


def test_substitutes_wrap_round_and_pass_over_bad_ones() -> None:
    bench, readers = Bench("substitute"), Readers(missing={18, 19, 0, 1}, undecodable={2})
    job = bench.fill(readers, batch=3)
    assert rows_of(readers, job) == [15, 16, 17, 3, 3]


def test_substitutes_end_where_all_are_bad() -> None:
    bench, readers = Bench("substitute"), Readers(missing=set(range(N_SAMPLES)))
    job = bench.fill(readers)
    assert job.failure is not None
    assert "all bad" in job.failure.text
    assert "paths and root" in job.failure.text


@settings(max_examples=150, deadline=None)
@given(
    missing=st.sets(st.integers(0, N_SAMPLES - 1), max_size=8),
    undecodable=st.sets(st.integers(0, N_SAMPLES - 1), max_size=6),
    deadly=st.dictionaries(st.integers(0, N_SAMPLES - 1), st.sampled_from([SEGV, 0, 1]), max_size=4),
    order=st.sampled_from(list(permutations(range(4)))),
    chunk_rows=st.integers(1, 5),
    last_first=st.booleans(),
)
def test_content_is_a_function_of_the_bad_samples_alone(
    missing: set[int],
    undecodable: set[int],
    deadly: dict[int, int],
    order: tuple[int, ...],
    chunk_rows: int,
    last_first: bool,
) -> None:
    """In whatever order batches are made, chunks answered and samples found bad (contract 6)."""
    bad = missing | undecodable | set(deadly)
    for policy in ("skip", "substitute"):
        bench = Bench(policy)
        for batch in order:
            readers = Readers(missing, undecodable, deadly=deadly, last_first=last_first)
            job = bench.fill(readers, batch=batch, chunk_rows=chunk_rows)
            ids = range(5 * batch, 5 * batch + 5)
            if policy == "skip":
                assert rows_of(readers, job) == [sample for sample in ids if sample not in bad]
            else:
                round_ = [sample % N_SAMPLES for sample in range(2 * N_SAMPLES)]
                wanted = [next(sample for sample in round_[first:] if sample not in bad) for first in ids]
                assert rows_of(readers, job) == wanted


def test_verdict_on_a_users_function_holds_for_its_epoch_only():
    """What one epoch found does not shorten another's judgement, so it cannot change what that one delivers."""
    told: list[BadSample] = []
    tracker = JobTracker("substitute", 4, in_order, lambda sample: "w", told.append, 1, following(4))
    for epoch in range(3):
        job = tracker.start(Slot(0, None), (0, epoch, 0), 4, 4)  # type: ignore[arg-type]
        asked = []
        while not job.finished:
            chunk = job.queued.popleft()
            job.out += 1
            ids = [chunk.sample_id] if chunk.sample_id is not None else list(chunk.rows)
            asked.append((ids, chunk.fresh))
            faults = [
                Fault(chunk.rows[place], 1, "w", "raised", True, True, this_epoch=True, detail="Traceback")
                for place, sample in enumerate(ids)
                if sample == 1 and epoch != 1
            ]
            tracker.done(chunk, faults)
        looks = [([0, 1, 2, 3], False)]
        assert asked == (looks if epoch == 1 else [*looks, ([1], True), ([2], False)])
    assert tracker.n_bad == 1
    assert [(sample.sample_id, sample.detail) for sample in told] == [(1, "Traceback")]


def test_a_set_of_samples_takes_memory_for_those_in_it_alone():
    far = 1 << 45
    bad = SampleSet()
    assert 0 not in bad
    assert far not in bad
    for sample_id in (0, 7, 8, 32767, 32768, far):
        bad.add(sample_id)
    assert [each for each in (*range(32770), far - 1, far, far + 1) if each in bad] == [0, 7, 8, 32767, 32768, far]


def test_epoch_without_a_good_sample_is_an_error_under_skip():
    """Its last batch fails, in whatever order they are made, and however often one of them is made again."""
    bench, readers = Bench("skip"), Readers(missing=set(range(N_SAMPLES)))
    texts = set()
    for epoch in range(2):
        jobs = [bench.fill(readers, batch=batch, epoch=epoch) for batch in (2, 0, 2, 3)]
        assert all(job.failure is None for job in jobs)
        last = bench.fill(readers, batch=1, epoch=epoch)
        assert last.failure is not None
        assert last.failure.error == "SampleError"
        assert "cannot serve an epoch: none of its samples is good (20 bad)" in last.failure.text
        assert "list.txt line 11: 10.jpg" in last.failure.text
        texts.add(last.failure.text)
    assert len(texts) == 1, "the log has each text once, however many epochs are made ahead"


def test_one_good_sample_is_enough():
    """Empty batches are served from then on."""
    bench, readers = Bench("skip"), Readers(missing=set(range(N_SAMPLES)) - {7})
    for epoch in range(2):
        assert all(bench.fill(readers, batch=batch, epoch=epoch).failure is None for batch in (0, 2, 3, 1))


def test_sample_that_is_known_to_be_bad_is_not_asked_for_alone_again_after_its_reader_was_ended_once() -> None:
    """The machine ended a reader that had it alone; then it was found to be bad."""
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 5, 5)  # type: ignore[arg-type]
    readers = Readers(undecodable={2})
    (chunk,) = job.queued
    bench.tracker.give(chunk)
    bench.tracker.lost(chunk, ReaderEnd(-signal.SIGKILL, suspect=True))
    alone = next(chunk for chunk in job.queued if chunk.sample_id == 2)
    bench.tracker.give(alone)
    bench.tracker.lost(alone, ReaderEnd(-signal.SIGKILL, suspect=True))
    readers.run(bench.tracker, job)
    assert job.skipped == {2}
    (chunk,) = bench.tracker.start(Slot(2, None), (0, 1, 0), 5, 5).queued  # type: ignore[arg-type]
    assert not bench.tracker.split(chunk)
