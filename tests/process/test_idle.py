"""A daemon with nothing to do takes no CPU, and has made the first batches before anybody asks."""

from __future__ import annotations

import time

import psutil

import prefetchd
from tests.conftest import DaemonProcess, wait_until
from tests.process.commands import large_ring, tree

REST_S = 0.8  # asleep for longer than the last timer of a daemon that has finished its work
WINDOW_S = 1.5


def wait_full(daemon: DaemonProcess) -> dict:
    """Wait until every slot holds a batch; return the ring's status."""

    def full() -> bool:
        ring = daemon.status()["ring"]
        return ring["ready"] == ring["slots"]

    wait_until(full, "a full ring")
    return daemon.status()["ring"]


def activity(daemon: DaemonProcess) -> dict[int, tuple[float, int]]:
    """CPU seconds, and how often it was woken, of each process of the daemon."""
    found = {}
    for process in tree(daemon.pid):
        times = process.cpu_times()
        found[process.pid] = times.user + times.system, process.num_ctx_switches().voluntary
    return found


def sleeps(daemon: DaemonProcess) -> bool:
    """Whether no process of the daemon waits for its turn on a processor, as on a machine at work it may for long."""
    return all(process.status() == psutil.STATUS_SLEEPING for process in tree(daemon.pid))


def check_idle(daemon: DaemonProcess) -> None:
    """Watch the daemon for a while, once its last status report is behind it: it must not wake up even once."""
    last, since_s = activity(daemon), time.monotonic()

    def settled() -> bool:
        nonlocal last, since_s
        asleep, now = sleeps(daemon), activity(daemon)
        if now != last or not asleep:
            last, since_s = now, time.monotonic()
        return time.monotonic() - since_s > REST_S

    wait_until(settled, "the daemon comes to rest")
    time.sleep(WINDOW_S)  # the window in which nothing may happen
    assert activity(daemon) == last


def test_first_batches_stand_ready_before_anybody_attaches_and_then_the_daemon_rests(serve, photographs):
    daemon = serve(photographs, *large_ring(6))
    assert wait_full(daemon)["slots"] == 6
    status = daemon.status()
    assert status["batches_made"] == 6
    assert status["consumers"] == []
    check_idle(daemon)
    with prefetchd.batches() as loader:
        first = next(iter(loader))
    assert (first.epoch, first.index, first.y.tolist()) == (0, 0, [0, 1, 2, 3])


def test_daemon_rests_while_its_consumer_does_not_ask(serve, photographs):
    daemon = serve(photographs, *large_ring(6))
    with prefetchd.batches() as loader:
        items = iter(loader)
        held = [next(items), next(items)]
        wait_full(daemon)
        check_idle(daemon)
        assert len(held) + sum(1 for _ in items) == 13
