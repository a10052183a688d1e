"""Loaders that several threads have to do with: a loop that another one ends is told so, and keeps nothing."""

from __future__ import annotations

import threading

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
    mailbox = loader._session.connection._mailbox
    wait_until(lambda: mailbox.has_ahead(ENOUGH_AHEAD), "more is granted ahead")
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
    serve, photographs, monkeypatch, moment
):
    """What was granted ahead goes back, too: the process goes on, and the ring is not its own."""
    serve(photographs, *QUICK)
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
    serve, photographs, monkeypatch, moment
):
    serve(photographs, *QUICK)
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
        assert "another thread has ended it" in errors[0]
        assert seen + [batch.index for batch in second] == list(range(13))
    with prefetchd.batches() as witness:
        wait_until(lambda: len(witness.status()["consumers"]) == 1, "the loader is forgotten")
        assert witness.status()["ring"]["leased"] == 0
