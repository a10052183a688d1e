"""A session: the agent's process that serves one daemon, with a fork server and readers of its own.

    child process prefetchd.remote.session SOCKET_FD CONTROL_FD

    (TLS, greeting ->) Marks -> Join, Pieces -> plan, readers -> Joined -> Tasks, Rows ...

The agent has greeted the daemon before it starts this. Until the daemon has joined each step waits, with a deadline. It
ends with the daemon's connection, and with the agent; the readers end with it, and the kernel frees what they all had.
The plan is made as the daemon's is: a share for the process and its fork server, the index, a share for each reader
with two chunks, and the rest for large images.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import sys
from dataclasses import dataclass
from typing import Any

from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.memory.limits import measure
from prefetchd.daemon.memory.plan import ALLOWANCE_BYTES, DAEMON_BYTES, READER_SLACK_BYTES, THREAD_BYTES, reader_share
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.pool_events import PoolEvents
from prefetchd.errors import BudgetError, PrefetchdError
from prefetchd.ipc import sockets, system
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ipc.failures import explained
from prefetchd.ipc.parent_death import end_with_parent
from prefetchd.ipc.reader_messages import Boot
from prefetchd.remote import control, wire
from prefetchd.remote.arrival import Arrived, Index, arrive
from prefetchd.remote.greeting import GREETING_S, greet_daemon
from prefetchd.remote.link import Link, LinkEnded, Peer, why
from prefetchd.remote.tls import tls_context
from prefetchd.remote.worker import Worker

log = logging.getLogger("prefetchd")

_SHARE_S = 10.0
_SHIP_S = 60.0
_TICK_S = 0.5
_BUFFERS_A_READER = 2
_SPARE_BUFFERS = 2  # being sent while all readers have two
_LARGE_BYTES = 32 << 20  # kept for large images where there is room


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """What a session does with its share.

    Attributes:
        n_readers: its readers.
        large_bytes: what decodes may take together beyond the readers' shares.
        reader_bytes: of one reader.
        least_bytes: what all takes with one reader.
    """

    n_readers: int
    large_bytes: int
    reader_bytes: int
    least_bytes: int

    @property
    def n_buffers(self) -> int:
        """Staging buffers."""
        return _BUFFERS_A_READER * self.n_readers + _SPARE_BUFFERS


def plan_session(share: control.Share, index_bytes: int, reader_bytes: int, chunk_bytes: int) -> SessionPlan:
    """Return the plan for a share: as many readers as are allowed and fit.

    Raises:
        BudgetError: if not even one fits.
    """
    own = reader_share(reader_bytes)
    base = DAEMON_BYTES + index_bytes + _SPARE_BUFFERS * chunk_bytes
    each = own + _BUFFERS_A_READER * chunk_bytes
    left = share.n_bytes - base
    n_readers = min(share.n_readers, left // each)
    if n_readers < 1:
        raise BudgetError(
            f"cannot serve this daemon: its part of the agent's memory budget is {format_bytes(share.n_bytes)}, and it "
            f"takes {format_bytes(base + each)} with one reader; start the agent with a larger memory_budget"
        )
    with_room = max(1, (left - _LARGE_BYTES) // each)
    n_readers = min(n_readers, with_room)
    return SessionPlan(n_readers, left - n_readers * each, own, base + each)


class Session:
    """One daemon's session.

    Args:
        sock: the connection, owned.
        control_sock: the agent's, owned.
    """

    def __init__(self, sock: socket.socket, control_sock: socket.socket) -> None:
        self._sock, self._control = sock, control_sock
        self.peer_name = "{} port {}".format(*sock.getpeername()[:2])
        self._arrived: list[Arrived] = []
        self._loop: EventLoop
        self._pool: Pool
        self._worker: Worker
        self._link: Link[wire.FromDaemon]
        self._write_fd = -1
        self._is_watched = self._is_ticking = False
        self._share: control.Share

    def run(self) -> None:
        """Serve until the daemon or the agent is gone.

        Raises:
            LinkEnded: when the daemon is gone, or did not join, and why.
            ConnectionEnded: when the agent is gone.
            PrefetchdError: if it cannot be served; it was told why.
        """
        settings = self._receive_control(_SHARE_S)
        assert isinstance(settings, control.Settings)
        context = tls_context(settings.tls_cert, settings.tls_key, settings.tls_ca, is_agent=True)
        if context is not None:
            self._sock.settimeout(GREETING_S)
            try:
                self._sock = context.wrap_socket(self._sock, server_side=True)
            except (OSError, ssl.SSLError) as error:
                raise LinkEnded(why(error)) from None
        peer = Peer(self._sock)
        if context is not None:
            greet_daemon(peer, settings.token, within_tls=True)
        sockets.send(self._control, wire.encode(control.Proven()))
        peer.send(wire.Marks(settings.versions, settings.probe, settings.allow_code), deadline_s=GREETING_S)
        share = self._receive_control(_SHARE_S)
        assert isinstance(share, control.Share)
        try:
            self._serve(peer, settings, share)
        except PrefetchdError as error:
            self._refuse(str(error))
            raise

    def _receive_control(self, deadline_s: float) -> control.Settings | control.Share:
        if not system.poller(self._control).wait(deadline_s):
            raise LinkEnded("the agent does not answer")
        data, fds = sockets.receive(self._control)
        sockets.close_all(fds)
        message: control.Settings | control.Share = control.decode_to_session(data)
        return message

    def _refuse(self, text: str) -> None:
        """Tell the daemon why it is not served, if it still listens."""
        try:
            self._sock.setblocking(True)
            Peer(self._sock).send(wire.Refused(text), deadline_s=GREETING_S)
        except (LinkEnded, OSError):
            return

    # --- joining

    def _receive_index(self, peer: Peer, share: control.Share) -> tuple[wire.Join, list[Index]]:
        join, _ = peer.receive(wire.decode_from_daemon, deadline_s=_SHIP_S)
        if not isinstance(join, wire.Join) or not join.datasets:
            raise LinkEnded("it does not say what to serve")
        n_bytes = sum(sum(each.fd_bytes) for each in join.datasets)
        if n_bytes > share.n_bytes:  # before memory is taken for them
            raise BudgetError(
                f"cannot serve this daemon: its index takes {format_bytes(n_bytes)}, and its part of the agent's "
                f"memory budget is {format_bytes(share.n_bytes)}; start the agent with a larger memory_budget"
            )
        with explained("serve this daemon"):  # there may be no descriptors for them
            indexes = [Index(each) for each in join.datasets]
        for index in indexes:
            while not index.is_whole:
                message, body = peer.receive(
                    wire.decode_from_daemon, deadline_s=_SHIP_S, most_body_bytes=wire.PIECE_BYTES
                )
                if not isinstance(message, wire.Piece):
                    raise LinkEnded("it sent something else than its index")
                index.add(body)
        return join, indexes

    def _serve(self, peer: Peer, settings: control.Settings, share: control.Share) -> None:
        join, indexes = self._receive_index(peer, share)
        with explained("serve this daemon", everything=True):
            self._arrived = [arrive(number, index, settings) for number, index in enumerate(indexes)]
        self._share = share
        plan = self._plan(share)
        sockets.send(self._control, wire.encode(control.Needs(plan.least_bytes)))
        self._loop = EventLoop()
        self._pool = Pool(
            plan.n_readers, join.reader_timeout, watch=self._loop.watch, unwatch=self._loop.unwatch,
            clock=self._loop.clock,
        )  # fmt: skip
        try:
            self._link = Link(peer.sock, wire.decode_from_daemon, self._place, self._handle)
            self._worker = Worker(self._pool, [each.layouts for each in self._arrived], self._link.send)
            self._adopt(plan)
            self._boot(plan)
            digests, versions = [each.digest for each in self._arrived], [each.versions for each in self._arrived]
            self._link.send(wire.Joined(plan.n_readers, digests, versions))
            self._loop.watch(self._link.fileno(), self._on_link)
            self._loop.watch(self._control.fileno(), self._on_control)
            self._write_fd = os.dup(self._link.fileno())
            log.info("%s joined: %s", self.peer_name, format_count(plan.n_readers, "reader"))
            with explained("go on", everything=False):
                self._loop.run(self._pump)
        finally:
            self._pool.stop()

    def _plan(self, share: control.Share) -> SessionPlan:
        index_bytes = sum(each.shared_bytes for each in self._arrived)
        reader_bytes = sum(each.reader_bytes for each in self._arrived)
        chunk_bytes = max(layout.slot_bytes for each in self._arrived for layout in each.layouts)
        return plan_session(share, index_bytes, reader_bytes, chunk_bytes)

    def _adopt(self, plan: SessionPlan) -> None:
        self._worker.resize(plan.n_buffers)
        self._worker.large_bytes = plan.large_bytes

    def _boot(self, plan: SessionPlan) -> None:
        worker = self._worker
        events = PoolEvents(
            done=worker.done, lost=worker.lost, stuck=worker.stuck, gone=worker.gone, memory=worker.serve_requests,
            outgrown=worker.outgrown,
        )  # fmt: skip
        has_more = any(each.reader_bytes for each in self._arrived)
        slack = READER_SLACK_BYTES + (system.usable_cores() * THREAD_BYTES if has_more else 0)
        first: list[tuple[Any, list[int]]] = [(each.opened, each.fds) for each in self._arrived]
        self._pool.boot([*first, (Boot(ALLOWANCE_BYTES, plan.reader_bytes, slack), [])], events)

    # --- at work

    def _place(self, message: wire.FromDaemon, n_bytes: int) -> tuple[memoryview, ...]:
        if n_bytes:
            raise LinkEnded("it sent bytes where there are none")
        return ()

    def _handle(self, message: wire.FromDaemon, is_right: bool) -> None:
        match message:
            case wire.Tasks():
                try:
                    self._worker.add(message.tasks)
                except ValueError as error:
                    raise LinkEnded(str(error)) from None
            case wire.Drop():
                self._worker.drop(message.tasks)
            case wire.Ping():
                taken = measure([os.getpid(), *self._pool.pids], self._worker.staging_bytes, exact=False).total_bytes
                taken += sum(each.shared_bytes for each in self._arrived)
                self._link.send(wire.Pong(message.number, taken, self._share.n_bytes, self._pool.crashes))
            case _:
                raise LinkEnded("it answered out of turn")

    def _on_link(self) -> None:
        self._link.read()

    def _on_control(self) -> None:
        share: control.Settings | control.Share | None = None
        try:
            while True:  # the last one counts: one before it may have been too small
                share = self._receive_control(0.0)
        except LinkEnded:
            if share is None:
                return
        assert isinstance(share, control.Share)
        self._share = share
        plan = self._plan(share)
        self._pool.resize(plan.n_readers)
        self._adopt(plan)
        self._link.send(wire.Readers(plan.n_readers))

    def _pump(self) -> None:
        self._worker.give()
        self._link.flush()
        if self._link.is_sending != self._is_watched:
            self._is_watched = self._link.is_sending
            if self._is_watched:
                self._loop.watch_writable(self._write_fd, lambda: None)  # the flush of the next round
            else:
                self._loop.unwatch(self._write_fd)
        if self._pool.busy and not self._is_ticking:
            self._is_ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._is_ticking = False
        self._pool.tick()
        self._worker.serve_requests()


def main(argv: list[str]) -> int:
    """Be the session of the daemon at the other end of SOCKET_FD."""
    end_with_parent(os.getppid(), signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="prefetchd agent: %(message)s")
    try:
        sock, control_sock = (socket.socket(fileno=int(fd)) for fd in argv)
        session = Session(sock, control_sock)
    except OSError:
        return 1  # who came has gone
    try:
        session.run()
    except sockets.ConnectionEnded:
        return 0
    except LinkEnded as error:
        log.info("%s has gone: %s", session.peer_name, error)
    except PrefetchdError as error:
        log.warning("%s is not served any more: %s", session.peer_name, error)
        return 1
    return 0
