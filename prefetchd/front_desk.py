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

from prefetchd import control, mailbox, messages, returns
from prefetchd.admission import Admission, refuse_protocol
from prefetchd.budget import MIN_SLOTS
from prefetchd.consumers import Consumer
from prefetchd.cursor import Cursor
from prefetchd.datasets import Dataset
from prefetchd.descriptor_limit import raise_descriptor_limit
from prefetchd.errors import PrefetchdError
from prefetchd.foreman import Foreman
from prefetchd.granting import Granter
from prefetchd.groups import Groups
from prefetchd.guard import Guard
from prefetchd.loop import EventLoop
from prefetchd.openings import Openings
from prefetchd.returns import ENOUGH_AHEAD
from prefetchd.scheduler import Reserve
from prefetchd.shard import Shard
from prefetchd.slots import Ring, Slot
from prefetchd.start_line import StartLine
from prefetchd.units import format_count
from prefetchd.windows import Pacer

log = logging.getLogger("prefetchd")

MAX_CONSUMERS = 1024
_DESCRIPTORS_EACH = 4  # a consumer's socket and pidfd, and the maps of its mailbox and its returned leases
_DESCRIPTORS_KEPT = 512  # for slots, readers and samples, whoever connects
_INTRODUCTION_S = 10.0
_RETRY_S = 0.1
_LOOK_FOR_NOTES_S = 0.005


