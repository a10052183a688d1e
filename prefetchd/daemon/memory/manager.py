"""The memory manager: the ring's growth, the readers' requests, and the check that the budget holds.

Everything that takes memory asks here first (`add_slot`, `serve_wishes`); `verify` measures what is really in use and
gives back if it is too much. Owned by the daemon's loop; `budget` has the arithmetic.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

from prefetchd.config.units import format_bytes
from prefetchd.daemon.memory.limits import Limit, cgroup_limits
from prefetchd.daemon.memory.plan import MIN_SLOTS, Budget, Footprint, Plan, measure
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.reader_handle import ReaderHandle
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.scheduler import needed_last, to_give_back
from prefetchd.errors import BudgetError, PrefetchdError
from prefetchd.ipc.descriptors import check_descriptors
from prefetchd.ring.segment import SHM_FOLDER, Segment, shm_free_bytes
from prefetchd.ring.slots import Ring, Slot

log = logging.getLogger("prefetchd")

_EXACT_EVERY_TICKS = 16
_NO_GROWTH_TICKS = 20  # after the budget was exceeded
_FORGET_REQUEST_TICKS = 20  # a ring that grows between any two large decodes would only be shrunk again


class MemoryManager:
    """Holds the daemon to its budget.

    Args:
        budget: what may be taken and what has been.
        ring: the ring, which it grows and shrinks.
        pool: the readers, whose wishes it grants.
        on_removed: called with each slot that is given up.
        mail_bytes: what consumers' mailboxes take.
    """

    def __init__(
        self,
        budget: Budget,
        ring: Ring,
        pool: Pool,
        *,
        on_removed: Callable[[Slot], None],
        mail_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        self.budget = budget
        self.max_footprint_bytes = 0
        self.outgrown_readers = 0
        self.slots_wanted = budget.plan.n_slots
        self.slots_needed = 0  # for loops that hold many, when memory is short
        self.readers_in_the_way = False  # added for loops that wait, and what they take is needed elsewhere
        self._no_growth_ticks = 0
        self._ring = ring
        self._pool = pool
        self._on_removed = on_removed
        self._mail_bytes = mail_bytes
        self._warned = False
        self._grown_out = False
        self._lately_requested_bytes = 0
        self._ticks = self._ticks_since_request = 0

    def may_grow(self) -> bool:
        """Whether the plan and the budget hold one more slot, besides the large decodes seen lately."""
        if self._no_growth_ticks or len(self._ring.slots) >= self.slots_wanted:
            return False
        return self.budget.spare_bytes - self._lately_requested_bytes >= self.budget.plan.slot_bytes

    def replan(self, plan: Plan) -> None:
        """Let another plan be in force; ring and readers follow as they can."""
        self.budget.plan = plan
        self.slots_wanted = plan.n_slots

    def shrink(self, cursors: Sequence[Cursor]) -> None:
        """Give back slots beyond what is wanted, those that are needed last first; held ones when they come back."""
        while (slot := to_give_back(self._ring, cursors, self.slots_wanted)) is not None:
            self.remove_slot(slot)

    @property
    def starved(self) -> bool:
        """Whether a reader waits for memory that no other decode will give back: only leased slots are left."""
        return self.budget.large_bytes == 0 and any(reader.needs_bytes for reader in self._pool.readers.values())

    @property
    def segments(self) -> str:
        """What to say of where the slots are, if they are not in `/dev/shm`."""
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
        slot = self._ring.add(segment)
        self.budget.ring_bytes += slot.segment.n_bytes

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
            if not self._grown_out:
                self._grown_out = True
                log.warning("going on with %d of %d slots: %s", len(self._ring.slots), self.slots_wanted, error)

    def remove_slot(self, slot: Slot) -> None:
        """Give a reusable slot back to the machine."""
        self._pool.remove_slot(slot)
        self._on_removed(slot)
        self.budget.ring_bytes -= slot.segment.n_bytes
        self._ring.remove(slot)

    def serve_requests(self, cursors: Sequence[Cursor]) -> None:
        """Grant the readers that wait for working memory what fits, making room in the ring if need be.

        `cursors` tell which batches are needed last, and are given up first.
        """
        readers = sorted(self._pool.readers.values(), key=lambda reader: reader.number)
        self.budget.large_bytes = sum(reader.has_bytes for reader in readers)
        for reader in readers:
            need = reader.needs_bytes
            if not need:
                continue
            if need > self.budget.largest_decode_bytes:
                self._refuse_memory(reader, need)
                continue
            while self.budget.spare_bytes < need and len(self._ring.slots) > MIN_SLOTS:
                slot = needed_last(self._ring, cursors)
                if slot is None:
                    break
                self.remove_slot(slot)
            if self.budget.spare_bytes < need and len(self._ring.slots) <= MIN_SLOTS:
                self.ask_readers_to_make_way()
            self._lately_requested_bytes = max(self._lately_requested_bytes, need)
            self._ticks_since_request = 0
            if self.budget.spare_bytes >= need:
                self.budget.large_bytes += need
                self._pool.grant_memory(reader, need)

    def help_stalled(self) -> bool:
        """Do what there is to do for a loop that stands still while every slot is held; whether there is anything.

        What was taken from the ring for want of memory, or for more readers, comes back: a loop that holds many batches
        goes on as long as the plan has the slots.
        """
        wanted = min(self.budget.plan.n_slots, self._ring.leased_slots + 2)  # one to grant, one to fill
        if self.slots_wanted < wanted:
            self.slots_wanted = self.slots_needed = wanted
            return True
        return self.ask_readers_to_make_way()

    def ask_readers_to_make_way(self) -> bool:
        """Have those go that were added for loops that wait, as their memory is needed; whether there are any."""
        if self.budget.n_readers <= (self.budget.plan.asked_readers or self.budget.n_readers):
            return False
        self.readers_in_the_way = True
        return True

    def _refuse_memory(self, reader: ReaderHandle, need: int) -> None:
        chunk = next(iter(reader.chunks.values()))
        text = (
            f"cannot decode a sample of epoch {chunk.job.epoch} batch {chunk.job.batch}: it takes "
            f"{format_bytes(need)} of working memory and the budget of {format_bytes(self.budget.plan.budget_bytes)} "
            f"can give one decode {format_bytes(self.budget.largest_decode_bytes)}; "
            f"give --memory-budget {self.budget.budget_for(need)}MiB, or lower --max-image-pixels"
        )
        chunk.job.fail(text, "BudgetError")
        self._pool.deny_memory(reader, text)

    def outgrown(self, reader: ReaderHandle, n_bytes: int) -> None:
        """A reader has found that it takes more than its share: have a fresh one in its place."""
        self.outgrown_readers += 1
        if self.outgrown_readers == 1:
            log.warning(
                "reader %d (pid %d) has grown to %s and a reader's share is %s: replacing it by a fresh one, and every "
                "other that grows (said once; does a transform keep what it has seen?)",
                reader.number, reader.pid, format_bytes(n_bytes), format_bytes(self.budget.plan.reader_share_bytes),
            )  # fmt: skip
        if not reader.retiring:
            reader.retire()

    def measure(self, *, exact: bool = True) -> Footprint:
        """Measure the footprint now: every process of the daemon, the ring's allocated blocks, mailboxes.

        An upper bound of it, unless `exact`: that costs some milliseconds.
        """
        ring_bytes = sum(slot.segment.allocated_bytes for slot in self._ring.slots.values())
        pids = [os.getpid(), *self._pool.pids]
        footprint = measure(pids, ring_bytes, self.budget.plan.source_bytes, exact=exact)
        footprint = dataclasses.replace(footprint, mail_bytes=self._mail_bytes())
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
