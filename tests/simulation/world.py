"""One simulated world: the real daemon and the real loaders over a simulated system, from a description.

spec --> kernel, network, machine --> daemon (main task), trainers (tasks), readers (callbacks) --> invariants
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
import sys
import tempfile
import traceback
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefetchd.config.options import Config
from prefetchd.config.validate import make_config
from prefetchd.daemon.memory import plan as budget
from prefetchd.daemon.server import Daemon
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import reader_messages
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ipc.run_directory import daemon_paths
from prefetchd.ring import segment
from tests.simulation import data
from tests.simulation.faults import Injector
from tests.simulation.invariants import Watch, allowed_error
from tests.simulation.kernel import Kernel, Killed, Process, SimulationError
from tests.simulation.model import Content
from tests.simulation.programs import Place, Trainer
from tests.simulation.readers import SimForkServer, Statistics
from tests.simulation.sockets import Listener, Network
from tests.simulation.spec import WorldSpec
from tests.simulation.system import Machine, System

_QUIET_S = 30.0  # an idle daemon without a timer sleeps through it
_RESTART_S = 0.7


@dataclass(frozen=True)
class Outcome:
    """What a world came to.

    Attributes:
        hash: of all its events.
        virtual_s: how long it took in its own time.
        batches: how many were delivered.
        ended: why loops ended before their time, by error.
        messages: how often each was sent.
        waits: what loops waited for, as `status` has it.
    """

    hash: int
    virtual_s: float
    batches: int
    ended: dict[str, int]
    messages: dict[str, int]
    waits: tuple[str, ...]


class WorldFailed(Exception):
    """A world broke a rule; shows the seed, the rule and the last events."""

    def __init__(self, spec: WorldSpec, error: BaseException, events: Sequence[tuple[Any, ...]]) -> None:
        self.spec = spec
        self.error = error
        self.events = list(events)
        last = "\n".join("  " + " ".join(map(str, event)) for event in events)
        super().__init__(f"seed {spec.seed}: {type(error).__name__}: {error}\nthe last events:\n{last}")


class World:
    """Everything of one world. `run` runs it to its end."""

    def __init__(self, spec: WorldSpec, folder: Path) -> None:
        self.spec = spec
        self.kernel = Kernel(spec.seed, wake_s=spec.wake_s, preempt=spec.preempt, step_limit=spec.step_limit)
        self.network = Network(self.kernel, spec.capacity)
        self.network.on_message = self.saw_message
        self.network.on_round = self.after_round
        self.machine = Machine(self.kernel, spec.n_cores)
        self.statistics = Statistics()
        self.contents = [Content(dataset) for dataset in spec.datasets]
        self.messages: Counter[str] = Counter()
        self.daemon: Daemon | None = None
        self.daemon_process: Process | None = None
        self.fork_server: SimForkServer | None = None
        self.finished = False
        self.passes: dict[tuple[int, str], Counter[Place]] = {}
        self._folder = folder
        self._kinds = [dict(dataset.bad) for dataset in spec.datasets]
        self._used: Counter[tuple[int, int]] = Counter()
        self._system = System(self.kernel, self.network, self.machine, self._start_process, round_s=spec.round_s)
        self.trainers = [Trainer(self, number, loop) for number, loop in enumerate(spec.loops)]
        self.clients: dict[int, Process] = {}
        self.watch = Watch(self)
        self.injector = Injector(self)

    # --- what readers and trainers ask

    def kind(self, dataset: int, sample_id: int) -> str | None:
        """Return what is wrong with a sample."""
        return self._kinds[dataset].get(sample_id)

    def use_up(self, dataset: int, sample_id: int, times: int) -> bool:
        """Return whether a sample still has a fault that passes after some times, and count one."""
        self._used[dataset, sample_id] += 1
        return self._used[dataset, sample_id] <= times

    def row_cost(self, dataset: int, sample_id: int) -> float:
        """Return how long a row takes, in seconds."""
        spec = self.spec.datasets[dataset]
        uneven = 1 + spec.uneven * ((sample_id * 2654435761) % 97) / 97
        return spec.row_s * uneven + spec.read_s

    def saw(self, message: reader_messages.Message) -> None:
        """Count a message of readers and fork server."""
        self.messages[type(message).__name__] += 1

    def saw_message(self, owner: Process, peer: Process, data: bytes) -> None:
        """Record a message that daemon or trainer sent."""
        length = data[1] & 31
        tag = data[2 : 2 + length].decode() if data[1] & 0xE0 == 0xA0 else "?"
        self.messages[tag] += 1
        self.kernel.note("sends", self.kernel.current.process.name, tag)

    def group_got(self, trainer: Trainer, place: Place) -> None:
        """Count a batch that a member of a group got."""
        assert trainer.spec.group is not None
        self.passes.setdefault((trainer.spec.dataset, trainer.spec.group), Counter())[place] += 1

    def check_error(self, trainer: Trainer, error: PrefetchdError, *, is_peek: bool = False) -> None:
        """Fail unless the world gives a loop a reason to end so."""
        if not allowed_error(self, trainer, error, is_peek=is_peek):
            raise SimulationError(f"{trainer.name} ended for no reason: {type(error).__name__}: {error}")

    def told(self, error: PrefetchdError) -> str:
        """Return the text of an error without what differs in a replay: the folder, and this process."""
        return str(error).replace(str(self._folder), "FOLDER").replace(f"pid {os.getpid()}", "pid DAEMON")

    # --- processes

    def _start_process(self, command: Sequence[str], fds: Sequence[int]) -> Process:
        assert "prefetchd.reader.fork_server" in command
        process = self.kernel.process("fork server")
        endpoint = self.network.find(fds[0])
        self.fork_server = SimForkServer(self, process, endpoint)
        return process

    def readers(self) -> list[Process]:
        """Return the readers that are alive."""
        children = self.fork_server.children.values() if self.fork_server is not None else ()
        return [process for process in children if process.alive]

    def _start_clients(self) -> None:
        for trainer in self.trainers:
            process = self.clients.get(trainer.spec.process)
            if process is None:
                process = self.clients[trainer.spec.process] = self.kernel.process(f"client {trainer.spec.process}")
            self.kernel.spawn(process, trainer.name, trainer.run, trainer.spec.start_s)

    # --- the daemon

    def _configs(self) -> dict[str, Config]:
        spec, configs = self.spec, {}
        is_cheap = all(dataset.kind != "images" for dataset in spec.datasets)
        n_readers = spec.num_workers or (max(1, spec.n_cores // 2) if is_cheap else spec.n_cores)
        least = budget.smallest_budget(n_readers, spec.slot_bytes, 64 << 10)
        n_bytes = least + (spec.n_slots - budget.MIN_SLOTS) * spec.slot_bytes
        for number, dataset in enumerate(spec.datasets):
            name = f"data{number}" if len(spec.datasets) > 1 else ""
            configs[name] = make_config(
                **data.options(self._folder, dataset, spec.slot_bytes),
                batch_size=dataset.batch_size,
                shuffle=dataset.shuffle,
                drop_last=dataset.drop_last,
                on_error=dataset.on_error,
                num_workers=spec.num_workers,
                memory_budget="auto" if spec.auto_budget else str(n_bytes),
                patience=spec.patience_s,
                reader_timeout=spec.reader_timeout_s,
            )
        return configs

    def _run_daemon(self) -> None:
        """Be the daemon until it stops; `Killed` leaves it as a process that was killed leaves the system."""
        kernel = self.kernel
        process = self.daemon_process = kernel.process("daemon")
        kernel.main.process, kernel.main.killed = process, False
        process.tasks.append(kernel.main)
        loop = EventLoop()
        try:
            self.daemon = daemon = Daemon(self._configs(), loop)
            daemon.listen(Listener(self.network, os.fspath(daemon_paths("default").socket), process, 128))
            daemon.run()
        finally:
            if self.daemon is not None:
                for dataset in self.daemon._datasets:  # the process's end closes them
                    for fd in dataset.source.handle()[1]:
                        os.close(fd)
            self.daemon = None
            loop.close()
            process.tasks.clear()
            process.exit(0)

    def after_round(self) -> None:
        """The daemon has done a round of events."""
        if self.daemon is not None:
            try:
                self.watch.look(self.daemon)
                self.watch.look_at_leases(self.daemon)
            except SimulationError as error:
                self.kernel.fail(error)

    # --- the whole

    def run(self) -> Outcome:
        """Run to the end of all loops, then see that the daemon is idle, stop it, and see that nothing is left.

        Raises:
            WorldFailed: if a rule was broken.
        """
        before = data.open_descriptors()
        failed: BaseException | None = None
        outcome: Outcome | None = None
        gc.freeze()  # what was there before the world is not the world's to collect
        try:
            with self._in_place():
                try:
                    self._run()
                    outcome = self._outcome()
                except Exception as error:
                    failed = self.kernel.first_failure or error  # the daemon explains each that passes through it
                    _forget_frames(error)
                    _forget_frames(failed)
        finally:
            gc.unfreeze()
            self.network.close()
            left = data.close_new(before, self._folder)
        if failed is not None or outcome is None:
            assert failed is not None
            raise WorldFailed(self.spec, failed, self.kernel.events) from failed
        if left and not any("kill" in fault.what for fault in self.spec.faults):
            raise WorldFailed(self.spec, SimulationError(f"left open: {', '.join(left)}"), self.kernel.events)
        return outcome

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        shm, segment.shm_free_bytes = segment.shm_free_bytes, lambda: 0  # slots are memfds
        # An array that dies as its task is killed raises in a destructor.
        hook, sys.unraisablehook = sys.unraisablehook, _unless_killed(sys.unraisablehook)
        was_enabled = gc.isenabled()
        gc.disable()  # it would run at other moments in a replay
        try:
            with self._system.installed(), warnings.catch_warnings():  # around all threads: it is one for the process
                warnings.simplefilter("ignore")
                try:
                    yield
                finally:
                    self.kernel.end_all()
                    self._forget()
                    gc.collect()  # now: what dies in another world ends there, and closes what is not its own
        finally:
            segment.shm_free_bytes = shm
            sys.unraisablehook = hook
            if was_enabled:
                gc.enable()

    def _forget(self) -> None:
        """Let go of everything that has a descriptor."""
        self.trainers.clear()
        self.clients.clear()
        self.daemon = self.daemon_process = self.fork_server = None
        self.network.forget()
        self.kernel.forget()

    def _run(self) -> None:
        kernel = self.kernel
        self._start_clients()
        self.injector.start()
        end = kernel.process("operator")
        kernel.spawn(end, "operator", self._operate)
        while not self.finished:
            try:
                self._run_daemon()
            except Killed:
                self._be_nobody()
            except PrefetchdError as error:
                if not self._may_end_with(error):
                    raise
                self._be_nobody()
        self.watch.finish()

    def _be_nobody(self) -> None:
        """The daemon has ended before its time; another starts some time later."""
        kernel = self.kernel
        self.watch.daemon_died()
        kernel.main.process, kernel.main.killed = kernel.process("nobody"), False
        kernel.sleep(_RESTART_S)

    def _may_end_with(self, error: PrefetchdError) -> bool:
        kinds = {kind for dataset in self.spec.datasets for _, kind in dataset.bad}
        text = str(error)
        return ("every reader" in text and "kernel" in kinds) or (
            text.startswith("cannot work within") and any(fault.what == "shortage" for fault in self.spec.faults)
        )

    def _operate(self) -> None:
        """Wait for all trainers, then for the daemon to fall asleep, and stop it as `prefetchd stop` does."""
        from prefetchd.client.admin import ask_daemon
        from prefetchd.ipc import messages

        kernel = self.kernel
        while any(process.alive for process in self.clients.values()):
            kernel.sleep(0.5)
        self.injector.end()
        while self.daemon is None:
            kernel.sleep(0.5)
        n_slots = max(self.spec.n_slots, self.daemon._memory.budget.plan.n_slots)  # fewer readers leave more slots
        epochs_ahead = 1 + n_slots // min(content.order.batches_per_epoch for content in self.contents)
        until_s = kernel.now_s + _QUIET_S + (3 + epochs_ahead) * self.watch.bound_s
        n_rounds = -1
        while self.network.n_rounds > n_rounds:  # it makes batches ahead
            if kernel.now_s > until_s:
                raise SimulationError("an idle daemon does not fall asleep")
            n_rounds = self.network.n_rounds
            kernel.sleep(_QUIET_S)
        assert self.daemon is not None
        self.watch.check_idle(self.daemon)
        self.finished = True
        ask_daemon("default", messages.AskStop(messages.PROTOCOL))

    def _outcome(self) -> Outcome:
        ended = Counter(type(trainer.error).__name__ for trainer in self.trainers if trainer.error is not None)
        batches = sum(trainer.taken for trainer in self.trainers)
        virtual_s, waits = self.kernel.now_s - 1000.0, tuple(sorted(self.watch.longest_s))
        return Outcome(self.kernel.hash, virtual_s, batches, dict(ended), dict(self.messages), waits)


def _forget_frames(error: BaseException) -> None:
    """Let go of the variables of all functions that an exception, and those behind it, passed through."""
    known: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in known:
        known.append(following)
        traceback.clear_frames(following.__traceback__)
        following = following.__cause__ or following.__context__


def _unless_killed(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda args: None if args.exc_type is Killed else hook(args)


@functools.cache
def folder() -> Path:
    """Return the folder of the data sets' files, which goes with this process."""
    made = tempfile.TemporaryDirectory(prefix="prefetchd-simulation-")
    weakref.finalize(made, made.cleanup)
    _kept.append(made)
    return Path(made.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def run_world(spec: WorldSpec) -> Outcome:
    """Run a world; raises `WorldFailed` if it broke a rule."""
    logger = logging.getLogger("prefetchd")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return World(spec, folder()).run()
    finally:
        logger.setLevel(level)  # not `level =`: a logger keeps what it has answered for a level until this is called
