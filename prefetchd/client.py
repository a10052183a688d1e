"""The consumer's side of a connection: attach, cursor, lease -> views -> release.

A lease lives as long as any view of its root array, and a root array is one `np.frombuffer` of the slot's map: every
slice, reshape, tensor or memoryview keeps it alive. When it dies the release goes out at once, from whatever thread and
inside whatever garbage collection that happens: so it takes no lock and never blocks.

When the daemon dies the maps stay valid: the memory is freed with the last of them. A forked child gets no maps, sends
no releases, and is told so when it asks for a batch.
"""

from __future__ import annotations

import gc
import logging
import mmap
import os
import select
import socket
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from prefetchd import control, messages, segment
from prefetchd.class_names import read_classes
from prefetchd.errors import DaemonLost, PrefetchdError, RingExhausted, error_from_name
from prefetchd.layout import BatchLayout, layout_from_wire
from prefetchd.liveness import process_state
from prefetchd.user_warnings import warn_user

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from prefetchd.shard import Shard

log = logging.getLogger("prefetchd")

_WARN_STALL_S = 1.0  # or half the hold time-out, if that is less
_REPORT_WAIT_S = 30.0


class PassEnded(Exception):
    """The pass that a group shares is over; the loader ends its loop."""


class _LeaseRef(weakref.ref["np.ndarray[Any, Any]"]):
    """A weak reference to a lease's root array. It keeps the connection: views may outlive all else of it.

    Lighter than `weakref.finalize`, which costs as much as all the rest of a ready batch, and never called at exit.
    """

    __slots__ = ("connection", "lease")
    connection: Connection
    lease: int


# What keeps the references themselves, by their id, until their arrays die.
_live_leases: dict[int, _LeaseRef] = {}


def _root_died(ref: _LeaseRef) -> None:
    del _live_leases[id(ref)]
    ref.connection.release(ref.lease)


