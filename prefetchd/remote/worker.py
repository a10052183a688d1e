"""An agent's work for one daemon: tasks in, chunks to readers, rows out, over a few staging buffers.

    Task -> Chunk -> pool -> Done -> Rows (with the buffer's rows) -> sent: the buffer is free again

A buffer holds one chunk. A task waits until one is free, so neither a slow network nor many tasks take more memory.
What is asked for is the daemon's affair: nothing is tried again here, and no verdict is made.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from prefetchd.config.units import format_bytes
from prefetchd.daemon.readers.batch_job import Chunk, Job, ReaderEnd
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.ipc import reader_messages
from prefetchd.remote import wire
from prefetchd.remote.travel import bytes_of
from prefetchd.ring.layout import BatchLayout
from prefetchd.ring.segment import Segment, map_read_only
from prefetchd.ring.slots import Slot

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMOOTHING = 0.2
Send = Callable[[wire.Frame, Sequence[memoryview], Callable[[], None] | None], None]


@dataclass(slots=True, eq=False)
class _Buffer:
    slot: Slot
    root: NDArray[np.uint8]
    views: dict[tuple[int, int], tuple[memoryview, ...]]  # by data set and layout


class Worker:
    """The tasks of one daemon.

    Args:
        pool: the readers, borrowed.
        layouts: of a chunk of each data set, one or several.
        send: sends a frame: (message, body, called when it was sent).
    """

    def __init__(self, pool: Pool, layouts: Sequence[Sequence[BatchLayout]], send: Send) -> None:
        self._pool, self._layouts, self._send = pool, layouts, send
        self._chunk_bytes = max(layout.slot_bytes for each in layouts for layout in each)
        self._tasks: deque[wire.Task] = deque()
        self._dropped: set[int] = set()  # of those in hand
        self._in_hand: dict[int, _Buffer] = {}
        self._free: list[_Buffer] = []
        self._stuck: dict[int, list[_Buffer]] = {}  # by reader
        self._n_wanted = self._n_buffers = 0
        self._numbers = itertools.count(1)
        self._row_s = [0.0 for _ in layouts]
        self.large_bytes = 0  # that decodes may take together beyond the readers' shares

    @property
    def staging_bytes(self) -> int:
        """What the buffers take."""
        return self._n_buffers * self._chunk_bytes

    def resize(self, n_buffers: int) -> None:
        """Have so many buffers; those beyond go as they come free.

        Raises:
            BudgetError: if the machine has no memory for them.
        """
        self._n_wanted = n_buffers
        while self._n_buffers < n_buffers:
            segment = Segment.create(self._chunk_bytes)
            self._n_buffers += 1
            slot = Slot(next(self._numbers), segment)
            root = np.frombuffer(map_read_only(segment.fd, segment.n_bytes), np.uint8)
            self._free.append(_Buffer(slot, root, {}))
        self._discard()

    # --- tasks

    def add(self, tasks: Sequence[wire.Task]) -> None:
        """Take in tasks.

        Raises:
            ValueError: if one is impossible.
        """
        known = {task.task for task in self._tasks} | self._in_hand.keys()
        for task in tasks:
            if task.dataset >= len(self._layouts) or task.layout >= len(self._layouts[task.dataset]):
                raise ValueError(f"task {task.task} is for layout {task.layout} of data set {task.dataset}")
            if not 1 <= task.n_rows <= self._layouts[task.dataset][task.layout].batch_size:
                raise ValueError(f"task {task.task} is for {task.n_rows} rows of data set {task.dataset}")
            if task.task in known:
                raise ValueError(f"task {task.task} was given twice")
            known.add(task.task)
        self._tasks.extend(tasks)

    def drop(self, tasks: Sequence[int]) -> None:
        """Forget tasks: those that are not begun are not done, and no answer is sent for the others."""
        gone = set(tasks)
        self._tasks = deque(task for task in self._tasks if task.task not in gone)
        self._dropped.update(gone & self._in_hand.keys())

    def give(self) -> None:
        """Give readers what they can take."""
        while self._tasks and self._free:
            task, buffer = self._tasks[0], self._free[-1]
            buffer.slot.layout = task.layout
            # Its turn is the task's number: that is how an answer is told from the others.
            job = Job(buffer.slot, task.dataset, task.epoch, task.batch, task.n_rows, turn=task.task)
            job.first_row = task.first_row
            rows = range(task.first_row, task.first_row + task.n_rows)
            chunk = Chunk(job, rows, expected_s=(self._row_s[task.dataset] or math.inf) * task.n_rows)
            reader = self._pool.pick_reader(chunk)
            if reader is None:
                break
            self._tasks.popleft()
            self._in_hand[task.task] = self._free.pop()
            self._pool.give(reader, chunk)
        self._pool.flush()

    # --- what readers report

    def done(self, reader: int, chunk: Chunk, done: reader_messages.Done) -> None:
        """A reader has finished a chunk: send its rows."""
        task, job = chunk.job.turn, chunk.job
        buffer = self._in_hand.pop(task)
        n_done = len(chunk.rows) - done.rows_left
        if n_done > 0:
            cost, so_far = (done.took_s - done.waited_s) / n_done, self._row_s[job.dataset]
            self._row_s[job.dataset] += (cost - so_far) * (_SMOOTHING if so_far else 1)
        if task in self._dropped:
            self._dropped.remove(task)
            self._release(buffer)
            return
        faults = [msgspec.structs.replace(fault, row=fault.row + job.first_row) for fault in done.faults]
        n_all = self._layouts[job.dataset][job.slot.layout].batch_size
        parts = [view[: len(view) // n_all * job.n_rows] for view in self._views(buffer, job.dataset)]
        rows = wire.Rows(task, faults, done.took_s, done.read_s, done.rows_left, done.waited_s)
        self._send(rows, parts, lambda: self._release(buffer))

    def lost(self, reader: int, chunk: Chunk, end: ReaderEnd) -> None:
        """The reader of a chunk is gone: say so."""
        self._release(self._in_hand.pop(chunk.job.turn))
        self._report_lost(chunk.job.turn, end)

    def stuck(self, pid: int, reader: int, chunk: Chunk) -> None:
        """The reader of a chunk cannot be ended: its buffer is lost until it is gone."""
        self._stuck.setdefault(reader, []).append(self._in_hand.pop(chunk.job.turn))
        self._report_lost(chunk.job.turn, ReaderEnd(0, suspect=False))

    def _report_lost(self, task: int, end: ReaderEnd) -> None:
        if task in self._dropped:
            self._dropped.remove(task)
        else:
            self._send(wire.Lost(task, end.exit_code, end.suspect), (), None)

    def gone(self, reader: int) -> None:
        """A reader has ended."""
        for buffer in self._stuck.pop(reader, ()):
            self._release(buffer)

    def outgrown(self, reader: ReaderHandle, n_bytes: int) -> None:
        """Replace a reader that takes more than its share."""
        reader.retire()

    def serve_requests(self) -> None:
        """Grant readers the working memory that they wait for, in turn, or refuse what can never be had."""
        readers = sorted(self._pool.readers.values(), key=lambda reader: reader.number)
        taken = sum(reader.has_bytes for reader in readers)
        for reader in readers:
            need = reader.needs_bytes
            if need > self.large_bytes:
                # The daemon does that sample with readers of its own.
                reader.deny_memory(f"the agent has {format_bytes(self.large_bytes)} for large images")
            elif need and taken + need <= self.large_bytes:
                taken += need
                reader.grant_memory(need, time.monotonic())

    # --- buffers

    def _views(self, buffer: _Buffer, dataset: int) -> tuple[memoryview, ...]:
        key = dataset, buffer.slot.layout
        if key not in buffer.views:
            layout = self._layouts[dataset][buffer.slot.layout]
            every = (*layout.arrays(buffer.root, layout.batch_size), layout.sample_ids(buffer.root, layout.batch_size))
            buffer.views[key] = tuple(bytes_of(each) for each in every)
        return buffer.views[key]

    def _release(self, buffer: _Buffer) -> None:
        self._free.append(buffer)
        self._discard()

    def _discard(self) -> None:
        while self._n_buffers > self._n_wanted and self._free:
            buffer = self._free.pop()
            self._n_buffers -= 1
            self._pool.remove_slot(buffer.slot)
            buffer.slot.segment.discard()
