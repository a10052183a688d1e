"""A reader process: task -> read -> decode -> slot. The fork server forks it; the daemon gives it tasks by one socket.

It owns nothing that matters: slots are the daemon's, and another reader does its tasks again when it dies. When the
daemon dies its socket ends, and so does the reader. It holds no lock that another process waits for.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import mmap
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from prefetchd.config.units import format_bytes
from prefetchd.config.validate import make_config
from prefetchd.data.files import compare_across_hosts
from prefetchd.data.images.decode import detach_native_stderr
from prefetchd.data.order.plan import attach_order
from prefetchd.data.registry import Source, attach_source
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import reader_messages, sockets
from prefetchd.reader.memory_limit import ReaderMemory
from prefetchd.ring.layout import BatchLayout, layout_from_wire
from prefetchd.ring.segment import keep_from_children, map_writable
from prefetchd.sampling.order import Order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.data.stores.next_use import NextUses


_ANSWER_S = 0.001
_ROWS_A_LOOK = 8  # where reads are slow: so often it is seen what more will be to read
_LOOK_AGAIN_S = 0.001  # what takes less leaves nothing, without users' functions; looking takes 4 us
_QUICK_ROW_S = 100e-6  # what takes less was not decoded, or is tiny: it needs no look after every few rows
_MAX_FAULTS = 64

_InSlot = reader_messages.Fill | reader_messages.FillOne | reader_messages.Compact


class OutOfBudget(MemoryError):
    """The daemon cannot ever give the memory that a sample needs."""


@dataclass(frozen=True, slots=True)
class _Dataset:
    """A data set as a reader knows it; `is_watched` if users' functions run, so that each sample may leave a leak."""

    source: Source
    order: Order
    layouts: tuple[BatchLayout, ...]
    is_watched: bool
    answers_together: bool
    next_uses: NextUses | None  # where what was read of objects is kept


def _open_dataset(message: reader_messages.OpenDataset, fds: list[int]) -> _Dataset:
    config = make_config(**message.config)
    if message.across_hosts:
        compare_across_hosts()
    at = len(fds) - bool(message.order)
    source = attach_source(config, message.source, fds[:at])
    order = attach_order(config, source.facts.n_samples, message.order, fds[at:])
    is_watched = config.transform is not None or config.target_transform is not None
    next_uses = None
    if config.keep is not None and source.facts.is_far:
        from prefetchd.data.stores.next_use import NextUses

        next_uses = NextUses(order)
    layouts = tuple(map(layout_from_wire, message.layouts or [message.layout]))
    return _Dataset(source, order, layouts, is_watched, source.facts.answers_together, next_uses)


