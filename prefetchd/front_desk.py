"""The front desk: admits consumers, hears what they say, grants them their batches, and notices when they are gone.

    connect -> admitted -> Attach -> attached -> OpenCursor -> served (grants ... Release) -> CloseCursor ... -> buried

Owned by the daemon's loop. A consumer is a party of its own: whatever it sends that makes no sense ends its connection
and touches nobody else. It lives until its process ends (by pidfd: a forked child may keep its socket open), or its
socket ends with no lease out; its leases end with it.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from prefetchd import __version__, control, messages
from prefetchd.budget import MIN_SLOTS
from prefetchd.class_names import write_classes
from prefetchd.consumers import Consumer
from prefetchd.datasets import Dataset
from prefetchd.descriptor_limit import raise_descriptor_limit
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.foreman import Foreman
from prefetchd.granting import Granter
from prefetchd.guard import Guard
from prefetchd.loop import EventLoop
from prefetchd.mailbox import N_BYTES, Outbox
from prefetchd.scheduler import Cursor, slots_promised
from prefetchd.shard import Shard
from prefetchd.slots import Ring, Slot
from prefetchd.units import format_count

log = logging.getLogger("prefetchd")

MAX_CONSUMERS = 1024
_DESCRIPTORS_EACH = 3  # a consumer's socket, pidfd and mailbox
_DESCRIPTORS_KEPT = 512  # for slots, readers and samples, whoever connects
_INTRODUCTION_S = 10.0
_RETRY_S = 0.1


class FrontDesk:
    """All consumers of one daemon.

    Args:
        datasets: what is served; told to whoever attaches.
        ring, foreman, guard: borrowed; leases come from the ring, failures from the foreman.
        loop: where its sockets and pidfds are watched.
        status: makes the answer to `prefetchd status`.
        change: changes options for `prefetchd set`; returns what that gave.
        stop: ends the daemon.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        ring: Ring,
        foreman: Foreman,
        guard: Guard,
        loop: EventLoop,
        *,
        status: Callable[[], dict[str, Any]],
        change: Callable[[dict[str, str]], str],
        stop: Callable[[], None],
    ) -> None:
        self.consumers: dict[int, Consumer] = {}
        self.granter = Granter(ring, foreman, guard, self.consumers)
        self._datasets = datasets
        self._ring = ring
        self._foreman = foreman
        self._guard = guard
        self._loop = loop
        self._status = status
        self._change = change
        self._stop = stop
        self._buffer = bytearray(control.MAX_MESSAGE_BYTES)
        self._next_consumer = 1
        self._listener: socket.socket | None = None
        self._private = False
        self._max_consumers = min(
            MAX_CONSUMERS, max(1, (raise_descriptor_limit() - _DESCRIPTORS_KEPT) // _DESCRIPTORS_EACH)
        )
        self._retrying = False

    def listen(self, listener: socket.socket) -> None:
        """Admit whoever connects to `listener`, which the desk then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)

    def serve_only(self, sock: socket.socket) -> None:
        """Serve one connection, and end the daemon with it."""
        self._private = True
        self.admit(sock)

    @property
    def cursors(self) -> list[Cursor]:
        """Where all loops are; the start of the first epoch if there is none, so that its batches stand ready."""
        cursors = [consumer.cursor for consumer in self.consumers.values() if consumer.cursor is not None]
        return cursors or [
            Cursor(0, 0, dataset.number, Shard(dataset.order.batches_per_epoch), open=False)
            for dataset in self._datasets
        ]

    @property
    def promised_slots(self) -> int:
        """How many slots those attached need, and the readers to fill: fewer could not deliver one batch at a time."""
        attached = [consumer for consumer in self.consumers.values() if consumer.attached]
        cursors = [self._cursor_of(consumer) for consumer in attached if consumer.sock.fileno() >= 0]
        return max(MIN_SLOTS, slots_promised(len(self._ring.slots), cursors))

    @property
    def mail_bytes(self) -> int:
        """What the consumers' mailboxes take."""
        return N_BYTES * sum(consumer.outbox is not None for consumer in self.consumers.values())

    def serve_all(self) -> None:
        """Grant every consumer what is ready for it."""
        cursors = self.cursors
        for consumer in list(self.consumers.values()):
            self.granter.grant(consumer, cursors)
        if not self._retrying and any(consumer.blocked for consumer in self.consumers.values()):
            self._retrying = True
            self._loop.call_later(_RETRY_S, self._unblock)

    def _unblock(self) -> None:
        """Look whether those whose sockets were full have read."""
        self._retrying = False
        for consumer in self.consumers.values():
            if consumer.blocked:
                consumer.unblock()

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
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
        for consumer in list(self.consumers.values()):
            self._bury(consumer)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptor is left, so whoever knocks stays at the door: do not look there all the time.
            log.warning("cannot admit a consumer: %s; trying again", error.strerror)
            self._loop.unwatch(self._listener.fileno())
            self._loop.call_later(_RETRY_S, self._listen_again)
            return
        self.admit(sock)

    def _listen_again(self) -> None:
        if self._listener is not None and self._listener.fileno() >= 0:
            self._loop.watch(self._listener.fileno(), self._accept)

    def admit(self, sock: socket.socket) -> None:
        """Take a connection in, if it is this user's."""
        try:
            pid, uid, pidfd = control.peer(sock)
        except OSError:
            sock.close()
            return
        consumer = Consumer(self._next_consumer, sock, pid, pidfd, since_s=self._loop.clock())
        if uid != os.getuid() or not self._has_room():
            why = "another user's process" if uid != os.getuid() else f"{self._max_consumers} are connected already"
            consumer.send(messages.Fatal("DaemonNotFound", f"cannot attach: {why}; run a daemon of your own"))
            sock.close()
            os.close(pidfd)
            return
        self._next_consumer += 1
        self.consumers[consumer.number] = consumer
        self._loop.watch(sock.fileno(), functools.partial(self._hear, consumer))
        self._loop.watch(pidfd, functools.partial(self._bury, consumer))

    def _has_room(self) -> bool:
        """Whether one more may come in; in a full house, who has not said what it wants for long makes room."""
        if len(self.consumers) < self._max_consumers:
            return True
        for consumer in self.consumers.values():
            if not consumer.attached and self._loop.clock() - consumer.since_s > _INTRODUCTION_S:
                self._bury(consumer)
                return True
        return False

    def _hear(self, consumer: Consumer) -> None:
        """Take in what a consumer has sent; whatever makes no sense ends its connection."""
        for _ in range(64):
            try:
                data, fds = control.receive(consumer.sock, wait=False, buffer=self._buffer)
            except BlockingIOError:
                return
            except (control.ConnectionEnded, OSError):
                self._hang_up(consumer)
                return
            control.close_all(fds)
            try:
                message = messages.decode_to_daemon(data)
                self._handle(consumer, message)
            except messages.DecodeError:
                introduction = messages.read_introduction(data) if consumer.dataset is None else None
                if introduction is not None and introduction.protocol != messages.PROTOCOL:
                    self._refuse_protocol(consumer, introduction)
                    self._hang_up(consumer)
                    return
                log.warning(
                    "consumer %d (pid %d) sent no message of ours; ending its connection",
                    consumer.number,
                    consumer.pid,
                )
                self._hang_up(consumer)
                return
            if consumer.number not in self.consumers or isinstance(message, messages.AskStatus):
                return  # whoever asks without end is answered in turn with the others

    def _report(self) -> dict[str, Any]:
        """The status, its lists cut short until it fits into one message."""
        report = self._status()
        while len(messages.encode(messages.StatusReport(report))) > control.MAX_MESSAGE_BYTES:
            longest = max(("bad", "consumers", "readers"), key=lambda name: len(messages.encode(report[name])))
            del report[longest][len(report[longest]) // 2 :]
        return report

    def _refuse_protocol(self, consumer: Consumer, introduction: messages.Introduction) -> None:
        theirs = f"{introduction.version or 'of another version'} (protocol {introduction.protocol})"
        text = (
            f"cannot attach: this daemon is prefetchd {__version__} (protocol {messages.PROTOCOL}), the consumer "
            f"{theirs}; restart the daemon with the consumer's version"
        )
        consumer.send(messages.Fatal("DaemonNotFound", text))

    def _handle(self, consumer: Consumer, message: messages.ToDaemon) -> None:
        match message:
            case messages.Release():
                self._ring.release(message.lease, consumer.number)
                consumer.took(message.taken)
                for other in self.consumers.values():
                    other.stalled = False  # who waits still is told again
            case messages.Want():
                consumer.took(message.taken)
                if consumer.cursor is not None and consumer.cursor.serial == message.serial:
                    # A grant may have crossed this on its way: then the loop has what it wants.
                    consumer.set_waiting(not consumer.untaken)
                    consumer.wanted_s = time.monotonic()
                    if consumer.untaken:
                        consumer.send_sooner_or_later(messages.Mail(message.serial))
            case messages.OpenCursor():
                self._open_cursor(consumer, message)
            case messages.CloseCursor():
                if consumer.cursor is not None and consumer.cursor.serial == message.serial:
                    self._drop_untaken(consumer, message.taken)
                    cursor = consumer.cursor
                    cursor.open = False
                    consumer.set_waiting(False)
                    if cursor.step:  # the next loop begins a new epoch
                        cursor.begin_epoch(cursor.epoch + 1)
            case messages.Attach():
                self._attach(consumer, message)
            case messages.AskStatus():
                if not consumer.blocked:
                    consumer.send(messages.StatusReport(self._report()))
            case messages.ChangeOptions():
                self._change_options(consumer, message)
            case messages.AskStop():
                consumer.send(messages.Stopping(os.getpid()))
                log.info("asked to stop by pid %d", consumer.pid)
                self._stop()
            case messages.Configure():
                consumer.send(messages.Fatal("ConfigError", "cannot configure a daemon that is running"))

    def _change_options(self, consumer: Consumer, message: messages.ChangeOptions) -> None:
        try:
            text = self._change(message.options)
        except PrefetchdError as error:
            consumer.send(messages.Fatal(type(error).__name__, str(error)))
            return
        consumer.send(messages.OptionsChanged(text))

    def _attach(self, consumer: Consumer, attach: messages.Attach) -> None:
        def refuse(error: str, text: str) -> None:
            consumer.send(messages.Fatal(error, text))

        if attach.protocol != messages.PROTOCOL:
            self._refuse_protocol(consumer, messages.Introduction("Attach", attach.protocol, attach.version))
            return
        if consumer.attached:
            self._hang_up(consumer)
            return
        if consumer.attached:
            self._hang_up(consumer)
            return
        try:
            dataset = self._choose(attach.dataset)
            dataset.config.check_agrees(attach.options)
        except PrefetchdError as error:
            refuse(type(error).__name__, str(error))
            return
        consumer.dataset = dataset
        consumer.guaranteed_slots = attach.guaranteed_slots
        n_slots = self._guard.budget.plan.n_slots
        attached = [other for other in self.consumers.values() if other.attached and other.sock.fileno() >= 0]
        needed = slots_promised(n_slots, [self._cursor_of(other) for other in (*attached, consumer)])
        if needed > n_slots:
            refuse(
                "BudgetError",
                f"cannot attach: with {format_count(len(attached), 'other loop')} the ring needs {needed} slots and "
                f"has {n_slots}; give the daemon --memory-budget {self._guard.budget.budget_for_slots(needed)}MiB",
            )
            return
        classes = dataset.source.classes
        fds: list[int] = []
        try:
            consumer.outbox, mailbox = Outbox.create()
            fds.append(mailbox)
            if classes is not None:
                fds.append(write_classes(classes))
        except OSError as error:
            control.close_all(fds)
            refuse("PrefetchdError", f"cannot attach: the daemon has no room for a mailbox ({error.strerror})")
            return
        consumer.attached = True
        consumer.send(
            messages.Attached(
                version=__version__,
                pid=os.getpid(),
                name=dataset.config.name,
                dataset=dataset.name,
                layout=dataset.layout.to_wire(),
                n_samples=dataset.source.n_samples,
                batches_per_epoch=dataset.order.batches_per_epoch,
                drop_last=dataset.config.drop_last,
                config=dataset.config.to_wire(),
                config_digest=dataset.config.digest(**dataset.source.versions),
                manifest_digest=dataset.source.digest,
                versions=dataset.source.versions,
            ),
            fds,
        )
        control.close_all(fds)

    def _choose(self, name: str | None) -> Dataset:
        """Return the data set that a consumer asks for.

        Raises:
            ConfigError: if there is none of that name, or several to choose from.
        """
        known = ", ".join(repr(dataset.name) for dataset in self._datasets if dataset.name)
        for dataset in self._datasets:
            if dataset.name == name or (name is None and len(self._datasets) == 1):
                return dataset
        daemon = self._datasets[0].config.name
        if name is None:
            raise ConfigError(f"cannot attach: the daemon {daemon!r} serves {known}; say which with dataset=...")
        serves = known or "one data set that has no name; leave dataset out"
        raise ConfigError(f"cannot attach to the data set {name!r}: the daemon {daemon!r} serves {serves}")

    def _cursor_of(self, consumer: Consumer) -> Cursor:
        """Where an attached consumer is, or will start if it has not said."""
        assert consumer.dataset is not None
        if consumer.cursor is not None:
            return consumer.cursor
        dataset = consumer.dataset
        whole = Shard(dataset.order.batches_per_epoch)
        return Cursor(consumer.number, 0, dataset.number, whole, guaranteed_slots=consumer.guaranteed_slots)

    def _open_cursor(self, consumer: Consumer, message: messages.OpenCursor) -> None:
        dataset = consumer.dataset
        if not consumer.attached or dataset is None or message.rank >= message.world_size:
            self._hang_up(consumer)
            return
        self._drop_untaken(consumer, message.taken)
        self._foreman.failed.clear()  # a new loop tries again: the file may have been mended
        shard = Shard(dataset.order.batches_per_epoch, message.rank, message.world_size, dataset.config.drop_last)
        if message.batch and not shard.steps(message.batch):
            self._hang_up(consumer)
            return
        consumer.stalled = False
        consumer.set_waiting(False)
        assert consumer.outbox is not None
        consumer.outbox.open(message.serial)
        consumer.cursor = Cursor(
            consumer.number,
            message.serial,
            dataset.number,
            shard,
            message.epoch,
            message.batch,
            guaranteed_slots=consumer.guaranteed_slots,
            stop_epoch=message.stop_epoch,
        )

    def _drop_untaken(self, consumer: Consumer, taken: int) -> None:
        consumer.took(taken)
        for lease in consumer.untaken:
            self._ring.release(lease, consumer.number)
        consumer.untaken.clear()

    def _hang_up(self, consumer: Consumer) -> None:
        """The consumer's socket has ended. What it holds, or may have taken, stays until its process ends."""
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        consumer.set_waiting(False)
        consumer.cursor = None
        if self._private:
            self._stop()  # the loader was closed; views outlive the daemon
        elif not self._ring.held_by(consumer.number):
            self._bury(consumer)

    def _bury(self, consumer: Consumer) -> None:
        """The consumer's process has ended, or nothing of it is left."""
        if self.consumers.pop(consumer.number, None) is None:
            return
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        self._loop.unwatch(consumer.pidfd)
        os.close(consumer.pidfd)
        if consumer.outbox is not None:
            consumer.outbox.close()
        returned = self._ring.release_all(consumer.number)
        if returned:
            log.info(
                "consumer %d (pid %d) ended holding %s, free again",
                consumer.number,
                consumer.pid,
                format_count(returned, "slot"),
            )
