"""The bad-sample policy as a table: reports of readers in, what becomes of the batch out. No process, no socket."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefetchd.daemon.readers.batch_job import Chunk, Job, ReaderEnd, SampleSet
from prefetchd.daemon.readers.job_tracker import CRASH_TRIES, ENVIRONMENT_TRIES, BadSample, JobTracker
from prefetchd.ipc.exit_status import RAISED_STATUS, describe_exit
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Slot

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


def test_one_fault_alone_is_no_verdict() -> None:
    """A fault is confirmed, by a fresh reader if the decoder said it; one that goes away leaves the sample good."""
    bench, readers = Bench("skip"), Readers(shaky={0, 3})
    job = bench.fill(readers)
    assert rows_of(readers, job) == [0, 1, 2, 3, 4]
    assert not bench.bad


@pytest.mark.parametrize("exit_code", [SEGV, 0, 1, -signal.SIGKILL])
def test_a_crash_in_a_group_or_once_alone_is_no_verdict(exit_code: int) -> None:
    for times in range(1, CRASH_TRIES + 1):  # the first is in a group, the others alone
        bench, readers = Bench("skip"), Readers(deadly={2: exit_code}, deadly_times=times)
        assert rows_of(readers, bench.fill(readers)) == [0, 1, 2, 3, 4]
        assert not bench.bad


@pytest.mark.parametrize("exit_code", [SEGV, 0])
def test_a_kill_from_outside_is_no_part_of_a_verdict(exit_code: int) -> None:
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 1, 1)  # type: ignore[arg-type]
    for code in (SEGV, -signal.SIGKILL, exit_code):  # the first is in a group
        job.out += 1
        bench.tracker.lost(job.queued.popleft(), ReaderEnd(code, suspect=True))
    assert not bench.bad
    assert [list(chunk.rows) for chunk in job.queued] == [[0]]


def test_an_exception_of_the_reader_is_no_verdict_on_the_sample() -> None:
    """Such as for lack of memory or threads: the batch fails in the end, whatever the policy."""
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 1, 1)  # type: ignore[arg-type]
    for _ in range(1 + ENVIRONMENT_TRIES):  # the first is in a group
        job.out += 1
        bench.tracker.lost(job.queued.popleft(), ReaderEnd(RAISED_STATUS, suspect=True))
    assert not bench.bad
    assert job.failure is not None
    assert "4 times (exit status 213, after an exception that the log has)" in job.failure.text


def hang(bench: Bench, job: Job, times: int, *, was_decoding: bool) -> list[bool]:
    """Let the first chunk's reader be killed for its time-out, so often; return which chunks wanted a fresh one."""
    fresh = []
    for _ in range(times):
        chunk = job.queued[0]
        bench.tracker.give(chunk)
        fresh.append(chunk.fresh)
        bench.tracker.lost(chunk, ReaderEnd(-signal.SIGKILL, True, timeout_s=9.0, was_decoding=was_decoding))
    return fresh


def test_decode_that_never_ends_is_confirmed_in_a_fresh_reader_and_then_bad() -> None:
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 1), 5, 5)  # type: ignore[arg-type]
    assert hang(bench, job, 3, was_decoding=True) == [False, False, True]
    assert bench.bad == [5]
    assert "reader_timeout=9 s, 2 times alone" in bench.reported[0].reason
    assert job.skipped == {0}


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_read_that_never_ends_is_the_environments_doing(policy: str) -> None:
    bench = Bench(policy)
    job = bench.tracker.start(Slot(1, None), (0, 0, 1), 5, 5)  # type: ignore[arg-type]
    hang(bench, job, 1 + ENVIRONMENT_TRIES, was_decoding=False)
    assert job.failure is not None
    assert "made no progress for reader_timeout=9 s); see in the log what" in job.failure.text
    assert not bench.bad


@pytest.mark.parametrize("policy", ["skip", "substitute"])
def test_no_reader_is_sent_again_to_a_sample_that_ends_its_readers(policy: str) -> None:
    bench, readers = Bench(policy), Readers(deadly={1: SEGV})
    bench.fill(readers)
    assert readers.deadly_times < 10**9
    left = readers.deadly_times
    job = bench.fill(readers, epoch=1)
    assert rows_of(readers, job) == ([0, 2, 3, 4] if policy == "skip" else [0, 2, 2, 3, 4])
    assert readers.deadly_times == left


