"""Start a private or shared daemon, or find a named one, and return a socket to it. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any

from prefetchd.columns.passed import SOURCE, PassedTable
from prefetchd.config.convert import absolute_path
from prefetchd.config.options import PATH_OPTIONS, Config
from prefetchd.errors import ConfigError, DaemonNotFound, PrefetchdError, error_from_name
from prefetchd.ipc import sockets, system
from prefetchd.ipc.descriptors import beyond_standard, memfd
from prefetchd.ipc.exit_status import describe_exit
from prefetchd.ipc.failures import explained
from prefetchd.ipc.process import (
    child_command,
    child_environment,
    describe_process,
    module_folders,
    process_state,
)
from prefetchd.ipc.run_directory import daemon_paths, lock_owner, remove_left_files

log = logging.getLogger("prefetchd")

Passed = Mapping[str, PassedTable]

PRIVATE_NAME = "private"  # what people see; no file has it
_SHOWN_NAMES = 8
_SAY_AFTER_S = 1.0
_START_S = 2.0  # after which a shared daemon that was started, and does not listen, is looked after again
_RETRY_S = 0.05
_MAX_ERROR_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PrivateDaemon:
    """A private daemon that was started, and may still fail to start. Owns the three.

    Attributes:
        sock: the connection to it.
        process: its process.
        errors: a file with what it wrote to standard error before its modules were loaded.
    """

    sock: socket.socket
    process: subprocess.Popen[bytes]
    errors: IO[bytes]

    def failure(self) -> PrefetchdError:
        """Describe why it ended before its first message; waits for its end."""
        return _start_failure("private", self.process, self.errors)


def start_private(config: Config, tables: Passed = MappingProxyType({})) -> PrivateDaemon:
    """Start a daemon of this process's own, with what of it is in memory, `tables`.

    The daemon gets an inherited socket and this process's pidfd: nothing in the file system, and it ends when this
    process does, by any cause. It runs in a session of its own, so that Ctrl-C in a terminal or notebook reaches the
    user's code only.

    Raises:
        PrefetchdError: if its process cannot be started.
    """
    config = dataclasses.replace(_with_python_path(config), name=PRIVATE_NAME)
    with contextlib.ExitStack() as unless_started, _failures_explained("private"):
        with beyond_standard(), contextlib.ExitStack() as passed:
            stderr_fd = _own_stderr()
            passed.callback(os.close, stderr_fd)
            ours, theirs = sockets.socket_pair()
            unless_started.enter_context(ours)
            passed.enter_context(theirs)
            pidfd = os.pidfd_open(os.getpid())
            passed.callback(os.close, pidfd)
            errors = unless_started.enter_context(_error_file())
            process = system.start_process(
                child_command("prefetchd.daemon.private", theirs.fileno(), pidfd, stderr_fd=stderr_fd),
                pass_fds=[theirs.fileno(), pidfd, stderr_fd],
                env=child_environment(),
                stderr=errors,
            )
        with contextlib.suppress(sockets.ConnectionEnded):  # it has ended: attaching finds that, and says why
            _configure(ours, config, tables)
        unless_started.pop_all()
    return PrivateDaemon(ours, process, errors)


def _own_stderr() -> int:
    """Return a descriptor, which the caller owns, of this process's standard error, or of nothing if it has none."""
    # Without it 2 was closed when Python started, and may be a file or a socket of the program by now.
    return os.open(os.devnull, os.O_WRONLY) if sys.__stderr__ is None else os.dup(2)


def _configure(sock: socket.socket, config: Config, tables: Passed) -> None:
    """Send a daemon what it serves."""
    from prefetchd.ipc import messages  # the daemon's interpreter starts meanwhile

    described = {name: table.to_wire() for name, table in tables.items()}
    sockets.send(
        sock,
        messages.encode(messages.Configure({"": config.to_wire()}, described)),
        [table.fd for table in tables.values()],
    )


def _error_file() -> IO[bytes]:
    """Return a file in memory for the standard error of a daemon until it is loaded."""
    return os.fdopen(memfd("prefetchd-start-errors"), "rb")


