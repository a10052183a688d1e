"""Reading ahead: the same bytes and faults as without, in any order, within bounds, and only where reads are slow."""

from __future__ import annotations

import mmap
import threading
from pathlib import Path
from typing import Any

import pytest

from prefetchd.data import read_ahead
from prefetchd.data.faults import UnreadableFile
from prefetchd.data.files import FileBuffer, read_file
from prefetchd.data.read_ahead import MASK_PART, MAX_BYTES, ReadAhead
from prefetchd.data.read_threads import N_THREADS, AheadRead
from prefetchd.data.records import Sample
from prefetchd.data.source import ALLOWANCE_BYTES


class Files:
    """Records of files by number; counts who reads them."""

    reads_apart = True
    is_far = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.n_reads = 0
        self.labels: str | None = None  # of masks: their names, by number

    def samples(self, numbers: list[int]) -> list[Sample]:
        labels = [self.labels and str(self.folder / self.labels.format(number)) for number in numbers]
        return [Sample(str(self.folder / str(each)), label) for each, label in zip(numbers, labels, strict=True)]

    def read(self, sample: Sample, buffer: FileBuffer, reserve: Any) -> memoryview:
        self.n_reads += 1
        return read_file(sample.path, buffer, reserve=reserve)

    def read_label(self, sample: Sample, buffer: FileBuffer, reserve: Any) -> memoryview:
        return read_file(str(sample.label), buffer, reserve=reserve)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    for number in range(100):
        (tmp_path / str(number)).write_bytes(bytes([number]) * (1 + number * 37 % 50) * 9000)
    return Files(tmp_path)


def take(ahead: ReadAhead, files: Files, number: int, buffer: FileBuffer) -> bytes:
    return bytes(ahead.read(number, files.samples([number])[0], buffer, lambda _: None))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every read is slow."""
    monkeypatch.setattr(read_ahead, "SLOW_S", -1.0)
    monkeypatch.setattr(read_ahead, "FAST_S", -1.0)


def test_fast_reads_start_no_thread(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # a busy machine reads slowly
    ahead, buffer = ReadAhead(files), FileBuffer()
    for number in range(20):
        ahead.expect([number])
        take(ahead, files, number, buffer)
    assert ahead.read_s == 0
    assert not ahead._threads.started


@pytest.mark.usefixtures("slow")
def test_nothing_to_come_starts_no_thread(files: Files) -> None:
    ahead = ReadAhead(files)
    take(ahead, files, 0, FileBuffer())
    ahead.expect([])
    assert ahead.read_s
    assert not ahead._threads.started


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
@pytest.mark.parametrize("n_threads", [0, 2])
@pytest.mark.usefixtures("slow")
def test_files_are_read_with_as_many_threads_as_there_may_be(
    files: Files, monkeypatch: pytest.MonkeyPatch, error: Exception, n_threads: int
) -> None:
    """The process may have no memory for the stacks of more: that is no fault of a sample."""
    start, stack_bytes, n_started = threading.Thread.start, threading.stack_size(), 0

    def start_some(thread: threading.Thread) -> None:
        nonlocal n_started
        if n_started == n_threads:
            raise error
        n_started += 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    ahead, buffer = ReadAhead(files), FileBuffer()
    for first in range(0, 40, 10):
        numbers = range(first, first + 10)
        ahead.expect(numbers)
        for number in numbers:
            assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
    assert ahead._threads.started
    assert ahead._threads.n_threads == n_threads
    assert not ahead._coming
    assert not ahead._later
    assert files.n_reads == 40
    assert threading.stack_size() == stack_bytes


@pytest.mark.usefixtures("slow")
def test_what_comes_ahead_is_what_would_have_been_read(files: Files) -> None:
    """More than may be on their way, some of them twice, one too large to be held, one asked for out of its turn."""
    (files.folder / "7").write_bytes(b"l" * (MAX_BYTES + 1))
    (files.folder / "11").unlink()
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    order = [*range(100), *range(50)]
    ahead.expect(order)
    for turn, number in enumerate(order):
        if turn == 3:
            assert take(ahead, files, 90, buffer) == (files.folder / "90").read_bytes()
        if number == 11:
            with pytest.raises(UnreadableFile, match="No such file"):
                take(ahead, files, number, buffer)
            continue
        assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
        assert ahead._pool.held_bytes <= MAX_BYTES
    assert not ahead._coming
    assert not ahead._later
    assert ahead._threads.started
    assert ahead._n_begun == 0


@pytest.mark.usefixtures("slow")
def test_samples_that_came_from_elsewhere_take_no_place_of_those_to_come(files: Files) -> None:
    """As where a cache has them by the time that their turn comes."""
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    ahead.expect(range(3 * N_THREADS))
    ahead.pass_over(range(0, 3 * N_THREADS, 2))
    for number in range(1, 3 * N_THREADS, 2):
        assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
    assert not ahead._coming
    assert not ahead._later
    assert ahead._n_begun == 0


@pytest.mark.usefixtures("slow")
def test_a_large_decode_has_the_room_of_what_was_read_ahead(files: Files) -> None:
    """What is given up for it is read again; when large ones are over, reading ahead is as it was."""
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    ahead.expect(range(100))
    for number in range(100):
        assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
        if number in (10, 11, 50):
            room_bytes = (number - 10) * 10_000
            ahead.make_room(ALLOWANCE_BYTES - room_bytes)
            lent_bytes = 0 if ahead._lent is None else ahead._lent.capacity_bytes
            assert ahead._pool.held_bytes - lent_bytes <= room_bytes
            ahead.make_room(ALLOWANCE_BYTES + 1)  # it is asked for, besides the allowance
    for _ in range(MAX_BYTES):
        ahead.make_room(1)
        if ahead._pool.limit_bytes == MAX_BYTES:
            break
    ahead.expect(range(100))
    for number in range(100):
        assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
    assert not ahead._coming
    assert ahead._n_begun == 0
    take(ahead, files, 0, buffer)
    assert ahead._pool.held_bytes == sum(each.capacity_bytes for each in ahead._pool._free) <= MAX_BYTES


@pytest.mark.usefixtures("slow")
def test_buffers_serve_file_after_file_whatever_their_sizes(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """New pages for every file would cost more than reading it; one that is far larger than others is not kept."""
    made = []

    def new(fd: int, n_bytes: int, flags: int) -> mmap.mmap:
        made.append(n_bytes)
        return mapped(fd, n_bytes, flags)

    mapped = mmap.mmap
    monkeypatch.setattr("prefetchd.data.buffer_pool.mmap.mmap", new)
    numbers = [number for number in range(100) if (files.folder / str(number)).stat().st_size < 192 << 10]
    (files.folder / str(numbers[0])).write_bytes(bytes(1 << 20))
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    for _ in range(20):
        ahead.expect(numbers)
        for number in numbers:
            take(ahead, files, number, buffer)
    assert sum(n_bytes < 1 << 20 for n_bytes in made) < 4 * N_THREADS < len(numbers) * 20 / 4
    take(ahead, files, 0, buffer)
    assert max(each.capacity_bytes for each in ahead._pool._free) < 1 << 20


@pytest.mark.usefixtures("slow")
def test_a_task_that_is_given_up_leaves_nothing_behind(files: Files) -> None:
    """Bytes that nobody asks for would be those of the sample's next turn, an epoch later."""
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    ahead.expect([1, 2, 3])
    take(ahead, files, 1, buffer)
    ahead.pass_over([1, 2, 3])
    (files.folder / "2").write_bytes(b"new")
    assert take(ahead, files, 2, buffer) == b"new"
    assert not ahead._coming
    assert ahead._n_begun == 0


