"""The simulator's kernel: a virtual clock, processes, and tasks of which one runs at a time.

    heap of events --> earliest: a callback, or a task's turn --> clock jumps there --> it runs until it blocks

Each simulated thread is a task: a Python thread that runs only while it has the baton. Every wait of the code under
test comes here (`block`): the task that blocks takes the next events itself and hands the baton on. The main thread is
the daemon's task. Events of the same time run in an order that the seed decides. Nothing reads a real clock.

A task that is killed gets `Killed` where it waits, and unwinds. From then on its process is dead: what it sends goes
nowhere.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable
from typing import Any

KEPT_EVENTS = 100
MOST_CALLS = 100_000  # of the system, while the clock stands still
_FIRST_PID = 1000
_LEAST_S = 1e-6  # that a wait takes; rounding would lose much less


class Killed(BaseException):
    """The process of this task was killed."""


class SimulationError(Exception):
    """The world broke a rule: a fault of the code under test, or of the simulator."""


class Process:
    """A simulated process. Its end makes `watchers` of its pidfds ready.

    Attributes:
        pid: its number.
        name: for the trace.
        alive, stopped: its state.
        exit_code: its status, or minus the signal, once it has ended.
        rss_bytes: its private memory, as /proc shows it.
    """

    def __init__(self, kernel: Kernel, pid: int, name: str) -> None:
        self.kernel = kernel
        self.pid = pid
        self.name = name
        self.alive = True
        self.stopped = False
        self.exit_code: int | None = None
        self.rss_bytes = 1 << 20
        self.tasks: list[Task] = []
        self.endpoints: dict[Any, None] = {}  # closed with it
        self.watchers: dict[Any, None] = {}
        self.deferred: list[Callable[[], None]] = []  # what it does once it is continued
        self.on_signal: Callable[[int], None] | None = None
        self.on_exit: Callable[[], None] | None = None

    @property
    def state(self) -> str:
        """The kernel's letter."""
        return "" if not self.alive else "T" if self.stopped else "S"

    def exit(self, code: int) -> None:
        """End: every socket of it closes, and those that watch it see that."""
        if not self.alive:
            return
        self.kernel.note("exit", self.name, code)
        self.alive, self.stopped, self.exit_code = False, False, code
        self.deferred.clear()
        for endpoint in list(self.endpoints):
            endpoint.process_ended(self)
        self.endpoints.clear()
        for watcher in list(self.watchers):
            watcher.wake()
        for task in self.tasks:
            self.kernel.kill_task(task)
        if self.on_exit is not None:
            self.on_exit()

    def kill(self) -> None:
        """SIGKILL."""
        self.exit(-9)

    def stop(self) -> None:
        """SIGSTOP."""
        if self.alive and not self.stopped:
            self.kernel.note("stop", self.name)
            self.stopped = True

    def resume(self) -> None:
        """SIGCONT."""
        if self.stopped:
            self.kernel.note("continue", self.name)
            self.stopped = False
            deferred, self.deferred = self.deferred, []
            for action in deferred:
                self.kernel.call_later(0, functools.partial(self.run_or_defer, action))

    def run_or_defer(self, action: Callable[[], None]) -> None:
        """Do `action` now; where it is stopped once it is continued; where it has ended never."""
        if self.stopped and self.alive:
            self.deferred.append(action)
        elif self.alive:
            action()


class Task:
    """One simulated thread."""

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.baton = threading.Lock()
        self.baton.acquire()
        self.turn = 0  # counts its waits: an event for an earlier one is void
        self.waiting = False
        self.due_s = float("inf")  # when it is to be woken
        self.killed = False
        self.finished = False

    def wake(self) -> None:
        """See that it looks again at what it waits for, after the time that waking takes."""
        kernel = self.process.kernel
        if self.waiting:
            kernel.schedule_turn(self, kernel.now_s + kernel.wake_delay())


