"""Where a slot's memory comes from when `/dev/shm` or the machine is full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefetchd.errors import BudgetError
from prefetchd.ring import segment
from prefetchd.ring.segment import Segment

N_BYTES = 3 * 4096


def full_for(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Let the next `times` reservations of pages fail as on a full file system."""
    real, failed = os.posix_fallocate, []

    def fallocate(fd: int, offset: int, n_bytes: int) -> None:
        if len(failed) < times:
            failed.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd, offset, n_bytes)

    monkeypatch.setattr(segment.os, "posix_fallocate", fallocate)


def names() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob(f"prefetchd-{os.getpid()}-*")}


@pytest.mark.parametrize("failures", [0, 1])
def test_all_pages_are_reserved_and_no_name_is_left(monkeypatch, failures):
    """A slot is whole at once, in POSIX shared memory or, where that is full, in a memfd."""
    Segment.create(N_BYTES).close()  # the first one starts Python's resource tracker, which stays
    full_for(monkeypatch, failures)
    descriptors = len(os.listdir("/proc/self/fd"))
    made = Segment.create(N_BYTES)
    assert made.allocated_bytes == N_BYTES
    assert ("memfd:" in os.readlink(f"/proc/self/fd/{made.fd}")) is bool(failures)
    assert not names()
    made.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_full_machine_is_a_budget_error_that_leaves_nothing(monkeypatch):
    """A slot that the machine cannot give is refused now, and is no SIGBUS later."""
    full_for(monkeypatch, 2)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BudgetError, match=r"12\.0 KiB"):
        Segment.create(N_BYTES)
    assert not names()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_discarded_pages_are_free_while_others_still_map_them():
    """What a consumer still maps, but holds no batch of, takes no memory."""
    made = Segment.create(N_BYTES)
    fd = made.read_only_fd()
    mapped = segment.map_read_only(fd, N_BYTES)
    made.discard()
    assert os.fstat(fd).st_blocks == 0
    assert mapped[:] == bytes(N_BYTES)
    mapped.close()
    os.close(fd)


def test_consumer_can_neither_write_nor_truncate():
    """The descriptor that consumers get is for reading only, not just their map of it."""
    made = Segment.create(N_BYTES)
    fd = made.read_only_fd()
    with pytest.raises(OSError, match=r"Invalid|Bad"):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        segment.map_writable(fd, N_BYTES)
    with pytest.raises(ValueError, match="announced"):
        segment.map_read_only(fd, N_BYTES + 1)
    made.close()
    os.close(fd)


def test_names_that_killed_daemons_left_are_removed_when_they_are_old():
    old, new, other = (Path("/dev/shm") / f"{name}-{os.getpid()}-test" for name in ("prefetchd", "prefetchd-x", "else"))
    try:
        for path in (old, new, other):
            path.touch()
        for path in (old, other):
            os.utime(path, (0, 0))
        segment.remove_stale_names()
        assert [path.exists() for path in (old, new, other)] == [False, True, True]
    finally:
        for path in (old, new, other):
            path.unlink(missing_ok=True)


def test_segment_starts_no_resource_tracker_and_leaves_no_name():
    before = set(os.listdir("/dev/shm"))
    code = (
        "import os\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "from prefetchd.ring.segment import Segment\n"
        "made = Segment.create(4096)\n"
        "assert os.fstat(made.fd).st_size == 4096\n"
        "assert resource_tracker._resource_tracker._pid is None\n"
        "assert shared_memory.resource_tracker is resource_tracker\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("prefetchd-")} == set()


def test_memfd_cannot_be_cut_and_gives_its_pages_back(monkeypatch):
    """A map of it never becomes a SIGBUS; it is given back as the others are, also while it is mapped."""
    full_for(monkeypatch, 1)
    made = Segment.create(N_BYTES)
    assert made.is_memfd
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(made.fd, 0)
    read_only = made.read_only_fd()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(read_only, b"x")
    memory = segment.map_read_only(read_only, N_BYTES)
    made.discard()
    assert os.fstat(read_only).st_blocks == 0
    assert memory[:4] == bytes(4)
    memory.close()
    os.close(read_only)


def test_small_dev_shm_is_left_to_those_who_cannot_do_without(monkeypatch):
    monkeypatch.setattr(segment, "shm_free_bytes", lambda: 2 * N_BYTES - 1)
    made = Segment.create(N_BYTES)
    assert made.is_memfd
    made.close()
