"""The memory budget of a daemon: the plan in force, what is reserved of it, and how an automatic one grows.

    reserve_slots, fit_slots (loops) --+
    grow_for (large decodes)           +--> the plan, never above its ceiling --> log
    shrink (none lately)             --+

Owned by the memory manager. The budget alone puts a plan in force. The ceiling is read again before each growth, as
other programs take and give memory. A budget that the user stated stays as it is, and what it cannot hold is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.memory.limits import Limit, machine_limits
from prefetchd.daemon.memory.plan import MIB, MIN_SLOTS, Plan, machine_allows

log = logging.getLogger("prefetchd")


class Budget:
    """Reservations against the plan's budget: the slots, and decodes beyond the readers' allowance.

    Args:
        plan: the first one.
        read_limits: what the machine allows now, tightest first.
    """

    def __init__(self, plan: Plan, read_limits: Callable[[], Sequence[Limit]] = machine_limits) -> None:
        self.n_readers = plan.n_readers  # that there are, those included that are to go
        self.ring_bytes = 0
        self.large_bytes = 0
        self._plan = plan
        self._read_limits = read_limits
        self._most_logged_bytes = plan.budget_bytes

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self._plan

    def adopt(self, plan: Plan) -> None:
        """Put another plan in force; ring and readers follow as they can."""
        self._plan = plan

    # --- what is reserved

    @property
    def reserved_bytes(self) -> int:
        """What has been reserved: the base, the readers, the slots, the large decodes."""
        readers_bytes = self.n_readers * self.plan.reader_share_bytes
        return self.plan.base_bytes + readers_bytes + self.ring_bytes + self.large_bytes

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
        most = max(self.plan.budget_bytes, self.plan.ceiling_bytes)
        return most - self._planned_bytes - MIN_SLOTS * self.plan.slot_bytes

    def budget_for_slots(self, n_slots: int) -> int:
        """Return the smallest budget, in MiB, that holds `n_slots` slots, and no less than today's."""
        return self._at_least(n_slots * self.plan.slot_bytes)

    def budget_for(self, decode_bytes: int) -> int:
        """Return the smallest budget, in MiB, in which a decode of `decode_bytes` fits, and no less than today's."""
        return self._at_least(MIN_SLOTS * self.plan.slot_bytes + decode_bytes)

    def _at_least(self, n_bytes: int) -> int:
        """Return how many MiB hold the base, the readers that were asked for and `n_bytes`."""
        return -(-max(self.plan.budget_bytes, self._planned_bytes + n_bytes) // MIB)

    @property
    def _planned_bytes(self) -> int:
        return self.plan.base_bytes + self.plan.asked_readers * self.plan.reader_share_bytes

    # --- growing, where the budget is automatic

    def read_ceiling(self) -> None:
        """Let the ceiling follow from what the machine can spare now."""
        if self.plan.is_auto:
            self._plan = self._plan.with_limits(self._read_limits())

    def reserve_slots(self, n_slots: int) -> bool:
        """Have the plan hold `n_slots` slots; return whether it does."""
        if self.plan.is_auto and n_slots > self.plan.n_slots:
            self.read_ceiling()
            plan = self.plan.with_slots(n_slots)
            if plan.n_slots == n_slots:
                self._grow(plan, format_count(n_slots, "slot"))
        return n_slots <= self.plan.n_slots

    def fit_slots(self, n_slots: int) -> None:
        """Follow the loops that are attached, which `n_slots` slots serve well; fewer are given back."""
        plan = self.plan
        n_slots = max(plan.start_slots, n_slots)
        if not plan.is_auto or n_slots == plan.n_slots or plan.n_slots < plan.most_slots:  # readers have their place
            return
        if n_slots > plan.n_slots:
            self.read_ceiling()
            self._grow(self.plan.with_slots(n_slots), "the loops that are attached")
        else:
            self._plan = plan.with_slots(n_slots)
            self._most_logged_bytes = self.plan.budget_bytes
            log.info("memory-budget auto: back to %s", format_bytes(self._most_logged_bytes))

    def grow_for(self, decode_bytes: int) -> None:
        """Hold one more decode beside all that the plan has, as far as the ceiling allows."""
        plan = self.plan
        if plan.is_auto:
            self._grow(plan.with_large(max(plan.large_bytes, self.large_bytes + decode_bytes)), "large images")

    def shrink(self) -> None:
        """Give back what large decodes took that have ended."""
        plan = self.plan
        kept = max(plan.start_large_bytes, self.large_bytes)
        if plan.is_auto and plan.large_bytes > kept:
            self._plan = plan.with_large(kept)

    def _grow(self, plan: Plan, what: str) -> None:
        self._plan = plan
        if plan.budget_bytes > self._most_logged_bytes:  # large images come and go
            self._most_logged_bytes = plan.budget_bytes
            log.info(
                "memory-budget auto: grown to %s for %s (ceiling %s, from %s)",
                format_bytes(plan.budget_bytes), what, format_bytes(plan.ceiling_bytes), plan.limits[0].source,
            )  # fmt: skip

    # --- what it cannot hold

    def too_few_slots(self, n_slots: int) -> str:
        """Return why `n_slots` slots cannot be reserved, and what to do."""
        plan = self.plan
        has = f"{format_count(plan.n_slots, 'slot')} of {format_bytes(plan.slot_bytes)}"
        more = self._give_more(self.budget_for_slots(n_slots))
        return f"it takes {n_slots} slots, and {self._bound} holds {has}; {more}"

    def too_little_memory(self, decode_bytes: int) -> str:
        """Return why a decode can never have `decode_bytes`, and what to do."""
        return (
            f"it takes {format_bytes(decode_bytes)} of working memory, and {self._bound} can give one decode "
            f"{format_bytes(max(0, self.largest_decode_bytes))}; "
            f"{self._give_more(self.budget_for(decode_bytes))}, or lower max_image_pixels"
        )

    @property
    def _bound(self) -> str:
        plan = self.plan
        if not plan.is_auto:
            return f"the memory budget of {format_bytes(plan.budget_bytes)}"
        ceiling = format_bytes(max(plan.ceiling_bytes, plan.budget_bytes))
        return f"the automatic memory budget, which may grow to {ceiling} ({plan.limits[0].source}),"

    def _give_more(self, n_mib: int) -> str:
        """Return how to give `n_mib` MiB, at the start or to a daemon that runs."""
        return (
            f'give memory_budget="{n_mib}MiB"; for a daemon that runs: prefetchd set memory-budget={n_mib}MiB '
            f'(in Python prefetchd.set_options(memory_budget="{n_mib}MiB"))'
            f"{machine_allows(n_mib * MIB, self.plan.limits[0])}"
        )
