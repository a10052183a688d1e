"""The event loop: what happens to signals while the daemon is busy outside it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prefetchd.ipc.event_loop import EventLoop, Interrupted


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    found = EventLoop()
    found.on_signal(signal.SIGTERM, found.stop)
    yield found
    found.close()
    for number, handler in before.items():
        assert number == signal.SIGTERM or signal.getsignal(number) == handler
        signal.signal(number, handler)


def test_a_signal_ends_an_interruptible_block(loop: EventLoop) -> None:
    went_on = False
    with pytest.raises(Interrupted), loop.interruptible():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        went_on = True
    assert not went_on


def test_a_signal_before_the_block_ends_it(loop: EventLoop) -> None:
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Interrupted), loop.interruptible():
        pytest.fail("the block began")


def test_a_signal_after_the_block_is_the_loop_s(loop: EventLoop) -> None:
    with loop.interruptible():
        pass
    signal.raise_signal(signal.SIGTERM)
    loop.run(lambda: None)  # returns: the callback stops it


def test_the_end_of_the_parent_ends_an_interruptible_block(loop: EventLoop) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(process.pid)
    try:
        with pytest.raises(Interrupted), loop.interruptible(pidfd):  # noqa: PT012
            process.communicate(b"\n", timeout=60)
            while True:  # as busy as indexing is
                pass
    finally:
        os.close(pidfd)
