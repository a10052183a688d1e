"""A loop that holds more than the ring can spare: what comes back is told, and what does not is named."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings

import pytest

import prefetchd
from prefetchd.ring.queues import ENOUGH_AHEAD
from tests.conftest import end_thread, wait_until
from tests.process.commands import (
    finish,
    large_ring,
    start_script,
)
from tests.process.test_lifetimes import crc


def wait_for_grant(loader: prefetchd.Loader) -> None:
    """Wait until the loop has another batch to go on with."""
    wait_until(lambda: loader._connection._grants.has_next, "the next batch is granted ahead")


def untold(loader: prefetchd.Loader) -> int:
    """How many batches were dropped of which the daemon was not told."""
    return len(loader._connection._leases._unsent_returns)


def test_slot_that_comes_back_in_a_small_ring_is_told_at_once_and_there_for_a_loop_that_waits(serve, photographs):
    serve(photographs, *large_ring(7))
    with prefetchd.batches() as holder, prefetchd.batches(hold_timeout=60) as other:
        other.set_epoch(7)  # whose batches are not the other's
        holding, theirs = iter(holder), []
        held = [next(holding) for _ in range(3)]
        del held[0]
        wait_for_grant(holder)

        def ask() -> None:
            with contextlib.suppress(prefetchd.PrefetchdError):  # at the end
                theirs.extend(other)

        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            asker = threading.Thread(target=ask)
            asker.start()
            wait_until(lambda: warned, "it has stood still for a second")
            n_theirs = len(theirs)
            held.clear()  # two: one may be kept for the readers to fill
            assert not untold(holder)
            wait_until(lambda: len(theirs) > n_theirs, "it has what the other held")
            other.close()
            end_thread(asker)


def test_nothing_of_a_loader_is_left_that_was_closed_before_it_told_what_it_dropped(module_daemon):
    with prefetchd.batches() as loader:
        items = iter(loader)
        held = [next(items), next(items)]
        wait_until(lambda: loader._connection._grants.has_ahead(ENOUGH_AHEAD), "more is granted ahead")
        held.clear()
        assert untold(loader)
    wait_until(lambda: not module_daemon.status()["consumers"], "the daemon knows it no more")


def test_nothing_is_granted_to_a_loop_that_waited_for_a_slot_when_another_thread_closed_its_loader(serve, photographs):
    daemon = serve(photographs, *large_ring(4))
    loader = prefetchd.batches(hold_timeout=600)
    held, said = [], []

    def loop() -> None:
        with pytest.raises(prefetchd.PrefetchdError, match="it was closed") as error:
            held.extend(loader)
        said.append(error)

    thread = threading.Thread(target=loop)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        wait_until(lambda: any(one["waiting"] for one in daemon.status()["consumers"]), "the loop waits for a slot")
        loader.close()
        end_thread(thread)
    assert said
    for left in reversed(range(len(held))):
        held.pop()
        wait_until(lambda left=left: daemon.status()["ring"]["leased"] == left, "the slot is back and nobody else's")
    assert not daemon.status()["consumers"]


def test_holding_more_than_the_ring_ends_in_a_warning_and_ring_exhausted(serve, photographs):
    daemon = serve(photographs, *large_ring(4))
    assert daemon.status()["ring"]["slots"] == 4
    with prefetchd.batches(hold_timeout=1.5) as loader:
        with (
            pytest.warns(RuntimeWarning, match="waiting for a slot: of 4 slots this loader holds") as warned,
            pytest.raises(prefetchd.RingExhausted, match=r"this loader holds \d.*copy.*on_hold='copy'.*memory_budget"),
        ):
            list(loader)
        assert warned[0].filename == __file__
        gc.collect()
        assert sum(len(y) for _, y in loader) == 50  # what was held is back, and the loader goes on


def test_who_else_holds_the_ring_is_named(serve, photographs, tmp_path):
    serve(photographs, *large_ring(5))
    code = """
import prefetchd
items = iter(prefetchd.batches())
held = [next(items), next(items)]
print("on", flush=True)
input()
"""
    other = start_script(tmp_path / "other.py", code)
    assert other.stdout is not None
    assert other.stdout.readline() == "on\n"
    with prefetchd.batches(hold_timeout=0.3) as loader:
        items = iter(loader)
        with (
            pytest.warns(RuntimeWarning, match=f"pid {other.pid} holds [123]"),
            pytest.raises(prefetchd.RingExhausted, match=f"pid {other.pid} holds [123]"),
        ):
            list(items)
    other.kill()
    finish(other)


def test_on_hold_copy_delivers_private_copies_instead(serve, photographs):
    serve(photographs, *large_ring(5))
    with prefetchd.batches(on_hold="copy", hold_timeout=5) as loader:
        first = list(loader)
        sums = [crc(x) for x, _ in first]
        again = [crc(x) for x, _ in loader]
        assert [crc(x) for x, _ in first] == sums == again
        assert [label for _, y in first for label in y.tolist()] == list(range(50))
