"""How a loader comes by a daemon, and by another one when that is gone.

An `Endpoint` is fixed when the loader is made: a private daemon's configuration, or the name of a daemon, and what is
expected of it. `open` gives a `Session`: an attached connection and, where the daemon is private, its process. A
session belongs to the process that opened it; in a forked child closing it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefetchd._version import __version__
from prefetchd.client import launch
from prefetchd.config.options import Config
from prefetchd.errors import ConfigError, DaemonLost, DaemonNotFound
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.run_directory import daemon_paths, remove_left_files

if TYPE_CHECKING:
    from prefetchd.client.connection import Connection

_END_S = 5.0
_RETRY_S = 0.05
_SHARED_TRIES = 3


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
        if self.process is not None:
            try:
                self.process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


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
    """

    config: Config | None
    daemon: str
    dataset: str | None
    expected: dict[str, Any]
    timeout_s: float
    guaranteed_slots: int
    writable: bool
    hold_timeout_s: float
    shared: bool = False
    group: str | None = None
    start_together: int = 0
    name: str = ""

    def open(self) -> Session:
        """Start or find the daemon and attach to it.

        Raises:
            PrefetchdError: if that cannot be.
        """
        for _ in range(_SHARED_TRIES - 1 if self.config is not None and self.shared else 0):
            try:
                return self._open()
            except DaemonLost:
                continue  # the last loader had gone, and it ended as we came
        return self._open()

    def _open(self) -> Session:
        private, process, timeout_s = None, None, None
        if self.config is not None and self.shared:
            sock = launch.find_or_start_shared(self.config, self.timeout_s)
        elif self.config is not None:
            private = launch.start_private(self.config)
            sock, process = private.sock, private.process
        else:
            sock, timeout_s = launch.connect(self.daemon, self.timeout_s), self.timeout_s
        from prefetchd.client.connection import Connection  # numpy is imported here, while a private daemon starts

        daemon_pid = sockets.peer_pid(sock) if process is None else process.pid
        connection = Connection(sock, daemon_pid, writable=self.writable, hold_timeout_s=self.hold_timeout_s)
        session = Session(connection, process, os.getpid())
        try:
            hello = messages.Attach(
                messages.PROTOCOL,
                __version__,
                self.dataset,
                self.expected,
                self.guaranteed_slots,
                self.group,
                self.start_together,
                self.timeout_s,
            )
            connection.attach(hello, timeout_s)
        except sockets.ConnectionEnded:
            session.close()
            if private is not None:
                raise private.failure() from None
            raise DaemonLost(
                "cannot attach: the daemon ended while it was starting, or is of another version than this prefetchd "
                f"{__version__} (protocol {messages.PROTOCOL}); see its log"
            ) from None
        except BaseException:
            session.close()
            raise
        finally:
            if private is not None:
                private.errors.close()
        return session

    def clear_up_after_lost(self) -> None:
        """Remove the files of a daemon that is gone, if its fork server was killed too and no other has its name."""
        if self.config is not None and not self.shared:
            return  # a private one has no files
        name = launch.shared_config(self.config).name if self.config is not None else self.daemon
        with contextlib.suppress(ConfigError):  # the run directory is gone
            remove_left_files(daemon_paths(name).files)

    def open_again(self) -> Session:
        """As `open`, for a daemon that was lost: it may still be ending, or be lost again, for `timeout_s` seconds.

        Raises:
            PrefetchdError: if it did not come back in time, or refuses us.
        """
        deadline_s = time.monotonic() + self.timeout_s
        while True:
            try:
                return self.open()
            except (DaemonLost, DaemonNotFound):
                if time.monotonic() >= deadline_s:
                    raise
                time.sleep(_RETRY_S)
