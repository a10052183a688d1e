"""What happens to a world from outside: kills, stops, options that change, memory that runs short."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefetchd.errors import PrefetchdError
from tests.simulation.kernel import Process
from tests.simulation.spec import FaultSpec

if TYPE_CHECKING:
    from tests.simulation.world import World

_MIB = 1 << 20


class Injector:
    """Carries out the faults of a world at their times."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ended = False
        self.n_done = self._n_crashes = 0
        self.stopped_s: dict[str, float] = {}  # until when something of that kind is stopped
        self.short_until_s = 0.0

    def start(self) -> None:
        """Wait for the times of all faults."""
        for fault in self._world.spec.faults:
            self._world.kernel.call_later(fault.at_s, lambda fault=fault: self._do(fault))

    def end(self) -> None:
        """Do no more: the world is about to end."""
        self._ended = True

    def _do(self, fault: FaultSpec) -> None:
        world, kernel = self._world, self._world.kernel
        if self._ended:
            return
        action, _, whom = fault.what.partition(" ")
        if action == "set":
            self._set(fault)
            return
        if action == "shortage":
            kernel.note("short of memory", fault.for_s)
            self.short_until_s = max(self.short_until_s, kernel.now_s + fault.for_s)
            world.machine.available_bytes = 20 * _MIB
            kernel.call_later(fault.for_s, self._no_shortage)
            return
        process = self._find(whom, fault.target)
        if process is None or not process.alive:
            return
        self.n_done += 1
        if action == "kill":
            kernel.note("kills", process.name)
            if process.on_signal is not None:
                process.on_signal(9)
            else:
                process.kill()
        elif action == "crash":
            # Once: two that hit readers of one sample alone look like its doing, and nobody could tell.
            self._n_crashes += 1
            process.exit(-11 if self._n_crashes == 1 else -9)
        else:
            process.stop()
            self.stopped_s[whom] = max(self.stopped_s.get(whom, 0.0), kernel.now_s + fault.for_s)
            kernel.call_later(fault.for_s, process.resume)

    def _find(self, whom: str, target: int) -> Process | None:
        world = self._world
        if whom == "daemon":
            return world.daemon_process if world.daemon is not None else None
        if whom == "fork server":
            return world.fork_server.process if world.fork_server is not None else None
        found = world.readers() if whom == "reader" else [*world.clients.values()]
        return found[target % len(found)] if found else None

    def _no_shortage(self) -> None:
        if self._world.kernel.now_s >= self.short_until_s - 1e-9:
            self._world.machine.available_bytes = self._world.machine.total_bytes

    def _set(self, fault: FaultSpec) -> None:
        world = self._world
        name, _, value = fault.value.partition("=")
        if name == "memory_budget":
            if world.spec.auto_budget or world.daemon is None:
                return
            n_bytes = world.daemon._memory.budget.plan.budget_bytes
            value = str(n_bytes - 2 * world.spec.slot_bytes if value == "less" else n_bytes + 4 * world.spec.slot_bytes)

        def ask() -> None:
            from prefetchd.client.admin import change_options

            try:
                change_options("default", {name: value})
            except PrefetchdError as error:
                world.kernel.note("set", fault.value, type(error).__name__)

        world.kernel.spawn(world.kernel.process("set"), "set", ask)
