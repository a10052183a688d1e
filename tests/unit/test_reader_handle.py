"""The daemon's handle on a reader: it is told to go in its turn, and killed also if it is not yet born."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from prefetchd.daemon.readers import reader_handle
from prefetchd.daemon.readers.batch_job import Chunk
from prefetchd.daemon.readers.batching import BATCHING
from prefetchd.daemon.readers.reader_handle import ReaderHandle
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
        job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=0, n_rows=64)
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
                job = SimpleNamespace(slot=slot, dataset=0, epoch=0, batch=task, n_rows=1)
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
