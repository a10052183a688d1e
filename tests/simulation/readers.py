"""Simulated fork server and readers: they speak the daemon's messages, take time, and fail as the world has it.

A reader writes a signature of (data set, epoch, sample) into each row, into the slot's real memory, so that a consumer
sees whose row it got and a reader that writes into another batch is found out.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import prefetchd
from prefetchd.ipc import reader_messages
from prefetchd.ring.layout import BatchLayout, layout_from_wire
from prefetchd.ring.segment import map_writable
from prefetchd.sampling.order import Order
from tests.simulation.data import order_of
from tests.simulation.kernel import Process, SimulationError
from tests.simulation.sockets import Endpoint, drop

if TYPE_CHECKING:
    from tests.simulation.world import World

SIGNATURE_BYTES = 24
_FORK_S = 0.003
_BOOT_S = 0.05
_ANSWER_S = 0.001
InSlot = reader_messages.Fill | reader_messages.FillOne | reader_messages.Compact
_PACKAGE = Path(prefetchd.__file__).parent
_DECODING = f'Thread 0x1 (most recent call first):\n  File "{_PACKAGE}/data/images/decode.py", line 1 in decode\n'
_READING = f'Thread 0x1 (most recent call first):\n  File "{_PACKAGE}/data/files.py", line 1 in read\n'
_MAIN = f'  File "{_PACKAGE}/reader/process.py", line 1 in run\n'

# What is wrong with a sample.
CONTENT = ("refused", "missing", "random", "crash", "hang")  # the policy decides
ENVIRONMENT = ("io", "late")  # tried again, and then right
FATAL = ("io always",)  # fails its batch under any policy
LARGE = ("large",)
TOO_LARGE = ("too large",)  # BudgetError


def signature(dataset: int, epoch: int, sample_id: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Return the first bytes of the row of a sample."""
    return np.array([dataset + 1, epoch, sample_id], np.int64).view(np.uint8)


def is_bad(kind: str | None, epoch: int, sample_id: int) -> bool:
    """Return whether the policy applies to a sample in an epoch."""
    return kind in CONTENT and (kind != "random" or (epoch + sample_id) % 2 == 0)


@dataclass
class Statistics:
    """What readers did, for the invariants.

    Attributes:
        alone: how often each (data set, sample) was asked for alone.
        last_work_s: when some reader finished something.
    """

    alone: Counter[tuple[int, int]] = field(default_factory=Counter)
    rows: int = 0
    n_spawned: int = 0
    n_died: int = 0  # readers, but for those that retired


@dataclass
class _Dataset:
    layouts: list[BatchLayout]
    order: Order


