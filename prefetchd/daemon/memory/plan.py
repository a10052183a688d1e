"""The memory plan: what a budget buys. Used by the daemon.

Footprint = sum over the daemon and its readers of (Pss_Anon + SwapPss) + the allocated blocks of every segment not yet
freed. Growth is by reservation: a slot, a reader or a large decode is counted (`budget`) before it is taken. Measuring
(`limits`) only verifies, and shows readers that have grown beyond their share.

A budget that the user stated is fixed. An automatic one is elastic: it starts with what the options need, and grows up
to its ceiling, a share of what the machine can spare.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes, format_count, parse_bytes
from prefetchd.daemon.memory.limits import Limit
from prefetchd.data.source import ALLOWANCE_BYTES as ALLOWANCE_BYTES
from prefetchd.errors import BudgetError
from prefetchd.ipc import system
from prefetchd.ipc.reader_messages import Boot

MIB = 1 << 20
# Measured with scripts/bench/footprint.py on Python 3.11, numpy 2.4, OpenCV 5.0, rounded up.
DAEMON_BYTES = 48 * MIB  # the daemon and the fork server
BRIDGE_BYTES = 32 * MIB  # the bridge to other machines
RAY_BYTES = 96 * MIB  # in it, Ray's library
RAY_AGENTS = 16  # that Ray places at most, where their number is automatic
AGENT_LINK_BYTES = 1 * MIB  # in it, for each agent: buffers, and a thread
READER_BYTES = 12 * MIB  # a reader's own pages, before it decodes anything
MIN_SLOTS = 3  # one the loop holds, one granted next, one to fill
_AUTO_SLOTS = 8
_AUTO_RING_BYTES = 16 * MIB
_SLOTS_AN_AGENT = 4  # so that there is something to give to each
AUTO_MAX_SLOTS = 64
_AUTO_LARGE_BYTES = 32 * MIB  # so that the budget need not grow for an ordinary large image
_MACHINE_SHARE = 0.6
READER_SLACK_BYTES = 16 * MIB
THREAD_BYTES = 8 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the budget buys.

    Attributes:
        budget_bytes: the budget in force.
        ceiling_bytes: what an automatic budget may grow to; a stated one is its own ceiling.
        is_auto: whether the budget is automatic.
        limited_by: what kept the budget from being larger.
        limits: what the machine and its control groups allow, tightest first.
        slot_bytes: bytes of each slot.
        source_bytes: what the source itself holds in memory segments, such as the manifest's index.
        source_reader_bytes: what the source takes in each reader beyond every reader's own.
        bridge_bytes: what the bridge to other machines takes; 0 where there is none.
        n_readers: reader processes.
        asked_readers: readers that the options asked for. `n_readers` follows the loops. What one decode may take
            depends on these: it must not depend on how loops were waiting.
        n_slots: batch buffers.
        most_slots: slots that there were before more readers took the place of some.
        start_slots, start_large_bytes: what the plan was made with.
    """

    budget_bytes: int
    ceiling_bytes: int
    is_auto: bool
    limited_by: str
    limits: tuple[Limit, ...]
    slot_bytes: int
    source_bytes: int
    source_reader_bytes: int
    n_readers: int
    asked_readers: int
    n_slots: int
    most_slots: int
    start_slots: int
    start_large_bytes: int
    bridge_bytes: int = 0

    @property
    def base_bytes(self) -> int:
        """What the daemon and the source take, before there is a reader or a slot."""
        return DAEMON_BYTES + self.source_bytes + self.bridge_bytes

    @property
    def reader_share_bytes(self) -> int:
        """Private memory that one reader may take without asking."""
        return reader_share(self.source_reader_bytes)

    @property
    def large_bytes(self) -> int:
        """What is left beside the readers and the ring."""
        return self.budget_bytes - self.base_bytes - self.n_readers * self.reader_share_bytes - self.ring_bytes

    @property
    def ring_bytes(self) -> int:
        """What the ring takes when it is whole."""
        return self.n_slots * self.slot_bytes

    def with_readers(self, n_readers: int, least_slots: int) -> Plan | None:
        """Return the plan with so many readers; `None` if fewer than `least_slots` slots would be left.

        An automatic budget grows for them; where it cannot, slots make room.
        """
        budget = self.budget_bytes
        if self.is_auto:
            more = (n_readers - self.n_readers) * self.reader_share_bytes
            budget = min(max(budget, self.ceiling_bytes), budget + more)
        left = budget - self.base_bytes - n_readers * self.reader_share_bytes
        n_slots = min(self.most_slots, left // self.slot_bytes)
        if n_slots < least_slots:
            return None
        return dataclasses.replace(self, budget_bytes=budget, n_readers=n_readers, n_slots=n_slots)

    def with_slots(self, n_slots: int) -> Plan:
        """Return an automatic plan with `n_slots` slots, or as many as its ceiling allows; the rest stays as it is."""
        most = (max(self.ceiling_bytes, self.budget_bytes) - self.budget_bytes) // self.slot_bytes
        n_slots = min(n_slots, self.n_slots + most)
        budget = self.budget_bytes + (n_slots - self.n_slots) * self.slot_bytes
        return dataclasses.replace(self, budget_bytes=budget, n_slots=n_slots, most_slots=n_slots)

    def with_large(self, large_bytes: int) -> Plan:
        """Return an automatic plan with so much for large decodes, or as much as its ceiling allows."""
        budget = self.budget_bytes + large_bytes - self.large_bytes
        return dataclasses.replace(self, budget_bytes=min(budget, max(self.ceiling_bytes, self.budget_bytes)))

    def with_limits(self, limits: Sequence[Limit]) -> Plan:
        """Return an automatic plan whose ceiling follows from what the machine allows now."""
        return dataclasses.replace(self, limits=tuple(limits), ceiling_bytes=_auto_ceiling(limits))


def reader_share(source_reader_bytes: int = 0) -> int:
    """Return the private memory planned for one reader, with a source that takes so much in each."""
    return READER_BYTES + ALLOWANCE_BYTES + source_reader_bytes


def reader_limits(plan: Plan) -> Boot:
    """Return the message that gives each reader its share.

    Libraries that users' functions and Parquet bring may start a thread for each core. Their stacks are mapped whole
    and hardly touched: the kernel's limit leaves room for them.
    """
    stacks = system.usable_cores() * THREAD_BYTES if plan.source_reader_bytes else 0
    return Boot(ALLOWANCE_BYTES, plan.reader_share_bytes, READER_SLACK_BYTES + stacks)


def bridge_share(n_agents: int, *, has_ray: bool = False) -> int:
    """Return the private memory planned for the bridge to so many agents, and to Ray; 0 for none."""
    if has_ray:
        return BRIDGE_BYTES + RAY_BYTES + (n_agents + RAY_AGENTS) * AGENT_LINK_BYTES
    return BRIDGE_BYTES + n_agents * AGENT_LINK_BYTES if n_agents else 0


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


def _auto_ceiling(limits: Sequence[Limit]) -> int:
    return int(limits[0].n_bytes * _MACHINE_SHARE)


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

    `limits` are what the machine allows, tightest first. The ring has `least_slots` at least.

    A given `num_workers` is kept. Where it is 0, fewer readers than cores are taken if the budget holds no more. Where
    making a batch `is_cheap`, half as many are taken: more would only keep the daemon and the trainer from the cores.

    Raises:
        BudgetError: if the budget cannot work; the message names the smallest that can.
    """
    limits = (limits,) if isinstance(limits, Limit) else tuple(limits)
    limit = limits[0]
    is_auto = config.memory_budget == "auto"
    bridge_bytes = bridge_share(len(config.agents), has_ray=config.ray is not None)
    n_readers = config.num_workers or (max(1, system.usable_cores() // 2) if is_cheap else system.usable_cores())
    n_agents = len(config.agents) or (RAY_AGENTS // 4 if config.ray is not None else 0)
    wanted_slots = max(
        _AUTO_SLOTS + min(AUTO_MAX_SLOTS - _AUTO_SLOTS, _SLOTS_AN_AGENT * n_agents),
        least_slots,
        2 * config.consumers + 2,
        min(AUTO_MAX_SLOTS, _AUTO_RING_BYTES // slot_bytes),
    )
    per_reader = reader_share(source_reader_bytes)
    base_bytes = DAEMON_BYTES + source_bytes + bridge_bytes
    if is_auto:
        comfortable = base_bytes + n_readers * per_reader + wanted_slots * slot_bytes + _AUTO_LARGE_BYTES
        ceiling = _auto_ceiling(limits)
        budget = min(comfortable, ceiling)
        limited_by = limit.source if budget < comfortable else "auto"
    else:
        budget = parse_bytes(config.memory_budget, whole_bytes=system.memory()[1])
        limited_by = "memory-budget" if budget <= limit.n_bytes else limit.source
        budget = ceiling = min(budget, limit.n_bytes)
    source = source_bytes + bridge_bytes, source_reader_bytes
    least = smallest_budget(n_readers, slot_bytes, *source, least_slots=least_slots)
    while least > budget and n_readers > 1 and not config.num_workers:
        n_readers -= 1
        least = smallest_budget(n_readers, slot_bytes, *source, least_slots=least_slots)
    if least > budget:
        readers = format_count(n_readers, "reader")
        by = "memory_budget" if limited_by == "memory-budget" else limited_by
        raise BudgetError(
            f"cannot work within a memory budget of {format_bytes(budget)} (from {by}): the daemon takes "
            f"{format_bytes(base_bytes)}, {readers} {format_bytes(n_readers * per_reader)}, and "
            f"{least_slots} slots of {format_bytes(slot_bytes)} {format_bytes(least_slots * slot_bytes)}; "
            f'give memory_budget="{least // MIB}MiB" or more, or a smaller batch_size, image_size or num_workers'
            f"{machine_allows(least, limit)}"
        )
    left = budget - base_bytes - n_readers * per_reader
    if is_auto:
        left = max(least_slots * slot_bytes, left - _AUTO_LARGE_BYTES)
    n_slots = min(left // slot_bytes, max(4 * AUTO_MAX_SLOTS, least_slots))
    return Plan(
        budget_bytes=budget,
        ceiling_bytes=ceiling,
        is_auto=is_auto,
        limited_by=limited_by,
        limits=limits,
        slot_bytes=slot_bytes,
        source_bytes=source_bytes,
        source_reader_bytes=source_reader_bytes,
        n_readers=n_readers,
        asked_readers=n_readers,
        n_slots=n_slots,
        most_slots=n_slots,
        start_slots=n_slots,
        start_large_bytes=budget - base_bytes - n_readers * per_reader - n_slots * slot_bytes,
        bridge_bytes=bridge_bytes,
    )


def machine_allows(least: int, limit: Limit) -> str:
    """Return the end of an error that asks for `least` bytes: empty if the machine allows that."""
    return "" if least <= limit.n_bytes else f" ({limit.source} allows {format_bytes(limit.n_bytes)}; raise that first)"


def explain(plan: Plan, segments: str = "") -> str:
    """Return the sums of the plan in one line: what everything costs, and what would have allowed more."""
    share = format_bytes(plan.reader_share_bytes)
    index = f" and {format_bytes(plan.source_bytes)} for the index" if plan.source_bytes else ""
    bridge = f", {format_bytes(plan.bridge_bytes)} for the bridge to agents" if plan.bridge_bytes else ""
    others = ", ".join(f"{limit.source} {format_bytes(limit.n_bytes)}" for limit in plan.limits)
    ceiling = f", growing up to {format_bytes(plan.ceiling_bytes)}" if plan.ceiling_bytes > plan.budget_bytes else ""
    return (
        f"memory: {format_bytes(DAEMON_BYTES)} for the daemon{index}{bridge}, "
        f"{format_count(plan.n_readers, 'reader')} of {share}, {plan.n_slots} slots of "
        f"{format_bytes(plan.slot_bytes)}{segments}, {format_bytes(plan.large_bytes)} for large images, of a budget of "
        f"{format_bytes(plan.budget_bytes)} set by {plan.limited_by}{ceiling} (allowed: {others})"
    )
