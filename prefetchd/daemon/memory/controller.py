"""The memory controller: how many slots and readers the daemon is to have now, and the steps that lead there.

    plan (start, `prefetchd set`) --+
    auto_readers (num_workers=auto) +--> target: slots, readers, paused --settle--> memory manager, pool
    pressure (machine runs short) --+

Owned by the daemon's loop, which calls `settle` after each round of events and `tick` twice a second. What users hold
is never taken: a ring that is to shrink gives up free slots at once, and the others as their leases come back. A reader
is added only when its share is free. The policies are pure; the steps are here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.memory.autoscale import WINDOW_S, AutoReaders, Window
from prefetchd.daemon.memory.limits import Shortage
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import Plan
from prefetchd.daemon.memory.pressure import Costs, PressurePolicy, Target
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.ring.slots import Ring

log = logging.getLogger("prefetchd")

_READERS_A_CORE = 2  # more than cores, for data that comes over a network


class MemoryController:
    """Leads ring and readers to what plan, pressure and automatism want.

    Args:
        config: the options in force; `change` replaces those that may be changed.
        memory manager, ring, pool: borrowed.
        plan_for: makes a plan for a configuration: (config, the fewest slots it may have).
        promised_slots: the fewest slots that those attached can work with.
        work_done: what readers have done so far: (seconds of all together, samples).
        read_shortage: how short of memory the machine is.
        n_cores: usable ones.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        memory: MemoryManager,
        ring: Ring,
        pool: Pool,
        *,
        plan_for: Callable[[Config, int], Plan],
        promised_slots: Callable[[], int],
        work_done: Callable[[], tuple[float, int]],
        read_shortage: Callable[[], Shortage],
        n_cores: int,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.shortage: Shortage | None = None  # as last read
        self.waited_s = 0.0  # in which some loop stood still for its next batch
        self._memory = memory
        self._ring = ring
        self._pool = pool
        self._plan_for = plan_for
        self._promised_slots = promised_slots
        self._work_done = work_done
        self._read_shortage = read_shortage
        self._clock = clock
        self._policy = PressurePolicy()
        self._auto = AutoReaders(_READERS_A_CORE * n_cores)
        self._target = self._full
        self._noted_s = self._window_s = clock()
        self._was_waiting = False
        self._at_window = (0.0, 0.0, 0)
        self._is_whole = True  # whether the window began after what was last set had come about

    # --- what is wanted

    @property
    def _full(self) -> Target:
        plan = self._memory.budget.plan
        return Target(plan.n_slots, plan.n_readers)

    @property
    def paused(self) -> bool:
        """Whether batches are made only for loops that wait for them."""
        return self._target.paused

    @property
    def relieved(self) -> bool:
        """Whether nothing is given back for want of memory."""
        return self._policy.relieved

    @property
    def is_auto(self) -> bool:
        """Whether the number of readers follows the loops."""
        return self.config.num_workers == 0

    def change(self, config: Config) -> Plan:
        """Let other options be in force; return the plan that is from now on.

        Raises:
            BudgetError: if the budget cannot work, with the one that could; then nothing has changed.
        """
        plan = self._plan_for(config, self._promised_slots())
        self.config = config
        self._is_whole = False
        self._replan(plan)
        return plan

    def _replan(self, plan: Plan) -> None:
        self._memory.replan(plan)
        self._target = self._policy.under(self._full)  # `settle` goes there, with all that the loops hold in view

    # --- getting there

    def note(self, waiting: bool) -> None:
        """Whether some loop stands still, from now until the next call."""
        now_s = self._clock()
        if self._was_waiting:
            self.waited_s += now_s - self._noted_s
        self._noted_s, self._was_waiting = now_s, waiting

    def settle(self, cursors: list[Cursor]) -> None:
        """Take the steps towards the target that can be taken now."""
        memory, pool = self._memory, self._pool
        budget = memory.budget
        if memory.readers_in_the_way:
            self._withdraw_readers()
        memory.slots_wanted = self._target.n_slots
        if self.relieved:
            memory.slots_needed = 0
        else:  # somebody may have attached meanwhile, or hold many batches
            least = max(self._promised_slots(), memory.slots_needed)
            memory.slots_wanted = max(memory.slots_wanted, min(least, budget.plan.n_slots))
        memory.shrink(cursors)
        wanted = max(1, self._target.n_readers)
        if wanted < pool.n_readers:
            pool.resize(wanted)
        while pool.n_readers < wanted:
            coming = max(0, pool.n_readers + 1 - budget.n_readers) * budget.plan.reader_share_bytes
            if coming > budget.spare_bytes:
                break
            pool.resize(pool.n_readers + 1)
            budget.n_readers = max(pool.n_readers, len(pool.readers))
        budget.n_readers = max(pool.n_readers, len(pool.readers))

    def _withdraw_readers(self) -> None:
        """Go back to the readers that were asked for, for good: large decodes, or loops that hold many batches, need
        the memory of the others."""
        self._memory.readers_in_the_way = False
        plan = self._memory.budget.plan
        self._auto.most = min(self._auto.most, plan.asked_readers or plan.n_readers)
        back = plan.with_readers(min(plan.n_readers, self._auto.most), 0)
        if back is not None:
            self._memory.replan(back)
            self._target = self._policy.under(self._full)

    def tick(self) -> None:
        """Look at the machine, and at the loops."""
        self._heed_pressure()
        elapsed_s = self._clock() - self._window_s
        if elapsed_s >= WINDOW_S:
            self._heed_loops(elapsed_s)

    def _heed_pressure(self) -> None:
        plan = self._memory.budget.plan
        try:
            self.shortage = self._read_shortage()
        except OSError:  # no descriptor left to look with
            return
        now = Target(len(self._ring.slots), len(self._pool.readers), self._target.paused)
        costs = Costs(plan.slot_bytes, plan.reader_share_bytes, self._promised_slots())
        target = self._policy.step(self.shortage, now, self._full, costs)
        if target == self._target:
            return
        gives = (target.n_slots, target.n_readers, not target.paused) < (
            self._target.n_slots,
            self._target.n_readers,
            not self._target.paused,
        )
        self._target = target
        log.warning(
            "%s: %s left (%s), tasks stalled %.0f%% of the time; %s %s, %s%s",
            "short of memory" if gives else "memory is there again",
            format_bytes(self.shortage.headroom_bytes),
            self.shortage.source,
            self.shortage.stalled_percent,
            "down to" if gives else "back to",
            format_count(target.n_slots, "slot"),
            format_count(target.n_readers, "reader"),
            ", batches only for loops that wait" if target.paused else "",
        )

    def _heed_loops(self, elapsed_s: float) -> None:
        """Follow the loops with the number of readers, where that is automatic and memory is not short."""
        self.note(self._was_waiting)
        waited_s, busy_s, samples = self._at_window
        self._at_window = (self.waited_s, *self._work_done())
        self._window_s = self._clock()
        window = Window(
            (self._at_window[0] - waited_s) / elapsed_s,
            (self._at_window[1] - busy_s) / elapsed_s,
            (self._at_window[2] - samples) / elapsed_s,
        )
        n_readers = self._memory.budget.plan.n_readers
        settled = n_readers == self._pool.n_readers == sum(reader.ready for reader in self._pool.readers.values())
        is_whole, self._is_whole = self._is_whole, self._is_whole or settled
        if not self.is_auto or not self.relieved or not settled or not is_whole:
            return
        wanted = self._auto.step(n_readers, window)
        if wanted == n_readers:
            return
        plan = self._memory.budget.plan.with_readers(wanted, max(self._promised_slots() + 1, self._ring.leased_slots))
        if plan is None:
            return
        self._replan(plan)
        log.info(
            "num-workers auto: %s in place of %d (loops waited %.0f%% of the time, readers were busy %.0f%%)",
            format_count(wanted, "reader"), n_readers, 100 * window.waited, 100 * window.busy_readers / n_readers,
        )  # fmt: skip
