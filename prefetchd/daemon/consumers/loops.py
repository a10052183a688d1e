"""Where loops begin and end: from `OpenCursor` to a cursor that is served, and back. A part of the front desk.

    OpenCursor -> shard, cursor, place among the others -> start line -> served (granting) -> CloseCursor

A consumer has one loop at a time; another `OpenCursor` ends the one before. What a loop was granted and has not taken
goes back when it ends. A loop that would stand too far from the others for the ring is told so, with numbers.

The start line: loaders whose first loops begin together (`start_together`), as in a sweep. A part of the front desk.

A loader that has arrived is held back until as many have as it was told. If they do not come in time, each hears how
many did; one that dies while it waits is not counted any more.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.windows import arrange_patiently, join_window, most_windows, n_places
from prefetchd.ipc import messages
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.slots import Ring
from prefetchd.sampling.sharding import Shard


class StartLine:
    """Holds consumers back until they can begin together; borrows consumers and loop."""

    def __init__(self, consumers: Mapping[int, Consumer], loop: EventLoop) -> None:
        self._consumers = consumers
        self._loop = loop
        self._serials: dict[int, int] = {}  # by consumer: the loop that it waits with

    def arrive(self, consumer: Consumer, serial: int) -> None:
        """Hold a consumer's first loop back until all are here; only the first."""
        if consumer.start_together < 2:
            return
        consumer.held_back = True
        self._serials[consumer.number] = serial
        if consumer.cursor is not None:
            consumer.cursor.patience_left_s = 0.0  # those who run already do not wait for it
        here = self._waiting_with(consumer)
        if len(here) >= consumer.start_together:
            for other in here:
                other.held_back, other.start_together = False, 0
                self._serials.pop(other.number, None)
                if other.cursor is not None:
                    other.cursor.patience_left_s = other.cursor.patience_s
            return
        self._loop.call_later(consumer.start_timeout_s, functools.partial(self._give_up, consumer, serial))

    def _waiting_with(self, consumer: Consumer) -> list[Consumer]:
        mine = consumer.dataset, consumer.start_together
        return [
            other
            for other in self._consumers.values()
            if other.held_back and (other.dataset, other.start_together) == mine
        ]

    def _give_up(self, consumer: Consumer, serial: int) -> None:
        if self._serials.get(consumer.number) != serial:
            return  # it has started, or waits with another loop, for which there is another time
        del self._serials[consumer.number]
        if not consumer.held_back or consumer.number not in self._consumers:
            return
        here = self._waiting_with(consumer)
        consumer.held_back = False
        if consumer.cursor is not None:
            consumer.cursor.open = False
        pids = ", ".join(str(other.pid) for other in here)
        text = (
            f"cannot start together: {len(here)} of {consumer.start_together} loaders have begun within "
            f"{consumer.start_timeout_s:g} s (pids {pids}); start the others, give a longer timeout, or lower "
            "start_together"
        )
        consumer.send_sooner_or_later(messages.Failed(serial, "PrefetchdError", text))


class Openings:
    """Begins and ends the consumers' loops; borrows all that it works with."""

    def __init__(
        self,
        consumers: Mapping[int, Consumer],
        groups: Groups,
        start_line: StartLine,
        ring: Ring,
        builder: BatchBuilder,
        memory: MemoryManager,
        patience_s: float,
    ) -> None:
        self._consumers = consumers
        self._groups = groups
        self._start_line = start_line
        self._ring = ring
        self._builder = builder
        self._memory = memory
        self._patience_s = patience_s

    def begin(self, consumer: Consumer, message: messages.OpenCursor) -> bool:
        """Begin a loop where the message says, in place of the consumer's last; `False` if that makes no sense."""
        dataset = consumer.dataset
        if not consumer.attached or dataset is None or message.rank >= message.world_size:
            return False
        self._drop_untaken(consumer, message.taken)
        self._builder.failed.clear()  # a new loop tries again: the file may have been mended
        shard = Shard(
            dataset.order.batches_per_epoch,
            message.rank,
            message.world_size,
            dataset.config.drop_last,
            message.rotation,
        )
        if (message.batch and not shard.steps(message.batch)) or (message.rotation and message.world_size > 1):
            return False
        assert consumer.outbox is not None
        consumer.outbox.open(message.serial)
        if (group := self._groups.of(consumer)) is not None:
            group.begin(consumer, message)
        else:
            consumer.stalled = False
            consumer.set_waiting(False)
            consumer.cursor = self._place(consumer, dataset, shard, message)
            if consumer.cursor is None:
                return True
        self._start_line.arrive(consumer, message.serial)
        return True

    def _place(self, consumer: Consumer, dataset: Dataset, shard: Shard, message: messages.OpenCursor) -> Cursor | None:
        """Return the loop's cursor; `None`, and tell the consumer, if the ring is too small for one more place."""
        cursor = Cursor(
            consumer.number,
            message.serial,
            dataset.number,
            shard,
            message.epoch,
            message.batch,
            guaranteed_slots=consumer.guaranteed_slots,
            stop_epoch=message.stop_epoch,
            patience_s=self._patience_s,
        )
        running = [
            other.cursor
            for other in self._consumers.values()
            if other is not consumer and other.cursor is not None and other.cursor.open
        ]
        if message.join:
            join_window(cursor, running)
        n_slots = self._memory.budget.plan.n_slots
        windows = n_places(arrange_patiently([*running, cursor], n_slots))
        if running and windows > most_windows(n_slots):
            consumer.send_sooner_or_later(
                messages.Failed(
                    message.serial,
                    "BudgetError",
                    f"cannot begin here: loops would be at {windows} places far apart, and the ring's {n_slots} slots "
                    f"are enough for {most_windows(n_slots)}; begin where the others are, or give the daemon "
                    f"--memory-budget {self._memory.budget.budget_for_slots(2 * windows + 1)}MiB",
                )
            )
            return None
        return cursor

    def end(self, consumer: Consumer, message: messages.CloseCursor) -> None:
        """A loop has ended. It may be one that the consumer left before it began its present one: that goes on."""
        cursor = consumer.cursor
        if (group := self._groups.of(consumer)) is not None:
            if group.is_at(consumer, message.serial):
                group.end(consumer, message.taken)
                self._drop_untaken(consumer, message.taken)
                consumer.held_back = False
        elif cursor is not None and cursor.serial == message.serial:
            self._drop_untaken(consumer, message.taken)
            consumer.held_back = False
            cursor.open = False
            consumer.set_waiting(False)
            if cursor.step:  # the next loop begins a new epoch
                cursor.begin_epoch(cursor.epoch + 1)

    def _drop_untaken(self, consumer: Consumer, taken: int) -> None:
        consumer.took(taken)
        for lease in consumer.untaken:
            self._ring.release(lease, consumer.number)
        consumer.untaken.clear()
