"""The return queue: what the daemon reads of leases that ended, whatever bytes are on the page."""

from __future__ import annotations

import os
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetchd.ring.queues import _CHECK, _TAKEN_AT, MAX_RETURNS_UNSENT, RETURN_QUEUE_BYTES, ReturnReader, ReturnWriter


@pytest.fixture
def ends():
    returned, fd = ReturnReader.create()
    returns = ReturnWriter(fd)
    yield returned, returns, fd
    os.close(fd)
    returned.close()
    returns.close()


def test_each_return_is_read_once_and_nothing_while_nothing_is_written(ends):
    returned, returns, _ = ends
    assert returned.read_new() == []
    returns.write(7, 9)
    returns.write(8, 10)
    assert returned.read_new() == [(7, 9), (8, 10)]
    assert returned.read_new() == []
    returns.write(9, 10)
    assert returned.read_new() == [(9, 10)]


def test_the_last_returns_are_there_however_many_were_written(ends):
    returned, returns, _ = ends
    for lease in range(1, 1000):
        returns.write(lease, lease)
    assert returned.read_new()[-MAX_RETURNS_UNSENT:] == [
        (lease, lease) for lease in range(1000 - MAX_RETURNS_UNSENT, 1000)
    ]


def test_returns_of_several_threads_do_not_overwrite_each_other(ends):
    returned, returns, _ = ends
    threads = [threading.Thread(target=returns.write, args=(lease, 0)) for lease in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(returned.read_new()) == [(lease, 0) for lease in range(1, 9)]


def test_record_that_is_zeroed_before_it_is_written_is_none(ends):
    """As `pack_into` leaves it in the middle of a record whose lease was the last one taken."""
    returned, _, fd = ends
    os.pwrite(fd, struct.pack("<QQQ", 0, 0, _CHECK), 0)
    assert returned.read_new() == []


@given(st.binary(min_size=400, max_size=400), st.integers(0, 15))
def test_bytes_that_are_no_record_are_passed_over(rubbish, number):
    returned, fd = ReturnReader.create()
    try:
        os.pwrite(fd, rubbish, 0)
        returned.read_new()
        returns = ReturnWriter(fd)
        for _ in range(number):
            returns.write(5, 6)
        if number:
            assert (5, 6) in returned.read_new()
        returns.close()
    finally:
        os.close(fd)
        returned.close()


def test_a_record_that_is_half_written_is_read_once_it_is_whole(ends):
    returned, returns, fd = ends
    returns.write(3, 4)
    whole = os.pread(fd, 24, 0)
    os.pwrite(fd, whole[:8] + bytes(16), 0)
    assert returned.read_new() == []
    os.pwrite(fd, whole, 0)
    assert returned.read_new() == [(3, 4)]


def test_the_last_lease_taken_is_read(ends):
    returned, returns, fd = ends
    assert returned.taken == 0
    returns.write_taken(7)
    assert returned.taken == 7
    assert returned.read_new() == []
    os.pwrite(fd, b"\xff", _TAKEN_AT)  # half of another
    assert returned.taken == 0
    returns.close()
    returns.write_taken(8)  # by a loop whose connection was closed meanwhile


def test_the_page_cannot_be_cut(ends):
    with pytest.raises(PermissionError):
        os.truncate(ends[2], 0)
    with pytest.raises(PermissionError):
        os.ftruncate(ends[2], 2 * RETURN_QUEUE_BYTES)


def test_too_small_a_file_is_refused(tmp_path):
    (tmp_path / "short").write_bytes(b"")
    with open(tmp_path / "short", "r+b") as file, pytest.raises(ValueError, match="0 bytes"):
        ReturnWriter(file.fileno())
