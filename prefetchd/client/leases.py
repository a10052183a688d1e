"""Leases: batches over the slots that a consumer has mapped, and their release when the last view of one dies.

    open_slot --> prepared --take(grant)--> held --the last view dies--> Release, prepared again ... close_slot

A lease lives as long as any view of its root array. One numpy array over the whole map of a slot is the root: every
slice, reshape, tensor or memoryview keeps it alive. When it dies the release is sent at once, in whichever thread and
garbage collection that happens: so it takes no lock and never blocks. A release that the socket does not take is sent
with the next one, or when the loop asks for its next batch. A loop with enough grants ahead writes its releases into
the return queue instead, and sends several together.

Owned by the consumer's `Connection`. When the daemon dies the maps stay valid: the memory is freed with the last of
them. A forked child gets no maps and sends no releases.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import socket
import weakref
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from prefetchd.client.batch import Batch, batch_class
from prefetchd.errors import PrefetchdError
from prefetchd.ipc import messages, sockets
from prefetchd.ring import segment
from prefetchd.ring.queues import ENOUGH_AHEAD, MAX_RETURNS_QUIET, MAX_RETURNS_UNSENT, Ended

if TYPE_CHECKING:
    from prefetchd.ring.layout import BatchLayout
    from prefetchd.ring.queues import Grant, GrantReader, ReturnWriter


class _LeaseRef(weakref.ref["np.ndarray[tuple[int], np.dtype[np.uint8]]"]):
    """A weak reference to a lease's root array. It keeps its `Leases`: views may outlive the rest of the connection.

    `weakref.finalize` would cost as much as all other work for a ready batch; this is also never called at exit.
    """

    __slots__ = ("lease", "leases", "slot")
    leases: Leases
    lease: int  # 0 until it is granted
    slot: int


_BY_QUEUE, _BY_MESSAGE = Ended.BY_QUEUE.value, Ended.BY_MESSAGE.value  # an enum's own comparison is slower

# Keeps the references themselves, by their id, until their arrays die.
_held_refs: dict[int, _LeaseRef] = {}
_all_leases: weakref.WeakSet[Leases] = weakref.WeakSet()


def _root_died(ref: _LeaseRef) -> None:
    if ref.lease:
        _held_refs.pop(id(ref), None)  # Ctrl-C may have come before it was kept
        ref.leases._release(ref.lease, ref.slot)


class Leases:
    """The mapped slots of one connection and the leases on them. Lives until it is closed and no view of it is left.

    Args:
        sock: where releases go; owned, an object of its own: closing the loop's socket object does not close it.
        layouts: of the batches, by the number that a grant gives.
        grants: the loop's grant queue, borrowed: with enough grants there a release need not wake the daemon.
        returns: the return queue, borrowed, where such a release is written.
        writable: give each lease a copy-on-write map of its own.
    """

    def __init__(
        self,
        sock: socket.socket,
        layouts: Sequence[BatchLayout],
        grants: GrantReader,
        returns: ReturnWriter,
        *,
        writable: bool,
    ) -> None:
        self._sock = sock
        self._layouts = layouts
        self._batch_size = layouts[0].batch_size
        self._slot_bytes = max(layout.slot_bytes for layout in layouts)
        self._batch_class = batch_class(layouts[0])
        self._grants = grants
        self._returns = returns
        self._writable = writable
        self._maps: dict[int, mmap.mmap] = {}  # read-only, one a slot
        self._fds: dict[int, int] = {}  # writable: every lease has a map of its own
        # The next leases of slots, made ahead of their grants. One at most a slot, over the whole of it.
        self._prepared: dict[int, tuple[_LeaseRef, Batch]] = {}
        self._held: set[int] = set()
        self._closing = False
        self._pid = os.getpid()
        self.saw_fork = False  # set by a hook in a forked child: the loop's own way asks for no pid
        self._unsent_returns: deque[int] = deque()  # releases in the return queue that go with the next message
        self.unsent: deque[int] = deque()  # releases that the socket did not take
        self.taken = 0  # the last lease that the loop took
        _all_leases.add(self)

    @property
    def n_held(self) -> int:
        """How many leases have a live view."""
        return len(self._held)

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child's copy. What a thread held dies in the child before any hook has run."""
        return os.getpid() != self._pid

    # --- slots

    def open_slot(self, slot: int, slot_bytes: int, fds: list[int]) -> None:
        """Map a slot; with `writable` keep its descriptor, which is taken out of `fds`.

        Raises:
            PrefetchdError: if it is smaller than the layout needs.
        """
        if slot_bytes < self._slot_bytes or len(fds) != 1:
            raise PrefetchdError(f"cannot map slot {slot}: it is smaller than was agreed")
        try:
            if self._writable:
                segment.check_length(fds[0], self._slot_bytes)
                self._fds[slot] = fds.pop()
            else:
                self._maps[slot] = segment.map_read_only(fds[0], self._slot_bytes)
                self._prepare_again(slot)
        except (ValueError, OSError) as error:
            raise PrefetchdError(f"cannot map slot {slot}: {error}") from None

    def close_slot(self, slot: int) -> None:
        """Drop a slot that the daemon has removed; no lease of it is held."""
        self._maps.pop(slot, None)
        self._prepared.pop(slot, None)
        if slot in self._fds:
            os.close(self._fds.pop(slot))

    @property
    def maps(self) -> Collection[mmap.mmap]:
        """The read-only maps of the slots that the daemon has opened and not closed again."""
        return self._maps.values()

    # --- leases

    def take(self, grant: Grant) -> Batch:
        """Return the batch that was granted. The lease ends when its root array and the last of its views die.

        Raises:
            PrefetchdError: if the grant makes no sense.
        """
        prepared = self._prepared.pop(grant.slot, None)
        if prepared is None or grant.layout or grant.rows != self._batch_size:
            prepared = self._prepare(grant)
        ref, batch = prepared
        batch._grant = grant
        ref.lease = grant.lease
        _held_refs[id(ref)] = ref
        self._held.add(grant.lease)
        # Last: if Ctrl-C comes before, the loop never has the lease, and it goes back with the cursor.
        if grant.lease > self.taken:  # else a newer loop in another thread has taken more
            self.taken = grant.lease
            self._returns.write_taken(grant.lease)
        return batch

    def _prepare(self, grant: Grant) -> tuple[_LeaseRef, Batch]:
        slot, rows = grant.slot, grant.rows
        memory = self._maps.get(slot)
        if memory is None:
            if slot not in self._fds:
                raise PrefetchdError(f"cannot read the batch: the daemon granted slot {slot}, which it never opened")
            memory = segment.map_copy_on_write(self._fds[slot], self._slot_bytes)
        if rows > self._batch_size:
            raise PrefetchdError(f"cannot read the batch: {rows} rows were granted of {self._batch_size}")
        if grant.layout >= len(self._layouts):
            raise PrefetchdError(
                f"cannot read the batch: it has the layout {grant.layout}, and {len(self._layouts)} were agreed"
            )
        return self._prepare_over(memory, slot, rows, self._layouts[grant.layout])

    def _prepare_over(self, memory: mmap.mmap, slot: int, rows: int, layout: BatchLayout) -> tuple[_LeaseRef, Batch]:
        """Return the next lease of a slot, without its number yet, and the batch over it."""
        # Not `frombuffer`: the views need `ndarray` too, and after a pause each function that is called costs as much.
        # It keeps the map alive, but does not keep it from being closed: nobody calls `close` of a slot's map.
        root = np.ndarray((layout.slot_bytes,), np.uint8, memory)
        ref = _LeaseRef(root, _root_died)
        ref.leases, ref.slot, ref.lease = self, slot, 0
        return ref, self._batch_class.over(root, rows, layout)

    def _prepare_again(self, slot: int) -> None:
        """Prepare the slot's next lease. Any thread may do so; the loop's own may close the slot meanwhile."""
        memory = self._maps.get(slot)
        if memory is None or slot in self._prepared or len(self._layouts) > 1:  # which of them, the grant says
            return
        try:  # every batch comes here; `suppress` would be three calls
            self._prepared[slot] = self._prepare_over(memory, slot, self._batch_size, self._layouts[0])
        except MemoryError:  # then it is prepared when it is granted
            pass
        if slot not in self._maps:
            self._prepared.pop(slot, None)

    def _release(self, lease: int, slot: int) -> None:
        """Release `lease`, whose last view died. May run in any thread, at any moment: no lock, no blocking."""
        self._held.discard(lease)
        if self.is_inherited or self._sock.fileno() < 0:  # first: a child's release would be taken for its parent's
            return
        try:
            if self._write_return(lease):
                self._unsent_returns.append(lease)
            elif self._send_release([lease, *_drain(self._unsent_returns)]) and self.unsent:
                self.send_unsent()
        except BaseException:  # Ctrl-C, or no memory: sent with the next, perhaps twice
            self.unsent.append(lease)
            raise
        self._prepare_again(slot)
        if self._closing and not self._held:
            self._end()

    def _write_return(self, lease: int) -> bool:
        """Write a release into the return queue, if the daemon looks there in time; return whether that will do."""
        if self._closing:
            return False
        try:
            how = self._grants.leases_end
            most = MAX_RETURNS_QUIET if how == _BY_QUEUE else MAX_RETURNS_UNSENT
            if len(self._unsent_returns) >= most - 1:
                return False
            if how == _BY_QUEUE or self._grants.has_ahead(ENOUGH_AHEAD):
                self._returns.write(lease, self.taken)
                now = self._grants.leases_end  # last, see `queues`
                return now == how if how == _BY_QUEUE else now != _BY_MESSAGE
        except (TypeError, ValueError):  # another thread has closed the connection since
            pass
        return False

    def _send_release(self, leases: list[int]) -> bool:
        """Send releases, or keep them; return whether they were sent. The daemon ignores one that comes twice."""
        try:
            sockets.send(self._sock, messages.encode(messages.Release(leases, self.taken)), wait=False)
        except BlockingIOError:
            self.unsent.extend(leases)
            return False
        except (sockets.ConnectionEnded, OSError):
            pass  # the daemon is gone, and the leases with it
        except BaseException:  # Ctrl-C, or no memory
            self.unsent.extend(leases)
            raise
        return True

    def send_unsent(self) -> bool:
        """Send the releases that the socket did not take before; return whether all were sent."""
        while leases := _drain(self.unsent, messages.MAX_RELEASED):
            if not self._send_release(leases):
                return False
        return True

    # --- the end

    def close(self, *, at_once: bool) -> None:
        """End the connection: now, or when the last view is gone. What is held stays readable either way."""
        self._closing = True
        self._maps.clear()
        self._prepared.clear()
        sockets.close_all(list(self._fds.values()))
        self._fds.clear()
        if at_once or not self._held:
            self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a forked child may have the socket too, and keep it open
        self._sock.close()

    def _in_forked_child(self) -> None:
        """Refuse all use, and print a traceback when the child dies as it touches an array that it did not inherit."""
        self.saw_fork = True
        if self._held and not faulthandler.is_enabled():
            with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError):  # there is no stderr
                faulthandler.enable()


def _drain(leases: deque[int], most: int = MAX_RETURNS_QUIET) -> list[int]:
    """Take leases from the front, `most` at most; another thread may take some at the same time."""
    taken: list[int] = []
    with contextlib.suppress(IndexError):
        while len(taken) < most:
            taken.append(leases.popleft())
    return taken


def _after_fork_in_child() -> None:
    for leases in list(_all_leases):
        leases._in_forked_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