def test_batch_that_was_cut_already_when_a_sample_was_found_to_end_its_readers_does_without_it() -> None:
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 1, 0), 5, 5)  # type: ignore[arg-type]
    bench.fill(Readers(deadly={0: SEGV, 3: SEGV}))
    assert bench.tracker.split(job.queued[0])
    assert [list(chunk.rows) for chunk in job.queued] == [[0], [1, 2], [3], [4]]
    assert [bench.tracker.settle(chunk) for chunk in list(job.queued)] == [True, False, True, False]
    assert job.skipped == {0, 3}


def test_batch_of_nothing_but_such_samples_needs_no_reader() -> None:
    bench, readers = Bench("skip"), Readers(deadly={0: SEGV, 1: SEGV})
    bench.fill(readers, rows=2)
    readers.tasks, before = 0, readers.deadly_times
    assert bench.fill(readers, rows=2, epoch=1).skipped == {0, 1}
    assert readers.deadly_times == before


def test_bad_samples_that_end_a_loop_are_tried_again_by_the_next() -> None:
    """They may have been mended."""
    bench = Bench("raise")
    assert bench.fill(Readers(deadly={1: SEGV})).failure is not None
    mended = Readers()
    assert rows_of(mended, bench.fill(mended)) == [0, 1, 2, 3, 4]


def test_doubt_of_several_epochs_is_settled_by_one_reader() -> None:
    """Epochs that are made ahead meet the same sample: it is confirmed once, and the others take the verdict over."""
    bench = Bench("skip")
    jobs = [bench.tracker.start(Slot(1, None), (0, epoch, 0), 1, 1) for epoch in range(3)]  # type: ignore[arg-type]
    doubt = Fault(0, 0, "list.txt line 1", "why", True, True)
    for job in jobs:
        chunk = job.queued[0]
        bench.tracker.give(chunk)
        bench.tracker.done(chunk, [doubt])
    first, second, third = (job.queued[0] for job in jobs)
    assert not bench.tracker.settle(first)
    assert not bench.tracker.must_wait(first)
    bench.tracker.give(first)
    assert bench.tracker.must_wait(second)
    bench.tracker.done(first, [doubt])
    assert bench.tracker.settle(second)
    assert bench.tracker.settle(third)
    assert all(job.finished and job.skipped == {0} for job in jobs)
    assert bench.bad == [0]


def test_doubt_that_a_fresh_reader_removes_is_asked_again_for_the_next_batch() -> None:
    bench = Bench("skip")
    jobs = [bench.tracker.start(Slot(1, None), (0, epoch, 0), 1, 1) for epoch in range(2)]  # type: ignore[arg-type]
    for job in jobs:
        chunk = job.queued[0]
        bench.tracker.give(chunk)
        bench.tracker.done(chunk, [Fault(0, 0, "w", "why", True, True)])
    first, second = (job.queued[0] for job in jobs)
    bench.tracker.give(first)
    bench.tracker.done(first, [])
    assert not bench.tracker.must_wait(second)
    assert not bench.tracker.settle(second)
    assert not bench.bad


@pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
def test_memory_that_no_budget_gives_fails_the_batch_and_names_the_sample(policy: str) -> None:
    """Of the rows that were asked for together, each is tried alone: one of them is too large."""
    bench = Bench(policy)
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 3, 3)  # type: ignore[arg-type]
    together = job.queued[0]
    bench.tracker.give(together)
    faults = [Fault(row, row, "", "it takes 9 GiB", False, False, over_budget=True) for row in range(3)]
    bench.tracker.done(together, faults)
    alone = list(job.queued)
    assert [chunk.sample_id for chunk in alone] == [0, 1, 2]
    for chunk, answer in zip(alone, ([], [faults[1]]), strict=False):
        bench.tracker.give(chunk)
        bench.tracker.done(chunk, answer)
    assert job.failure is not None
    assert job.failure.error == "BudgetError"
    assert job.failure.text == "cannot decode sample 1 (list.txt line 2: 1.jpg): it takes 9 GiB"


@pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
@pytest.mark.parametrize("exit_code", [-signal.SIGKILL, -signal.SIGTERM])
def test_kills_from_outside_fail_the_batch_under_any_policy(policy: str, exit_code: int) -> None:
    bench, readers = Bench(policy), Readers(deadly={2: exit_code})
    job = bench.fill(readers)
    assert job.failure is not None
    assert "list.txt line 3" in job.failure.text
    assert describe_exit(exit_code) in job.failure.text
    assert not bench.bad
    assert not job.skipped


@pytest.mark.parametrize("policy", ["raise", "skip", "substitute"])
def test_environment_is_tried_again_and_then_raised(policy: str) -> None:
    bench, readers = Bench(policy), Readers(sick={2: ENVIRONMENT_TRIES - 1})
    assert rows_of(readers, bench.fill(readers)) == [0, 1, 2, 3, 4]
    bench, readers = Bench(policy), Readers(sick={2: 10**6})
    job = bench.fill(readers)
    assert job.failure is not None
    assert f"{ENVIRONMENT_TRIES} times" in job.failure.text
    assert not bench.bad


def test_unsuspected_chunks_are_done_again_as_they_are() -> None:
    """The second chunk in the hands of a reader that died was not what it worked on."""
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 4, 2)  # type: ignore[arg-type]
    chunk = job.queued.pop()
    job.out += 1
    bench.tracker.lost(chunk, ReaderEnd(SEGV, suspect=False))
    assert job.queued[0] is chunk
    assert not job.out
    assert chunk.sample_id is None


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


def test_describe_exit() -> None:
    assert describe_exit(0) == "exit status 0"
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(SEGV) == "killed by SIGSEGV"
    assert describe_exit(-200) == "killed by signal 200"


def test_verdict_on_a_users_function_holds_for_its_epoch_only():
    """What one epoch found does not shorten another's judgement, so it cannot change what that one delivers."""
    told: list[BadSample] = []
    tracker = JobTracker("substitute", 4, in_order, lambda sample: "w", told.append, 1)
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


def test_a_closing_task_that_ends_its_readers_fails_the_batch_in_the_end() -> None:
    """No sample has a part in it, so nothing else would bound its tries."""
    bench, readers = Bench("skip"), Readers(missing={3})
    tracker = bench.tracker
    job = tracker.start(Slot(1, None), (0, 0, 0), 5, 2)  # type: ignore[arg-type]
    lost = 0
    while not job.finished:
        chunk = job.queued.popleft()
        job.out += 1
        if chunk.compact:
            lost += 1
            tracker.lost(chunk, ReaderEnd(-signal.SIGKILL, suspect=True))
        else:
            readers._answer(tracker, chunk)
    assert lost == ENVIRONMENT_TRIES
    assert job.failure is not None
    assert "SIGKILL" in job.failure.text


@pytest.mark.parametrize("alone", [False, True])
def test_rows_that_a_full_reader_left_are_done_by_another(alone):
    """They are no fault of the samples: nothing is counted against them, and what was done is not done again."""
    tracker = JobTracker("raise", 8, in_order, lambda sample: "w", lambda sample: None, 1)
    job = tracker.start(Slot(0, None), (0, 0, 0), 8, 8)  # type: ignore[arg-type]
    chunk = job.queued.popleft()
    if alone:
        chunk = Chunk(job, [5], sample_id=5, fresh=True)
    job.out += 1
    tracker.done(chunk, [], rows_left=1 if alone else 3)
    left = job.queued.popleft()
    assert list(left.rows) == ([5] if alone else [5, 6, 7])
    assert (left.sample_id, left.fresh) == ((5, True) if alone else (None, False))
    job.out += 1
    tracker.done(left, [])
    assert job.finished
    assert job.failure is None


def test_want_of_memory_is_tried_in_fresh_readers_and_then_told_under_any_policy():
    tracker = JobTracker("skip", 4, in_order, lambda sample: "w", lambda sample: None, 1)
    job = tracker.start(Slot(0, None), (0, 0, 0), 4, 4)  # type: ignore[arg-type]
    fresh = []
    while not job.finished:
        chunk = job.queued.popleft()
        fresh.append(chunk.fresh)
        job.out += 1
        tracker.done(chunk, [Fault(2, 2, "w", "no memory", content=False, needs_fresh_reader=True)])
    assert fresh == [False, True, True, True]
    assert job.failure is not None
    assert not job.skipped


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
