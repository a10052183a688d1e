"""What is promised within a second, each measured several times and held to it by the median.

A single measurement on a busy machine says nothing about a second, so the tests of single cases have a generous bound.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import prefetchd
from tests.conftest import PROMPT_S, DaemonProcess, assert_prompt, end_thread, wait_until
from tests.faults.conftest import Sabotage, Script, ask_status, exact, write_manifest
from tests.faults.test_consumers import HOLD_TWO, HOLD_TWO_AND_FORK, consumer_of

Serve = Callable[..., DaemonProcess]
Start = Callable[[str], Script]

ROUNDS = 5


def test_waiting_consumer_gets_daemon_lost(serve: Serve, sabotage: Sabotage, tmp_path: Path) -> None:
    """The consumer waits for a batch that a reader is in the middle of, and the daemon is killed."""
    took_s = []
    for number in range(ROUNDS):
        folder = tmp_path / f"round {number}"
        folder.mkdir()
        manifest = write_manifest(folder, 15)
        sabotage.mark(folder / "007.jpg", f"gate-{number}")
        name = f"round-{number}"
        daemon = serve(manifest, *exact("--num-workers", 1), name=name, ready=False)
        killed_at_s: list[float] = []

        def kill_when_it_waits(daemon: DaemonProcess = daemon, killed_at_s: list[float] = killed_at_s) -> None:
            wait_until(lambda: ask_status(daemon.name)["consumers"][0]["waiting"], "the consumer waits")
            killed_at_s.append(time.monotonic())
            os.kill(daemon.pid, signal.SIGKILL)

        with prefetchd.batches(daemon=name) as loader:
            batches = iter(loader)
            next(batches)
            killer = threading.Thread(target=kill_when_it_waits)
            killer.start()
            with pytest.raises(prefetchd.DaemonLost):
                next(batches)
            raised_at_s = time.monotonic()
        end_thread(killer)
        took_s.append(raised_at_s - killed_at_s[0])
    assert_prompt(took_s)


def test_busy_consumer_gets_daemon_lost(serve: Serve, forty: Path) -> None:
    """The consumer takes batches without pause when the daemon is killed."""
    took_s = []
    for number in range(ROUNDS):
        daemon = serve(forty, *exact("--num-workers", 1), name=f"round-{number}")
        with prefetchd.batches(daemon=daemon.name, epochs=None) as loader:
            took_s.append(time_loss(loader, daemon.pid))
    assert_prompt(took_s)


def test_consumer_of_a_private_daemon_gets_daemon_lost(forty: Path) -> None:
    took_s = []
    for _ in range(ROUNDS):
        with prefetchd.batches(forty, batch_size=5, image_size=32, num_workers=1, epochs=None) as loader:
            took_s.append(time_loss(loader, loader.status()["pid"]))
    assert_prompt(took_s)


def time_loss(loader: prefetchd.Loader, daemon: int) -> float:
    """Take a batch, kill the process `daemon`, and return how long the loop goes on, in seconds."""
    batches = iter(loader)
    next(batches)
    os.kill(daemon, signal.SIGKILL)
    killed_at_s = time.monotonic()
    with pytest.raises(prefetchd.DaemonLost):
        for _ in batches:
            pass
    return time.monotonic() - killed_at_s


@pytest.mark.parametrize("forks", [False, True], ids=["alone", "with a child that lives on"])
def test_slots_of_a_killed_consumer_are_back(serve: Serve, script: Start, forty: Path, forks: bool) -> None:
    serve(forty, *exact("--num-workers", 1))
    took_s = []
    for _ in range(ROUNDS):
        consumer = script(HOLD_TWO_AND_FORK if forks else HOLD_TWO)
        said = consumer.line()
        child = int(said) if forks else None
        report = consumer_of(ask_status(), consumer.pid)
        assert report is not None
        assert report["held_slots"] >= 2
        try:
            os.kill(consumer.pid, signal.SIGKILL)
            killed_at_s = time.monotonic()
            wait_until(lambda: not ask_status()["consumers"], "the consumer is forgotten", PROMPT_S)
            wait_until(lambda: not ask_status()["ring"]["leased"], "its slots are back", PROMPT_S)
            took_s.append(time.monotonic() - killed_at_s)
        finally:
            if child is not None:
                os.kill(child, signal.SIGKILL)
    assert_prompt(took_s)
