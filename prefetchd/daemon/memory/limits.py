"""Looking at the machine: the limits on memory, how short of it the machine is, and what the daemon takes.

`machine_limits` is read when the daemon plans or grows, `read_shortage` and `measure` while it runs. `plan`, `pressure`
and `manager` decide what follows. Every control group above this process counts, v1 and v2: psutil sees none of them.
Pages of files that the kernel keeps cached do not count as used: it drops them before any process goes short.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefetchd.ipc import system
from prefetchd.ipc.process import private_bytes, resident_bytes

MIB = 1 << 20
SHORT_BYTES = 64 * MIB
AMPLE_BYTES = 160 * MIB
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper bound on memory and where it comes from."""

    n_bytes: int
    source: str


@dataclass(frozen=True, slots=True)
class Shortage:
    """How much memory is left, in the place with least of it, and how much time tasks lose for want of it.

    Attributes:
        headroom_bytes: what can be taken before the machine or a control group has to reclaim what is in use.
        source: that place: the machine, or a control group.
        limit_bytes: all the memory of that place.
        stalled_percent: the part of the last ten seconds in which some task waited for memory (PSI).
    """

    headroom_bytes: int
    source: str
    limit_bytes: int = _NO_LIMIT_BYTES
    stalled_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """A control group with a limit: the limit, what is used of it without file pages, and where it is."""

    limit_bytes: int
    used_bytes: int
    folder: str


def cgroups() -> list[CgroupMemory]:
    """Return the control groups (v1 and v2) of this process that have a memory limit, and of all their ancestors."""
    try:
        entries = system.read_file("/proc/self/cgroup").decode().splitlines()
    except OSError:
        return []
    found = []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        folder = root / path.lstrip("/")
        for ancestor in (folder, *folder.parents):
            limit = _number(ancestor / names[0])
            if limit is not None and limit < _NO_LIMIT_BYTES:
                used = (_number(ancestor / names[1]) or 0) - _file_bytes(ancestor / "memory.stat", names[2])
                found.append(CgroupMemory(limit, max(0, used), os.fspath(ancestor)))
            if ancestor == root:
                break
    return found


def cgroup_limits() -> list[Limit]:
    """Return the limits of the control groups, without regard to what is used of them."""
    return [Limit(group.limit_bytes, f"cgroup {group.folder}") for group in cgroups()]


def short_bytes(limit_bytes: int) -> int:
    """Return how many free bytes of `limit_bytes` are too few: 64 MiB, or fewer in a small control group."""
    return min(SHORT_BYTES, limit_bytes // 16)


def ample_bytes(limit_bytes: int) -> int:
    """Return how many free bytes of `limit_bytes` are ample."""
    return short_bytes(limit_bytes) * AMPLE_BYTES // SHORT_BYTES


def machine_limits(own_bytes: int = 0) -> list[Limit]:
    """Return what the machine and each control group can give, tightest first; the daemon takes `own_bytes` already.

    What is ample is left alone: a daemon that takes everything would make itself short of memory.
    """
    available_bytes, whole_bytes = system.memory()
    limits = [Limit(max(0, available_bytes + own_bytes - ample_bytes(whole_bytes)), "available memory")]
    for group in cgroups():
        free_bytes = min(group.limit_bytes, group.limit_bytes - group.used_bytes + own_bytes)
        limits.append(Limit(max(0, free_bytes - ample_bytes(group.limit_bytes)), f"cgroup {group.folder}"))
    return sorted(limits, key=lambda limit: limit.n_bytes)


def read_shortage() -> Shortage:
    """Return how short of memory this process is now."""
    places = [(*system.memory(), "available memory")]
    for group in cgroups():
        places.append((max(0, group.limit_bytes - group.used_bytes), group.limit_bytes, f"cgroup {group.folder}"))
    headroom_bytes, limit_bytes, source = min(places)
    return Shortage(headroom_bytes, source, limit_bytes, _stalled_percent())


def _stalled_percent() -> float:
    """The 10-second average of `some` in `/proc/pressure/memory`; 0 where the kernel has none."""
    try:
        line = system.read_file("/proc/pressure/memory").decode().split("\n", 1)[0]
        return float(dict(part.split("=") for part in line.split()[1:])["avg10"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0.0


def _number(path: Path) -> int | None:
    try:
        text = system.read_file(os.fspath(path)).decode().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _file_bytes(path: Path, prefix: str) -> int:
    """Return the pages of files in `memory.stat`, in bytes; shared memory is not among them."""
    try:
        lines = system.read_file(os.fspath(path)).decode().splitlines()
    except OSError:
        return 0
    names = {f"{prefix}active_file", f"{prefix}inactive_file"}
    return sum(int(value) for name, _, value in (line.partition(" ") for line in lines) if name in names)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is in use, in bytes: private memory of each process, the ring, the source's own segments, the queues."""

    processes: dict[int, int]
    ring_bytes: int
    source_bytes: int = 0
    queue_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The footprint that the budget bounds."""
        return sum(self.processes.values()) + self.ring_bytes + self.source_bytes + self.queue_bytes


def measure(pids: Iterable[int], ring_bytes: int, source_bytes: int = 0, *, exact: bool = True) -> Footprint:
    """Measure the processes `pids` and add the segments; an upper bound of it, unless `exact`."""
    of_process = private_bytes if exact else resident_bytes
    return Footprint({pid: of_process(pid) for pid in pids}, ring_bytes, source_bytes)


class StallTrigger:
    """Wakes a sleeping daemon when tasks stall for memory: a descriptor that is readable then. Owns what it opens.

    The kernel looks (PSI, Documentation/accounting/psi.rst), so that nothing has to run while all is well.
    """

    def __init__(self) -> None:
        self._pressure = os.open("/proc/pressure/memory", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(self._pressure, b"some 200000 2000000\0")  # 200 ms in any 2 s, which every user may ask for
            self._epoll = select.epoll()
            self._epoll.register(self._pressure, select.EPOLLPRI)
        except OSError:
            os.close(self._pressure)
            raise

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._epoll.fileno()

    def clear(self) -> None:
        """Clear the event, once it was seen."""
        self._epoll.poll(0)

    def close(self) -> None:
        """Stop watching."""
        self._epoll.close()
        os.close(self._pressure)
