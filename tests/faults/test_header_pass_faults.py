"""The header pass when the daemon dies or is stopped, and when a child of it is killed: nothing is left, or lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

import prefetchd
from tests.conftest import wait_until
from tests.images import write_jpeg

WORDS = ("--image-size", "32x32,24x40", "--batch-size", 4, "--num-workers", 1, "--memory-budget", "160MiB")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number in range(4):
        write_jpeg(tmp_path / f"{number}.jpg", (40, 40 + 20 * (number % 2)), number)
    (tmp_path / "list.txt").write_text("".join(f"{number % 4}.jpg {number}\n" for number in range(3000)))
    return tmp_path / "list.txt"


def header_passes(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any("header_pass" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def in_the_pass(daemon) -> list[psutil.Process]:
    """Wait until the daemon reads headers; return the processes that do."""
    found: list[psutil.Process] = []

    def look() -> bool:
        found[:] = header_passes(daemon.process.pid)
        return bool(found)

    wait_until(look, "a process reads headers")
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_pass_ends_with_the_daemon(serve, images, number):
    daemon = serve(images, *WORDS, ready=False)
    children = in_the_pass(daemon)
    daemon.process.send_signal(number)
    daemon.process.wait(20)
    wait_until(lambda: not any(child.is_running() for child in children), "the children are gone")


def test_a_killed_child_is_replaced_and_no_sample_is_lost(serve, images):
    daemon = serve(images, *WORDS, ready=False)
    os.kill(in_the_pass(daemon)[0].pid, signal.SIGKILL)
    daemon.wait_ready()
    assert not header_passes(daemon.process.pid)
    with prefetchd.batches() as loader:
        seen = [(batch.x.shape[1:3], label) for batch in loader for label in batch.y.tolist()]
    assert sorted(label for _, label in seen) == list(range(3000))
    assert all((shape == (24, 40)) == bool(label % 2) for shape, label in seen)
