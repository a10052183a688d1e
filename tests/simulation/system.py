"""Puts a simulated system in the place of `prefetchd/ipc/system.py`: one function for each of its functions."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefetchd.ipc import system
from tests.simulation.kernel import Kernel, Process
from tests.simulation.sockets import Network, PidHandle, SimLock, SimPoller, SimSelector, SimSocket

MIB = 1 << 20


class Machine:
    """Memory and cores of the simulated machine."""

    def __init__(self, kernel: Kernel, n_cores: int, total_bytes: int = 8 << 30) -> None:
        self.kernel = kernel
        self.n_cores = n_cores
        self.total_bytes = total_bytes
        self.available_bytes = total_bytes
        self.stalled_percent = 0.0
        self.busy_s = 0.0  # of all cores

    def idle_seconds(self) -> float:
        return max(0.0, self.n_cores * self.kernel.now_s - self.busy_s)


class Child:
    """Stands in for `subprocess.Popen`."""

    def __init__(self, kernel: Kernel, process: Process) -> None:
        self._kernel = kernel
        self._process = process
        self.pid = process.pid
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        kernel, task = self._kernel, self._kernel.current
        if not task.process.alive:
            return 0
        end_s = None if timeout is None else kernel.now_s + timeout
        self._process.watchers[task] = None
        try:
            while self._process.alive:
                if end_s is not None and kernel.now_s >= end_s:
                    raise subprocess.TimeoutExpired("simulated", timeout or 0.0)
                kernel.block(end_s)
        finally:
            self._process.watchers.pop(task, None)
        assert self._process.exit_code is not None
        self.returncode = self._process.exit_code
        return self.returncode

    def kill(self) -> None:
        self._process.kill()


class System:
    """The simulated system: the functions of `ipc/system.py`, by their names."""

    def __init__(
        self,
        kernel: Kernel,
        network: Network,
        machine: Machine,
        start_process: Callable[[Sequence[str], Sequence[int]], Process],
        *,
        round_s: float,
    ) -> None:
        self._kernel = kernel
        self._network = network
        self._machine = machine
        self._start_process = start_process
        self._round_s = round_s

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Put it in the place of the real one."""
        names = [name for name in vars(type(self)) if not name.startswith("_") and name != "installed"]
        before = {name: getattr(system, name) for name in names}
        for name in names:
            setattr(system, name, getattr(self, name))
        try:
            yield
        finally:
            for name, function in before.items():
                setattr(system, name, function)

    def monotonic(self) -> float:
        self._kernel.called()
        return self._kernel.now_s

    def sleep(self, delay_s: float) -> None:
        self._kernel.sleep(delay_s)

    def lock(self) -> SimLock:
        return SimLock(self._kernel, reentrant=False)

    def reentrant_lock(self) -> SimLock:
        return SimLock(self._kernel, reentrant=True)

    def poller(self, file: Any, *, to_write: bool = False) -> SimPoller:
        return SimPoller(self._network, file, to_write=to_write)

    def selector(self) -> SimSelector:
        return SimSelector(self._network, self._round_s)

    def socket_pair(self) -> tuple[SimSocket, SimSocket]:
        return self._network.pair(self._kernel.current.process)

    def adopt_socket(self, fd: int) -> SimSocket:
        return self._network.adopt(fd, self._kernel.current.process)

    def own_socket(self, sock: SimSocket) -> SimSocket:
        return sock

    def connect(self, path: str) -> SimSocket:
        self._kernel.maybe_preempt()
        listener = self._network.listeners.get(path)
        if listener is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return listener.connect(self._kernel.current.process)

    def start_process(
        self, command: Sequence[str], *, pass_fds: Sequence[int], env: Any = None, stderr: Any = None
    ) -> Child:
        return Child(self._kernel, self._start_process(command, pass_fds))

    def send_signal(self, pidfd: int, number: int) -> None:
        handle = self._network.find(pidfd)
        assert isinstance(handle, PidHandle)
        if not handle.process.alive:
            raise ProcessLookupError
        if handle.process.on_signal is not None:
            handle.process.on_signal(number)

    def read_file(self, path: str) -> bytes:
        _, _, pid, *rest = path.split("/")
        if path == "/proc/pressure/memory":
            return f"some avg10={self._machine.stalled_percent:.2f} avg60=0.00 avg300=0.00 total=0\n".encode()
        process = self._kernel.current.process if not pid.isdigit() else self._kernel.processes.get(int(pid))
        if process is None or not process.alive:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if rest == ["stat"]:
            return f"{pid} (simulated) {process.state} 1".encode()
        if rest == ["smaps_rollup"]:
            return f"Pss_Anon: {process.rss_bytes >> 10} kB\n".encode()
        if rest == ["status"]:
            return f"RssAnon: {process.rss_bytes >> 10} kB\n".encode()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def memory(self) -> tuple[int, int]:
        return self._machine.available_bytes, self._machine.total_bytes

    def idle_seconds(self) -> float:
        return self._machine.idle_seconds()

    def usable_cores(self) -> int:
        return self._machine.n_cores

    def lower_priority(self) -> None:
        """Nothing runs beside the simulation."""