class FrontDesk:
    """All consumers of one daemon.

    Args:
        datasets: what is served; told to whoever attaches.
        ring, foreman, guard: borrowed; leases come from the ring, failures from the foreman.
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
        foreman: Foreman,
        guard: Guard,
        loop: EventLoop,
        *,
        status: Callable[[], dict[str, Any]],
        change: Callable[[dict[str, str]], str],
        stop: Callable[[], None],
        linger_s: float | None = None,
    ) -> None:
        self.consumers: dict[int, Consumer] = {}
        self.granter = Granter(ring, foreman, guard, self.consumers)
        self._admission = Admission(datasets, self.consumers, guard)
        self._groups = Groups(ring, self.granter)
        self._openings = Openings(
            self.consumers,
            self._groups,
            StartLine(self.consumers, loop),
            ring,
            foreman,
            guard,
            patience_s=datasets[0].config.patience,
        )
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
        self._linger_s = linger_s
        self._empty_since_s = loop.clock()
        self._pacer = Pacer()
        self._look_again_s = 0.0
        self._max_consumers = min(
            MAX_CONSUMERS, max(1, (raise_descriptor_limit() - _DESCRIPTORS_KEPT) // _DESCRIPTORS_EACH)
        )
        self._retrying = False
        self._looking = False

    def listen(self, listener: socket.socket) -> None:
        """Admit whoever connects to `listener`, which the desk then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)
        self._linger()

    def serve_only(self, sock: socket.socket) -> None:
        """Serve one connection, and end the daemon with it."""
        self._private = True
        self.admit(sock)

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
        return max(MIN_SLOTS, self._admission.slots_promised(self._admission.attached, len(self._ring.slots)))

    @property
    def mail_bytes(self) -> int:
        """What the consumers' mailboxes and pages of returned leases take."""
        each = mailbox.N_BYTES + returns.N_BYTES
        return each * sum(consumer.outbox is not None for consumer in self.consumers.values())

    def take_back_noted(self) -> None:
        """Take back the leases that consumers have noted, and not told yet, to have ended (`returns`)."""
        for consumer in self.consumers.values():
            self._take_back_noted_by(consumer)

    def _take_back_noted_by(self, consumer: Consumer) -> None:
        if consumer.returned is None:
            return
        consumer.took(consumer.returned.taken)
        if noted := consumer.returned.new():
            self._take_back(consumer, [lease for lease, _ in noted], max(taken for _, taken in noted))

    def _take_back(self, consumer: Consumer, leases: Sequence[int], taken: int) -> None:
        consumer.took(taken)
        group = self._groups.of(consumer)
        for lease in leases:
            if self._ring.release(lease, consumer.number) and group is not None:
                group.released(consumer, lease)
        for other in self.consumers.values():
            other.stalled = False  # who waits still is told again

    def serve_all(self) -> None:
        """Grant every consumer what is ready for it."""
        reserve = Reserve(self._ring, self.cursors)
        for consumer in list(self.consumers.values()):
            if not consumer.held_back:
                self.granter.grant(consumer, reserve)
        self._groups.serve(reserve)
        self._look_for_notes()
        self._pace()
        if not self._retrying and any(consumer.blocked for consumer in self.consumers.values()):
            self._retrying = True
            self._loop.call_later(_RETRY_S, self._unblock)

    def _look_for_notes(self) -> None:
        """See that the loop comes round again while slots are wanted that somebody may note as returned."""
        if self._looking or not any(len(consumer.untaken) >= ENOUGH_AHEAD for consumer in self.consumers.values()):
            return
        if len(self._ring.slots) > self._guard.slots_wanted or any(cursor.waiting for cursor in self.cursors):
            self._looking = True
            self._loop.call_later(_LOOK_FOR_NOTES_S, self._looked)

    def _looked(self) -> None:
        self._looking = False

    def _unblock(self) -> None:
        """Look whether those whose sockets were full have read."""
        self._retrying = False
        for consumer in self.consumers.values():
            if consumer.blocked:
                consumer.unblock()

    def _pace(self) -> None:
        """Let the time that loops stand still count against the patience of those whom they wait for."""
        if len(self.consumers) < 2 and not self._pacer.waited_for:
            return
        now_s = self._loop.clock()
        look_s, spent = self._pacer.look(now_s, self._ring, self.cursors, self._foreman.failed)
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
        return {cursor.consumer for cursor in self._pacer.waited_for}

    def _linger(self) -> None:
        """Nobody is here (any more): end if that is so for as long as it may be."""
        self._empty_since_s = self._loop.clock()
        if self._linger_s is not None:
            self._loop.call_later(self._linger_s, self._end_if_empty)

    def _end_if_empty(self) -> None:
        assert self._linger_s is not None
        if not self.consumers and self._loop.clock() - self._empty_since_s >= self._linger_s:
            log.info("no loader for %g s; ending", self._linger_s)
            self._stop()

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
                    refuse_protocol(consumer, introduction)
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
        self.take_back_noted()
        report = self._status()
        while len(messages.encode(messages.StatusReport(report))) > control.MAX_MESSAGE_BYTES:
            longest = max(("bad", "consumers", "readers"), key=lambda name: len(messages.encode(report[name])))
            del report[longest][len(report[longest]) // 2 :]
        return report

    def _handle(self, consumer: Consumer, message: messages.ToDaemon) -> None:
        match message:
            case messages.Release():
                self._take_back(consumer, message.leases, message.taken)
            case messages.Want():
                consumer.took(message.taken)
                if (group := self._groups.of(consumer)) is not None:
                    group.asks(consumer, message)
                    consumer.wanted_s = time.monotonic()
                elif consumer.cursor is not None and consumer.cursor.serial == message.serial:
                    # A grant may have crossed this on its way: then the loop has what it wants.
                    consumer.set_waiting(not consumer.untaken)
                    consumer.wanted_s = time.monotonic()
                    if consumer.untaken:
                        consumer.send_sooner_or_later(messages.Mail(message.serial))
            case messages.OpenCursor():
                if not self._openings.begin(consumer, message):
                    self._hang_up(consumer)
            case messages.CloseCursor():
                self._openings.end(consumer, message)
            case messages.Attach():
                if consumer.attached:
                    self._hang_up(consumer)
                else:
                    self._admission.attach(consumer, message)
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

    def _hang_up(self, consumer: Consumer) -> None:
        """The consumer's socket has ended. What it holds, or may have taken, stays until its process ends."""
        self._take_back_noted_by(consumer)  # the end may be all that tells of the last views
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

    def _bury(self, consumer: Consumer) -> None:
        """The consumer's process has ended, or nothing of it is left."""
        if consumer.number not in self.consumers:
            return
        self._take_back_noted_by(consumer)
        del self.consumers[consumer.number]
        if not self.consumers:
            self._linger()
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
