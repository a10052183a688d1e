"""The consumers' manager: all connections of a daemon, from their start to their end. Serves them after each round.

    acceptor -> added -> Attach -> OpenCursor -> served (grants ... Release) -> CloseCursor ... -> removed

Owned by the daemon's event loop. Each step is a part of its own: `attach`, `message_handler`, `loops`, `grants`,
`groups`. `consumer` says how long a consumer lives; its leases end with it.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Sequence

from prefetchd.config.units import format_count
from prefetchd.daemon.consumers.attach import Acceptor, Attaching, most_consumers
from prefetchd.daemon.consumers.consumer import Consumer, Control, State
from prefetchd.daemon.consumers.grants import Granter
from prefetchd.daemon.consumers.groups import Groups
from prefetchd.daemon.consumers.loops import Loops, StartLine
from prefetchd.daemon.consumers.message_handler import MessageHandler, Releases
from prefetchd.daemon.consumers.steady import SteadyLoops
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
_LAST_READS = 16  # times that the socket of a dead consumer is read


class ConsumerManager:
    """All consumers of one daemon.

    Args:
        datasets: those that are served.
        ring, builder, memory: borrowed.
        loop: watches sockets and pidfds.
        control: what consumers and commands may ask of the daemon.
        linger_s: ends the daemon after so many seconds without a consumer; `None` for never.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        ring: Ring,
        builder: BatchBuilder,
        memory: MemoryManager,
        loop: EventLoop,
        control: Control,
        *,
        linger_s: float | None = None,
    ) -> None:
        self.consumers: dict[int, Consumer] = {}
        self.granter = Granter(ring, builder, memory, self.consumers, loop.clock)
        self.groups = Groups(ring, self.granter)
        self.pacer = Pacer()
        self._datasets = datasets
        self._ring = ring
        self._builder = builder
        self._loop = loop
        self._memory = memory
        self._control = control
        self._steady = SteadyLoops(self.consumers, loop)
        self._attaching = Attaching(datasets, self.consumers, memory)
        self._releases = Releases(self.consumers, ring, self.groups, memory, loop)
        start_line = StartLine(self.consumers, loop)
        patience_s = datasets[0].config.patience
        loops = Loops(self.consumers, self.groups, start_line, ring, builder, memory, patience_s)
        self._acceptor = Acceptor(self.consumers, most_consumers(), loop, control, self._add, self._remove, linger_s)
        self._messages = MessageHandler(
            self.consumers, self._attaching, loops, self._releases, control, self._acceptor.admit, self._disconnect
        )
        self._owner: Consumer | None = None  # of a private daemon
        self._look_again_s = 0.0
        self._retrying = False

    # --- connections

    def listen(self, listener: socket.socket) -> None:
        """Serve each connection to `listener`, which the manager then owns."""
        self._acceptor.listen(listener)

    def serve_only(self, sock: socket.socket) -> None:
        """Serve one connection, and those that it adds; end the daemon with it."""
        self._owner = self._acceptor.admit(sock)

    def _add(self, consumer: Consumer) -> None:
        self.consumers[consumer.number] = consumer
        self._loop.watch(consumer.socket.fileno(), functools.partial(self._messages.read, consumer))
        self._loop.watch(consumer.pidfd, functools.partial(self._process_ended, consumer))

    def _disconnect(self, consumer: Consumer) -> None:
        """End the connection. What the consumer holds, or may have taken, stays until its process ends."""
        self._releases.read_queue(consumer)  # the last views may be recorded there only
        self._close_socket(consumer)
        if consumer is self._owner:
            self._control.stop()  # the loader was closed; views outlive the daemon
        elif not self._ring.held_by(consumer.number):
            self._remove(consumer)

    def _close_socket(self, consumer: Consumer) -> None:
        if consumer.socket.fileno() >= 0:
            self._loop.unwatch(consumer.socket.fileno())
            consumer.socket.close()
            consumer.become(State.DISCONNECTED)
        consumer.cursor = None
        consumer.hold_back(False)

    def _process_ended(self, consumer: Consumer) -> None:
        """Remove a consumer whose process has ended, after its last messages: a group gives no batch again for them."""
        for _ in range(_LAST_READS):  # a forked child of it may go on to send
            if consumer.socket.fileno() < 0 or not self._messages.read(consumer):
                break
        self._remove(consumer)

    def _remove(self, consumer: Consumer) -> None:
        """Drop a consumer whose process has ended, or of which nothing is left."""
        if consumer.number not in self.consumers:
            return
        self._releases.read_queue(consumer)
        del self.consumers[consumer.number]
        self.pacer.forget(consumer.number)
        if not self.consumers:
            self._acceptor.emptied()
        self._close_socket(consumer)
        self._loop.unwatch(consumer.pidfd)
        os.close(consumer.pidfd)
        if (group := self.groups.of(consumer)) is not None:
            group.leave(consumer)
        if consumer.attachment is not None:
            consumer.attachment.close()
        returned = self._ring.release_all(consumer.number)
        if returned:
            log.info(
                "consumer %d (pid %d) ended and gave back %s",
                consumer.number,
                consumer.pid,
                format_count(returned, "slot"),
            )

    def send_to_all(self, message: messages.Message) -> None:
        """Send a message to every consumer."""
        for consumer in self.consumers.values():
            consumer.socket.send(message)

    def close(self) -> None:
        """End every connection; what consumers hold stays valid in their maps."""
        self._acceptor.close()
        for consumer in list(self.consumers.values()):
            self._remove(consumer)

    # --- what the scheduler and the memory manager ask

    @property
    def cursors(self) -> list[Cursor]:
        """Where all loops are; without any, the front of each data set, so that its first batches are ready."""
        cursors = [cursor for consumer in self.consumers.values() if (cursor := consumer.own_cursor) is not None]
        cursors += self.groups.cursors
        return cursors or [
            Cursor(0, 0, dataset.number, Shard(dataset.order.batches_per_epoch), open=False)
            for dataset in self._datasets
        ]

    @property
    def promised_slots(self) -> int:
        """The fewest slots with which each attached consumer gets its batches, and the readers have one to fill."""
        return max(MIN_SLOTS, self._attaching.least_slots)

    @property
    def comfortable_slots(self) -> int:
        """How many slots serve the attached consumers well: what each is guaranteed, and two to fill."""
        attachments = [consumer.attachment for consumer in self.consumers.values() if consumer.is_attached]
        return sum(attachment.request.guaranteed_slots for attachment in attachments if attachment is not None) + 2

    @property
    def queue_bytes(self) -> int:
        """The memory of the consumers' queues."""
        each = queues.GRANT_QUEUE_BYTES + queues.RETURN_QUEUE_BYTES
        return each * sum(consumer.attachment is not None for consumer in self.consumers.values())

    def slot_removed(self, slot: Slot) -> None:
        """Tell the consumers that know a slot that it is gone."""
        for consumer in self.consumers.values():
            consumer.socket.close_slot(slot)

    # --- each round

    def read_queues(self) -> None:
        """Take back the leases that consumers have written to their return queues."""
        self._releases.read_queues()

    def serve_all(self) -> bool:
        """Grant every consumer what is ready for it; return whether there was a grant while a loop still waits."""
        n_before = self.granter.delivered
        reserve = Reserve(self._ring, self.cursors)
        for consumer in list(self.consumers.values()):
            if not consumer.held_back:
                self.granter.grant(consumer, reserve)
        self.groups.serve(reserve)
        self._releases.poll_queues()
        self._steady.look(has_plenty=self._has_plenty)
        self._pace()
        if not self._retrying and any(consumer.socket.blocked for consumer in self.consumers.values()):
            self._retrying = True
            self._loop.call_later(_RETRY_S, self._unblock)
        return self.granter.delivered > n_before and any(consumer.is_waiting for consumer in self.consumers.values())

    @property
    def _has_plenty(self) -> bool:
        """Whether no loop waits, and nobody needs a slot at once; loops with many grants ahead send no messages."""
        memory = self._memory
        return (
            self.granter.grants_ahead == 1
            and len(self._ring.slots) <= memory.target.n_slots
            and not memory.making_room
            and not any(consumer.is_waiting for consumer in self.consumers.values())
        )

    def _unblock(self) -> None:
        self._retrying = False
        for consumer in self.consumers.values():
            if consumer.socket.blocked:
                consumer.socket.unblock()

    def _pace(self) -> None:
        """Charge the time that loops wait for a slower one to that one's patience."""
        if len(self.consumers) < 2 and not self.pacer.waits:
            return
        now_s = self._loop.clock()
        look_s, spent = self.pacer.look(now_s, self._ring, self.cursors, self._builder.failed)
        for cursor in spent:
            consumer = self.consumers.get(cursor.consumer)
            if consumer is not None:
                log.info(
                    "others have waited %g s for the loop of pid %d in epoch %d and go on without it",
                    cursor.patience_s, consumer.pid, cursor.epoch,
                )  # fmt: skip
        if spent:
            self._loop.call_later(0, lambda: None)  # come round again: those that waited go on
        if look_s is not None and not now_s < self._look_again_s <= now_s + look_s:
            self._look_again_s = now_s + look_s
            self._loop.call_later(look_s, lambda: None)