@pytest.mark.usefixtures("slow")
def test_masks_come_ahead_after_their_images(files: Files) -> None:
    """Of some the image is bad and nobody asks for the mask; of one the mask is missing."""
    for number in range(100):
        (files.folder / f"mask {number}").write_bytes(b"mask %d" % number)
    (files.folder / "mask 9").unlink()
    ahead, buffer = ReadAhead(files, {0: files.read, MASK_PART: files.read_label}), FileBuffer()

    def take_mask(number: int) -> bytes:
        sample = Sample(str(files.folder / str(number)), str(files.folder / f"mask {number}"))
        return bytes(ahead.read(number, sample, buffer, lambda _: None, MASK_PART))

    files.labels = "mask {}"
    take(ahead, files, 0, buffer)
    for task in (range(50), range(50, 100), range(50)):
        ahead.expect(task)
    for task in (range(50), range(50, 100), range(50)):
        for number in task:
            assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
            if number == 9:
                with pytest.raises(UnreadableFile, match="No such file"):
                    take_mask(number)
            elif number % 7:
                assert take_mask(number) == b"mask %d" % number
        ahead.pass_over(task)
    assert not ahead._coming
    assert not ahead._later
    assert ahead._n_begun == 0


def test_waiting_for_reads_is_told_apart(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a read that the reader does itself, and of one that a thread does."""
    ahead, buffer = ReadAhead(files), FileBuffer()
    now_s = 0.0
    monkeypatch.setattr(read_ahead.time, "perf_counter", lambda: now_s)
    read, wait = files.read, AheadRead.wait

    def read_for_a_second(*given: Any) -> memoryview:
        nonlocal now_s
        now_s += 1.0
        return read(*given)

    def wait_for_half_a_second(each: AheadRead) -> None:
        nonlocal now_s
        wait(each)
        now_s += 0.5

    monkeypatch.setitem(ahead._fetchers, 0, read_for_a_second)
    take(ahead, files, 0, buffer)
    assert ahead.waited_s == 1.0
    monkeypatch.setitem(ahead._fetchers, 0, read)
    monkeypatch.setattr(AheadRead, "wait", wait_for_half_a_second)
    ahead.expect([1, 2])
    now_s += 10.0
    for number in (1, 2):
        take(ahead, files, number, buffer)
    assert ahead.waited_s == 2.0


@pytest.mark.usefixtures("slow")
def test_what_was_held_is_given_back_when_reads_are_fast_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, buffer = ReadAhead(files), FileBuffer()
    take(ahead, files, 0, buffer)
    ahead.expect([1, 2, 3])
    for number in (1, 2, 3, 4):
        assert take(ahead, files, number, buffer) == (files.folder / str(number)).read_bytes()
    assert ahead._pool.held_bytes > 0
    monkeypatch.setattr(read_ahead, "FAST_S", 1e9)
    monkeypatch.setattr(read_ahead, "SLOW_S", 1e9)
    take(ahead, files, 5, buffer)
    assert ahead.read_s == 0
    assert ahead._pool.held_bytes == 0
