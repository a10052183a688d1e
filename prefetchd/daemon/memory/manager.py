"""The memory manager: the ring's growth, the readers' requests, and the check that the budget holds.

    controller --follow(target)--> manager --> ring (slots), pool (readers)
    readers --serve_requests-->       |
    loops --budget.reserve_slots-->   +--verify--> gives memory back

Owned by the daemon's loop. Everything that takes memory asks here first. `verify` measures what is really in use. The
manager alone changes the ring and the pool's size. The controller decides: it reads `needs`, and returns one target a
round. Nothing of it outlives the daemon.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prefetchd.config.units import format_bytes
from prefetchd.daemon.memory.budget import Budget
from prefetchd.daemon.memory.limits import Footprint, Limit, cgroup_limits, machine_limits, measure
from prefetchd.daemon.memory.plan import MIN_SLOTS, Plan
from prefetchd.daemon.memory.pressure import Target
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import needed_last, to_give_back
from prefetchd.errors import BudgetError, PrefetchdError
from prefetchd.ipc.descriptors import check_descriptors
from prefetchd.ring.segment import SHM_FOLDER, Segment, shm_free_bytes
from prefetchd.ring.slots import Content, Ring, Slot

log = logging.getLogger("prefetchd")

_EXACT_EVERY_TICKS = 16
_NO_GROWTH_TICKS = 20  # after the budget was exceeded
_FORGET_REQUEST_TICKS = 20  # a ring that grows between any two large decodes would only be shrunk again


@dataclass(frozen=True, slots=True)
class Needs:
    """What the daemon lacks under the present target.

    Attributes:
        n_slots: for loops that hold many, while memory is short.
        fewer_readers: whether memory is needed that readers take which were added for loops that wait.
    """

    n_slots: int = 0
    fewer_readers: bool = False


class Demand(Protocol):
    """What the memory manager and the controller ask the consumers."""

    @property
    def promised_slots(self) -> int:
        """The fewest slots that those attached can work with."""

    @property
    def comfortable_slots(self) -> int:
        """How many slots serve those attached well."""

    @property
    def queue_bytes(self) -> int:
        """What their queues take."""

    def slot_removed(self, slot: Slot) -> None:
        """Forget a slot that is given up."""


class MemoryManager:
    """Holds the daemon to its budget.

    Args:
        plan: the plan to begin with.
        ring: the ring, which it grows and shrinks.
        pool: the readers, whose requests it grants and whose number it sets.
        make_room: has readers that wait for memory let others finish; see `BatchBuilder.make_room`.
        read_limits: what the machine allows, tightest first, given what the daemon takes already.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        plan: Plan,
        ring: Ring,
        pool: Pool,
        *,
        make_room: Callable[[Sequence[ReaderHandle]], None] = lambda readers: None,
        read_limits: Callable[[int], Sequence[Limit]] = machine_limits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget = Budget(plan, lambda: read_limits(self.measure().total_bytes))
        self.max_footprint_bytes = 0
        self.outgrown_readers = 0
        self.needs = Needs()
        self.target = Target(plan.n_slots, plan.n_readers)
        self._demand: Demand | None = None
        self._no_growth_ticks = 0
        self._ring = ring
        self._pool = pool
        self._clock = clock
        self._make_room = make_room
        self.making_room = False  # for large decodes: no batch is begun in what comes free
        self._warned = False
        self._could_not_grow = False
        self._lately_requested_bytes = 0
        self._shrunk_at = -1  # how often a slot had come back when slots last made room for a large decode
        self._anyone_waits = False
        self._ticks = self._ticks_since_request = 0
        self._ceiling_tick = -1  # when the ceiling of an automatic budget was last read

    def serve(self, demand: Demand) -> None:
        """Serve the consumers that `demand` speaks for, borrowed."""
        self._demand = demand

    # --- what the controller decides

    def follow(self, target: Target, cursors: Sequence[Cursor]) -> None:
        """Take the steps towards `target` that can be taken now.

        A ring that is to shrink gives up free slots at once, those that are needed last first. The others go as their
        leases come back. A reader is added only when its share is free.
        """
        self.target = target
        self.needs = Needs(self.needs.n_slots if target.n_slots < self.budget.plan.n_slots else 0)
        self._anyone_waits = any(cursor.waiting for cursor in cursors)
        while (slot := to_give_back(self._ring, cursors, target.n_slots)) is not None:
            self.remove_slot(slot)
        budget, pool = self.budget, self._pool
        wanted = max(1, target.n_readers)
        if wanted < pool.n_readers:
            pool.resize(wanted)
        while pool.n_readers < wanted:
            coming = max(0, pool.n_readers + 1 - budget.n_readers) * budget.plan.reader_share_bytes
            if coming > budget.spare_bytes:
                break
            pool.resize(pool.n_readers + 1)
            budget.n_readers = max(pool.n_readers, len(pool.readers))
        budget.n_readers = max(pool.n_readers, len(pool.readers))

    @property
    def is_grown(self) -> bool:
        """Whether memory is kept for large decodes, and may be given back in some seconds."""
        return self._lately_requested_bytes > 0

    # --- the ring

    def may_grow(self) -> bool:
        """Whether the plan and the budget hold one more slot, besides the large decodes seen lately."""
        if self._no_growth_ticks or len(self._ring.slots) >= self.target.n_slots:
            return False
        # While no loop goes on, the next batches need the same large decodes: the ring would grow and shrink for ever.
        if self._shrunk_at == self._ring.n_returned and not self._anyone_waits:
            return False
        return self.budget.spare_bytes - self._lately_requested_bytes >= self.budget.plan.slot_bytes

    @property
    def segments(self) -> str:
        """Where the slots are, for the log, if they are not in `/dev/shm`."""
        n_memfds = sum(slot.segment.is_memfd for slot in self._ring.slots.values())
        if not n_memfds:
            return ""
        free = format_bytes(shm_free_bytes() or 0)
        return f" ({n_memfds} of them memfds, as {SHM_FOLDER} has {free} free, which does not bound them)"

    def add_slot(self) -> None:
        """Reserve one more slot."""
        segment = Segment.create(self.budget.plan.slot_bytes)
        try:
            check_descriptors(segment.fd)
        except PrefetchdError:
            segment.close()
            raise
        self._ring.add(segment)
        self.budget.ring_bytes += segment.n_bytes

    def grow(self) -> None:
        """Add a slot if the machine can give it; if not, the ring stays as it is for a while: it is large enough.

        Raises:
            PrefetchdError: if it has not even as many descriptors as the smallest ring takes.
        """
        try:
            self.add_slot()
        except (PrefetchdError, OSError) as error:
            if len(self._ring.slots) < MIN_SLOTS and not isinstance(error, BudgetError | OSError):
                raise
            self._no_growth_ticks = _NO_GROWTH_TICKS
            if not self._could_not_grow:
                self._could_not_grow = True
                log.warning("going on with %d of %d slots: %s", len(self._ring.slots), self.target.n_slots, error)

    def remove_slot(self, slot: Slot) -> None:
        """Give a reusable slot back to the machine."""
        self._pool.remove_slot(slot)
        if self._demand is not None:
            self._demand.slot_removed(slot)
        self.budget.ring_bytes -= slot.segment.n_bytes
        self._ring.remove(slot)

    # --- large decodes, and loops that hold many batches

    def serve_requests(self, cursors: Sequence[Cursor]) -> None:
        """Grant the readers that wait for working memory what fits.

        An automatic budget grows for it. Then slots are given up, those first whose batches `cursors` need last.
        """
        readers = sorted(self._pool.readers.values(), key=lambda reader: reader.number)
        self.budget.large_bytes = sum(reader.has_bytes for reader in readers)
        for reader in readers:
            need = reader.needs_bytes
            if not need:
                continue
            if self.budget.spare_bytes < need and self.budget.plan.is_auto:
                if self._ceiling_tick != self._ticks:
                    self._ceiling_tick = self._ticks
                    self.budget.read_ceiling()
                self.budget.grow_for(need)
            if need > self.budget.largest_decode_bytes:
                reader.deny_memory(self.budget.too_little_memory(need))  # the reader names the sample
                continue
            while self.budget.spare_bytes < need and len(self._ring.slots) > MIN_SLOTS:
                slot = needed_last(self._ring, cursors)
                if slot is None:
                    break
                self.remove_slot(slot)
                self._shrunk_at = self._ring.n_returned
            if self.budget.spare_bytes < need and len(self._ring.slots) <= MIN_SLOTS:
                self._ask_readers_to_make_way()
            self._lately_requested_bytes = max(self._lately_requested_bytes, need)
            self._ticks_since_request = 0
            if self.budget.spare_bytes >= need:
                self.budget.large_bytes += need
                reader.grant_memory(need, self._clock())
        waiting = [reader for reader in readers if reader.needs_bytes]
        is_blocked = self._no_decode_helps and self._ring.count(Content.FILLING) > 1
        self.making_room = bool(waiting) and (self.making_room or is_blocked)
        if is_blocked:
            self._make_room(waiting)

    def help_stalled(self) -> bool:
        """Do what can be done for a loop that waits while every slot is held; return whether anything was done.

        What was taken from the ring for want of memory, or for more readers, comes back: a loop that holds many batches
        goes on as long as the plan has the slots.
        """
        wanted = min(self.budget.plan.n_slots, self._ring.leased_slots + 2)  # one to grant, one to fill
        if self.target.n_slots < wanted:
            self.needs = dataclasses.replace(self.needs, n_slots=max(self.needs.n_slots, wanted))
            return True
        if self._lately_requested_bytes and not any(reader.needs_bytes for reader in self._pool.readers.values()):
            self._lately_requested_bytes = 0  # a loop waits now; a large decode may never come again
            if self.may_grow():
                return True
        return self._ask_readers_to_make_way()

    def _ask_readers_to_make_way(self) -> bool:
        """Retire the readers that were added for loops that wait, as memory is needed; return whether any are there."""
        plan = self.budget.plan
        self.needs = dataclasses.replace(self.needs, fewer_readers=plan.n_readers > plan.asked_readers)
        return self.budget.n_readers > plan.asked_readers

    @property
    def starved(self) -> bool:
        """Whether a reader waits for memory that only leased slots can give back."""
        return self._no_decode_helps and self._ring.count(Content.FILLING) < 2

    @property
    def _no_decode_helps(self) -> bool:
        """Whether a reader waits for memory, and no other is at work that would give some back or finish a slot."""
        readers = [reader for reader in self._pool.readers.values() if not reader.stuck]
        works_on = any((reader.chunks or not reader.ready) and not reader.needs_bytes for reader in readers)
        return self.budget.large_bytes == 0 and not works_on and any(reader.needs_bytes for reader in readers)

    def outgrown(self, reader: ReaderHandle, n_bytes: int) -> None:
        """Replace a reader that takes more than its share by a fresh one."""
        self.outgrown_readers += 1
        if self.outgrown_readers == 1:
            log.warning(
                "reader %d (pid %d) has grown to %s and a reader's share is %s: replacing it by a fresh one, and every "
                "other that grows (logged once; does a transform keep what it has seen?)",
                reader.number, reader.pid, format_bytes(n_bytes), format_bytes(self.budget.plan.reader_share_bytes),
            )  # fmt: skip
        if not reader.retiring:
            reader.retire()

    # --- what is in use

    def measure(self, *, exact: bool = True) -> Footprint:
        """Measure the footprint now: every process of the daemon, the ring's allocated blocks, the queues.

        An upper bound of it, unless `exact`: that costs some milliseconds.
        """
        ring_bytes = sum(slot.segment.allocated_bytes for slot in self._ring.slots.values())
        pids = [os.getpid(), *self._pool.pids]
        footprint = measure(pids, ring_bytes, self.budget.plan.source_bytes, exact=exact)
        if self._demand is not None:
            footprint = dataclasses.replace(footprint, queue_bytes=self._demand.queue_bytes)
        if exact:
            self.max_footprint_bytes = max(self.max_footprint_bytes, footprint.total_bytes)
        return footprint

    def verify(self, cursors: Sequence[Cursor]) -> None:
        """Measure, and give memory back if it is too much: a reader that has grown first, then a slot.

        Too much is more than the budget, or than a control group's limit that was lowered while the daemon runs. Where
        an upper bound is within it, as nearly always, that is enough, but for a look now and then for `status`.
        """
        self._ticks += 1
        self._ticks_since_request += 1
        self._no_growth_ticks = max(0, self._no_growth_ticks - 1)
        if self._ticks_since_request > _FORGET_REQUEST_TICKS:
            self._lately_requested_bytes = 0
            self.budget.shrink()
        in_force = min([Limit(self.budget.in_force_bytes, "budget"), *cgroup_limits()], key=lambda limit: limit.n_bytes)
        footprint = self.measure(exact=self._ticks % _EXACT_EVERY_TICKS == 1)
        if footprint.total_bytes > in_force.n_bytes:
            footprint = self.measure()
        if footprint.total_bytes <= in_force.n_bytes:
            self._warned = False
            return
        readers = [reader for reader in self._pool.readers.values() if reader.ready and not reader.retiring]
        largest = max(readers, key=lambda reader: footprint.processes.get(reader.pid, 0), default=None)
        share = self.budget.plan.reader_share_bytes
        if not self._warned:
            self._warned = True
            log.warning(
                "footprint %s is over the limit of %s (%s); giving memory back",
                format_bytes(footprint.total_bytes),
                format_bytes(in_force.n_bytes),
                in_force.source,
            )
        spare = needed_last(self._ring, cursors)
        if largest is not None and footprint.processes.get(largest.pid, 0) > share + largest.has_bytes:
            largest.retire()
        elif spare is not None and len(self._ring.slots) > MIN_SLOTS:
            self.remove_slot(spare)
            self._no_growth_ticks = _NO_GROWTH_TICKS
