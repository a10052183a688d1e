"""The memory budget: what limits it, what it buys, and what is in use. Used by the daemon.

Footprint = sum over the daemon and its readers of (Pss_Anon + SwapPss) + the allocated blocks of every segment not yet
freed. Growth is by reservation: a slot, a reader or a large decode is taken from the budget before it happens
(`Budget.reserve`); measuring (`Footprint`) only verifies, and shows readers that have grown beyond their share.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from prefetchd.config import Config
from prefetchd.errors import BudgetError
from prefetchd.units import format_bytes, format_count, parse_bytes

MIB = 1 << 20
# Measured with scripts/bench/footprint.py on Python 3.11, numpy 2.4, OpenCV 5.0, rounded up.
DAEMON_BYTES = 48 * MIB  # the daemon, the zygote and Python's resource tracker
READER_BYTES = 12 * MIB  # a reader's own pages, before it decodes anything
# Decoding up to this much working memory needs no leave; it is part of each reader's share.
ALLOWANCE_BYTES = 12 * MIB
MIN_SLOTS = 3  # one the loop holds, one granted next, one to fill
_AUTO_SLOTS = 8
_AUTO_RING_BYTES = 16 * MIB
_AUTO_MAX_SLOTS = 64
_AUTO_LARGE_BYTES = 32 * MIB
_MACHINE_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Limit:
    """An upper bound on memory and where it comes from."""

    n_bytes: int
    source: str


def machine_limit() -> Limit:
    """Return the tightest of the machine's available memory and the cgroup's limits over all its ancestors."""
    limits = [Limit(int(psutil.virtual_memory().available), "available memory")]
    limits += cgroup_limits()
    return min(limits, key=lambda limit: limit.n_bytes)


def cgroup_limits() -> list[Limit]:
    """Return the memory limits of this process's control groups (v1 and v2) and of all their ancestors."""
    limits = []
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for entry in entries:
        _, controllers, path = entry.split(":", 2)
        if controllers == "":
            root, file_name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, file_name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for ancestor in (folder, *folder.parents):
            try:
                text = (ancestor / file_name).read_text().strip()
            except OSError:
                text = "max"
            if text.isdigit() and int(text) < 1 << 60:
                limits.append(Limit(int(text), f"cgroup {ancestor}"))
            if ancestor == root:
                break
    return limits


@dataclass(frozen=True, slots=True)
class Plan:
    """What the budget buys.

    Attributes:
        budget_bytes: the budget in force.
        n_readers: reader processes.
        n_slots: batch buffers.
        slot_bytes: bytes of each.
        source_bytes: what the source itself holds in memory segments, such as the manifest's index.
        source_reader_bytes: what the source takes in each reader beyond every reader's own.
        limited_by: what kept the budget from being larger.
    """

    budget_bytes: int
    n_readers: int
    n_slots: int
    slot_bytes: int
    limited_by: str
    source_bytes: int = 0
    source_reader_bytes: int = 0

    @property
    def reader_share_bytes(self) -> int:
        """Private memory that one reader may take without asking."""
        return reader_share(self.source_reader_bytes)


