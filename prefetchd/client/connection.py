"""The consumer's side of a connection: it attaches, opens cursors, and turns grants into batches (`leases`).

Messages go by the `Channel`, which waits for a daemon that sends nothing. The connection trusts no message: sizes are
checked against the segments, and one that makes no sense is a `PrefetchdError`. When the daemon dies the loop gets
`DaemonLost`, and batches that are held stay readable. In a forked child every call is refused.

One thread at a time receives messages (`_turn`). Another may close the connection, or begin another loop. The thread
that waits notices at the next message, at the latest the new loop's `Opened` or `Failed`, and gets an error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from prefetchd.client.attach import Attachment, attach
from prefetchd.client.channel import GIVE_UP_S, LOOK_S, AnswerWait, Channel, SlotWait
from prefetchd.client.iteration import PassEnded, superseded
from prefetchd.client.leases import Leases
from prefetchd.client.meter import Meter
from prefetchd.errors import DaemonLost, PrefetchdError, error_from_name
from prefetchd.ipc import messages, sockets, system

if TYPE_CHECKING:
    import mmap
    import socket

    from prefetchd.client.batch import Batch
    from prefetchd.ring.queues import Grant
    from prefetchd.sampling.sharding import Shard

T = TypeVar("T")


def connect(
    sock: socket.socket,
    daemon_pid: int,
    request: messages.Attach,
    timeout_s: float | None,
    *,
    writable: bool,
    hold_timeout_s: float,
) -> Connection:
    """Return an attached connection over `sock`, which it owns; raises as `attach`."""
    channel = Channel(sock, daemon_pid)
    try:
        attachment = attach(channel, request, timeout_s)
    except BaseException:
        channel.shut_down()
        channel.close()
        raise
    return Connection(channel, attachment, writable=writable, hold_timeout_s=hold_timeout_s)


class Connection:
    """One attached consumer. Owns its channel, queues and leases; the leases live until no view of them is left.

    Attributes:
        info: the daemon's answer to `Attach`.
        layouts: of the batches, one for each bucket.
        layout: the largest of them.
        classes: the names of the classes by number, where labels are text.
        meter: counts what it delivers; a loader gives it to its next connection.
    """

    def __init__(self, channel: Channel, attachment: Attachment, *, writable: bool, hold_timeout_s: float) -> None:
        self.info = attachment.info
        self.layouts = attachment.layouts
        self.layout = attachment.layout
        self.classes = attachment.classes
        self._channel = channel
        self._grants = attachment.grants
        self._returns = attachment.returns
        self._leases = Leases(channel.dup(), self.layouts, self._grants, self._returns, writable=writable)
        self._pid = os.getpid()
        self._hold_timeout_s = hold_timeout_s
        self._turn = system.reentrant_lock()
        self._n_received = channel.n_received  # copied here since every batch looks at it
        self._opened: messages.Opened | None = None
        self._failed: messages.Failed | None = None  # kept: the thread that receives it may be of another loop
        self._closing = False
        self.meter = Meter()

    @property
    def daemon_pid(self) -> int:
        """The daemon's process."""
        return self._channel.daemon_pid

    def add_connection(self) -> socket.socket:
        """Return a socket to the same daemon, for another consumer of this process.

        Raises:
            DaemonLost: if the daemon ends.
        """
        self._check_process()
        ours, theirs = sockets.socket_pair()
        try:
            self._send(messages.AddConnection(), [theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return ours

    # --- the cursor

    def open_cursor(
        self, serial: int, shard: Shard, epoch: int, batch: int, stop_epoch: int | None, *, join: bool = False
    ) -> None:
        """Begin at `batch` of `epoch`, to go on until `stop_epoch`; an earlier cursor of this connection ends.

        With `join` the daemon decides where it begins, see `wait_until_open`.
        """
        self._check_process()
        self._grants.open(serial)
        self._send(
            messages.OpenCursor(
                serial, self._leases.taken, epoch, batch, stop_epoch, shard.rank, shard.world_size, shard.rotation, join
            )
        )

    def wait_until_open(self, serial: int) -> messages.Opened:
        """Return the daemon's answer to `open_cursor`, once it is here.

        Raises:
            PrefetchdError: if the cursor cannot be opened, or another thread has ended the loop.
            DaemonLost: if the daemon ends.
        """

        def look() -> messages.Opened | None:
            return self._opened if self._opened is not None and self._opened.serial == serial else None

        with self._turn:
            try:
                return look() or self._wait_for(serial, look)
            except sockets.ConnectionEnded:
                self._raise_lost()

    def close_cursor(self, serial: int) -> None:
        """End the cursor; what was granted ahead goes back."""
        if not (self._closing or self._leases.is_inherited):
            self._end_cursor(serial)

    def _end_cursor(self, serial: int) -> None:
        """Tell the daemon that the cursor has ended, and which lease was the last one taken."""
        # A loop in another thread may take a batch now: this message counts it, or `next_batch` sees the cursor's end.
        self._grants.end(serial)
        with contextlib.suppress(sockets.ConnectionEnded, OSError):  # nothing is left to close
            self._channel.send_at_once(messages.CloseCursor(serial, self._leases.taken))  # or the next cursor closes it

    def next_batch(self, serial: int, copy_when_held: bool) -> Batch:
        """Return the cursor's next batch, waiting for it as long as the daemon works on it.

        Every batch runs through this, and after a pause none of it is in the processor's caches: keep it short.

        Args:
            serial: the cursor's.
            copy_when_held: make it a private copy while two batches are held.

        Raises:
            PassEnded: if it shares its passes with a group, and this one is over.
            SampleError or another PrefetchdError: if the batch cannot be made.
            RingExhausted: if no slot can be spared for it within the hold time-out.
            DaemonLost: if the daemon ends.
        """
        if self._closing or self._leases.saw_fork:
            self._check_process()
        try:
            grant = self._grants.read(serial)
            if grant is None or grant.n_sent > self._n_received or self._leases.unsent:
                grant = self._wait_for_grant(serial, grant)
            batch = self._leases.take(grant)
        except (OSError, ValueError, PrefetchdError):
            if self._closing:  # by another thread
                self._check_process()
            raise
        if self._grants.cursor.serial != serial:  # another thread has ended the loop: the slot may hold another batch
            del batch
            self._check_process()
            raise superseded()
        self.meter.batches += 1
        self.meter.samples += grant.rows
        return batch.copy() if copy_when_held and self._leases.n_held > 2 else batch

    def _wait_for_grant(self, serial: int, grant: Grant | None) -> Grant:
        """Return `grant`, or the next one once it is in the queue, with all messages before it received."""
        with self._turn, self.meter:
            try:
                self._send_unsent()
                if grant is None:
                    self._channel.send(messages.Want(serial, self._leases.taken))
                    grant = self._wait_for(serial, lambda: self._grants.read(serial))
                while self._n_received < grant.n_sent:
                    self._receive(wait=False)
            except BlockingIOError:
                raise PrefetchdError(
                    f"cannot take the batch: the daemon says it sent {grant.n_sent if grant else 0} messages, "
                    f"{self._n_received} are there"
                ) from None
            except sockets.ConnectionEnded:
                self._raise_lost()
        return grant

    @property
    def is_ready(self) -> bool:
        """Whether the next batch was granted, or a message is there, which most likely says so."""
        if self._closing or self._leases.is_inherited:
            return False
        return self._grants.has_next or self._channel.wait(0)

    def _wait_for(self, serial: int, look: Callable[[], T | None]) -> T:
        """Receive messages until `look` returns what the cursor `serial` waits for."""
        wait = self._channel.begin_wait(ask=True)
        slot_wait: SlotWait | None = None
        while True:
            if self._grants.cursor.serial != serial:  # another thread has ended the loop
                self._check_process()
                raise superseded()
            if self._failed is not None and self._failed.serial == serial:
                raise error_from_name(self._failed.error, self._failed.text)
            if not self._channel.wait(LOOK_S if slot_wait is None else slot_wait.look()):
                if slot_wait is None:  # else the reason of the wait is known
                    wait.look()
                continue
            message = self._receive(wait=True)
            found = look()
            if found is not None:
                return found
            match message:
                case messages.Ended() if message.serial == serial:
                    raise PassEnded("cannot get the next batch: the pass that a group shares is over")
                case messages.Stalled() if message.serial == serial and not message.holders:
                    slot_wait = None
                case messages.Stalled() if message.serial == serial:
                    slot_wait = slot_wait or SlotWait(self._hold_timeout_s)
                    slot_wait.begin(message.holders)
                    gc.collect()  # a reference cycle may be all that holds a batch
                    self._send_unsent()
                case messages.StatusReport():
                    wait.answered(message.report)

    def status(self) -> dict[str, Any]:
        """Return the daemon's status report.

        Raises:
            DaemonLost: if the daemon ends.
        """
        self._check_process()
        with self._turn:
            self._send(messages.AskStatus(messages.PROTOCOL))
            wait = self._channel.begin_wait()
            while True:
                try:
                    if not self._channel.wait(LOOK_S):
                        wait.look()
                        continue
                    message = self._receive(wait=True)
                except sockets.ConnectionEnded:
                    self._raise_lost()
                if isinstance(message, messages.StatusReport):
                    return message.report

    @property
    def maps(self) -> Collection[mmap.mmap]:
        """The read-only maps of the slots that the daemon has opened and not closed again."""
        return self._leases.maps

    def _send_unsent(self) -> None:
        """Send the releases that the socket did not take when they came."""
        wait: AnswerWait | None = None
        while not self._leases.send_unsent():
            wait = self._channel.wait_to_send(wait)

    # --- the end

    def close(self, *, at_once: bool) -> None:
        """Close the connection: now, or when the last view is gone. What is held stays readable either way."""
        self._closing = True
        if self._grants.cursor.serial:  # its loop works in another thread
            self._end_cursor(self._grants.cursor.serial)
        self._leases.close(at_once=at_once)
        self._grants.close()
        self._returns.close()
        self._channel.close()

    # --- messages

    def _receive(self, *, wait: bool) -> messages.ToConsumer:
        """Receive the daemon's next message, act on it if it concerns the whole connection, and return it.

        Raises:
            BlockingIOError: with `wait=False`, if there is none.
            ConnectionEnded: at the end of the daemon.
            PrefetchdError: if it makes no sense, or is `Fatal`.
        """
        message, fds = self._channel.receive(wait=wait)
        try:
            match message:
                case messages.SlotOpened():
                    self._leases.open_slot(message.slot, message.slot_bytes, fds)
                case messages.SlotClosed():
                    self._leases.close_slot(message.slot)
                case messages.Opened():
                    self._opened = message
                case messages.Failed():
                    self._failed = message
                case messages.Fatal():
                    raise error_from_name(message.error, message.text)
        finally:
            if fds:
                sockets.close_all(fds)
            self._n_received = self._channel.n_received  # last: a loop in another thread relies on what was done
        return message

    def _send(self, message: messages.Message, fds: Sequence[int] = ()) -> None:
        try:
            self._channel.send(message, fds)
        except sockets.ConnectionEnded:
            self._raise_lost()

    def _raise_lost(self) -> NoReturn:
        if self._closing:  # by another thread
            self._check_process()
        with contextlib.suppress(sockets.ConnectionEnded, BlockingIOError):
            while True:  # it may have sent `Fatal` before it ended, which is raised
                self._receive(wait=False)
        raise DaemonLost(
            f"cannot get the next batch: the daemon {self.info.name!r} (pid {self.info.pid}) ended; what you hold "
            "stays valid; see its log, then start it again"
        )

    def _check_process(self) -> None:
        if self._leases.is_inherited:
            raise PrefetchdError(
                f"cannot use this loader: it belongs to process {self._pid} and this is a forked child "
                f"({os.getpid()}); call prefetchd.batches() here"
            )
        if self._closing:
            if not threading.main_thread().is_alive() and threading.current_thread() is not threading.main_thread():
                # The interpreter ends, and closes what this daemon thread uses: it stops here, without a traceback.
                while True:
                    system.sleep(GIVE_UP_S)
            raise PrefetchdError("cannot use this loader: it was closed; make another with prefetchd.batches()")
