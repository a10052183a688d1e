"""How a loader finds or starts its daemon, and another one when that is gone.

An `Endpoint` is fixed when the loader is made: a private daemon's configuration, or the name of a daemon, and what is
expected of it. A `Session` is an attached connection to it and, where the daemon is private, its process. `Sessions`
owns the session of a loader and replaces it when its daemon is lost. A session belongs to the process that opened it;
in a forked child closing it does nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from prefetchd._version import __version__
from prefetchd.client import launch
from prefetchd.client.single import read_over
from prefetchd.client.state import Position, check_same, make_state
from prefetchd.columns.passed import PassedTable
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError, DaemonLost, DaemonNotFound
from prefetchd.ipc import sockets, system
from prefetchd.ipc.loading import LoadingModules
from prefetchd.ipc.run_directory import daemon_paths, remove_left_files

if TYPE_CHECKING:
    import socket

    from prefetchd.client.batch import Batch
    from prefetchd.client.connection import Connection

log = logging.getLogger("prefetchd")

T = TypeVar("T")

_END_S = 5.0
_RETRY_S = 0.05
_SHARED_TRIES = 3
_MAX_LOST_IN_A_ROW = 5  # daemons that end before they deliver the next batch: it is the batch that ends them


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """One attached connection. Owned by a loader.

    Attributes:
        connection: to the daemon, owned.
        process: the private daemon, owned; `None` where the daemon has a name.
        pid: of the process that opened it.
    """

    connection: Connection
    process: subprocess.Popen[bytes] | None
    pid: int

    def close(self) -> None:
        """End the connection and the private daemon; nothing in a forked child, which owns neither."""
        if os.getpid() != self.pid:
            if self.process is not None:
                self.process.returncode = 0  # not ours to wait for: silences the warning of a copy being dropped
            return
        self.connection.close(at_once=self.process is not None)
        _end(self.process)


def _ended_without_a_word() -> DaemonLost:
    from prefetchd.ipc.messages import PROTOCOL

    return DaemonLost(
        "cannot attach: the daemon ended while it was starting, or is of another version than this prefetchd "
        f"{__version__} (protocol {PROTOCOL}); see its log"
    )


def _end(process: subprocess.Popen[bytes] | None) -> None:
    """Wait for the end of a private daemon, whose connection has ended."""
    if process is not None:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Which daemon to use.

    Attributes:
        config: what a private daemon serves; `None` for the daemon called `daemon`.
        daemon: the name of the daemon to attach to.
        dataset: which of its data sets; `None` where it serves just one.
        expected: options that the daemon's configuration must not contradict, as plain values.
        timeout_s: how long to wait for a daemon that is starting.
        guaranteed_slots: how many slots the loop must be able to hold.
        writable: whether views may be written.
        hold_timeout_s: how long to wait for a slot.
        shared: whether the daemon that serves `config` is that of all processes which ask for the same.
        group: the group whose passes are shared.
        start_together: how many loaders the first loop is to start with.
        name: what people see of the loader.
        tables: what of `config` is in memory, by name (`columns.passed`); owned, for daemons that are started again.
    """

    config: Config | None
    daemon: str = "default"
    dataset: str | None = None
    expected: dict[str, Any] = field(default_factory=dict)
    timeout_s: float = 30.0
    guaranteed_slots: int = 2
    writable: bool = False
    hold_timeout_s: float = 10.0
    shared: bool = False
    group: str | None = None
    start_together: int = 0
    name: str = ""
    tables: Mapping[str, PassedTable] = field(default_factory=dict)

    @property
    def is_private(self) -> bool:
        """Whether the daemon serves this loader alone."""
        return self.config is not None and not self.shared

    def open(self) -> Session:
        """Start or find the daemon and attach to it.

        Raises:
            PrefetchdError: if that cannot be.
        """
        for _ in range(_SHARED_TRIES - 1 if self.config is not None and self.shared else 0):
            try:
                return self._open()
            except DaemonLost:
                continue  # its last loader had left, so it ended at this moment
        return self._open()

    def _open(self) -> Session:
        private, process, timeout_s = None, None, None
        if self.config is not None and self.shared:
            sock = launch.find_or_start_shared(self.config, self.timeout_s, self.tables)
        elif self.config is not None:
            private = launch.start_private(self.config, self.tables)
            sock, process = private.sock, private.process
        else:
            sock, timeout_s = launch.connect(self.daemon, self.timeout_s), self.timeout_s
        daemon_pid = sockets.peer_pid(sock) if process is None else process.pid
        try:
            return Session(self._attach(sock, daemon_pid, timeout_s), process, os.getpid())
        except sockets.ConnectionEnded:
            _end(process)
            raise (_ended_without_a_word() if private is None else private.failure()) from None
        except BaseException:
            _end(process)
            raise
        finally:
            if private is not None:
                private.errors.close()

    def _attach(self, sock: socket.socket, daemon_pid: int, timeout_s: float | None) -> Connection:
        """Attach over `sock`; raises as `attach`."""
        # These and numpy are imported while a private daemon starts.
        with LoadingModules():
            from prefetchd.client.connection import connect
            from prefetchd.ipc import messages

        request = messages.Attach(
            messages.PROTOCOL,
            __version__,
            self.dataset,
            self.expected,
            self.guaranteed_slots,
            self.group,
            self.start_together,
            self.timeout_s,
            self.name,
        )
        return connect(sock, daemon_pid, request, timeout_s, writable=self.writable, hold_timeout_s=self.hold_timeout_s)

    def read_batch(self, beside: Connection, epoch: int, index: int) -> Batch:
        """Return one batch in memory of its own, read by a second consumer of the daemon that `beside` is attached to.

        Raises:
            PrefetchdError: if the ring has no slot for it, or it cannot be made.
        """
        alone = replace(self, guaranteed_slots=1, group=None, start_together=0, writable=False)
        try:
            connection = alone._attach(beside.add_connection(), beside.daemon_pid, self.timeout_s)
        except sockets.ConnectionEnded:
            raise _ended_without_a_word() from None
        try:
            return read_over(connection, epoch, index)
        finally:
            connection.close(at_once=True)

    def close(self) -> None:
        """Let go of a source in memory; a daemon has its own descriptor."""
        for table in self.tables.values():
            table.close()

    def clear_up_after_lost(self) -> None:
        """Remove the files of a daemon that is gone, if its fork server was killed too and no other has its name."""
        if self.is_private:
            return  # it has no files
        name = launch.shared_config(self.config, self.tables).name if self.config is not None else self.daemon
        with contextlib.suppress(ConfigError):  # the run directory is gone
            remove_left_files(daemon_paths(name).files)

    def open_again(self) -> Session:
        """As `open`, for a daemon that was lost: it may still be ending, or be lost again, for `timeout_s` seconds.

        Raises:
            PrefetchdError: if it did not come back in time, or refuses us.
        """
        deadline_s = system.monotonic() + self.timeout_s
        while True:
            try:
                return self.open()
            except (DaemonLost, DaemonNotFound):
                if system.monotonic() >= deadline_s:
                    raise
                system.sleep(_RETRY_S)