class Connection:
    """One attached consumer. Owns its socket and maps; lives until it is closed and no view of it is left."""

    def __init__(self, sock: socket.socket, *, writable: bool, hold_timeout_s: float) -> None:
        self._sock = sock = control.OwnedSocket(fileno=sock.detach())
        # The finalizers' own object: nothing that the loop does to its socket reaches it.
        self._release_sock = sock.dup()
        self._pid = os.getpid()
        self._writable = writable
        self._hold_timeout_s = hold_timeout_s
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._maps: dict[int, mmap.mmap] = {}  # read-only, one a slot
        self._fds: dict[int, int] = {}  # writable: every lease has a copy-on-write map of its own
        self._buffer = bytearray(control.MAX_MESSAGE_BYTES)
        self._live: set[int] = set()
        self._unsent: deque[int] = deque()
        self._taken = 0
        self._granted: deque[messages.Granted] = deque()  # not asked for yet
        self._closing = False
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
            DaemonLost: if the daemon ends, or does not answer in time.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            control.send(self._sock, messages.encode(hello))
            while True:
                if deadline_s is not None and not self._poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                    raise DaemonLost(
                        f"cannot attach: the daemon has not answered for {timeout_s:g} s; "
                        "see its log, and whether it is stopped"
                    )
                message = self._receive(wait=True)
                if isinstance(message, messages.Attached):
                    break
        except control.ConnectionEnded:
            self._hear_last_words()
            raise DaemonLost("cannot attach: the daemon ended while it was starting; see its log") from None
        self.info = message
        try:
            self.layout = layout_from_wire(message.layout)
        except (ValueError, KeyError, TypeError) as error:
            raise PrefetchdError(f"cannot attach: the daemon's layout makes no sense ({error})") from None

    # --- the cursor

    def open_cursor(
        self, serial: int, shard: Shard, epoch: int, batch: int, stop_epoch: int | None, *, join: bool = False
    ) -> None:
        """Begin at `batch` of `epoch`, to go on until `stop_epoch`; an earlier cursor of this connection ends.

        With `join` the first grant tells where it begins: `OpenCursor` has the rules.
        """
        self._check_process()
        self._granted.clear()
        self._say(
            messages.OpenCursor(
                serial, self._taken, epoch, batch, stop_epoch, shard.rank, shard.world_size, shard.rotation, join
            )
        )

    def close_cursor(self, serial: int) -> None:
        """End the cursor; what was granted ahead goes back."""
        if self._closing or os.getpid() != self._pid:
            return
        self._granted.clear()
        try:
            control.send(self._sock, messages.encode(messages.CloseCursor(serial, self._taken)))
        except control.ConnectionEnded:
            pass  # nothing is left to close

    def next_grant(self, serial: int) -> messages.Granted:
        """Return the cursor's next grant, waiting for it as long as the daemon works on it.

        Raises:
            PassEnded: if it shares its passes with a group, and this one is over.
            SampleError or another PrefetchdError: if the batch cannot be made.
            RingExhausted: if no slot can be spared for it within the hold time-out.
            DaemonLost: if the daemon ends.
        """
        if self._closing or os.getpid() != self._pid:
            self._check_process()
        if self._unsent:
            self._flush()
        if not self._granted:
            try:
                if not self._take_ready(serial):
                    control.send(self._sock, messages.encode(messages.Want(serial, self._taken)))
                    self._wait_for_grants(serial)
            except control.ConnectionEnded:
                self._raise_lost()
        grant = self._granted.popleft()
        self._taken = grant.lease
        return grant

    def _take_ready(self, serial: int) -> bool:
        """Take in the grants that are in the socket; whether there were any."""
        while True:
            try:
                message = self._receive(wait=False)
            except BlockingIOError:
                return False
            if isinstance(message, messages.Grants) and message.serial == serial and message.granted:
                self._granted.extend(message.granted)
                return True
            if isinstance(message, messages.Ended) and message.serial == serial:
                raise PassEnded
            if isinstance(message, messages.Failed) and message.serial == serial:
                raise error_from_name(message.error, message.text)

    def _wait_for_grants(self, serial: int) -> None:
        """Wait for grants and take them in."""
        started_s = time.monotonic()
        warn_after_s = min(_WARN_STALL_S, self._hold_timeout_s / 2)
        stalled: messages.Stalled | None = None
        stalled_s = 0.0
        warned = False
        while True:
            if stalled is None:
                timeout_s = _REPORT_WAIT_S
            else:
                held_up_s = time.monotonic() - stalled_s
                if held_up_s >= warn_after_s and not warned:
                    warned = True
                    warn_user(
                        f"waiting for a slot: {stalled.holders}; drop batches that you are done with, or pass "
                        f"on_hold='copy' (RingExhausted in {self._hold_timeout_s - held_up_s:.0f} s)"
                    )
                if held_up_s >= self._hold_timeout_s:
                    raise RingExhausted(
                        f"cannot get the next batch: {stalled.holders}, and none came back in "
                        f"{self._hold_timeout_s:g} s; copy what you keep (x.copy()), pass on_hold='copy', or give the "
                        "daemon a larger memory_budget"
                    )
                timeout_s = min(warn_after_s, self._hold_timeout_s - held_up_s)
            if not self._poll.poll(timeout_s * 1000 + 1):
                if stalled is None:
                    log.warning(
                        "has waited %.0f s for a batch from the daemon (pid %d, state %s)",
                        time.monotonic() - started_s, self.info.pid, process_state(self.info.pid) or "gone",
                    )  # fmt: skip
                continue
            message = self._receive(wait=True)
            match message:
                case messages.Grants() if message.serial == serial and message.granted:
                    self._granted.extend(message.granted)
                    return
                case messages.Ended() if message.serial == serial:
                    raise PassEnded
                case messages.Failed() if message.serial == serial:
                    raise error_from_name(message.error, message.text)
                case messages.Stalled() if message.serial == serial:
                    # Said again after a slot came back, to somebody: the time runs from then.
                    stalled, stalled_s = message, time.monotonic()
                    gc.collect()  # a reference cycle may be all that holds a batch
                    self._flush()

    # --- leases

    def root(self, grant: messages.Granted) -> NDArray[np.uint8]:
        """Return the root array of a grant, the slot's bytes; the lease ends when it and the last of its views die."""
        if grant.slot in self._fds:
            memory = segment.map_copy_on_write(self._fds[grant.slot], self.layout.slot_bytes)
        elif grant.slot in self._maps:
            memory = self._maps[grant.slot]
        else:
            raise PrefetchdError(f"cannot read the batch: the daemon granted slot {grant.slot}, which it never opened")
        if grant.rows > self.layout.batch_size:
            raise PrefetchdError(f"cannot read the batch: {grant.rows} rows were granted of {self.layout.batch_size}")
        root = np.frombuffer(memory, np.uint8, self.layout.slot_bytes)
        self._live.add(grant.lease)
        ref = _LeaseRef(root, _root_died)
        ref.connection, ref.lease = self, grant.lease
        _live_leases[id(ref)] = ref
        return root

    @property
    def held(self) -> int:
        """How many leases have a live view."""
        return len(self._live)

    def release(self, lease: int) -> None:
        """The last view of `lease` died. May run in any thread, at any moment: no lock, no blocking."""
        self._live.discard(lease)
        if os.getpid() != self._pid or self._release_sock.fileno() < 0:
            return
        try:
            release = messages.encode(messages.Release(lease, self._taken))
            control.send(self._release_sock, release, wait=False)
        except BlockingIOError:
            self._unsent.append(lease)
        except (control.ConnectionEnded, OSError):
            pass  # the daemon is gone, and the lease with it
        if self._closing and not self._live:
            self._shut()

    def _flush(self) -> None:
        while self._unsent:
            lease = self._unsent.popleft()
            control.send(self._sock, messages.encode(messages.Release(lease, self._taken)))

    # --- the end

    def close(self, *, at_once: bool) -> None:
        """Close the connection: now, or when the last view is gone. What is held stays readable either way."""
        self._closing = True
        self._maps.clear()
        control.close_all(list(self._fds.values()))
        self._fds.clear()
        if at_once or not self._live:
            self._shut()

    def _shut(self) -> None:
        self._sock.close()
        self._release_sock.close()

    # --- the wire

    def _receive(self, *, wait: bool) -> Any:
        data, fds = control.receive(self._sock, wait=wait, buffer=self._buffer)
        try:
            message = messages.decode_to_consumer(data)
            if type(message) is messages.Grants:  # the common case, on the way of every batch
                return message
            match message:
                case messages.Attached() if fds:
                    self.classes = read_classes(fds[0])
                case messages.SlotOpened():
                    if message.slot_bytes < self.layout.slot_bytes or len(fds) != 1:
                        raise PrefetchdError(f"cannot map slot {message.slot}: it is smaller than was agreed")
                    if self._writable:
                        self._fds[message.slot] = fds.pop()
                    else:
                        self._maps[message.slot] = segment.map_read_only(fds[0], self.layout.slot_bytes)
                case messages.SlotClosed():
                    self._maps.pop(message.slot, None)
                    if message.slot in self._fds:
                        os.close(self._fds.pop(message.slot))
                case messages.Fatal():
                    raise error_from_name(message.error, message.text)
        finally:
            if fds:
                control.close_all(fds)
        return message

    def _say(self, message: messages.Message) -> None:
        try:
            control.send(self._sock, messages.encode(message))
        except control.ConnectionEnded:
            self._raise_lost()

    def _hear_last_words(self) -> None:
        """Raise what the daemon said before it ended: it is still in the socket, behind the error that ended it."""
        try:
            while True:
                self._receive(wait=False)
        except (control.ConnectionEnded, BlockingIOError):
            pass

    def _raise_lost(self) -> NoReturn:
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
