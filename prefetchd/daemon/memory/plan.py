"""The memory budget: what it buys, what is reserved of it, and what is in use. Used by the daemon.

Footprint = sum over the daemon and its readers of (Pss_Anon + SwapPss) + the allocated blocks of every segment not yet
freed. Growth is by reservation: a slot, a reader or a large decode is counted (`Budget`) before it is taken; measuring
(`Footprint`) only verifies, and shows readers that have grown beyond their share. What bounds it is `limits`' to say.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes, format_count, parse_bytes
from prefetchd.daemon.memory.limits import Limit
from prefetchd.data.source import ALLOWANCE_BYTES as ALLOWANCE_BYTES
from prefetchd.errors import BudgetError
from prefetchd.ipc.reader_messages import Boot

MIB = 1 << 20
# Measured with scripts/bench/footprint.py on Python 3.11, numpy 2.4, OpenCV 5.0, rounded up.
DAEMON_BYTES = 48 * MIB  # the daemon and the fork server
READER_BYTES = 12 * MIB  # a reader's own pages, before it decodes anything
MIN_SLOTS = 3  # one the loop holds, one granted next, one to fill
_AUTO_SLOTS = 8
_AUTO_RING_BYTES = 16 * MIB
_AUTO_MAX_SLOTS = 64
_AUTO_LARGE_BYTES = 32 * MIB
_AUTO_DECODE_BYTES = 78 * MIB  # a photograph of 12 megapixels decoded whole, slots that can be spared given up for it
_MACHINE_SHARE = 0.6
_READER_SLACK_BYTES = 16 * MIB
_THREAD_BYTES = 8 * MIB


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
        most_slots: slots that there were before more readers took the place of some.
        asked_readers: readers that the options asked for, where `n_readers` follows the loops; 0 for `n_readers`. What
            one decode may take depends on these: it must not on how loops were waiting.
        limits: what the machine and its control groups allow, tightest first.
    """

    budget_bytes: int
    n_readers: int
    n_slots: int
    slot_bytes: int
    limited_by: str
    source_bytes: int = 0
    source_reader_bytes: int = 0
    limits: tuple[Limit, ...] = ()
    most_slots: int = 0
    asked_readers: int = 0

    @property
    def base_bytes(self) -> int:
        """What the daemon and the source take, before there is a reader or a slot."""
        return DAEMON_BYTES + self.source_bytes

    @property
    def large_bytes(self) -> int:
        """What is left beside the readers and the ring."""
        return self.budget_bytes - self.base_bytes - self.n_readers * self.reader_share_bytes - self.ring_bytes

    @property
    def ring_bytes(self) -> int:
        """What the ring takes when it is whole."""
        return self.n_slots * self.slot_bytes

    def with_readers(self, n_readers: int, least_slots: int) -> Plan | None:
        """The same budget with so many readers, slots making room for them; `None` if too few slots would be left."""
        room = self.budget_bytes - self.base_bytes - n_readers * self.reader_share_bytes
        n_slots = min(max(self.n_slots, self.most_slots), room // self.slot_bytes)
        if n_slots < least_slots:
            return None
        most, asked = max(self.n_slots, self.most_slots), self.asked_readers or self.n_readers
        return dataclasses.replace(self, n_readers=n_readers, n_slots=n_slots, most_slots=most, asked_readers=asked)

    @property
    def reader_share_bytes(self) -> int:
        """Private memory that one reader may take without asking."""
        return reader_share(self.source_reader_bytes)


def reader_share(source_reader_bytes: int = 0) -> int:
    """Return the private memory planned for one reader, with a source that takes so much in each."""
    return READER_BYTES + ALLOWANCE_BYTES + source_reader_bytes


def reader_limits(plan: Plan) -> Boot:
    """Return what each reader is told of its share.

    Libraries that users' functions and Parquet bring may start a thread for each core, whose stacks are mapped whole
    and hardly touched: the kernel's limit leaves room for them.
    """
    stacks = usable_cores() * _THREAD_BYTES if plan.source_reader_bytes else 0
    return Boot(ALLOWANCE_BYTES, plan.reader_share_bytes, _READER_SLACK_BYTES + stacks)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def smallest_budget(
    n_readers: int,
    slot_bytes: int,
    source_bytes: int = 0,
    source_reader_bytes: int = 0,
    *,
    least_slots: int = MIN_SLOTS,
) -> int:
    """Return the smallest budget, in bytes, that `n_readers` readers can work in, up to the next MiB."""
    need = DAEMON_BYTES + source_bytes + n_readers * reader_share(source_reader_bytes) + least_slots * slot_bytes
    return -(-need // MIB) * MIB


def make_plan(
    config: Config,
    slot_bytes: int,
    limits: Limit | Sequence[Limit],
    source_bytes: int = 0,
    source_reader_bytes: int = 0,
    *,
    is_cheap: bool = False,
    least_slots: int = MIN_SLOTS,
) -> Plan:
    """Decide the budget, the readers and the slots.

    `limits` are what the machine allows, tightest first; the ring has `least_slots` at least.

    A given `num_workers` is kept; where it is 0, fewer readers than cores are taken if the budget holds no more. Where
    making a batch `is_cheap`, half as many are taken: more would only keep the daemon and the trainer from the cores.

    Raises:
        BudgetError: if the budget cannot work; the message names the smallest that can.
    """
    limits = (limits,) if isinstance(limits, Limit) else tuple(limits)
    limit = limits[0]
    wanted_readers = config.num_workers or (max(1, usable_cores() // 2) if is_cheap else usable_cores())
    wanted_slots = max(
        _AUTO_SLOTS,
        least_slots,
        2 * config.consumers + 2,
        min(_AUTO_MAX_SLOTS, _AUTO_RING_BYTES // slot_bytes),
    )
    per_reader = reader_share(source_reader_bytes)
    base_bytes = DAEMON_BYTES + source_bytes
    spare_slots = wanted_slots - max(MIN_SLOTS, least_slots)
    large_bytes = max(_AUTO_LARGE_BYTES, 0 if is_cheap else _AUTO_DECODE_BYTES - spare_slots * slot_bytes)
    if config.memory_budget == "auto":
        comfortable = base_bytes + wanted_readers * per_reader + wanted_slots * slot_bytes + large_bytes
        budget = min(comfortable, int(limit.n_bytes * _MACHINE_SHARE))
        limited_by = limit.source if budget < comfortable else "auto"
    else:
        budget = parse_bytes(config.memory_budget, whole_bytes=psutil.virtual_memory().total)
        limited_by = "memory-budget" if budget <= limit.n_bytes else limit.source
        budget = min(budget, limit.n_bytes)
    n_readers = wanted_readers
    source = source_bytes, source_reader_bytes
    while n_readers > 1 and not config.num_workers:
        if smallest_budget(n_readers, slot_bytes, *source, least_slots=least_slots) <= budget:
            break
        n_readers -= 1
    least = smallest_budget(n_readers, slot_bytes, *source, least_slots=least_slots)
    if least > budget:
        readers = format_count(n_readers, "reader")
        raise BudgetError(
            f"cannot work within a memory budget of {format_bytes(budget)} (from {limited_by}): the daemon takes "
            f"{format_bytes(base_bytes)}, {readers} {format_bytes(n_readers * per_reader)}, and "
            f"{least_slots} slots of {format_bytes(slot_bytes)} {format_bytes(least_slots * slot_bytes)}; "
            f"give --memory-budget {least // MIB}MiB or more, or a smaller --batch-size, --image-size or --num-workers"
            f"{_machine_gives(least, limit)}"
        )
    room = budget - base_bytes - n_readers * per_reader
    if config.memory_budget == "auto":
        room = max(least_slots * slot_bytes, room - large_bytes)
    n_slots = min(room // slot_bytes, 4 * _AUTO_MAX_SLOTS)
    return Plan(budget, n_readers, int(n_slots), slot_bytes, limited_by, source_bytes, source_reader_bytes, limits)


def _machine_gives(least: int, limit: Limit) -> str:
    return "" if least <= limit.n_bytes else f" ({limit.source} allows {format_bytes(limit.n_bytes)}; raise that first)"


def explain(plan: Plan, segments: str = "") -> str:
    """Return the sums of the plan in one line: what everything costs, and what would have allowed more."""
    share = format_bytes(plan.reader_share_bytes)
    index = f" and {format_bytes(plan.source_bytes)} for the index" if plan.source_bytes else ""
    others = ", ".join(f"{limit.source} {format_bytes(limit.n_bytes)}" for limit in plan.limits)
    return (
        f"memory: {format_bytes(DAEMON_BYTES)} for the daemon{index}, "
        f"{format_count(plan.n_readers, 'reader')} of {share}, {plan.n_slots} slots of "
        f"{format_bytes(plan.slot_bytes)}{segments}, {format_bytes(plan.large_bytes)} for large images, of a budget of "
        f"{format_bytes(plan.budget_bytes)} set by {plan.limited_by} (allowed: {others})"
    )


@dataclass(frozen=True, slots=True)
class Footprint:
    """What is in use, in bytes: private memory of each process, the ring, the source's own segments, mailboxes."""

    processes: dict[int, int]
    ring_bytes: int
    source_bytes: int = 0
    mail_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The footprint that the budget bounds."""
        return sum(self.processes.values()) + self.ring_bytes + self.source_bytes + self.mail_bytes


def process_bytes(pid: int) -> int:
    """Return Pss_Anon + SwapPss of a process in bytes; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss_Anon:", b"SwapPss:")))


def resident_bytes(pid: int) -> int:
    """Return all anonymous and swapped-out bytes of a process, those that it shares with a parent in full; 0 if gone.

    Never less than `process_bytes`, and a fifteenth of its price.
    """
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"RssAnon:", b"VmSwap:")))


def measure(pids: Iterable[int], ring_bytes: int, source_bytes: int = 0, *, exact: bool = True) -> Footprint:
    """Measure the processes `pids` and add the segments; an upper bound of it, unless `exact`."""
    of_process = process_bytes if exact else resident_bytes
    return Footprint({pid: of_process(pid) for pid in pids}, ring_bytes, source_bytes)


class Budget:
    """Reservations against the plan's budget: the slots, and decodes beyond the readers' allowance."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.n_readers = plan.n_readers  # that there are, those included that are to go
        self.ring_bytes = 0
        self.large_bytes = 0

    @property
    def _fixed_bytes(self) -> int:
        return self.plan.base_bytes + self.n_readers * self.plan.reader_share_bytes

    @property
    def reserved_bytes(self) -> int:
        """What has been reserved: the base, the readers, the slots, the large decodes."""
        return self._fixed_bytes + self.ring_bytes + self.large_bytes

    @property
    def in_force_bytes(self) -> int:
        """The budget, or what is taken still where a lowered one waits for slots that users hold."""
        return max(self.plan.budget_bytes, self.reserved_bytes)

    @property
    def spare_bytes(self) -> int:
        """What can still be reserved; negative while a lowered budget waits."""
        return self.plan.budget_bytes - self.reserved_bytes

    @property
    def largest_decode_bytes(self) -> int:
        """The most working memory that one decode can ever be given."""
        return self.plan.budget_bytes - self._planned_bytes - MIN_SLOTS * self.plan.slot_bytes

    def budget_for_slots(self, n_slots: int) -> int:
        """Return the smallest budget, in MiB, that holds `n_slots` slots."""
        return -(-(self._planned_bytes + n_slots * self.plan.slot_bytes) // MIB)

    def budget_for(self, decode_bytes: int) -> int:
        """Return the smallest budget, in MiB, in which a decode of `decode_bytes` fits."""
        return -(-(self._planned_bytes + MIN_SLOTS * self.plan.slot_bytes + decode_bytes) // MIB)

    @property
    def _planned_bytes(self) -> int:
        n_readers = self.plan.asked_readers or self.plan.n_readers
        return self.plan.base_bytes + n_readers * self.plan.reader_share_bytes
