"""When a reader counts as hung: it is asked for its stack first, and killed only if it still says nothing."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from prefetchd.daemon.readers.reader_handle import ReaderHandle

HANG_S = 60.0


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[signal.Signals]:
    """What was sent, in place of sending it."""
    sent: list[signal.Signals] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: sent.append(number))
    return sent


@pytest.fixture
def reader(signals: list[signal.Signals]) -> Iterator[ReaderHandle]:
    """A handle on this very process, as on a reader that has yet to boot and said something last at 0 s."""
    ours, theirs = socket.socketpair()
    handle = ReaderHandle(1, ours, pid=os.getpid(), pidfd=os.pidfd_open(os.getpid()))
    yield handle
    handle.close()
    theirs.close()


def test_hung_reader_is_asked_for_its_stack_once_and_then_killed(reader: ReaderHandle, signals: list) -> None:
    reader.check_progress(HANG_S, HANG_S)
    assert signals == []
    for now_s in (HANG_S + 0.1, HANG_S + 0.2, HANG_S + 0.5):
        reader.check_progress(now_s, HANG_S)
    assert signals == [signal.SIGUSR1]
    reader.check_progress(HANG_S + 0.7, HANG_S)
    assert signals == [signal.SIGUSR1, signal.SIGKILL]


def test_reader_that_goes_on_after_it_was_asked_has_all_the_time_again(reader: ReaderHandle, signals: list) -> None:
    reader.check_progress(HANG_S + 0.1, HANG_S)
    reader.progressed(HANG_S + 0.2)
    for now_s in (HANG_S + 2, 2 * HANG_S):
        reader.check_progress(now_s, HANG_S)
    assert signals == [signal.SIGUSR1]
    reader.check_progress(2 * HANG_S + 1, HANG_S)
    assert signals == [signal.SIGUSR1, signal.SIGUSR1]  # asked again, and not killed for the first time
