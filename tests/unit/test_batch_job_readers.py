"""What becomes of a batch whose readers end, hang or have no memory: verdicts on samples, tries, and failures."""

from __future__ import annotations

import signal

import pytest

from prefetchd.daemon.readers.batch_job import Chunk, Job, ReaderEnd
from prefetchd.daemon.readers.job_tracker import CRASH_TRIES, ENVIRONMENT_TRIES, JobTracker
from prefetchd.ipc.exit_status import RAISED_STATUS, describe_exit
from prefetchd.ipc.reader_messages import Fault
from prefetchd.ring.slots import Slot
from tests.unit.test_batch_job import SEGV, Bench, Readers, following, in_order, rows_of


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
    """Such as for lack of memory or threads: the batch fails in the end, under any policy."""
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 1, 1)  # type: ignore[arg-type]
    for _ in range(1 + ENVIRONMENT_TRIES):  # the first is in a group
        job.out += 1
        bench.tracker.lost(job.queued.popleft(), ReaderEnd(RAISED_STATUS, suspect=True))
    assert not bench.bad
    assert job.failure is not None
    assert "4 times (exit status 213, after an exception that the log has)" in job.failure.text


def test_an_abort_while_nothing_was_decoded_is_no_verdict_on_the_sample() -> None:
    """As where the store's library gets no memory: the batch fails in the end, under any policy."""
    bench = Bench("skip")
    job = bench.tracker.start(Slot(1, None), (0, 0, 0), 1, 1)  # type: ignore[arg-type]
    for _ in range(1 + ENVIRONMENT_TRIES):  # the first is in a group
        job.out += 1
        bench.tracker.lost(job.queued.popleft(), ReaderEnd(-signal.SIGABRT, suspect=True, was_reading=True))
    assert not bench.bad
    assert job.failure is not None
    assert "SIGABRT" in job.failure.text
    assert "while it read and decoded nothing" in job.failure.text


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
    """They may have been mended. Batches that are made ahead for the same loop end no reader again."""
    bench, readers = Bench("raise"), Readers(deadly={1: SEGV})
    assert bench.fill(readers).failure is not None
    before = readers.deadly_times
    assert bench.fill(readers, epoch=1).failure is not None
    assert readers.deadly_times == before
    bench.tracker.try_again()
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


def test_describe_exit() -> None:
    assert describe_exit(0) == "exit status 0"
    assert describe_exit(3) == "exit status 3"
    assert describe_exit(SEGV) == "killed by SIGSEGV"
    assert describe_exit(-200) == "killed by signal 200"


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
    tracker = JobTracker("raise", 8, in_order, lambda sample: "w", lambda sample: None, 1, following(8))
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
    tracker = JobTracker("skip", 4, in_order, lambda sample: "w", lambda sample: None, 1, following(4))
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