class SimReader:
    """One reader. It handles a message at a time, as it comes to its turn."""

    def __init__(self, world: World, process: Process, endpoint: Endpoint) -> None:
        self.world = world
        self.kernel = world.kernel
        self.process = process
        self.endpoint = endpoint
        process.endpoints[endpoint] = None
        process.on_signal = self._signal
        process.on_exit = self._cleanup
        process.rss_bytes = 4 << 20
        self._datasets: dict[int, _Dataset] = {}
        self._slots: dict[int, mmap.mmap] = {}
        self._boot: reader_messages.Boot
        self._busy = False
        self._stack_fd = -1
        self._early: deque[tuple[reader_messages.ToReader, list[Any]]] = deque()  # arrived before its turn
        self._fills: deque[reader_messages.Fill] = deque()
        self._done: list[reader_messages.Done] = []
        self._answered_s = 0.0
        self._on_memory: Callable[[str], None] | None = None
        self._in_kernel = self._killed = False
        self._hangs = ""
        self._has_filled = self._has_told = False
        endpoint.watchers[self] = None
        self.wake()

    # --- its socket

    def wake(self) -> None:
        """Something came, or the daemon's end is gone."""
        self._later(self.kernel.wake_delay(), self._turn)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.kernel.call_later(delay_s, lambda: self.process.run_or_defer(action))

    def _send(self, message: reader_messages.Message, things: Sequence[Any] = ()) -> None:
        end = self.endpoint
        if end.peer.closed or not self.process.alive:
            drop(things)
            return
        if not end.writable:  # it blocks
            self._later(0.01, lambda: self._send(message, things))
            return
        self.world.saw(message)
        end.peer.inbox.append((reader_messages.encode(message), list(things)))
        end.peer.changed()

    def _turn(self) -> None:
        if not self.process.alive or (self._busy and self._on_memory is None):
            return
        end = self.endpoint
        if not end.inbox:
            if end.readable:
                self.process.exit(0)
            return
        data, things = end.inbox.popleft()
        message = reader_messages.decode_to_reader(data)
        if self._on_memory is not None:
            self._while_waiting_for_memory(message, things)
            return
        self._handle(message, things)
        if not self._busy and self.process.alive and end.readable:
            self.wake()

    def _while_waiting_for_memory(self, message: reader_messages.ToReader, things: list[Any]) -> None:
        answer = self._on_memory
        assert answer is not None
        match message:
            case reader_messages.MemoryGranted():
                self._on_memory = None
                answer("")
            case reader_messages.MemoryDenied(reason=reason):
                self._on_memory = None
                answer(reason)
            case _:
                self._early.append((message, things))
                if self.endpoint.readable:
                    self.wake()

    def _handle(self, message: reader_messages.ToReader, things: list[Any]) -> None:
        match message:
            case reader_messages.OpenDataset():
                layouts = list(map(layout_from_wire, message.layouts or [message.layout]))
                order = order_of(self.world.spec.datasets[message.dataset])
                self._datasets[message.dataset] = _Dataset(layouts, order)
                drop(things)
            case reader_messages.Boot():
                self._boot = message
                self._busy = True
                self._later(_BOOT_S * (0.5 + self.kernel.random.random()), self._booted)
            case reader_messages.MapSlot():
                (fd,) = things
                self._slots[message.slot] = map_writable(fd, message.slot_bytes)
                os.close(fd)
            case reader_messages.UnmapSlots():
                for slot in message.slots:
                    self._slots.pop(slot)
            case reader_messages.Fills():
                self._fills.extend(message.fills)
                self._busy = True
                self._next_fill()
            case reader_messages.FillOne():
                self._busy = True
                self.world.statistics.alone[message.dataset, message.sample_id] += 1
                _Filling(self, message, [message.sample_id], message.row, alone=True).go_on()
            case reader_messages.Compact():
                self._busy = True
                self._later(self.kernel.wake_delay(), lambda: self._compact(message))
            case reader_messages.Retire():
                self.process.exit(0)
            case _:
                raise SimulationError(f"a reader got {message}")

    def _booted(self) -> None:
        self._stack_fd = os.memfd_create("simulated-stack")
        self._send(reader_messages.ReaderReady(), [os.dup(self._stack_fd)])
        self._idle()

    def _idle(self) -> None:
        """Take the next message."""
        self._busy = False
        while self._early and not self._busy and self.process.alive:
            self._handle(*self._early.popleft())
        if not self._busy and self.process.alive and self.endpoint.readable:
            self.wake()

    # --- work

    def _next_fill(self) -> None:
        if not self._fills:
            self._answer()
            self._idle()
            return
        fill = self._fills.popleft()
        ids = self._datasets[fill.dataset].order.sample_ids(fill.epoch, fill.batch, fill.first_row, fill.n_rows)
        _Filling(self, fill, ids.tolist(), fill.first_row, alone=False).go_on()

    def finished(self, done: reader_messages.Done, *, alone: bool, together: bool) -> None:
        """A task is done."""
        if not self._done:
            self._answered_s = self.kernel.now_s - done.took_s
        self._done.append(done)
        if alone or not together or self.kernel.now_s - self._answered_s > _ANSWER_S:
            self._answer()
        if alone:
            self._idle()
        else:
            self._next_fill()

    def _answer(self) -> None:
        if self._done:
            done, self._done = self._done, []
            self._send(reader_messages.AllDone(done))

    def views(self, task: InSlot) -> tuple[Any, Any, Any]:
        """Return x, y and the sample ids of a task's slot."""
        layout = self._datasets[task.dataset].layouts[task.layout]
        root = np.frombuffer(self._slots[task.slot], np.uint8)
        x, y = layout.arrays(root, layout.batch_size)
        return x, y, layout.sample_ids(root, layout.batch_size)

    def _compact(self, message: reader_messages.Compact) -> None:
        kept = [row for row in range(message.n_rows) if not message.skipped[row // 8] >> row % 8 & 1]
        for part in self.views(message):
            for to, row in enumerate(kept):
                if to != row:
                    part[to] = part[row]
        self._send(reader_messages.AllDone([reader_messages.Done(message.task, [], 0.0)]))
        self._idle()

    # --- memory

    def ask_memory(self, n_bytes: int, answer: Callable[[str], None]) -> None:
        """Ask for working memory; `answer` gets the reason of a refusal, or nothing."""
        self._on_memory = answer
        self._send(reader_messages.NeedMemory(n_bytes))
        self.wake()

    def return_memory(self) -> None:
        """Give it back."""
        self._send(reader_messages.NeedMemory(0))

    @property
    def is_full(self) -> bool:
        """Whether it has outgrown its share; it says so once."""
        if not self._has_filled or self.process.rss_bytes <= self._boot.share_bytes:
            return False
        if not self._has_told:
            self._has_told = True
            self._send(reader_messages.Outgrown(self.process.rss_bytes))
        return True

    # --- its end

    def hang(self, where: str) -> None:
        """Make no progress any more: in a decode, a read, or the kernel, which lets nobody kill it for a while."""
        self.kernel.note("hangs", self.process.name, where)
        self._hangs = where
        if where == "kernel":
            self._in_kernel = True

    def leave_kernel(self) -> None:
        """The file system answers again."""
        self._in_kernel = False
        if self._killed:
            self.process.exit(-9)

    def _signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            if self._in_kernel:
                self._killed = True
                self._later(self.world.spec.kernel_hang_s, self.leave_kernel)
            else:
                self.process.kill()
        elif number == signal.SIGUSR1 and not self.process.stopped and not self._in_kernel and self._stack_fd >= 0:
            os.write(self._stack_fd, ((_DECODING if self._hangs == "decode" else _READING) + _MAIN).encode())

    def _cleanup(self) -> None:
        if self._stack_fd >= 0:
            os.close(self._stack_fd)
            self._stack_fd = -1
        self._slots.clear()
        for _, things in self._early:
            drop(things)


class _Filling:
    """One task in a reader's hands: rows of one batch, one after another."""

    def __init__(
        self,
        reader: SimReader,
        task: reader_messages.Fill | reader_messages.FillOne,
        ids: list[int],
        first_row: int,
        *,
        alone: bool,
    ) -> None:
        self._reader = reader
        self._world = reader.world
        self._task = task
        self._ids = ids
        self._first_row = first_row
        self._alone = alone
        self._at = 0
        self._began_s = reader.kernel.now_s
        self._waited_s = 0.0
        self._faults: list[reader_messages.Fault] = []
        self._has_memory = False
        self._spec = reader.world.spec.datasets[task.dataset]

    def go_on(self) -> None:
        """Fill rows until the end, or until one takes another way."""
        reader, world, spec = self._reader, self._world, self._spec
        cost_s, first = 0.0, self._at
        while self._at < len(self._ids):
            if reader.is_full:
                reader._later(cost_s, functools.partial(self._end, first, len(self._ids) - self._at))
                return
            sample_id = self._ids[self._at]
            kind = world.kind(self._task.dataset, sample_id)
            cost_s += world.row_cost(self._task.dataset, sample_id)
            self._waited_s += spec.read_s
            if kind is not None and self._special(kind, sample_id, cost_s, first):
                return
            reader.process.rss_bytes += spec.leak_bytes
            reader._has_filled = True
            self._at += 1
        reader._later(cost_s, lambda: self._end(first, 0))

    def _special(self, kind: str, sample_id: int, cost_s: float, first: int) -> bool:
        """Do what such a sample does; return whether the task goes another way."""
        reader, world, task = self._reader, self._world, self._task
        later = reader._later
        if kind == "crash":
            later(cost_s, lambda: reader.process.exit(-11))
        elif kind in ("hang", "kernel"):
            if kind == "kernel" and not world.use_up(task.dataset, sample_id, 1):
                return False
            later(cost_s, lambda: reader.hang("decode" if kind == "hang" else "kernel"))
        elif kind == "late" and world.use_up(task.dataset, sample_id, 1):
            later(cost_s, lambda: reader.hang("read"))
        elif kind in ("large", "too large") and not self._has_memory:
            later(cost_s, lambda: self._ask(first, kind))
        elif is_bad(kind, task.epoch, sample_id):
            fresh = kind == "refused"
            self._fault(sample_id, f"it is {kind}", content=True, fresh=fresh, this_epoch=kind == "random")
            return False
        elif kind == "io always" or (kind == "io" and world.use_up(task.dataset, sample_id, 2)):
            self._fault(sample_id, "input/output error", content=False, fresh=False)
            return False
        else:
            return False
        return True

    def _ask(self, first: int, kind: str) -> None:
        self._write(first)
        n_bytes = self._world.spec.large_bytes if kind == "large" else 1 << 45
        self._reader.ask_memory(n_bytes, self._memory_answered)

    def _memory_answered(self, reason: str) -> None:
        sample_id = self._ids[self._at]
        if reason:
            self._fault(sample_id, reason, content=False, fresh=False, over_budget=True)
            self._at += 1
            self.go_on()
            return
        cost_s = self._world.row_cost(self._task.dataset, sample_id)
        self._reader._later(cost_s, self._large_decoded)

    def _large_decoded(self) -> None:
        self._write(self._at, self._at + 1)
        self._reader.return_memory()
        self._at += 1
        self.go_on()

    def _fault(
        self,
        sample_id: int,
        reason: str,
        *,
        content: bool,
        fresh: bool,
        this_epoch: bool = False,
        over_budget: bool = False,
    ) -> None:
        row = self._first_row + self._at
        self._faults.append(
            reader_messages.Fault(
                row, sample_id, f"sample {sample_id}", reason, content, fresh, this_epoch, over_budget=over_budget
            )
        )

    def _write(self, first: int, end: int | None = None) -> None:
        task = self._task
        x, y, sample_ids = self._reader.views(task)
        faulty = {fault.row for fault in self._faults}
        for place in range(first, self._at if end is None else end):
            row, sample_id = self._first_row + place, self._ids[place]
            sample_ids[row] = sample_id
            if row not in faulty:
                x[row].reshape(-1).view(np.uint8)[:SIGNATURE_BYTES] = signature(task.dataset, task.epoch, sample_id)
                y[row] = sample_id
            self._world.statistics.rows += 1

    def _end(self, first: int, rows_left: int) -> None:
        self._write(first)
        took_s = self._reader.kernel.now_s - self._began_s
        self._world.machine.busy_s += took_s - self._waited_s
        is_array = self._spec.kind != "images"  # whose reads are nobody's to wait for
        read_s, waited_s = (0.0, 0.0) if is_array else (self._spec.read_s, min(took_s, self._waited_s))
        done = reader_messages.Done(self._task.task, self._faults, took_s, read_s, rows_left, waited_s)
        self._reader.finished(done, alone=self._alone, together=is_array)


class SimForkServer:
    """Forks readers for the daemon, reports how they end, and takes them along when it ends."""

    def __init__(self, world: World, process: Process, endpoint: Endpoint) -> None:
        self._world = world
        self._kernel = world.kernel
        self.process = process
        self._endpoint = endpoint
        self.children: dict[int, Process] = {}
        endpoint.n_open += 1  # inherited
        process.endpoints[endpoint] = None
        process.on_exit = self._kill_all
        endpoint.watchers[self] = None
        self.wake()

    def wake(self) -> None:
        """Something came, or the daemon is gone."""
        self._later(self._kernel.wake_delay(), self._turn)

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        self._kernel.call_later(delay_s, lambda: self.process.run_or_defer(action))

    def _turn(self) -> None:
        end = self._endpoint
        while self.process.alive and end.inbox:
            data, things = end.inbox.popleft()
            match reader_messages.decode_to_fork_server(data):
                case reader_messages.Spawn(reader=number):
                    self._later(_FORK_S * self._kernel.random.random(), lambda n=number, t=things: self._spawn(n, t[0]))
                case reader_messages.Stop():
                    self.process.exit(0)
        if self.process.alive and end.readable and not end.inbox:
            self.process.exit(0)

    def _spawn(self, number: int, endpoint: Endpoint) -> None:
        process = self._kernel.process(f"reader {number}")
        self._world.statistics.n_spawned += 1
        self.children[number] = process
        SimReader(self._world, process, endpoint)
        on_exit = process.on_exit
        assert on_exit is not None

        def ended() -> None:
            on_exit()
            self._later(self._kernel.wake_delay(), lambda: self._exited(number))

        process.on_exit = ended
        self._send(reader_messages.Spawned(number, process.pid), [self._world.network.handle_of(process)])

    def _exited(self, number: int) -> None:
        code = self.children.pop(number).exit_code
        assert code is not None
        self._world.statistics.n_died += code != 0
        self._send(reader_messages.Exited(number, code))

    def _send(self, message: reader_messages.Message, things: Sequence[Any] = ()) -> None:
        if not self._endpoint.peer.closed:
            self._world.saw(message)
            self._endpoint.peer.inbox.append((reader_messages.encode(message), list(things)))
            self._endpoint.peer.changed()

    def _kill_all(self) -> None:
        for process in list(self.children.values()):
            if process.on_signal is not None:
                process.on_signal(signal.SIGKILL)