class Kernel:
    """The clock and all tasks of one world.

    Args:
        seed: decides everything that is random here.
        wake_s: how long a task takes to wake up at most.
        preempt: how often (0 to 1) a task that calls the system lets others go first.
    """

    def __init__(self, seed: int, *, wake_s: float = 0.0001, preempt: float = 0.0, step_limit: int = 10**9) -> None:
        self.random = random.Random(seed)
        self.wake_s = wake_s
        self.preempt = preempt
        self.now_s = 1000.0
        self.steps = 0
        self.step_limit = step_limit
        self.events: deque[tuple[Any, ...]] = deque(maxlen=KEPT_EVENTS)
        self.hash = 0  # of all events: a replay has the same
        self.failure: BaseException | None = None
        self.first_failure: BaseException | None = None
        self.on_event: Callable[[tuple[Any, ...]], None] | None = None
        self._heap: list[tuple[float, float, int, Any, int]] = []
        self._numbers = itertools.count()
        self._pids = itertools.count(_FIRST_PID)
        self.processes: dict[int, Process] = {}
        self.main = Task(self.process("nobody"), "main")
        self.current = self.main
        self.tasks: list[Task] = []
        self._n_calls, self._called_s = 0, self.now_s

    # --- events

    def note(self, *event: Any) -> None:
        """Record an event for the trace."""
        entry = (round(self.now_s, 6), *event)
        self.events.append(entry)
        self.hash = zlib.crc32(repr(entry).encode(), self.hash)
        if self.on_event is not None:
            self.on_event(entry)

    def call_later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Call `action` in `delay_s` seconds; it must not block."""
        self._push(self.now_s + delay_s, action, 0)

    def schedule_turn(self, task: Task, at_s: float) -> None:
        """Give a waiting task its turn at `at_s`, unless it has one sooner."""
        if at_s < task.due_s:
            task.due_s = at_s
            self._push(at_s, task, task.turn)

    def _push(self, at_s: float, what: Any, turn: int) -> None:
        heapq.heappush(self._heap, (at_s, self.random.random(), next(self._numbers), what, turn))

    def wake_delay(self) -> float:
        """Return how long the next task takes to wake up."""
        return self.random.random() * self.wake_s

    # --- processes and tasks

    def process(self, name: str) -> Process:
        """Return a new process."""
        process = Process(self, next(self._pids), name)
        self.processes[process.pid] = process
        return process

    def spawn(self, process: Process, name: str, run: Callable[[], None], delay_s: float = 0.0) -> Task:
        """Start a thread of `process` in `delay_s` seconds, which calls `run`."""
        task = Task(process, name)
        process.tasks.append(task)
        self.tasks.append(task)
        task.waiting = True

        def body() -> None:
            task.baton.acquire()
            try:
                if not task.killed:
                    run()
            except Killed:
                pass
            except BaseException as error:  # the world ends with it
                self.fail(error)
            finally:
                task.finished = True
                if all(other.finished for other in process.tasks):
                    process.exit(0)
                self._hand_on()

        threading.Thread(target=body, name=name, daemon=True).start()
        self.schedule_turn(task, self.now_s + delay_s)
        return task

    def kill_task(self, task: Task) -> None:
        """Have a task unwind: at once if it waits, otherwise when it calls the system next."""
        if not task.finished:
            task.killed = True
            if task.waiting:
                self.schedule_turn(task, self.now_s)

    def fail(self, error: BaseException) -> None:
        """End the world with an error: the main task raises it."""
        if self.failure is None:
            self.failure = error
            self.first_failure = self.first_failure or error

    # --- waiting

    def block(self, until_s: float | None = None) -> None:
        """Wait until something wakes the current task, or `until_s`; the caller looks again at what it waits for.

        Raises:
            Killed: if the process was killed meanwhile.
        """
        task = self.current
        self._check(task)
        task.turn += 1
        task.waiting, task.due_s = True, float("inf")
        if until_s is not None and until_s != float("inf"):
            self.schedule_turn(task, max(until_s, self.now_s))
        following = self._next()
        if following is not task:
            self.current = following
            following.baton.release()
            task.baton.acquire()
        task.waiting = False
        self._check(task)

    def _check(self, task: Task) -> None:
        if task is self.main and self.failure is not None:
            raise self.failure
        if task.killed:
            raise Killed

    def _hand_on(self) -> None:
        """The current task has ended: let the next one run."""
        following = self._next()
        self.current = following
        following.baton.release()

    def _next(self) -> Task:
        """Run events until it is a task's turn; return that task. In a world that failed it is the main task."""
        while self.failure is None:
            if not self._heap:
                self.fail(SimulationError("nothing will ever happen again: every task waits for another"))
                break
            at_s, _, _, what, turn = heapq.heappop(self._heap)
            if isinstance(what, Task):
                if what.finished or what.turn != turn or not what.waiting:
                    continue
                self.now_s = max(self.now_s, at_s)
                if what.process.stopped and not what.killed:
                    what.due_s = float("inf")
                    what.process.deferred.append(what.wake)
                    continue
                self._count()
                return what
            self.now_s = max(self.now_s, at_s)
            self._count()
            try:
                what()
            except BaseException as error:
                self.fail(error)
        return self.main

    def called(self) -> None:
        """Count a call of the system by the current task.

        Raises:
            SimulationError: if there are too many while the clock stands still: something spins.
        """
        if self.now_s != self._called_s:
            self._n_calls, self._called_s = 0, self.now_s
        self._n_calls += 1
        if self._n_calls > MOST_CALLS:
            task = self.current
            error = SimulationError(
                f"{task.process.name} spins: {MOST_CALLS} calls at {self.now_s:.6f} s, in {task.name}"
            )
            self.fail(error)
            raise error

    def _count(self) -> None:
        with contextlib.suppress(SimulationError):  # the world ends with it
            self.called()
        self.steps += 1
        if self.steps > self.step_limit:
            self.fail(SimulationError(f"the world took more than {self.step_limit} steps until {self.now_s:.3f} s"))

    def after(self, delay_s: float) -> float:
        """Return the time in `delay_s` seconds: later than now, however short that is, as it is by a real clock."""
        return self.now_s + max(delay_s, _LEAST_S) if delay_s > 0 else self.now_s

    def sleep(self, delay_s: float) -> None:
        """Let `delay_s` seconds pass for the current task."""
        end_s = self.after(delay_s)
        while self.now_s < end_s:
            self.block(end_s)

    def maybe_preempt(self) -> None:
        """Let others go first, now and then."""
        task = self.current
        if self.preempt and task is not self.main and task.process.alive and self.random.random() < self.preempt:
            self.sleep(self.random.random() * self.wake_s)

    def forget(self) -> None:
        """Let go of all processes and tasks, which have ended."""
        self._heap.clear()
        self.processes.clear()
        self.tasks.clear()

    def end_all(self) -> None:
        """End every task; called by the main task, after which nothing of the world runs any more."""
        self.failure = None
        for task in self.tasks:
            while not task.finished:
                task.killed = True
                task.process.alive = False
                task.process.stopped = False
                self.current = task
                self._heap.clear()
                self.main.turn += 1
                self.main.waiting, self.main.due_s = True, float("inf")
                self.schedule_turn(self.main, self.now_s)
                task.baton.release()
                self.main.baton.acquire()
                self.main.waiting = False
        self.current = self.main
