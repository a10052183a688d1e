"""The memory controller: how many slots and readers the daemon is to have now.

    plan (start, `prefetchd set`) -------+
    Autoscale (num_workers=auto) --------+--> one target a round: slots, readers, paused --> manager carries it out
    PressurePolicy (machine runs short) -+

Owned by the daemon's loop, which calls `decide` after each round of events and `tick` twice a second while there is
work, `tick_at_rest` now and then while there is none. It chooses plans and targets, and nothing else: the manager takes
the steps, and what users hold is never taken.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from prefetchd.config.options import Config
from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.memory.autoscale import Autoscale, Meter, Window
from prefetchd.daemon.memory.limits import Shortage
from prefetchd.daemon.memory.manager import Demand, MemoryManager
from prefetchd.daemon.memory.node_scale import NodeScale
from prefetchd.daemon.memory.plan import AUTO_MAX_SLOTS, Plan
from prefetchd.daemon.memory.pressure import Costs, PressurePolicy, Target
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.pool import Pool
from prefetchd.ring.slots import Ring

log = logging.getLogger("prefetchd")

WINDOW_S = 2.0
_READERS_A_CORE = 2  # more than cores, for data that comes over a network


class MemoryController:
    """Decides, each round, what ring and readers should be.

    Args:
        config: the options in force; `change` replaces those that may be changed.
        memory, ring, pool, work: borrowed; all but the budget of `memory` are only looked at.
        demand: what those attached need.
        plan_for: makes a plan for a configuration: (config, the fewest slots it may have, what the daemon takes).
        read_shortage: how short of memory the machine is.
        idle_s: seconds that the usable cores have been idle so far, all together.
        n_cores: usable ones.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: Config,
        memory: MemoryManager,
        ring: Ring,
        pool: Pool,
        work: BatchBuilder,
        demand: Demand,
        *,
        plan_for: Callable[[Config, int, int], Plan],
        read_shortage: Callable[[], Shortage],
        idle_s: Callable[[], float],
        n_cores: int,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.shortage: Shortage | None = None  # as last read
        self.waited_s = 0.0  # in which some loop waited for its next batch
        self._memory = memory
        self._ring = ring
        self._pool = pool
        self._plan_for = plan_for
        self._work = work
        self._demand = demand
        self._fitted_slots = -1
        self._read_shortage = read_shortage
        self._idle_s = idle_s
        self._clock = clock
        self._policy = PressurePolicy()
        self._auto = Autoscale(_READERS_A_CORE * n_cores, n_cores)
        self._nodes = NodeScale()
        self._looked_s = self._window_s = clock()
        self._was_waiting = False
        self._meter = Meter(0.0, 0.0, 0, idle_s())
        self._is_whole = True  # whether the window began after the last target was reached

    # --- what is wanted

    @property
    def _full(self) -> Target:
        plan = self._memory.budget.plan
        return Target(plan.n_slots, plan.n_readers)

    @property
    def relieved(self) -> bool:
        """Whether all is in use that the plan allows: nothing was given back for lack of memory."""
        return self._policy.relieved

    @property
    def is_auto(self) -> bool:
        """Whether the number of readers follows the loops."""
        return self.config.num_workers == 0

    @property
    def is_auto_nodes(self) -> bool:
        """Whether the number of nodes follows the loops."""
        return self.config.ray is not None and not self.config.remote_workers

    @property
    def has_spare_nodes(self) -> bool:
        """Whether nodes can be let go: there may be more than one."""
        return self.is_auto_nodes and self._pool.remote is not None and self._pool.remote.n_wanted > 1

    def change(self, config: Config) -> Plan:
        """Put other options in force; return the plan that holds from now on.

        Raises:
            BudgetError: if the budget cannot work, with the one that could; then nothing has changed.
        """
        plan = self._plan_for(config, self._demand.promised_slots, self._memory.measure().total_bytes)
        self.config = config
        self._is_whole = False
        self._fitted_slots = -1
        self._memory.budget.adopt(plan)
        return plan

    def decide(self) -> Target:
        """Return this round's target, which the manager carries out."""
        if self._memory.needs.fewer_readers:
            self._withdraw_readers()
        comfortable = self._demand.comfortable_slots
        if comfortable != self._fitted_slots:  # somebody has attached, or has gone
            self._fitted_slots = comfortable
            self._memory.budget.fit_slots(max(min(comfortable, AUTO_MAX_SLOTS), self._demand.promised_slots))
        target = self._policy.under(self._full)
        if self.relieved:
            return target
        # Somebody may have attached meanwhile, or hold many batches.
        least = max(self._demand.promised_slots, self._memory.needs.n_slots)
        n_slots = max(target.n_slots, min(least, self._memory.budget.plan.n_slots))
        return dataclasses.replace(target, n_slots=n_slots)

    def _withdraw_readers(self) -> None:
        """Go back to the readers that were asked for, and stay there.

        Large decodes, or loops that hold many batches, need the memory of the others.
        """
        plan = self._memory.budget.plan
        self._auto.most = min(self._auto.most, plan.asked_readers)
        back = plan.with_readers(min(plan.n_readers, self._auto.most), 0)
        if back is not None:
            self._memory.budget.adopt(back)

    # --- looking at the machine and the loops

    def note_waiting(self, waiting: bool) -> None:
        """Record whether some loop waits, from now until the next call."""
        now_s = self._clock()
        if self._was_waiting:
            self.waited_s += now_s - self._looked_s
        self._looked_s, self._was_waiting = now_s, waiting

    def tick(self) -> None:
        """Look at the machine, and at the loops."""
        self._look_at_machine()
        elapsed_s = self._clock() - self._window_s
        if elapsed_s >= WINDOW_S:
            self._look_at_loops(elapsed_s)

    def tick_at_rest(self) -> None:
        """Look at the nodes alone, so that those that idle are let go."""
        elapsed_s = self._clock() - self._window_s
        if elapsed_s >= WINDOW_S:
            self._look_at_loops(elapsed_s, nodes_alone=True)

    def _look_at_machine(self) -> None:
        plan = self._memory.budget.plan
        try:
            self.shortage = self._read_shortage()
        except OSError:  # no descriptor left to look with
            return
        before = self._policy.under(self._full)
        now = Target(len(self._ring.slots), len(self._pool.readers), before.paused)
        costs = Costs(plan.slot_bytes, plan.reader_share_bytes, self._demand.promised_slots)
        target = self._policy.step(self.shortage, now, self._full, costs)
        if target == before:
            return
        gives = (target.n_slots, target.n_readers, not target.paused) < (
            before.n_slots,
            before.n_readers,
            not before.paused,
        )
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

    def _look_at_loops(self, elapsed_s: float, *, nodes_alone: bool = False) -> None:
        """Follow the loops with the number of readers, and of nodes, where that is automatic and memory is not short.

        One of the two takes a step at a time, as a window shows what both have brought.
        """
        self.note_waiting(self._was_waiting)
        work, remote = self._work, self._pool.remote
        self._window_s = self._clock()
        far_s, far_samples = (0.0, 0) if remote is None else (remote.busy_s, remote.samples)
        window = self._meter.window(
            elapsed_s, self.waited_s, work.busy_s - far_s, work.samples_made - far_samples, self._idle_s()
        )
        settled = self._memory.budget.plan.n_readers == self._pool.n_readers == sum(
            reader.ready for reader in self._pool.readers.values()
        )  # fmt: skip
        is_whole, self._is_whole = self._is_whole, self._is_whole or settled
        may_step = self.relieved and settled and is_whole
        stepped = may_step and not nodes_alone and self.is_auto and self._follow_with_readers(window)
        if remote is not None and self.is_auto_nodes:
            self._nodes.follow(remote, elapsed_s, self.waited_s, may_step=may_step and not stepped)

    def _follow_with_readers(self, window: Window) -> bool:
        """Return whether there are to be more readers, or fewer, from now on."""
        n_readers = self._memory.budget.plan.n_readers
        wanted = self._auto.step(n_readers, window)
        if wanted == n_readers:
            return False
        self._memory.budget.read_ceiling()
        least_slots = max(self._demand.promised_slots + 1, self._ring.leased_slots)
        plan = self._memory.budget.plan.with_readers(wanted, least_slots)
        if plan is None:
            self._auto.refused()
            return False
        self._memory.budget.adopt(plan)
        self._is_whole = False
        log.info(
            "num-workers auto: %s in place of %d (loops waited %.0f%% of the time, readers were busy %.0f%%)",
            format_count(wanted, "reader"), n_readers, 100 * window.waited, 100 * window.busy / n_readers,
        )  # fmt: skip
        return True