class Sessions:
    """The session of one loader, replaced when its daemon is lost. Ends with the loader.

    Attributes:
        current: the session, owned.
    """

    def __init__(self, endpoint: Endpoint, *, reconnect: bool) -> None:
        self._end_table = weakref.finalize(self, endpoint.close)
        try:
            self.current = endpoint.open_again() if reconnect else endpoint.open()
        except BaseException:
            self._end_table()  # now: who keeps the exception keeps this object
            raise
        self._endpoint = endpoint
        self._reconnect = reconnect
        self._end = weakref.finalize(self, self.current.close)

    @property
    def is_open(self) -> bool:
        """Whether the loader was not closed."""
        return self._end.alive

    def ask(
        self, question: Callable[[Connection], T], position: Callable[[], Position], begin: Callable[[], None]
    ) -> T:
        """Return the answer of the daemon's connection to `question`, of another daemon's if this one is lost.

        Args:
            question: what to ask.
            position: returns where the loop is.
            begin: opens the loop's cursor on a new connection.

        Raises:
            DaemonLost: if the loader is not to reconnect, or no daemon comes back and answers.
        """
        for _ in range(_MAX_LOST_IN_A_ROW if self._reconnect else 0):
            try:
                return question(self.current.connection)
            except DaemonLost as lost:
                self._open_again(lost, position())
                begin()
        try:
            return question(self.current.connection)
        except DaemonLost:
            self._endpoint.clear_up_after_lost()
            raise

    def _open_again(self, lost: DaemonLost, position: Position) -> None:
        log.warning(
            "the daemon is gone; waiting for it to come back for up to %g s (%s)", self._endpoint.timeout_s, str(lost)
        )
        before = make_state(self.current.connection.info, position)
        with self.current.connection.meter:
            session = self._endpoint.open_again()
        self._end.detach()
        self.current.close()
        session.connection.meter = self.current.connection.meter
        self.current = session
        self._end = weakref.finalize(self, session.close)
        check_same(before, session.connection.info, "the daemon that came back serves other batches")

    def close(self) -> None:
        """End the session, and with it a private daemon."""
        self._end()
        self._end_table()
