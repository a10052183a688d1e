"""The consumer's side of a connection: attach, cursor, grant -> lease; what becomes of that is `leases`'.

Messages go by the `Uplink`, which bears with a daemon that says nothing. What it does say is not believed: sizes are
checked against the segments, and what makes no sense is a `PrefetchdError`. When it dies, that is `DaemonLost`; what
is held stays readable. A forked child is told that it is one when it asks for a batch.

One thread at a time waits for what the daemon says (`_turn`). Another may close the connection, which ends the wait.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NoReturn

from prefetchd.client.channel import Uplink
from prefetchd.client.leases import Leases
from prefetchd.client.waiting import LOOK_S, Silence, Stall
from prefetchd.errors import DaemonLost, PrefetchdError, error_from_name
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.descriptors import read_classes
from prefetchd.ipc.process import describe_process
from prefetchd.ring.layout import BatchLayout, layout_from_wire
from prefetchd.ring.queues import GrantReader, ReturnWriter

if TYPE_CHECKING:
    import mmap
    import socket

    from prefetchd.client.batch import Batch
    from prefetchd.ring.queues import Grant
    from prefetchd.sampling.sharding import Shard


class PassEnded(PrefetchdError):
    """The pass that a group shares is over; the loader ends its loop."""


class Connection:
    """One attached consumer. Owns its uplink and leases; these live on until no view of them is left."""

    def __init__(self, sock: socket.socket, daemon_pid: int, *, writable: bool, hold_timeout_s: float) -> None:
        self._uplink = Uplink(sock, daemon_pid)
        self._pid = os.getpid()
        self._writable = writable
        self._hold_timeout_s = hold_timeout_s
        self._turn = threading.RLock()
        self._heard = 0  # as the uplink has: `next_batch` looks at it, and at nothing that is further away
        self._mailbox: GrantReader
        self._returns: ReturnWriter
        self._leases: Leases
        self._closing = False
        self._attached = False
        self.classes: tuple[str, ...] | None = None
        self.info: messages.Attached
        self.layout: BatchLayout

    def attach(self, hello: messages.Attach, timeout_s: float | None) -> None:
        """Introduce this consumer.

        Args:
            hello: what it says of itself.
            timeout_s: how long to wait for the answer; `None` for as long as the daemon lives.

        Raises:
            PrefetchdError: what the daemon refuses it with.
            ConnectionEnded: if the daemon ended without a word.
            DaemonLost: if the daemon does not answer in time.
        """
        try:
            self._uplink.send(hello)
            message = self._wait_for_answer(timeout_s)
        except sockets.ConnectionEnded:
            self._hear_last_words()
            raise
        self.info = message
        self._uplink.daemon_name = message.name
        try:
            self.layout = layout_from_wire(message.layout)
            if not message.batches_per_epoch or "on_error" not in message.config:
                raise ValueError("it has no batches, or no configuration")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise PrefetchdError(f"cannot attach: the daemon's layout makes no sense ({error})") from None
        self._leases = Leases(self._uplink.dup(), self.layout, self._mailbox, self._returns, writable=self._writable)
        self._attached = True

    def _wait_for_answer(self, timeout_s: float | None) -> messages.Attached:
        """Wait for `Attached`: `timeout_s`, or as long as the daemon is not stopped for minutes; say what it is at."""
        silence = self._uplink.silence()
        while True:
            if self._uplink.wait(silence.next_look_s(timeout_s)):
                message = self._receive(wait=True)
                if isinstance(message, messages.Attached):
                    return message
            elif timeout_s is not None and silence.lasts_s >= timeout_s:
                raise DaemonLost(
                    f"cannot attach: the daemon has not answered for {timeout_s:g} s: "
                    f"{describe_process(self._uplink.daemon_pid)}"
                )
            else:
                silence.look()

    # --- the cursor

    def open_cursor(
        self, serial: int, shard: Shard, epoch: int, batch: int, stop_epoch: int | None, *, join: bool = False
    ) -> None:
        """Begin at `batch` of `epoch`, to go on until `stop_epoch`; an earlier cursor of this connection ends.

        With `join` the first grant tells where it begins: `OpenCursor` has the rules.
        """
        self._check_process()
        self._mailbox.open(serial)
        self._say(
            messages.OpenCursor(
                serial, self._leases.taken, epoch, batch, stop_epoch, shard.rank, shard.world_size, shard.rotation, join
            )
        )

    def close_cursor(self, serial: int) -> None:
        """End the cursor; what was granted ahead goes back."""
        if not self._closing and os.getpid() == self._pid:
            self._end_cursor(serial)

    def _end_cursor(self, serial: int) -> None:
        """Tell the daemon that the cursor has ended, and what was taken.

        A loop in another thread may be about to take a batch: either it is in time to be told of, or it finds that the
        cursor has ended (see `next_batch`).
        """
        self._mailbox.end(serial)
        with contextlib.suppress(sockets.ConnectionEnded, OSError):  # nothing is left to close
            self._uplink.send_at_once(messages.CloseCursor(serial, self._leases.taken))  # or the next cursor closes it

    def next_batch(self, serial: int, copy_when_held: bool) -> Batch:
        """Return the cursor's next batch, waiting for it as long as the daemon works on it.

        The way of every batch, and after a pause nothing of it is in the processor's caches: so there is little of it.

        Args:
            serial: the cursor's.
            copy_when_held: make it a private copy while two batches are held.

        Raises:
            PassEnded: if it shares its passes with a group, and this one is over.
            SampleError or another PrefetchdError: if the batch cannot be made.
            RingExhausted: if no slot can be spared for it within the hold time-out.
            DaemonLost: if the daemon ends.
        """
        if self._closing or os.getpid() != self._pid:
            self._check_process()
        try:
            grant = self._mailbox.read()
            if grant is None or grant.n_sent > self._heard or self._leases.unsent:
                grant = self._wait_for_grant(serial, grant)
            batch = self._leases.take(grant)
        except (OSError, ValueError, PrefetchdError):
            if self._closing:  # by another thread
                self._check_process()
            raise
        if self._mailbox.serial != serial:  # another thread has ended the loop, and the slot may be another's by now
            del batch
            self._check_process()
            raise PrefetchdError(
                "cannot go on with this loop: another thread has ended it; give each thread a loader of its own"
            )
        return batch.copy() if copy_when_held and self._leases.n_held > 2 else batch

    def _catch_up(self, told: int) -> None:
        """Take in the messages that were sent before a grant."""
        while self._heard < told:
            try:
                self._receive(wait=False)
            except BlockingIOError:
                raise PrefetchdError(
                    f"cannot take the batch: the daemon says it sent {told} messages, {self._heard} are there"
                ) from None

    def _wait_for_grant(self, serial: int, grant: Grant | None) -> Grant:
        """Return `grant`, or the next one once it is in the mailbox, with all that was said before it taken in."""
        with self._turn:
            try:
                self._flush()
                grant = grant or self._ask_for_grant(serial)
                self._catch_up(grant.n_sent)
            except sockets.ConnectionEnded:
                self._raise_lost()
        return grant

    @property
    def is_ready(self) -> bool:
        """Whether the next batch was granted, or something lies in the socket: most likely word of it."""
        if self._closing or os.getpid() != self._pid:
            return False
        return self._mailbox.has_next or self._uplink.wait(0)

    def _ask_for_grant(self, serial: int) -> Grant:
        """Ask for the next grant and wait until it is in the mailbox."""
        self._uplink.send(messages.Want(serial, self._leases.taken))
        silence = self._uplink.silence(ask=True)
        stall: Stall | None = None
        while True:
            if not self._uplink.wait(LOOK_S if stall is None else stall.look()):
                if stall is None:  # else it is known what it waits for
                    silence.look()
                continue
            message = self._receive(wait=True)
            grant = self._mailbox.read()
            if grant is not None:
                return grant
            match message:
                case messages.Ended() if message.serial == serial:
                    raise PassEnded("cannot get the next batch: the pass that a group shares is over")
                case messages.Failed() if message.serial == serial:
                    raise error_from_name(message.error, message.text)
                case messages.Stalled() if message.serial == serial:
                    stall = stall or Stall(self._hold_timeout_s)
                    stall.begin(message.holders)
                    gc.collect()  # a reference cycle may be all that holds a batch
                    self._flush()
                case messages.StatusReport():
                    silence.answered(message.report)

    def status(self) -> dict[str, Any]:
        """Return the daemon's status report.

        Raises:
            DaemonLost: if the daemon ends.
        """
        self._check_process()
        with self._turn:
            self._say(messages.AskStatus(messages.PROTOCOL))
            silence = self._uplink.silence()
            while True:
                try:
                    if not self._uplink.wait(LOOK_S):
                        silence.look()
                        continue
                    message = self._receive(wait=True)
                except sockets.ConnectionEnded:
                    self._raise_lost()
                if isinstance(message, messages.StatusReport):
                    return message.report

    @property
    def held(self) -> int:
        """How many leases have a live view."""
        return self._leases.n_held

    @property
    def maps(self) -> Collection[mmap.mmap]:
        """The read-only maps of the slots that the daemon has opened and not closed again."""
        return self._leases.maps

    def _flush(self) -> None:
        """Send the releases that the socket had no room for."""
        silence: Silence | None = None
        while not self._leases.send_unsent():
            silence = self._uplink.wait_for_room(silence)

    # --- the end

    def close(self, *, at_once: bool) -> None:
        """Close the connection: now, or when the last view is gone. What is held stays readable either way."""
        self._closing = True
        if hasattr(self, "_leases"):
            if self._mailbox.serial:  # its loop is at work in another thread
                self._end_cursor(self._mailbox.serial)
            self._leases.close(at_once=at_once)
        else:
            self._uplink.shut_down()
        for name in ("_mailbox", "_returns"):
            if hasattr(self, name):  # else it never attached
                getattr(self, name).close()
        self._uplink.close()

    # --- what the daemon says

    def _receive(self, *, wait: bool) -> messages.ToConsumer:
        """Take in the daemon's next message, as far as it is about the connection, and return it.

        Raises:
            BlockingIOError: with `wait=False`, if there is none.
            ConnectionEnded: at the end of the daemon.
            PrefetchdError: if it makes no sense, or is the daemon's last word.
        """
        message, fds = self._uplink.receive(wait=wait)
        try:
            match message:
                case messages.Attached():
                    try:
                        self._mailbox = GrantReader(fds[0])
                        self._returns = ReturnWriter(fds[1])
                        if len(fds) > 2:
                            self.classes = read_classes(fds[2])
                    except (ValueError, IndexError, OSError) as error:
                        raise PrefetchdError(f"cannot attach: {error}; is it a daemon of prefetchd?") from None
                case messages.SlotOpened():
                    if not self._attached:
                        raise PrefetchdError(f"cannot map slot {message.slot}: its size was not agreed yet")
                    self._leases.open_slot(message.slot, message.slot_bytes, fds)
                case messages.SlotClosed():
                    if self._attached:
                        self._leases.close_slot(message.slot)
                case messages.Fatal():
                    raise error_from_name(message.error, message.text)
        finally:
            if fds:
                sockets.close_all(fds)
            self._heard = self._uplink.heard  # last: a loop in another thread takes it that all of this was done
        return message

    def _say(self, message: messages.Message) -> None:
        try:
            self._uplink.send(message)
        except sockets.ConnectionEnded:
            self._raise_lost()

    def _hear_last_words(self) -> None:
        """Raise what the daemon said before it ended: it is still in the socket, behind the error that ended it."""
        try:
            while True:
                self._receive(wait=False)
        except (sockets.ConnectionEnded, BlockingIOError):
            pass

    def _raise_lost(self) -> NoReturn:
        if self._closing:  # by another thread
            self._check_process()
        self._hear_last_words()
        raise DaemonLost(
            f"cannot get the next batch: the daemon {self.info.name!r} (pid {self.info.pid}) ended; what you hold "
            "stays valid; see its log, then start it again"
        )

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise PrefetchdError(
                f"cannot use this loader: it belongs to process {self._pid} and this is a forked child "
                f"({os.getpid()}); call prefetchd.batches() here"
            )
        if self._closing:
            raise PrefetchdError("cannot use this loader: it was closed; make another with prefetchd.batches()")