@contextlib.contextmanager
def _failures_explained(kind: str) -> Iterator[None]:
    """Turn each `OSError` of a start into one line."""
    cannot = f"start a {kind} daemon"
    try:
        with explained(cannot):
            yield
    except OSError as error:
        raise PrefetchdError(
            f"cannot {cannot} with {sys.executable}: {error.strerror}; check the interpreter (sys.executable)"
        ) from None


def _start_failure(kind: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> PrefetchdError:
    """Return the error for a daemon that ended before its first message."""
    try:
        how = describe_exit(process.wait(_START_S))
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            how = "exit status unknown, as SIGCHLD is ignored"
    except subprocess.TimeoutExpired:
        how = "still running"
    lines = os.pread(errors.fileno(), _MAX_ERROR_BYTES, 0).decode(errors="replace").strip().splitlines()
    said = f"its last line: {lines[-1]}" if lines else "it printed nothing"
    return PrefetchdError(
        f"cannot start a {kind} daemon: it ended at once ({how}); {said}; check that {sys.executable} is a Python "
        "interpreter and finds what prefetchd needs"
    )


def _with_python_path(config: Config) -> Config:
    """Return the configuration with the folders in which this process finds modules, where users' functions need it."""
    if not (config.transform or config.target_transform) or config.python_path:
        return config
    here = tuple(module_folders())
    return dataclasses.replace(config, python_path=here)


def shared_config(config: Config, tables: Passed = MappingProxyType({})) -> Config:
    """Return the configuration with absolute paths, named by a digest of itself and of `tables`.

    So equal options and equal content give equal names.
    """
    config = _with_python_path(config)
    passed = {"source" if name == SOURCE else name.partition("/")[2] for name in tables}
    paths = {name: getattr(config, name) for name in PATH_OPTIONS if name not in passed}
    whole: dict[str, Any] = {name: absolute_path(path) for name, path in paths.items() if path is not None}
    if config.mix:
        from prefetchd.config.mix import absolute_mix

        whole["source"], whole["mix"] = config.source, absolute_mix(config.mix)
    config = dataclasses.replace(config, **whole, name="default")
    content = [f"{name}{table.digest}" for name, table in sorted(tables.items())]
    text = repr((sys.executable, sorted(config.to_wire().items()), *content))
    name = f"shared-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    return dataclasses.replace(config, name=name)


def find_or_start_shared(config: Config, timeout_s: float, tables: Passed = MappingProxyType({})) -> socket.socket:
    """Return a socket to the shared daemon of `config`: one for all of this user's processes that ask for it.

    A process that finds none starts one, with its own `tables` of what is in memory. Of several that start at once,
    one serves.

    Raises:
        PrefetchdError: if none can be started.
        DaemonNotFound: if none answers in time.
    """
    config = shared_config(config, tables)
    paths = daemon_paths(config.name, create=True)
    deadline_s = system.monotonic() + timeout_s
    while True:
        if lock_owner(paths.lock) is None:
            _start_shared(config, tables)
        try:
            # One that has ended since, or has only been started, is looked for again: it may not have the lock yet.
            return connect(config.name, max(0.0, min(_START_S, deadline_s - system.monotonic())))
        except DaemonNotFound:
            if system.monotonic() >= deadline_s:
                raise DaemonNotFound(
                    f"cannot reach the shared daemon {config.name!r}: after {timeout_s:g} s it does not listen, or it "
                    f"has ended; see {paths.log} if it is there, or give a longer timeout="
                ) from None


def _start_shared(config: Config, tables: Passed) -> None:
    """Start a daemon for `config`, and wait until somebody listens.

    Raises:
        PrefetchdError: if it cannot be started, such as on a full disk.
    """
    with contextlib.ExitStack() as resources, _failures_explained("shared"), beyond_standard():
        ours, theirs = sockets.socket_pair()
        resources.enter_context(ours)
        errors = resources.enter_context(_error_file())
        with theirs:
            process = subprocess.Popen(
                child_command("prefetchd.daemon.shared", theirs.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=child_environment(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        with contextlib.suppress(sockets.ConnectionEnded):
            _configure(ours, config, tables)
        process.wait()  # the daemon goes on as a child of nobody
        ours.settimeout(_START_S)
        try:
            data, fds = sockets.receive(ours)
        except (TimeoutError, BlockingIOError):
            return  # it is slow: then it is looked for again
        except sockets.ConnectionEnded:
            if lock_owner(daemon_paths(config.name).lock) is None and (
                process.returncode or os.fstat(errors.fileno()).st_size
            ):
                raise _start_failure("shared", process, errors) from None
            return  # it listens, or another does; or it was killed, and is looked for again
        sockets.close_all(fds)
        from prefetchd.ipc import messages

        message = messages.decode_to_consumer(data)
        if isinstance(message, messages.Fatal):
            raise error_from_name(message.error, message.text)


def connect(name: str, timeout_s: float) -> socket.socket:
    """Return a socket to the daemon called `name`, waiting up to `timeout_s` seconds for it to come up.

    Raises:
        DaemonNotFound: if none answers in time.
    """
    paths = daemon_paths(name)
    started_s = system.monotonic()
    said = False
    reason: str | None
    while True:
        try:
            return system.connect(os.fspath(paths.socket))
        except BlockingIOError:
            reason = "its queue of new connections is full"
        except (FileNotFoundError, ConnectionRefusedError) as error:
            reason = error.strerror
        except OSError as error:
            raise DaemonNotFound(
                f"cannot attach to the daemon {name!r} at {paths.socket}: {error.strerror}; is it another user's?"
            ) from None
        waited_s = system.monotonic() - started_s
        owner = lock_owner(paths.lock)
        if owner is None:
            remove_left_files(paths.files)
        what = "none is running" if owner is None else describe_owner(owner)
        if waited_s >= timeout_s:
            after = f" after {timeout_s:g} s" if timeout_s else ""
            instead = ", or pass a manifest to batches()" if timeout_s else ""  # of no use to a command
            do = f"start it with: prefetchd serve MANIFEST --name {name}" if owner is None else "try again in a moment"
            named = others_that_run(name) if owner is None else ""
            raise DaemonNotFound(
                f"cannot reach the daemon {name!r}: {what}{after} ({paths.socket}: {reason}{named}); {do}{instead}"
            )
        if waited_s >= _SAY_AFTER_S and not said:
            said = True
            log.warning("waiting for the daemon %r: %s (up to %g s)", name, what, timeout_s)
        system.sleep(_RETRY_S)


def connect_to_pid(pid: int) -> socket.socket:
    """Return a socket to the daemon of this user whose process is `pid`, named or private.

    Raises:
        DaemonNotFound: if there is none.
    """
    for name, owner in named_daemons():
        if owner == pid:
            return connect(name, timeout_s=0)
    wanted = None
    for found, sock in sockets.connect_to_private():
        if found == pid and wanted is None:
            wanted = sock
        else:
            sock.close()
    if wanted is None:
        raise DaemonNotFound(f"cannot reach a daemon with pid {pid}: you have none; see prefetchd list")
    return wanted


def named_daemons() -> list[tuple[str, int]]:
    """Return the name and the pid of each daemon of this user that has a name, by name."""
    try:
        names = daemon_paths("default").all_names
    except ConfigError:  # no run directory can be made here, so none runs
        return []
    owners = {paths.name: lock_owner(paths.lock) for paths in names}
    return sorted((name, pid) for name, pid in owners.items() if pid is not None)


def others_that_run(name: str) -> str:
    """Return the names of daemons that run, for the end of a message that none is called `name`."""
    others = [repr(other) for other, _ in named_daemons() if other != name]
    return f"; those that run are {', '.join(others[:_SHOWN_NAMES])}" if others else ""


def describe_owner(pid: int) -> str:
    """Describe why the process that has a daemon's lock accepts no connections."""
    return "it is starting, or about to end" if process_state(pid) not in ("T", "t") else describe_process(pid)