def reader_share(source_reader_bytes: int = 0) -> int:
    """Return the private memory planned for one reader, with a source that takes so much in each."""
    return READER_BYTES + ALLOWANCE_BYTES + source_reader_bytes


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def smallest_budget(n_readers: int, slot_bytes: int, source_bytes: int = 0, source_reader_bytes: int = 0) -> int:
    """Return the smallest budget, in bytes, that `n_readers` readers can work in, up to the next MiB."""
    need = DAEMON_BYTES + source_bytes + n_readers * reader_share(source_reader_bytes) + MIN_SLOTS * slot_bytes
    return -(-need // MIB) * MIB


def make_plan(
    config: Config,
    slot_bytes: int,
    limit: Limit,
    source_bytes: int = 0,
    source_reader_bytes: int = 0,
    *,
    is_cheap: bool = False,
) -> Plan:
    """Decide the budget, the readers and the slots.

    A given `num_workers` is kept; where it is 0, fewer readers than cores are taken if the budget holds no more. Where
    making a batch `is_cheap`, half as many are taken: more would only keep the daemon and the trainer from the cores.

    Raises:
        BudgetError: if the budget cannot work; the message names the smallest that can.
    """
    wanted_readers = config.num_workers or (max(1, usable_cores() // 2) if is_cheap else usable_cores())
    wanted_slots = max(_AUTO_SLOTS, min(_AUTO_MAX_SLOTS, _AUTO_RING_BYTES // slot_bytes), 2 * config.consumers + 2)
    per_reader = reader_share(source_reader_bytes)
    base_bytes = DAEMON_BYTES + source_bytes
    if config.memory_budget == "auto":
        comfortable = base_bytes + wanted_readers * per_reader + wanted_slots * slot_bytes + _AUTO_LARGE_BYTES
        budget = min(comfortable, int(limit.n_bytes * _MACHINE_SHARE))
        limited_by = limit.source if budget < comfortable else "auto"
    else:
        budget = parse_bytes(config.memory_budget, whole_bytes=psutil.virtual_memory().total)
        limited_by = "memory-budget" if budget <= limit.n_bytes else limit.source
        budget = min(budget, limit.n_bytes)
    n_readers = wanted_readers
    source = source_bytes, source_reader_bytes
    while n_readers > 1 and not config.num_workers and smallest_budget(n_readers, slot_bytes, *source) > budget:
        n_readers -= 1
    least = smallest_budget(n_readers, slot_bytes, *source)
    if least > budget:
        readers = format_count(n_readers, "reader")
        raise BudgetError(
            f"cannot work within a memory budget of {format_bytes(budget)} (from {limited_by}): the daemon takes "
            f"{format_bytes(base_bytes)}, {readers} {format_bytes(n_readers * per_reader)}, and "
            f"{MIN_SLOTS} slots of {format_bytes(slot_bytes)} {format_bytes(MIN_SLOTS * slot_bytes)}; "
            f"give --memory-budget {least // MIB}MiB or more, or a smaller --batch-size, --image-size or --num-workers"
        )
    room = budget - base_bytes - n_readers * per_reader
    if config.memory_budget == "auto":
        room = max(MIN_SLOTS * slot_bytes, room - _AUTO_LARGE_BYTES)
    n_slots = min(room // slot_bytes, 4 * _AUTO_MAX_SLOTS)
    return Plan(budget, n_readers, int(n_slots), slot_bytes, limited_by, source_bytes, source_reader_bytes)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is in use, in bytes: private memory of each process, the ring, and the source's own segments."""

    processes: dict[int, int]
    ring_bytes: int
    source_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The footprint that the budget bounds."""
        return sum(self.processes.values()) + self.ring_bytes + self.source_bytes


def process_bytes(pid: int) -> int:
    """Return Pss_Anon + SwapPss of a process in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss_Anon:", b"SwapPss:")))


def measure(pids: Iterable[int], ring_bytes: int, source_bytes: int = 0) -> Footprint:
    """Measure the processes `pids` and add the segments."""
    return Footprint({pid: process_bytes(pid) for pid in pids}, ring_bytes, source_bytes)


class Budget:
    """Reservations against the plan's budget: the slots, and decodes beyond the readers' allowance."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._fixed_bytes = DAEMON_BYTES + plan.source_bytes + plan.n_readers * plan.reader_share_bytes
        self.ring_bytes = 0
        self.large_bytes = 0

    @property
    def spare_bytes(self) -> int:
        """What can still be reserved."""
        return self.plan.budget_bytes - self._fixed_bytes - self.ring_bytes - self.large_bytes

    @property
    def largest_decode_bytes(self) -> int:
        """The most working memory that one decode can ever be given."""
        return self.plan.budget_bytes - self._fixed_bytes - MIN_SLOTS * self.plan.slot_bytes

    def budget_for_slots(self, n_slots: int) -> int:
        """Return the smallest budget, in MiB, that holds `n_slots` slots."""
        return -(-(self._fixed_bytes + n_slots * self.plan.slot_bytes) // MIB)

    def budget_for(self, decode_bytes: int) -> int:
        """Return the smallest budget, in MiB, in which a decode of `decode_bytes` fits."""
        return -(-(self._fixed_bytes + MIN_SLOTS * self.plan.slot_bytes + decode_bytes) // MIB)
