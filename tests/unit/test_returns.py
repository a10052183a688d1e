"""Leases that a consumer notes as ended: what the daemon reads of them, whatever it finds on the page."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.ring.queues import _TAKEN_AT, MAX_NOTED, RETURN_QUEUE_BYTES, ReturnedLeases, Returns


@pytest.fixture
def ends():
    returned, fd = ReturnedLeases.create()
    returns = Returns(fd)
    yield returned, returns, fd
    os.close(fd)
    returned.close()
    returns.close()


def test_each_note_is_read_at_least_once_and_nothing_while_nothing_is_noted(ends):
    returned, returns, _ = ends
    assert returned.new() == []
    returns.note(7, 9)
    returns.note(8, 10)
    assert returned.new() == [(7, 9), (8, 10)]
    assert returned.new() == []
    returns.note(9, 10)
    assert returned.new() == [(9, 10)]


def test_the_last_notes_are_there_however_many_were_made(ends):
    returned, returns, _ = ends
    for lease in range(1, 1000):
        returns.note(lease, lease)
    assert returned.new()[-MAX_NOTED:] == [(lease, lease) for lease in range(1000 - MAX_NOTED, 1000)]


def test_notes_of_several_threads_do_not_meet(ends):
    returned, returns, _ = ends
    threads = [threading.Thread(target=returns.note, args=(lease, 0)) for lease in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(returned.new()) == [(lease, 0) for lease in range(1, 9)]


@given(st.binary(min_size=400, max_size=400), st.integers(0, 15))
def test_what_is_no_note_is_passed_over(rubbish, number):
    returned, fd = ReturnedLeases.create()
    try:
        os.pwrite(fd, rubbish, 0)
        returned.new()
        returns = Returns(fd)
        for _ in range(number):
            returns.note(5, 6)
        if number:
            assert (5, 6) in returned.new()
        returns.close()
    finally:
        os.close(fd)
        returned.close()


def test_a_note_that_is_half_written_is_read_once_it_is_whole(ends):
    returned, returns, fd = ends
    returns.note(3, 4)
    whole = os.pread(fd, 24, 0)
    os.pwrite(fd, whole[:8] + bytes(16), 0)
    assert returned.new() == []
    os.pwrite(fd, whole, 0)
    assert returned.new() == [(3, 4)]


def test_what_was_taken_last_is_known(ends):
    returned, returns, fd = ends
    assert returned.taken == 0
    returns.took(7)
    assert returned.taken == 7
    assert returned.new() == []
    os.pwrite(fd, b"\xff", _TAKEN_AT)  # half of another
    assert returned.taken == 0
    returns.close()
    returns.took(8)  # by a loop whose connection was closed meanwhile


def test_the_page_cannot_be_cut(ends):
    with pytest.raises(PermissionError):
        os.truncate(ends[2], 0)
    with pytest.raises(PermissionError):
        os.ftruncate(ends[2], 2 * RETURN_QUEUE_BYTES)


def test_too_small_a_file_is_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"")
    with open(tmp_path / "short", "r+b") as file, pytest.raises(ValueError, match="0 bytes"):
        Returns(file.fileno())
