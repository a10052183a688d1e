"""The front desk: everybody who is here, from the door to their end; serves them all after each round of events.

    door -> entered -> Attach -> attached -> OpenCursor -> served (grants ... Release) -> CloseCursor ... -> buried

Owned by the daemon's loop; each step has a room of its own: `door`, `hearing`, `admission`, `openings`, `granting`,
`releases`. A consumer lives until its process ends (by pidfd: a forked child may keep its socket open), or its socket
ends with no lease out; its leases end with it.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from prefetchd.config.units import format_count
from prefetchd.daemon.consumers.acceptor import Door, most_consumers
from prefetchd.daemon.consumers.attach import Admission
from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.grants import Granter
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.consumers.loops import Openings, StartLine
from prefetchd.daemon.consumers.message_handler import Hearing
from prefetchd.daemon.consumers.releases import Releases
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import MIN_SLOTS
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.daemon.schedule.pacing import Pacer
from prefetchd.daemon.schedule.scheduler import Reserve
from prefetchd.ipc import messages
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring import queues
from prefetchd.ring.slots import Ring, Slot
from prefetchd.sampling.sharding import Shard

log = logging.getLogger("prefetchd")

_RETRY_S = 0.1
_LAST_WORDS = 16  # times that a dead consumer is listened to


class FrontDesk:
    """All consumers of one daemon.

    Args:
        datasets: what is served; told to whoever attaches.
        ring, batch builder, memory manager: borrowed; leases come from the ring, failures from the batch builder.
        loop: where its sockets and pidfds are watched.
        status: makes the answer to `prefetchd status`.
        change: changes options for `prefetchd set`; returns what that gave.
        stop: ends the daemon.
        linger_s: after how long without a consumer it does so; `None` for never.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        ring: Ring,
        builder: BatchBuilder,
        memory: MemoryManager,
        loop: EventLoop,
        *,
        status: Callable[[], dict[str, Any]],
        change: Callable[[dict[str, str]], str],
        stop: Callable[[], None],
        linger_s: float | None = None,
    ) -> None:
        self.consumers: dict[int, Consumer] = {}
        self.granter = Granter(ring, builder, memory, self.consumers)
        self._admission = Admission(datasets, self.consumers, memory)
        self._groups = Groups(ring, self.granter)
        self._releases = Releases(self.consumers, ring, self._groups, loop, self._wants_slots)
        openings = Openings(
            self.consumers,
            self._groups,
            StartLine(self.consumers, loop),
            ring,
            builder,
            memory,
            patience_s=datasets[0].config.patience,
        )
        self._datasets = datasets
        self._ring = ring
        self._builder = builder
        self._memory = memory
        self._loop = loop
        self._hearing = Hearing(
            self.consumers,
            self._admission,
            openings,
            self._releases,
            self._groups,
            status=status,
            change=change,
            stop=stop,
            hang_up=self._hang_up,
        )
        self._door = Door(
            self.consumers,
            most_consumers(),
            loop,
            enter=self._enter,
            send_away=self._bury,
            stop=stop,
            linger_s=linger_s,
        )
        self._stop = stop
        self._private = False
        self._pacer = Pacer()
        self._look_again_s = 0.0
        self._retrying = False

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to `listener`, which the desk then owns."""
        self._door.open(listener)

    def serve_only(self, sock: socket.socket) -> None:
        """Serve one connection, and end the daemon with it."""
        self._private = True
        self._door.admit(sock)

    def _enter(self, consumer: Consumer) -> None:
        self.consumers[consumer.number] = consumer
        self._loop.watch(consumer.sock.fileno(), functools.partial(self._hear, consumer))
        self._loop.watch(consumer.pidfd, functools.partial(self._has_died, consumer))

    def _hear(self, consumer: Consumer) -> None:
        self._hearing.hear(consumer)

    @property
    def cursors(self) -> list[Cursor]:
        """Where all loops are; the start of the first epoch if there is none, so that its batches stand ready."""
        cursors = [consumer.cursor for consumer in self.consumers.values() if consumer.cursor is not None]
        cursors += self._groups.cursors
        return cursors or [
            Cursor(0, 0, dataset.number, Shard(dataset.order.batches_per_epoch), open=False)
            for dataset in self._datasets
        ]

    @property
    def promised_slots(self) -> int:
        """How many slots those attached need, and the readers to fill: fewer could not deliver one batch at a time."""
        return max(MIN_SLOTS, self._admission.least_slots)

    @property
    def mail_bytes(self) -> int:
        """What the consumers' mailboxes and pages of returned leases take."""
        each = queues.GRANT_QUEUE_BYTES + queues.RETURN_QUEUE_BYTES
        return each * sum(consumer.outbox is not None for consumer in self.consumers.values())

    def take_back_noted(self) -> None:
        """Take back the leases that consumers have noted, and not told yet, to have ended."""
        self._releases.take_back_noted()

    def serve_all(self) -> None:
        """Grant every consumer what is ready for it."""
        reserve = Reserve(self._ring, self.cursors)
        for consumer in list(self.consumers.values()):
            if not consumer.held_back:
                self.granter.grant(consumer, reserve)
        self._groups.serve(reserve)
        self._releases.look_for_notes()
        self._pace()
        if not self._retrying and any(consumer.blocked for consumer in self.consumers.values()):
            self._retrying = True
            self._loop.call_later(_RETRY_S, self._unblock)

    def _wants_slots(self) -> bool:
        return len(self._ring.slots) > self._memory.slots_wanted or any(cursor.waiting for cursor in self.cursors)

    def _unblock(self) -> None:
        """Look whether those whose sockets were full have read."""
        self._retrying = False
        for consumer in self.consumers.values():
            if consumer.blocked:
                consumer.unblock()

    def _pace(self) -> None:
        """Let the time that loops stand still count against the patience of those whom they wait for."""
        if len(self.consumers) < 2 and not self._pacer.waits:
            return
        now_s = self._loop.clock()
        look_s, spent = self._pacer.look(now_s, self._ring, self.cursors, self._builder.failed)
        for cursor in spent:
            consumer = self.consumers.get(cursor.consumer)
            if consumer is not None:
                log.info(
                    "the loop of pid %d was waited for for %g s in epoch %d; it goes on alone until it has caught up",
                    consumer.pid, cursor.patience_s, cursor.epoch,
                )  # fmt: skip
        if spent:
            self._loop.call_later(0, lambda: None)  # come round again: those who waited go on
        if look_s is not None and not now_s < self._look_again_s <= now_s + look_s:
            self._look_again_s = now_s + look_s
            self._loop.call_later(look_s, lambda: None)

    @property
    def passes(self) -> dict[int, Cursor]:
        """The cursors that members of groups share, by the consumer's number."""
        return self._groups.passes

    @property
    def waited_for(self) -> set[int]:
        """The consumers that others stand still for now."""
        return {cursor.consumer for cursor in self._pacer.waits.values()}

    def slot_removed(self, slot: Slot) -> None:
        """Tell whoever knows the slot that it is gone."""
        for consumer in self.consumers.values():
            if slot.number in consumer.slots:
                consumer.slots.discard(slot.number)
                consumer.send_sooner_or_later(messages.SlotClosed(slot.number))

    def tell_all(self, message: messages.Message) -> None:
        """Send a message to every consumer."""
        for consumer in self.consumers.values():
            consumer.send(message)

    def close(self) -> None:
        """End every connection; what consumers hold stays valid in their maps."""
        self._door.close()
        for consumer in list(self.consumers.values()):
            self._bury(consumer)

    def _hang_up(self, consumer: Consumer) -> None:
        """The consumer's socket has ended. What it holds, or may have taken, stays until its process ends."""
        self._releases.take_back_noted_by(consumer)  # the end may be all that tells of the last views
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        consumer.set_waiting(False)
        if (group := self._groups.of(consumer)) is not None:
            group.hung_up(consumer)
        consumer.cursor = None
        consumer.held_back = False
        if self._private:
            self._stop()  # the loader was closed; views outlive the daemon
        elif not self._ring.held_by(consumer.number):
            self._bury(consumer)

    def _has_died(self, consumer: Consumer) -> None:
        """The consumer's process has ended. What it said last is heard first: a group gives no batch again for that."""
        for _ in range(_LAST_WORDS):  # a child that it forked may talk on
            if consumer.sock.fileno() < 0 or not self._hearing.hear(consumer):
                break
        self._bury(consumer)

    def _bury(self, consumer: Consumer) -> None:
        """The consumer's process has ended, or nothing of it is left."""
        if consumer.number not in self.consumers:
            return
        self._releases.take_back_noted_by(consumer)
        del self.consumers[consumer.number]
        if not self.consumers:
            self._door.nobody_inside()
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        self._loop.unwatch(consumer.pidfd)
        os.close(consumer.pidfd)
        if (group := self._groups.of(consumer)) is not None:
            group.died(consumer)
        if consumer.outbox is not None:
            consumer.outbox.close()
        if consumer.returned is not None:
            consumer.returned.close()
        returned = self._ring.release_all(consumer.number)
        if returned:
            log.info(
                "consumer %d (pid %d) ended holding %s, free again",
                consumer.number,
                consumer.pid,
                format_count(returned, "slot"),
            )
