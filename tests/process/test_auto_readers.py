"""`--num-workers auto` in a real daemon: the number of readers follows what the loop takes, and settles."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable

import pytest

import prefetchd
from tests.faults.conftest import ask_status

DEADLINE_S = 100.0

# The daemon has two cores, whatever the machine has, both idle whatever else runs there. It looks at its loops ten
# times as often as for users.
DAEMON = """
import os, sys, time
from prefetchd.daemon.memory import controller
from prefetchd.ipc import system
controller.WINDOW_S /= 10
system.idle_seconds = lambda: 2 * time.monotonic()
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
from prefetchd.cli.main import main
sys.argv[:] = sys.argv[3:]
sys.exit(main())
"""
# What a reader waits for, as for a network: another reader helps whatever else the machine does.
SLOW_SAMPLES = """
import time

def fetch(image, rng):
    time.sleep(0.01)
    return image
"""


def n_readers() -> int:
    return sum(reader["ready"] for reader in ask_status()["readers"])


@pytest.mark.timeout(330)
def test_readers_follow_the_loop_and_settle(serve, photographs, tmp_path):
    (tmp_path / "slow_samples.py").write_text(SLOW_SAMPLES)
    options = ("--batch-size", 4, "--image-size", 300, "--memory-budget", "160MiB", "--num-workers", "auto")
    functions = ("--transform", "slow_samples:fetch", "--python-path", tmp_path)
    daemon = serve(photographs, *options, *functions, wrapper=(sys.executable, "-c", DAEMON))
    begins_with = n_readers()
    with prefetchd.batches(epochs=None) as loader:
        batches = iter(loader)
        indices = itertools.count()

        def take(work_s: float) -> None:
            """Take the next batch, and work on it for so long."""
            batch = next(batches)
            assert batch.epoch * 13 + batch.index == next(indices)
            time.sleep(work_s)  # no synchronisation: the loop's work

        def take_until(condition: Callable[[], bool], what: str, work_s: float) -> float:
            """Take batches, with slowly more work on each; return the work on the last."""
            end_s = time.monotonic() + DEADLINE_S
            while not condition():
                assert time.monotonic() < end_s, f"not within {DEADLINE_S:g} s: {what}\n{daemon.log}"
                for _ in range(1 if work_s else 10):  # looking takes long on a busy machine, and is work of the loop
                    take(work_s)
                work_s *= 1.03  # one reader needs longer for a batch there
            return work_s

        take_until(lambda: n_readers() > begins_with, "a loop that waits for every batch gets more readers", 0)
        work_s = take_until(lambda: n_readers() == 1, "a loop that never waits is left with one reader", 0.1)
        changes = daemon.log.count("num-workers auto: ")
        for _ in range(20):
            take(work_s)  # ten windows, in which one reader is enough
        assert n_readers() == 1
        assert daemon.log.count("num-workers auto: ") == changes
        take_until(lambda: n_readers() > 1, "it waits again, and gets another reader", 0)
