"""The agent: makes rows for daemons on other machines. It listens, starts a session for each daemon, and shares out.

    agent (listens) --fork and exec--> session (one daemon) --> fork server --> readers

A session is a process with a fork server and readers of its own: daemons neither see nor disturb each other, and one
that is gone takes all with it that was made for it. The agent divides its readers and its memory evenly among those
that are there. A connection gets a session once it has proved that it has the token: until then it costs a socket, and
so does a probe that looks whether the port is open. When the agent dies its sessions' sockets end, and so do they.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field

from prefetchd.config.units import format_bytes, format_count, parse_bytes
from prefetchd.daemon.memory.limits import machine_limits
from prefetchd.daemon.memory.plan import DAEMON_BYTES
from prefetchd.errors import BudgetError, PrefetchdError, one_line
from prefetchd.ipc import messages, sockets, system
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ipc.process import child_command, child_environment
from prefetchd.remote import control
from prefetchd.remote.greeting import GREETING_S, Greeting, Stranger
from prefetchd.remote.link import LinkEnded, tune

log = logging.getLogger("prefetchd")

AGENT_BYTES = 24 << 20  # of the agent's own process
_AUTO_SHARE = 0.6
_MOST_STRANGERS = 64  # connections that have not proved that they have the token
_SHORT_REST_S = 1.0  # without looking for connections, as there are no descriptors for them
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_END_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """How an agent is started.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        n_readers: readers in all.
        memory_budget: most memory of all its processes together, as the option of that name.
        settings: for its sessions.
        with_parent: whether it ends with the process that started it.
    """

    host: str
    port: int
    n_readers: int
    memory_budget: str
    settings: control.Settings
    with_parent: bool = False


@dataclass(slots=True, eq=False)
class _Session:
    process: subprocess.Popen[bytes]
    pidfd: int
    sock: socket.socket
    is_proven: bool = False  # inside TLS too, where there is TLS
    share: control.Share | None = None
    needs_bytes: int = 0  # with one reader; 0 until it serves


@dataclass(slots=True)
class Agent:
    """One agent; `run` returns after `stop`.

    Args:
        options: how it was started.
        loop: the event loop to run in, borrowed.

    Attributes:
        address: host and port that it listens on.
        budget_bytes: the most memory of all its processes together.

    Raises:
        PrefetchdError: if it cannot listen there.
        BudgetError: if the budget cannot be kept.
    """

    options: AgentOptions
    loop: EventLoop
    address: tuple[str, int] = field(init=False)
    budget_bytes: int = field(init=False)
    _listener: socket.socket = field(init=False)
    _strangers: dict[int, Stranger] = field(init=False, default_factory=dict)
    _sessions: dict[int, _Session] = field(init=False, default_factory=dict)
    _is_short: bool = field(init=False, default=False)  # of descriptors or memory, which was logged

    def __post_init__(self) -> None:
        self.budget_bytes = _budget(self.options.memory_budget)
        family = socket.AF_INET6 if ":" in self.options.host else socket.AF_INET
        try:
            self._listener = socket.create_server((self.options.host, self.options.port), family=family, backlog=64)
        except OSError as error:
            raise PrefetchdError(
                f"cannot listen on {self.options.host} port {self.options.port}: {error.strerror or error}; choose "
                "another address of this machine, or another port"
            ) from None
        self._listener.setblocking(False)
        self.address = self._listener.getsockname()[:2]
        self.loop.watch(self._listener.fileno(), self._accept)

    def describe(self) -> str:
        """Return one line about where it listens and what it has."""
        host, port = self.address
        code = "users' functions are imported" if self.options.settings.allow_code else "no users' functions"
        return (
            f"ready: {f'[{host}]' if ':' in host else host}:{port}, {format_count(self.options.n_readers, 'reader')}, "
            f"memory budget {format_bytes(self.budget_bytes)}, {code}"
        )

    def run(self) -> None:
        """Serve until `stop`."""
        try:
            self.loop.run(lambda: None)
        finally:
            self._close()

    def stop(self) -> None:
        """Make `run` return."""
        self.loop.stop()

    # --- connections

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError as error:  # none is left, or it has gone already, or there are no descriptors
                if error.errno in _SHORTAGES:
                    self._rest(error)
                return
            self._is_short = False
            sock.setblocking(False)
            if len(self._strangers) >= _MOST_STRANGERS:  # those that stay silent keep no daemon out
                self._forget(next(iter(self._strangers.values())))
            try:
                tune(sock)
            except OSError:  # it has gone already
                sock.close()
                continue
            settings = self.options.settings
            greeting = Greeting(settings.token, with_tls=settings.tls_cert is not None)
            stranger = Stranger(sock, "{} port {}".format(*address[:2]), greeting)
            self._strangers[sock.fileno()] = stranger
            self.loop.watch(sock.fileno(), functools.partial(self._greet, stranger))
            self.loop.call_later(GREETING_S, functools.partial(self._forget, stranger))

    def _rest(self, error: OSError) -> None:
        """Look for no connections for a while: the one that waits would have the loop spin."""
        if not self._is_short:
            log.warning("cannot accept connections: %s; trying again (sessions go on)", error.strerror)
        self._is_short = True
        self.loop.unwatch(self._listener.fileno())
        self.loop.call_later(_SHORT_REST_S, self._look_again)

    def _look_again(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.watch(self._listener.fileno(), self._accept)

    def _forget(self, stranger: Stranger) -> None:
        """Close a connection that has not proved that it has the token; do nothing for one that has, or is closed."""
        if self._strangers.get(stranger.sock.fileno()) is stranger:
            self._release(stranger)
            stranger.sock.close()

    def _release(self, stranger: Stranger) -> None:
        del self._strangers[stranger.sock.fileno()]
        self.loop.unwatch(stranger.sock.fileno())

    def _greet(self, stranger: Stranger) -> None:
        try:
            is_proven = stranger.read()
        except LinkEnded as error:
            if not stranger.is_silent:
                log.info("%s is refused: %s", stranger.name, error)
            self._forget(stranger)
            return
        if is_proven:
            self._release(stranger)
            self._start_session(stranger)

    # --- sessions

    def _start_session(self, stranger: Stranger) -> None:
        """Start the session of a daemon that has proved that it has the token; its socket goes there."""
        try:
            session = self._make_session(stranger.sock)
        except OSError as error:  # no descriptors, or no memory
            log.warning("cannot serve %s: %s", stranger.name, error.strerror)
            return
        finally:
            stranger.sock.close()
        self._sessions[session.process.pid] = session
        self.loop.watch(session.sock.fileno(), lambda: self._on_session(session))
        self.loop.watch(session.pidfd, lambda: self._ended(session))
        self._tell(session, self.options.settings)

    @staticmethod
    def _make_session(sock: socket.socket) -> _Session:
        ours, theirs = sockets.socket_pair()
        try:
            sock.setblocking(True)
            process = system.start_process(
                child_command("prefetchd.remote.session", sock.fileno(), theirs.fileno()),
                pass_fds=[sock.fileno(), theirs.fileno()],
                env=child_environment(),
            )
            try:
                return _Session(process, os.pidfd_open(process.pid), ours)
            except OSError:
                process.kill()
                process.wait()
                raise
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

    def _tell(self, session: _Session, message: messages.Message) -> None:
        try:
            sockets.send(session.sock, messages.encode(message), wait=False)
        except (sockets.ConnectionEnded, BlockingIOError):  # it has ended, or does nothing any more
            session.process.kill()

    def _on_session(self, session: _Session) -> None:
        try:
            data, fds = sockets.receive(session.sock, wait=False)
            sockets.close_all(fds)
            match control.decode_from_session(data):
                case control.Proven():
                    session.is_proven = True
                case control.Needs(n_bytes=n_bytes):
                    session.needs_bytes = n_bytes
        except BlockingIOError:
            return
        except (sockets.ConnectionEnded, *messages.DecodeError):
            self.loop.unwatch(session.sock.fileno())  # its end is seen by its pidfd
            return
        self._share_out()

    def _ended(self, session: _Session) -> None:
        del self._sessions[session.process.pid]
        self.loop.unwatch(session.pidfd)
        self.loop.unwatch(session.sock.fileno())
        os.close(session.pidfd)
        session.sock.close()
        session.process.wait()
        self._share_out()

    def _share_out(self) -> None:
        """Divide readers and memory evenly among the daemons that are there; each has one reader at least.

        Who comes when an even part would be too small for those who are served already gets nothing, and is refused:
        else each that comes would end all the others.
        """
        served = sorted(
            (each for each in self._sessions.values() if each.is_proven), key=lambda each: not each.needs_bytes
        )
        all_bytes, refused = self.budget_bytes - AGENT_BYTES, []
        while len(served) > 1 and max(each.needs_bytes for each in served[:-1]) > all_bytes // len(served):
            refused.append(served.pop())
        for number, session in enumerate(served):
            n_readers = self.options.n_readers // len(served) + (number < self.options.n_readers % len(served))
            self._give(session, control.Share(max(1, n_readers), all_bytes // len(served)))
        for session in refused:
            self._give(session, control.Share(1, 0))

    def _give(self, session: _Session, share: control.Share) -> None:
        if share != session.share:
            session.share = share
            self._tell(session, share)

    def _close(self) -> None:
        self.loop.unwatch(self._listener.fileno())
        self._listener.close()
        for stranger in list(self._strangers.values()):
            self._forget(stranger)
        sessions = list(self._sessions.values())
        for session in sessions:
            self.loop.unwatch(session.sock.fileno())
            session.sock.close()  # it ends with it
        for session in sessions:
            try:
                session.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                session.process.kill()
                session.process.wait()
            self.loop.unwatch(session.pidfd)
            os.close(session.pidfd)
        self._sessions.clear()


def _budget(text: str) -> int:
    limit = machine_limits()[0]
    is_auto = text == "auto"
    budget = int(limit.n_bytes * _AUTO_SHARE) if is_auto else parse_bytes(text, whole_bytes=system.memory()[1])
    if budget > limit.n_bytes:
        raise BudgetError(
            f"cannot keep memory_budget={one_line(text)!r}: {limit.source} allows {format_bytes(limit.n_bytes)}; give "
            "less, or free some memory"
        )
    least = AGENT_BYTES + DAEMON_BYTES  # beside readers
    if budget <= least:
        raise BudgetError(
            f"cannot keep memory_budget={one_line(text)!r}: the agent alone takes {format_bytes(least)}; give more"
        )
    return budget


def serve(options: AgentOptions, announce: Callable[[Agent], None]) -> None:
    """Run an agent until it is asked to end; `announce` is called once it listens.

    Raises:
        PrefetchdError: as `Agent` does.
    """
    loop = EventLoop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.on_signal(number, loop.stop)
    parent = -1
    try:
        if options.with_parent:
            parent = os.pidfd_open(os.getppid())
            loop.watch(parent, loop.stop)
        agent = Agent(options, loop)
        announce(agent)
        agent.run()
    finally:
        if parent >= 0:
            os.close(parent)
        loop.close()
