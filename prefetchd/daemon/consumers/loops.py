"""Loops: where they begin and end, from `OpenCursor` to `CloseCursor`.

    OpenCursor -> shard, cursor, place among the others -> start line -> grants ... -> CloseCursor

A consumer has one loop at a time; another `OpenCursor` ends the one before. What a loop was granted and has not taken
goes back when it ends. A loop that would be too far from the others for the ring is refused, with numbers.

The start line holds back loaders whose first loops begin together (`start_together`), as in a sweep, until as many have
arrived as they said. If they do not arrive in time, each of them gets an error that says how many did. One that dies
while it waits no longer counts.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from prefetchd.daemon.consumers.consumer import Attachment, Consumer, State
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.windows import arrange_patiently, join_window, most_windows, n_places
from prefetchd.ipc import messages
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.slots import Ring
from prefetchd.sampling.sharding import Shard


@dataclass(frozen=True, eq=False)
class StartLine:
    """Holds consumers back until they can begin together; borrows consumers and event loop."""

    _consumers: Mapping[int, Consumer]
    _loop: EventLoop

    def arrive(self, consumer: Consumer) -> None:
        """Hold a consumer's first loop back until all are here."""
        assert consumer.attachment is not None
        assert consumer.cursor is not None
        request = consumer.attachment.request
        if consumer.has_started or request.start_together < 2:
            return
        consumer.hold_back(True)
        consumer.cursor.patience_left_s = 0.0  # loops that run already do not wait for it
        here = self._held_back_with(consumer)
        if len(here) < request.start_together:
            give_up = functools.partial(self._give_up, consumer, consumer.cursor)
            self._loop.call_later(request.start_timeout_s, give_up)
            return
        for other in here:
            other.hold_back(False)
            other.has_started = True
            if other.cursor is not None:
                other.cursor.patience_left_s = other.cursor.patience_s

    def _held_back_with(self, consumer: Consumer) -> list[Consumer]:
        return [
            other
            for other in self._consumers.values()
            if other.held_back and _start_of(other.attachment) == _start_of(consumer.attachment)
        ]

    def _give_up(self, consumer: Consumer, cursor: Cursor) -> None:
        if not consumer.held_back or consumer.cursor is not cursor or consumer.number not in self._consumers:
            return  # it has started, has died, or waits with another loop, which has a timer of its own
        assert consumer.attachment is not None
        request = consumer.attachment.request
        here = self._held_back_with(consumer)
        consumer.hold_back(False)
        consumer.become(State.IDLE)
        pids = ", ".join(str(other.pid) for other in here)
        text = (
            f"cannot start together: {len(here)} of {request.start_together} loaders have begun within "
            f"{request.start_timeout_s:g} s (pids {pids}); start the others, give a longer timeout, or lower "
            "start_together"
        )
        consumer.socket.send_surely(messages.Failed(cursor.serial, "PrefetchdError", text))


def _start_of(attachment: Attachment | None) -> tuple[object, int] | None:
    """Return what loaders that start together agree on."""
    return None if attachment is None else (attachment.dataset, attachment.request.start_together)


@dataclass(frozen=True, eq=False)
class Loops:
    """Begins and ends the consumers' loops; borrows all its parts."""

    _consumers: Mapping[int, Consumer]
    _groups: Groups
    _start_line: StartLine
    _ring: Ring
    _builder: BatchBuilder
    _memory: MemoryManager
    _patience_s: float

    def begin(self, consumer: Consumer, message: messages.OpenCursor) -> bool:
        """Begin a loop where the message says, in place of the consumer's last; return `False` if it is not valid."""
        attachment = consumer.attachment
        if attachment is None or message.rank >= message.world_size:
            return False
        self._drop_untaken(consumer, message.taken)
        self._builder.try_again()
        dataset = attachment.dataset
        shard = Shard(
            dataset.order.batches_per_epoch,
            message.rank,
            message.world_size,
            dataset.config.drop_last,
            message.rotation,
        )
        if (message.batch and not shard.steps(message.batch)) or (message.rotation and message.world_size > 1):
            return False
        attachment.grants.open(message.serial)
        if consumer.is_looping:
            consumer.become(State.IDLE)
        consumer.hold_back(False)
        if (group := self._groups.of(consumer)) is not None:
            consumer.cursor = group.begin(consumer, message, attachment.request.guaranteed_slots)
        else:
            consumer.cursor = self._place(consumer, attachment, shard, message)
        if consumer.cursor is not None:
            consumer.become(State.RUNNING)
            rotation = consumer.cursor.shard.rotation
            consumer.socket.send_surely(messages.Opened(message.serial, consumer.cursor.epoch, rotation))
            self._start_line.arrive(consumer)
        return True

    def _place(
        self, consumer: Consumer, attachment: Attachment, shard: Shard, message: messages.OpenCursor
    ) -> Cursor | None:
        """Return the loop's cursor; `None`, and tell the consumer, if the ring is too small for one more place."""
        cursor = Cursor(
            consumer.number,
            message.serial,
            attachment.dataset.number,
            shard,
            message.epoch,
            message.batch,
            guaranteed_slots=attachment.request.guaranteed_slots,
            stop_epoch=message.stop_epoch,
            patience_s=self._patience_s,
        )
        running = [
            other.own_cursor
            for other in self._consumers.values()
            if other is not consumer and other.own_cursor is not None and other.own_cursor.open
        ]
        if message.join:
            join_window(cursor, running)
        n_slots = self._memory.budget.plan.n_slots
        windows = n_places(arrange_patiently([*running, cursor], n_slots))
        needed = 2 * windows + 1
        if running and windows > most_windows(n_slots) and not self._memory.budget.reserve_slots(needed):
            text = (
                f"cannot begin here: loops would be at {windows} places far apart, for which "
                f"{self._memory.budget.too_few_slots(needed)}, or begin where the others are"
            )
            consumer.socket.send_surely(messages.Failed(message.serial, "BudgetError", text))
            return None
        return cursor

    def end(self, consumer: Consumer, message: messages.CloseCursor) -> None:
        """End a loop, unless it is one that the consumer left before it began its present one."""
        cursor = consumer.cursor
        if cursor is None or cursor.serial != message.serial:
            return
        group = self._groups.of(consumer)
        if group is not None:
            group.leave(consumer, message.taken)
        self._drop_untaken(consumer, message.taken)
        consumer.hold_back(False)
        if consumer.is_looping:
            consumer.become(State.IDLE)
        if group is None and cursor.step:  # the next loop begins a new epoch
            cursor.begin_epoch(cursor.epoch + 1)

    def _drop_untaken(self, consumer: Consumer, taken: int) -> None:
        consumer.take(taken)
        for lease in consumer.untaken:
            self._ring.release(lease, consumer.number)
        consumer.untaken.clear()
