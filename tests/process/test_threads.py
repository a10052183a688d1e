"""Loaders that several threads use: a loop that another one ends gets an error, loses nothing and keeps nothing."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading

import psutil
import pytest

import prefetchd
from prefetchd.client.leases import Leases
from prefetchd.ring.queues import ENOUGH_AHEAD
from tests.conftest import end_thread, wait_until

QUICK = ("--batch-size", "4", "--image-size", "16", "--num-workers", "1")


class TakesLate:
    """Makes the next batch that a loop takes wait, before or after it is taken, until `go` is set.

    Attributes:
        here: set when the loop is there.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
        self.here, self.go = threading.Event(), threading.Event()
        take = Leases.take

        def take_late(leases, grant):
            monkeypatch.setattr(Leases, "take", take)
            batch = take(leases, grant) if moment == "after" else None
            self.here.set()
            assert self.go.wait(30)
            return take(leases, grant) if batch is None else batch

        monkeypatch.setattr(Leases, "take", take_late)


def begin_loop(loader):
    """Return a loop that has taken one batch, and has more to go on with."""
    batches = iter(loader)
    next(batches)
    queue = loader._connection._grants
    wait_until(lambda: queue.has_ahead(ENOUGH_AHEAD), "more is granted ahead")
    return batches


def take_in_a_thread(batches, errors):
    """Take the loop's next batch in a thread, which puts the error that it gets into `errors`."""

    def run():
        try:
            next(batches)
        except prefetchd.PrefetchdError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("moment", ["before", "after"])
def test_loader_that_is_closed_while_another_thread_takes_a_batch_leaves_no_slot_leased(
    module_daemon, monkeypatch, moment
):
    """What was granted ahead goes back, too: the process goes on, and the ring is not its own."""
    with prefetchd.batches() as witness:
        loader = prefetchd.batches(epochs=None)
        batches, errors = begin_loop(loader), []
        late = TakesLate(monkeypatch, moment)
        thread = take_in_a_thread(batches, errors)
        assert late.here.wait(30)
        loader.close()
        late.go.set()
        end_thread(thread)
        assert len(errors) == 1
        assert "it was closed" in errors[0]
        wait_until(lambda: len(witness.status()["consumers"]) == 1, "the loader is forgotten")
        assert witness.status()["ring"]["leased"] == 0


@pytest.mark.parametrize("moment", ["before", "after"])
def test_loop_that_another_thread_ends_by_a_new_one_gets_no_batch_whose_slot_may_be_anothers(
    module_daemon, monkeypatch, moment
):
    with prefetchd.batches() as loader:
        batches, errors = begin_loop(loader), []
        late = TakesLate(monkeypatch, moment)
        thread = take_in_a_thread(batches, errors)
        assert late.here.wait(30)
        second = iter(loader)
        seen = [next(second).index]
        late.go.set()
        end_thread(thread)
        assert len(errors) == 1
        assert "a newer iter() of the same loader" in errors[0]
        assert seen + [batch.index for batch in second] == list(range(13))
    with prefetchd.batches() as witness:
        wait_until(lambda: len(witness.status()["consumers"]) == 1, "the loader is forgotten")
        assert witness.status()["ring"]["leased"] == 0


@pytest.mark.parametrize("n_threads", [2, 3])
def test_threads_that_each_loop_over_one_loader_get_every_batch_or_an_error(photographs, n_threads):
    with prefetchd.batches(photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        got, errors = [[] for _ in range(n_threads)], [None] * n_threads
        together = threading.Barrier(n_threads)

        def run(number):
            together.wait()
            try:
                got[number] = [batch.index for batch in loader]
            except prefetchd.PrefetchdError as error:
                errors[number] = str(error)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    whole = [indices for indices, error in zip(got, errors, strict=True) if error is None]
    assert whole
    assert all(indices == list(range(13)) for indices in whole)
    assert all("a newer iter() of the same loader" in error for error in errors if error is not None)


def test_loop_that_waits_is_ended_by_another_threads_loop_which_gets_every_batch(photographs):
    """The first thread waits for a batch of a stopped reader, and is the one that receives messages."""
    with prefetchd.batches(photographs, batch_size=4, image_size=16, num_workers=1, epochs=None) as loader:
        wait_until(lambda: loader.status()["readers"][0]["pid"], "the reader has started")
        reader = psutil.Process(loader.status()["readers"][0]["pid"])
        reader.suspend()
        errors, seen = [], []

        def run():
            try:
                for _ in loader:
                    pass
            except prefetchd.PrefetchdError as error:
                errors.append(str(error))

        first = threading.Thread(target=run)
        first.start()
        wait_until(lambda: someone_receives(loader), "the first thread waits", 60)
        second = iter(loader)
        other = threading.Thread(target=lambda: seen.extend(batch.index for batch in itertools.islice(second, 26)))
        other.start()
        first.join(60)
        assert len(errors) == 1
        assert "a newer iter() of the same loader" in errors[0]
        reader.resume()
        other.join(60)
        assert seen == [*range(13), *range(13)]


def someone_receives(loader):
    turn = loader._connection._turn
    if turn.acquire(blocking=False):
        turn.release()
        return False
    return True


def test_two_threads_that_ask_one_iterator_at_once_get_an_error_of_ours(photographs, monkeypatch):
    with prefetchd.batches(photographs, batch_size=4, image_size=16, num_workers=1) as loader:
        batches, errors = begin_loop(loader), []
        late = TakesLate(monkeypatch, "before")
        thread = take_in_a_thread(batches, errors)
        assert late.here.wait(30)
        with pytest.raises(prefetchd.PrefetchdError, match="another thread is taking one from the same iterator"):
            next(batches)
        with pytest.raises(prefetchd.PrefetchdError, match="another thread is taking one from the same iterator"):
            batches.close()
        late.go.set()
        thread.join()
        assert errors == []
        assert [batch.index for batch in batches] == list(range(2, 13))


LOOPS_AT_EXIT = """
import sys, threading, prefetchd
loader = prefetchd.batches(sys.argv[1], batch_size=4, image_size=16, num_workers=1, epochs=None)
began = threading.Event()

def loop():
    for batch in loader:
        began.set()

threading.Thread(target=loop, daemon=True).start()
assert began.wait(60)
"""


def test_loop_in_a_daemon_thread_prints_nothing_when_the_interpreter_ends(photographs):
    for _ in range(3):
        command = [sys.executable, "-c", LOOPS_AT_EXIT, str(photographs)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (result.returncode, result.stderr) == (0, "")
