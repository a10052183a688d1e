"""The daemon's handle on a reader: it is told to go in its turn, and killed also if it is not yet born."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from prefetchd.daemon.readers import reader_handle
from prefetchd.daemon.readers.batch_job import BATCHING, Chunk
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.readers.stacks import aborted_reading, at_content, crashed_thread
from prefetchd.ipc import reader_messages, sockets
from prefetchd.ring.segment import Segment
from prefetchd.ring.slots import Ring


def test_reader_that_is_told_to_go_still_gets_the_memory_it_asked_for():
    """It hears that it may decode before it hears that it is enough; a closed socket would end it in mid-sample."""
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        handle = ReaderHandle(1, ours)
        handle.retire()
        handle.retire()
        handle.send(reader_messages.MemoryGranted())
        said = [reader_messages.decode_to_reader(sockets.receive(theirs, wait=False)[0]) for _ in range(2)]
        assert said == [reader_messages.Retire(), reader_messages.MemoryGranted()]
        with pytest.raises(BlockingIOError):
            sockets.receive(theirs, wait=False)


def test_reader_whose_first_tasks_were_of_unknown_length_has_room_for_more_when_they_are_known():
    """It is never without work, so there is no moment at which all that it has in hand is known to be nothing."""
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        handle = ReaderHandle(1, ours, ready=True)
        slot = Ring().add(Segment.create(1 << 12))
        job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=0, n_rows=64, first_row=0)
        for task, expected_s in enumerate((math.inf, math.inf, 0.04, 0.04)):
            if task >= BATCHING.in_hand:
                handle.finished(reader_messages.Done(task - BATCHING.in_hand, [], 0.04, read_s=0.02))
            rows = range(32)
            handle.assign(task, Chunk(job, rows, expected_s=expected_s), 0.0)
            assert handle.can_take == (task in (0, 3))
        assert handle.in_hand_s == pytest.approx(0.08)
        handle.close_slot(slot)
        slot.segment.discard()


def test_retiring_idle_reader_that_does_not_go_is_killed(monkeypatch):
    killed = []
    monkeypatch.setattr(ReaderHandle, "_signal", lambda self, number: killed.append(number.name))
    monkeypatch.setattr(reader_handle, "process_state", lambda pid: "T")
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        handle = ReaderHandle(1, ours, pid=99, ready=True, since=0.0)
        handle.check_progress(1e9, 60)
        assert killed == []  # it has nothing to do
        handle.retire()
        handle.check_progress(handle.since + 2, 60)
        assert killed == ["SIGKILL"]


def test_killed_reader_that_does_not_end_is_stuck_and_said_so_once(monkeypatch, caplog):
    monkeypatch.setattr(ReaderHandle, "_signal", lambda self, number: None)
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        handle = ReaderHandle(1, ours, pid=99, pidfd=0, ready=True)
        handle.kill("it hangs")
        for seconds in (1, 6, 7, 100):
            handle.check_progress(handle.killed_s + seconds, 60)
            assert handle.stuck == (seconds > 5)
        assert caplog.text.count("does not end") == 1
        assert not handle.usable
        assert handle.describe(handle.killed_s + 100) == "stuck in the kernel, killed 100 s ago"


def test_ring_that_grows_and_shrinks_does_not_fill_the_socket_of_a_reader_that_starts():
    """It is told of a slot when it is to write there, so it need not read what comes and goes meanwhile."""
    ring = Ring()
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        handle = ReaderHandle(1, ours)
        for task in range(400):
            slot = ring.add(Segment.create(1 << 12))
            if task % 200 == 0:
                job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=task, n_rows=1, first_row=0)
                handle.assign(
                    task,
                    SimpleNamespace(job=job, rows=[0], expected_s=0.0, compact=False, sample_id=7, leaves_fresh=False),
                    0.0,
                )
            handle.close_slot(slot)
            ring.remove(slot)
        assert not handle.killed_s
        said, mapped = [], []
        for _ in range(5):
            data, fds = sockets.receive(theirs, wait=False)
            said.append(type(reader_messages.decode_to_reader(data)).__name__)
            sockets.close_all(fds)
            mapped += fds
        assert said == ["MapSlot", "FillOne", "UnmapSlots", "MapSlot", "FillOne"]
        assert len(mapped) == 2


# --- what makes a reader fresh


def test_fresh_reader_that_refuses_stays_fresh_and_one_that_decodes_does_not():
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        slot = Ring().add(Segment.create(1 << 12))
        job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=0, n_rows=64, first_row=0)
        handle = ReaderHandle(1, ours, ready=True)
        fault = reader_messages.Fault(0, 7, "w", "why", True, True)
        for task in range(2):
            handle.assign(task, Chunk(job, [0], sample_id=7, fresh=True, doubt=fault), 0.0)
            assert handle.fresh
        handle.finished(reader_messages.Done(0, [fault], 0.1))
        assert handle.fresh
        handle.finished(reader_messages.Done(1, [], 0.1))
        assert not handle.fresh
        for chunk in (
            Chunk(job, [0]),  # work as any other
            Chunk(job, [0], sample_id=7, fresh=True),  # memory may be short again
            Chunk(job, [0], sample_id=7, fresh=True, doubt=msgspec.structs.replace(fault, this_epoch=True)),
        ):
            other = ReaderHandle(2, ours, ready=True)
            other.assign(1, chunk, 0.0)
            assert not other.fresh
        slot.segment.discard()


def stack(*frames: str) -> str:
    """What `faulthandler` writes of a reader whose main thread is at `frames`, the innermost first."""
    package = Path(reader_handle.__file__).parents[2]
    lines = [
        f'  File "{package}/{frame}.py", line 1 in f' for frame in (*frames, "reader/process", "reader/fork_server")
    ]
    other = f'Thread 0x1 (most recent call first):\n  File "{package}/data/images/decode.py", line 1 in f\n\n'
    return other + "Current thread 0x2 (most recent call first):\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("frames", "is_content"),
    [
        (("data/images/decode", "data/images/pipeline"), True),
        (("data/files", "data/read_ahead", "data/images/pipeline"), False),
        (("data/images/user_functions", "data/images/pipeline"), False),
        ((), False),
    ],
)
def test_what_a_hung_reader_was_at_is_read_from_its_main_threads_stack(frames, is_content):
    assert at_content(stack(*frames)) == is_content
    assert not at_content("")


READING = "data/stores/client", "data/read_threads"


def crash(*current: str, others: tuple[str, ...] = ()) -> str:
    """What `faulthandler` writes of a crash, after an older stack: with `current` empty in a thread of no Python."""
    package = Path(reader_handle.__file__).parents[2]

    def thread(head: str, frames: tuple[str, ...]) -> str:
        lines = "".join(f'  File "{package}/{frame}.py", line 1 in f\n' for frame in frames)
        return f"{head} 0x3 (most recent call first):\n{lines}"

    threads = [thread("Thread", others)] if others else []
    threads += [thread("Current thread", current)] if current else []
    main = thread("Thread", ("data/images/decode", "reader/process"))
    return stack("data/images/decode") + "Fatal Python error: Aborted\n\n" + "\n".join([*threads, main])


@pytest.mark.parametrize(
    ("text", "is_reading"),
    [
        (crash(*READING), True),
        (crash(others=READING), True),
        (crash(others=("data/read_threads",)), False),
        (crash("data/images/decode", "data/images/pipeline", "reader/process", others=READING), False),
        (crash("data/images/user_functions", "reader/process", others=READING), False),
        (crash("data/read_threads", "data/read_ahead", "reader/process", others=READING), True),
        (crash("reader/process"), True),
        (stack("data/stores/client"), False),
        ("", False),
    ],
)
def test_an_abort_while_no_decode_is_under_way_is_told_from_its_stack(text, is_reading):
    assert aborted_reading(text) == is_reading


def test_a_crash_is_logged_with_the_thread_that_did_it():
    found = crashed_thread(crash("data/images/decode", "reader/process", others=READING))
    assert found.startswith("Current thread")
    assert found.count("File") == 2
    assert crashed_thread(crash(others=READING)).count("File") == 4
    assert not crashed_thread(stack("data/images/decode"))


# --- when a reader counts as hung: it is asked for its stack first, and killed only if it still sends nothing

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