class Reader:
    """The loop of one reader process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._early: deque[tuple[reader_messages.Message, list[int]]] = deque()  # arrived before its turn
        self._slots: dict[int, tuple[mmap.mmap, np.ndarray[tuple[int], np.dtype[np.uint8]]]] = {}
        self._views: dict[tuple[int, int, int], tuple[tuple[NDArray[Any], ...], NDArray[np.int64]]] = {}
        self._datasets: dict[int, _Dataset] = {}
        self._unexpected: deque[reader_messages.Fill] = deque()  # to come, and not expected by the source yet
        self._allowance_bytes = 0
        self._memory: ReaderMemory
        self._stack_fd = os.memfd_create("prefetchd-reader-stack", os.MFD_CLOEXEC)
        # The daemon asks a reader that makes no progress for its stack: also C code that never returns is seen so.
        faulthandler.register(signal.SIGUSR1, self._stack_fd, all_threads=True)
        self._has_filled = False
        self._look_again_s = 0.0
        self._has_told_growth = False
        self._has_reserved = False

    def run(self) -> None:
        """Serve tasks until the daemon retires it, or closes the socket."""
        while True:
            message, fds = self._early.popleft() if self._early else self._receive()
            match message:
                case reader_messages.Fills():
                    self._fill_all(message.fills)
                case reader_messages.FillOne():
                    ids = np.array([message.sample_id])
                    self._answer([self._fill(message, ids, range(message.row, message.row + 1))])
                case reader_messages.MapSlot():
                    memory = map_writable(fds[0], message.slot_bytes)
                    keep_from_children(memory)  # a child of a user's function writes nowhere
                    sockets.close_all(fds)
                    self._slots[message.slot] = memory, np.frombuffer(memory, np.uint8)
                case reader_messages.UnmapSlots():
                    for slot in message.slots:
                        del self._slots[slot]
                    self._views = {key: views for key, views in self._views.items() if key[1] in self._slots}
                case reader_messages.Compact():
                    self._compact(message)
                case reader_messages.Retire():
                    return
                case reader_messages.OpenDataset():
                    self._datasets[message.dataset] = _open_dataset(message, fds)
                case reader_messages.Boot():
                    self._allowance_bytes = message.allowance_bytes
                    self._memory = ReaderMemory(message.share_bytes, message.slack_bytes)
                    faulthandler.enable(self._stack_fd)  # from now on the daemon logs how it crashed
                    self._send(reader_messages.ReaderReady(), [self._stack_fd])

    def _fill_all(self, fills: list[reader_messages.Fill]) -> None:
        """Do the fills in turn; the answers to those that take next to no time go together."""
        done: list[reader_messages.Done] = []
        answered_s = time.perf_counter()
        for fill in fills:
            dataset = self._datasets[fill.dataset]
            if self._unexpected and self._unexpected[0] is fill:
                self._unexpected.popleft()
            ids = dataset.order.sample_ids(fill.epoch, fill.batch, fill.first_row, fill.n_rows)
            first = fill.first_row - fill.shift
            done.append(self._fill(fill, ids, range(first, first + fill.n_rows)))
            if not dataset.answers_together or time.perf_counter() - answered_s > _ANSWER_S:
                self._answer(done)
                done, answered_s = [], time.perf_counter()
        self._answer(done)

    def _fill(
        self, task: reader_messages.Fill | reader_messages.FillOne, ids: NDArray[np.int64], rows: range
    ) -> reader_messages.Done:
        arrays, all_ids = self._views_of(task)
        all_ids[rows.start : rows.stop] = ids
        dataset = self._datasets[task.dataset]
        source = dataset.source
        if isinstance(task, reader_messages.Fill) and not source.read_s:  # else it was expected, and so planned
            self._plan_keeping(task.epoch, task.batch, ids, dataset)
        started_s, waited_s = time.perf_counter(), source.waited_s
        step = self._rows_at_once(dataset, len(rows))
        faults: list[reader_messages.Fault] = []
        first = rows_left = 0
        while first < len(rows):
            if (dataset.is_watched or started_s > self._look_again_s) and self._is_full():
                rows_left = len(rows) - first
                break
            part, part_ids = rows[first : first + step], ids[first : first + step]
            was_slow = source.read_s
            try:
                found = source.fill(task.epoch, part_ids, part, arrays, self._reserve)
            except MemoryError as error:
                found = self._out_of_memory(part, part_ids.tolist(), error)
            if len(part) < len(rows):  # tracebacks of many rows would not fit in a message
                found = [msgspec.structs.replace(fault, detail="") for fault in found]
            faults += found
            self._has_filled = True
            if source.read_s and not was_slow:  # found out just now
                source.expect(ids[first + len(part) :].tolist())
                self._look_ahead()
                step = min(step, _ROWS_A_LOOK)
            elif source.read_s and first % _ROWS_A_LOOK == 0:
                self._look_ahead()
            first += len(part)
            if step < len(rows) and not (dataset.is_watched or source.read_s):
                is_quick = time.perf_counter() - started_s < first * _QUICK_ROW_S
                step = min(len(rows), 4 * step) if is_quick else self._rows_at_once(dataset, len(rows))
        took_s = time.perf_counter() - started_s
        return reader_messages.Done(task.task, faults, took_s, source.read_s, rows_left, source.waited_s - waited_s)

    def _rows_at_once(self, dataset: _Dataset, n_rows: int) -> int:
        """Return how many rows of a task to fill before it is seen how things are.

        With users' functions one: before the next it is seen how much memory is left.
        """
        if dataset.is_watched:
            return 1
        if dataset.answers_together:
            return n_rows
        return _ROWS_A_LOOK if self._has_filled else 1  # the first read may be slow already

    def _is_full(self) -> bool:
        """Return whether the memory is used up, so that another reader is to do the next sample.

        Each reader does one sample at least, or none would ever be done.
        """
        self._look_again_s = time.perf_counter() + _LOOK_AGAIN_S
        if not self._has_filled or not self._memory.outgrown:
            return False
        if not self._has_told_growth:
            self._has_told_growth = True
            self._send(reader_messages.Outgrown(self._memory.bytes_now))
        return True

    def _out_of_memory(self, rows: range, ids: list[int], error: MemoryError) -> list[reader_messages.Fault]:
        """Return the fault of every row: where there is too little, a fresh reader has more."""
        if len(rows) > _MAX_FAULTS:
            raise error
        share = format_bytes(self._memory.share_bytes)
        reason = str(error) or f"it takes more memory than a reader may have ({share})"
        refused = isinstance(error, OutOfBudget)
        return [
            reader_messages.Fault(row, i, "", reason, False, not refused, over_budget=refused)
            for row, i in zip(rows, ids, strict=True)
        ]

    def _views_of(self, task: _InSlot) -> tuple[tuple[NDArray[Any], ...], NDArray[np.int64]]:
        """Return the fields and the sample ids of a task's slot, as its data set lays them out, at full length."""
        key = task.dataset, task.slot, task.layout
        views = self._views.get(key)
        if views is None:
            layout, root = self._datasets[task.dataset].layouts[task.layout], self._slots[task.slot][1]
            views = layout.arrays(root, layout.batch_size), layout.sample_ids(root, layout.batch_size)
            self._views[key] = views
        return views

    def _compact(self, message: reader_messages.Compact) -> None:
        kept = [row for row in range(message.n_rows) if not message.skipped[row // 8] >> row % 8 & 1]
        arrays, ids = self._views_of(message)
        for part in (*arrays, ids):
            for to, row in enumerate(kept):
                if to != row:
                    part[to] = part[row]
        self._answer([reader_messages.Done(message.task, [], 0.0)])

    def _answer(self, done: list[reader_messages.Done]) -> None:
        for dataset in self._datasets.values():
            dataset.source.confirm()
        if done:
            self._send(reader_messages.AllDone(done))

    def _reserve(self, n_bytes: int) -> None:
        """Ask the daemon for working memory above the allowance and wait for it; 0 gives it back."""
        if n_bytes == 0:
            if self._has_reserved:
                self._has_reserved = False
                self._memory.lend(0)
                self._send(reader_messages.NeedMemory(0))
            return
        if n_bytes <= self._allowance_bytes:
            return
        self._send(reader_messages.NeedMemory(n_bytes))
        while True:
            message, fds = self._receive()
            match message:
                case reader_messages.MemoryGranted():
                    self._has_reserved = True
                    self._memory.lend(n_bytes)
                    return
                case reader_messages.MemoryDenied(reason=reason):
                    raise OutOfBudget(reason)
                case _:
                    self._early.append((message, fds))

    def _receive(self, *, wait: bool = True) -> tuple[reader_messages.Message, list[int]]:
        """Return the next message and its descriptors; what its fills will read is expected from now on.

        Raises:
            BlockingIOError: with `wait=False`, if there is none.
        """
        data, fds = sockets.receive(self._sock, wait=wait)
        message = reader_messages.decode_to_reader(data)
        if isinstance(message, reader_messages.Fills):
            for fill in message.fills:
                dataset = self._datasets.get(fill.dataset)
                if dataset is not None and dataset.source.read_s:
                    self._expect(fill, dataset)
                else:
                    self._unexpected.append(fill)
        return message, fds

    def _expect(self, fill: reader_messages.Fill, dataset: _Dataset) -> None:
        ids = dataset.order.sample_ids(fill.epoch, fill.batch, fill.first_row, fill.n_rows)
        self._plan_keeping(fill.epoch, fill.batch, ids, dataset)
        dataset.source.expect(ids.tolist())

    @staticmethod
    def _plan_keeping(epoch: int, batch: int, ids: NDArray[np.int64], dataset: _Dataset) -> None:
        if dataset.next_uses is not None:
            from prefetchd.data.stores.next_use import expect

            expect(dataset.next_uses.times(epoch, batch, ids.tolist()))

    def _look_ahead(self) -> None:
        """Take in what waits in the socket, so that reads begin before their turn."""
        while self._unexpected:
            fill = self._unexpected.popleft()
            if fill.dataset in self._datasets:
                self._expect(fill, self._datasets[fill.dataset])
        try:
            while True:
                self._early.append(self._receive(wait=False))
        except (BlockingIOError, sockets.ConnectionEnded):  # the end is met again in its turn
            return

    def _send(self, message: reader_messages.Message, fds: Sequence[int] = ()) -> None:
        sockets.send(self._sock, reader_messages.encode(message), fds)


def main(sock: socket.socket) -> None:
    """Run a reader on its end of a socket pair; returns when the daemon is gone or done with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Decoding is throughput work: it must not take the processor from a trainer that has just been woken.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    # The decoders' C libraries write about every bad file to descriptor 2; the daemon reports those once, and better.
    sys.stderr = os.fdopen(detach_native_stderr(), "w", buffering=1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what users' functions print is not lost with the process
    faulthandler.enable(sys.stderr)
    os.register_at_fork(after_in_child=sock.close)  # a user's function may fork: the child must not answer for us
    try:
        Reader(sock).run()
    except sockets.ConnectionEnded:
        return
    except PrefetchdError as error:  # such as a manifest that changed: the daemon reports it
        last_words = reader_messages.BootFailed(type(error).__name__, str(error))
        with contextlib.suppress(sockets.ConnectionEnded):
            sockets.send(sock, reader_messages.encode(last_words))
