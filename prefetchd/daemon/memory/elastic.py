"""The growth of an automatic budget: for loops that attach and for large images, up to what the machine can spare.

    reserve_slots, fit_slots (loops) --+
    grow_for (large decodes)           +--> Budget.plan, never above the ceiling --> log
    shrink (none lately)             --+

Owned by the memory manager, whose budget it changes. The ceiling is read again before each growth, as other programs
take and give memory. A budget that the user stated stays as it is, and what it cannot hold is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.memory.limits import Limit
from prefetchd.daemon.memory.plan import MIB, Budget, Plan, machine_allows

log = logging.getLogger("prefetchd")


class BudgetGrowth:
    """Lets the plan of `budget`, borrowed, grow and shrink.

    Args:
        budget: the budget.
        read_limits: what the machine allows now, tightest first.
    """

    def __init__(self, budget: Budget, read_limits: Callable[[], Sequence[Limit]]) -> None:
        self._budget = budget
        self._read_limits = read_limits
        self._most_logged_bytes = budget.plan.budget_bytes

    def read_ceiling(self) -> None:
        """Let the ceiling follow from what the machine can spare now."""
        if self._budget.plan.is_auto:
            self._budget.plan = self._budget.plan.with_limits(self._read_limits())

    def reserve_slots(self, n_slots: int) -> bool:
        """Have the plan hold `n_slots` slots; return whether it does."""
        if self._budget.plan.is_auto and n_slots > self._budget.plan.n_slots:
            self.read_ceiling()
            plan = self._budget.plan.with_slots(n_slots)
            if plan.n_slots == n_slots:
                self._grow(plan, format_count(n_slots, "slot"))
        return n_slots <= self._budget.plan.n_slots

    def fit_slots(self, n_slots: int) -> None:
        """Follow the loops that are attached, which `n_slots` slots serve well; fewer are given back."""
        plan = self._budget.plan
        n_slots = max(plan.start_slots, n_slots)
        if not plan.is_auto or n_slots == plan.n_slots or plan.n_slots < plan.most_slots:  # readers have their place
            return
        if n_slots > plan.n_slots:
            self.read_ceiling()
            self._grow(self._budget.plan.with_slots(n_slots), "the loops that are attached")
        else:
            self._budget.plan = plan.with_slots(n_slots)
            self._most_logged_bytes = self._budget.plan.budget_bytes
            log.info("memory-budget auto: back to %s", format_bytes(self._most_logged_bytes))

    def grow_for(self, decode_bytes: int) -> None:
        """Hold one more decode beside all that the plan has, as far as the ceiling allows."""
        plan = self._budget.plan
        if plan.is_auto:
            self._grow(plan.with_large(max(plan.large_bytes, self._budget.large_bytes + decode_bytes)), "large images")

    def shrink(self) -> None:
        """Give back what large decodes took that have ended."""
        plan = self._budget.plan
        kept = max(plan.start_large_bytes, self._budget.large_bytes)
        if plan.is_auto and plan.large_bytes > kept:
            self._budget.plan = plan.with_large(kept)

    def _grow(self, plan: Plan, what: str) -> None:
        self._budget.plan = plan
        if plan.budget_bytes > self._most_logged_bytes:  # large images come and go
            self._most_logged_bytes = plan.budget_bytes
            log.info(
                "memory-budget auto: grown to %s for %s (ceiling %s, from %s)",
                format_bytes(plan.budget_bytes), what, format_bytes(plan.ceiling_bytes), plan.limits[0].source,
            )  # fmt: skip

    # --- what it cannot hold

    def too_few_slots(self, n_slots: int) -> str:
        """Return why `n_slots` slots cannot be reserved, and what to do."""
        plan = self._budget.plan
        has = f"{format_count(plan.n_slots, 'slot')} of {format_bytes(plan.slot_bytes)}"
        more = self._give_more(self._budget.budget_for_slots(n_slots))
        return f"it takes {n_slots} slots, and {self._bound} holds {has}; {more}"

    def too_little_memory(self, decode_bytes: int) -> str:
        """Return why a decode can never have `decode_bytes`, and what to do."""
        return (
            f"it takes {format_bytes(decode_bytes)} of working memory, and {self._bound} can give one decode "
            f"{format_bytes(max(0, self._budget.largest_decode_bytes))}; "
            f"{self._give_more(self._budget.budget_for(decode_bytes))}, or lower max_image_pixels"
        )

    @property
    def _bound(self) -> str:
        plan = self._budget.plan
        if not plan.is_auto:
            return f"the memory budget of {format_bytes(plan.budget_bytes)}"
        ceiling = format_bytes(max(plan.ceiling_bytes, plan.budget_bytes))
        return f"the automatic memory budget, which may grow to {ceiling} ({plan.limits[0].source}),"

    def _give_more(self, n_mib: int) -> str:
        """Return how to give `n_mib` MiB, at the start or to a daemon that runs."""
        return (
            f'give memory_budget="{n_mib}MiB"; for a daemon that runs: prefetchd set memory-budget={n_mib}MiB '
            f'(in Python prefetchd.set_options(memory_budget="{n_mib}MiB"))'
            f"{machine_allows(n_mib * MIB, self._budget.plan.limits[0])}"
        )
