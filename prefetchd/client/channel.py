"""A consumer's socket to its daemon, and the waits for a daemon that does not read, does not answer, or has no slot.

The `Connection` owns the channel and knows what the messages mean. The channel never blocks without end: it looks into
a daemon whose socket stays full or that sends nothing (`AnswerWait`), and gives it up in the end. After the daemon has
died, its last messages can still be received.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any

from prefetchd._version import __version__
from prefetchd.client.user_warnings import warn_user
from prefetchd.errors import DaemonLost, DaemonNotFound, PrefetchdError, RingExhausted
from prefetchd.ipc import messages, sockets, system
from prefetchd.ipc.process import describe_process, process_state

log = logging.getLogger("prefetchd")

LOOK_S = 2.0  # of a wait, after which to look into the daemon
REPORT_S = 30.0
GIVE_UP_S = 300.0
_SHOWN_READERS = 16
_WARN_S = 1.0  # or half the hold time-out, if that is less


class Channel:
    """A socket to the daemon whose process is `daemon_pid`; owns `sock` from then on.

    Attributes:
        daemon_pid: the process to look into while it sends nothing.
        daemon_name: its name; empty until this consumer is attached.
        n_received: how many messages came from it.
    """

    def __init__(self, sock: socket.socket, daemon_pid: int) -> None:
        self._sock = system.own_socket(sock)
        self.daemon_pid = daemon_pid
        self.daemon_name = ""
        self.n_received = 0
        self._readable = system.poller(self._sock)
        self._buffer = bytearray(sockets.MAX_MESSAGE_BYTES)

    # --- receiving

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to receive, which may be the daemon's end; return whether there is."""
        return self._readable.wait(timeout_s)

    def receive(self, *, wait: bool) -> tuple[messages.ToConsumer, list[int]]:
        """Return the next message and the descriptors that came with it, which the caller then owns.

        Raises:
            BlockingIOError: with `wait=False`, if there is none.
            ConnectionEnded: at the end of the daemon.
            PrefetchdError: if it is no message of this version's.
        """
        data, fds = sockets.receive(self._sock, wait=wait, buffer=self._buffer)
        self.n_received += 1
        try:
            return messages.decode_to_consumer(data), fds
        except messages.DecodeError:
            sockets.close_all(fds)
            raise self._not_understood(data) from None

    def _not_understood(self, data: bytes | memoryview) -> PrefetchdError:
        """Return the error for a message that is none of this version's."""
        ours = f"this prefetchd is {__version__} (protocol {messages.PROTOCOL})"
        introduction = messages.read_introduction(data)
        if not self.daemon_name and introduction is not None and introduction.what == "Attached":
            return DaemonNotFound(
                f"cannot attach: {ours}, the daemon {introduction.version} speaks another protocol; "
                "restart the daemon with this version"
            )
        return PrefetchdError(
            f"cannot go on: the daemon sent what is no message of ours; {ours}: restart the daemon with it"
        )

    # --- sending

    def send(self, message: messages.Message, fds: Sequence[int] = ()) -> None:
        """Send a message and descriptors; wait for a daemon whose socket is full, and give it up in the end.

        Raises:
            ConnectionEnded: if the daemon is gone.
            DaemonLost: if it is given up.
        """
        data = messages.encode(message)
        wait: AnswerWait | None = None
        while True:
            try:
                sockets.send(self._sock, data, fds, wait=False)
            except BlockingIOError:
                wait = self.wait_to_send(wait)
            else:
                return

    def send_at_once(self, message: messages.Message) -> None:
        """Send a message if the socket takes it now; else it is not sent.

        Raises:
            ConnectionEnded: if the daemon is gone.
        """
        with contextlib.suppress(BlockingIOError):
            sockets.send(self._sock, messages.encode(message), wait=False)

    def wait_to_send(self, wait: AnswerWait | None) -> AnswerWait:
        """Wait for the socket to take something again; return the whole wait, to be given to the next call."""
        wait = wait or self.begin_wait()
        if not system.poller(self._sock, to_write=True).wait(LOOK_S):
            wait.look()
        return wait

    def begin_wait(self, *, ask: bool = False) -> AnswerWait:
        """Return a wait for the daemon that begins now; with `ask` the daemon is asked for its status after a while."""
        return AnswerWait(self.daemon_name, self.daemon_pid, self._ask_status if ask else None)

    def _ask_status(self) -> None:
        self.send_at_once(messages.AskStatus(messages.PROTOCOL))

    # --- the end

    def dup(self) -> socket.socket:
        """Return another socket object of the same connection, which the caller then owns."""
        return self._sock.dup()

    def shut_down(self) -> None:
        """End the connection for every process that has its socket: a forked child may have it too."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this socket object. Another object of the connection can still send; nothing more is received."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)  # closing alone would not wake a loop that waits in another thread
        self._sock.close()


class AnswerWait:
    """One wait for an answer of the daemon called `name`.

    A daemon that is stopped is named at the first look. One that works is asked what it does, and its answer is logged.
    One that sends nothing for `GIVE_UP_S`, though asked, is lost.

    Args:
        name: of the daemon; empty until it serves this consumer.
        pid: its process.
        ask: asks it for its status, without waiting. `None` if it cannot be asked: then only a stopped daemon is given
            up, since there is no bound on how long another takes to start.
    """

    def __init__(self, name: str, pid: int, ask: Callable[[], None] | None = None) -> None:
        self._name = name
        self._what = f"the daemon {name!r}" if name else "the daemon"
        self._pid = pid
        self._ask = ask
        self._began_s = self._answered_s = self._logged_s = self._looked_s = system.monotonic()
        self._asked = self._logged_stopped = False

    @property
    def lasts_s(self) -> float:
        """How long the wait has lasted."""
        return system.monotonic() - self._began_s

    def next_look_s(self, timeout_s: float | None) -> float:
        """Return the seconds until the next look, or until `timeout_s` of the whole wait are over."""
        return LOOK_S if timeout_s is None else max(0.0, min(LOOK_S, timeout_s - self.lasts_s))

    def look(self) -> None:
        """Look into the daemon; to be called every `LOOK_S` while nothing comes.

        Raises:
            DaemonLost: if it is given up.
        """
        now_s = system.monotonic()
        # A job scheduler may have stopped this process, perhaps with the daemon: that time does not count.
        stopped_s = max(0.0, now_s - self._looked_s - 2 * LOOK_S)
        self._answered_s, self._looked_s = min(now_s, self._answered_s + stopped_s), now_s
        is_stopped = process_state(self._pid) in ("T", "t")
        if not is_stopped and self._ask is None:
            self._answered_s = now_s
        if now_s - self._answered_s >= GIVE_UP_S:
            raise DaemonLost(
                f"cannot go on: {self._what} has sent nothing for {now_s - self._answered_s:.0f} s: "
                f"{describe_process(self._pid)}"
            )
        if now_s - self._logged_s < REPORT_S and (self._logged_stopped or not is_stopped):
            return
        self._logged_s, self._logged_stopped = now_s, is_stopped
        if is_stopped or self._asked or self._ask is None:
            # A daemon reads no socket while it opens its data.
            opens = not (self._name or is_stopped)
            does = "has not begun to serve yet (it reads its lists and headers first)" if opens else "does not answer"
            state = describe_process(self._pid)
            log.warning("has waited %.0f s for %s, which %s: %s", self.lasts_s, self._what, does, state)
        else:
            self._asked = True
            self._ask()

    def answered(self, report: dict[str, Any]) -> None:
        """Log what the daemon does, as its status report says."""
        self._answered_s, self._asked = system.monotonic(), False
        try:
            does = [f"pid {reader['pid']} {reader['does']}" for reader in report["readers"]]
            more = [f"and {len(does) - _SHOWN_READERS} more"] if len(does) > _SHOWN_READERS else []
            readers = "; ".join(does[:_SHOWN_READERS] + more)
        except (KeyError, TypeError):
            readers = "unknown"
        log.warning(
            "has waited %.0f s for a batch of %s (pid %d), which works; its readers: %s",
            self.lasts_s,
            self._what,
            self._pid,
            readers,
        )


class SlotWait:
    """A wait for a batch that the ring can spare no slot for: warns who holds the slots, then ends in `RingExhausted`.

    The daemon sends `Stalled` when it begins, and again after any consumer has given a slot back, unless that slot is
    being filled, which ends the wait: the time runs from the last one.

    Args:
        hold_timeout_s: how long to wait for a slot.
    """

    def __init__(self, hold_timeout_s: float) -> None:
        self._hold_timeout_s = hold_timeout_s
        self._warn_after_s = min(_WARN_S, hold_timeout_s / 2)
        self._warned = False
        self._holders = ""
        self._since_s = 0.0

    def begin(self, holders: str) -> None:
        """Begin, or begin again: `holders` hold all slots."""
        self._holders = holders
        self._since_s = system.monotonic()

    def look(self) -> float:
        """Warn once if the wait is long; return the seconds until the next look.

        Raises:
            RingExhausted: if it has lasted the hold time-out.
        """
        lasts_s = system.monotonic() - self._since_s
        if lasts_s >= self._warn_after_s and not self._warned:
            self._warned = True
            warn_user(
                f"waiting for a slot: {self._holders}; drop batches that you are done with, or pass "
                f"on_hold='copy' (RingExhausted in {self._hold_timeout_s - lasts_s:.0f} s)"
            )
        if lasts_s >= self._hold_timeout_s:
            raise RingExhausted(
                f"cannot get the next batch: {self._holders}, and none came back in "
                f"{self._hold_timeout_s:g} s; copy what you keep (x.copy()), pass on_hold='copy', or give the "
                "daemon a larger memory_budget"
            )
        return min(self._warn_after_s, self._hold_timeout_s - lasts_s)
