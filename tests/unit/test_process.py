"""Facts about a process from /proc."""

from __future__ import annotations

import os

import psutil

from prefetchd.ipc.process import describe_process, memory_bytes, process_state

NO_PID = 2**22 + 1


def test_memory_bytes_sums_the_fields_in_bytes() -> None:
    peak, resident = memory_bytes("self", "status", "VmHWM"), psutil.Process().memory_info().rss
    assert peak >= resident * 0.9
    both = memory_bytes(os.getpid(), "status", "RssAnon", "RssFile")
    assert 0 < memory_bytes(os.getpid(), "status", "RssAnon") < both <= 2 * peak


def test_a_process_that_is_gone_has_no_memory_and_no_state() -> None:
    assert memory_bytes(NO_PID, "status", "RssAnon") == 0
    assert process_state(NO_PID) == ""
    assert describe_process(NO_PID) == f"pid {NO_PID} has ended"
