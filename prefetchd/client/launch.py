"""Starting a private daemon and finding a named one: how a consumer comes by its socket. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import socket
import subprocess
import sys
import time

from prefetchd.config.options import PATH_OPTIONS, Config
from prefetchd.errors import DaemonNotFound, PrefetchdError, error_from_name
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.process import describe_process, process_state
from prefetchd.ipc.run_directory import daemon_paths, lock_owner, remove_left_files

log = logging.getLogger("prefetchd")

_SAY_AFTER_S = 1.0
_START_S = 2.0  # after which a shared daemon that was started, and does not listen, is looked after again
_RETRY_S = 0.05


def start_private(config: Config) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start a daemon of this process's own; return its socket and process, both the caller's.

    The daemon gets an inherited socket and this process's pidfd: nothing in the file system, and it ends when this
    process does, however that happens. It runs in a session of its own, so that Ctrl-C in a terminal or notebook
    reaches the user's code only.
    """
    config = _with_python_path(config)
    ours, theirs = sockets.socket_pair()
    pidfd = os.pidfd_open(os.getpid())
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "prefetchd.daemon.private", str(theirs.fileno()), str(pidfd)],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), pidfd],
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise PrefetchdError(
            f"cannot start a private daemon with {sys.executable}: {error.strerror}; check the interpreter"
        ) from None
    finally:
        theirs.close()
        os.close(pidfd)
    sockets.send(ours, messages.encode(messages.Configure({"": config.to_wire()})))
    return ours, process


def _with_python_path(config: Config) -> Config:
    """Return the configuration with the folders in which this process finds modules, where users' functions need it."""
    if not (config.transform or config.target_transform) or config.python_path:
        return config
    here = tuple(dict.fromkeys(os.path.abspath(folder) for folder in sys.path))
    return dataclasses.replace(config, python_path=here)


def shared_config(config: Config) -> Config:
    """Return the configuration as a daemon elsewhere needs it, with the name that all who ask for the same give it."""
    config = _with_python_path(config)
    paths = {name: getattr(config, name) for name in PATH_OPTIONS}
    whole = {name: os.path.abspath(os.path.expanduser(path)) for name, path in paths.items() if path is not None}
    config = dataclasses.replace(config, **whole, name="default")
    text = repr((sys.executable, sorted(config.to_wire().items())))
    name = f"shared-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    return dataclasses.replace(config, name=name)


def find_or_start_shared(config: Config, timeout_s: float) -> socket.socket:
    """Return a socket to the daemon that all of this user's processes share which ask for `config`.

    Whoever finds none starts one; of several that were started at once, one serves.

    Raises:
        PrefetchdError: if none can be started.
        DaemonNotFound: if none answers in time.
    """
    config = shared_config(config)
    paths = daemon_paths(config.name, create=True)
    deadline_s = time.monotonic() + timeout_s
    while True:
        if lock_owner(paths.lock) is None:
            _start_shared(config)
        try:
            # One that has ended since, or has only been started, is looked for again: it may not have the lock yet.
            return connect(config.name, max(0.0, min(_START_S, deadline_s - time.monotonic())))
        except DaemonNotFound:
            if time.monotonic() >= deadline_s:
                raise


def _start_shared(config: Config) -> None:
    """Start a daemon for `config`, and wait until somebody listens.

    Raises:
        PrefetchdError: if it cannot be started, such as on a full disk.
    """
    ours, theirs = sockets.socket_pair()
    with ours, theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "prefetchd.daemon.shared", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except OSError as error:
            raise PrefetchdError(
                f"cannot start a shared daemon with {sys.executable}: {error.strerror}; check the interpreter"
            ) from None
        theirs.close()
        sockets.send(ours, messages.encode(messages.Configure({"": config.to_wire()})))
        process.wait()  # it goes on as a child of nobody
        ours.settimeout(_START_S)
        try:
            data, fds = sockets.receive(ours)
        except (sockets.ConnectionEnded, TimeoutError, BlockingIOError):
            return  # it listens, or another does; or it was killed, or is slow: then it is looked for again
        sockets.close_all(fds)
        message = messages.decode_to_consumer(data)
        if isinstance(message, messages.Fatal):
            raise error_from_name(message.error, message.text)


def connect(name: str, timeout_s: float) -> socket.socket:
    """Return a socket to the daemon called `name`, waiting up to `timeout_s` seconds for it to come up.

    Raises:
        DaemonNotFound: if none answers in time.
    """
    paths = daemon_paths(name)
    started_s = time.monotonic()
    said = False
    reason: str | None
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)  # with a full queue of others before us, connecting would wait without an end
        try:
            sock.connect(os.fspath(paths.socket))
        except BlockingIOError:
            sock.close()
            reason = "its queue of new connections is full"
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            reason = error.strerror
        except OSError as error:
            sock.close()
            raise DaemonNotFound(
                f"cannot attach to the daemon {name!r} at {paths.socket}: {error.strerror}; is it another user's?"
            ) from None
        else:
            sock.setblocking(True)
            return sock
        waited_s = time.monotonic() - started_s
        owner = lock_owner(paths.lock)
        if owner is None:
            remove_left_files(paths.files)
        what = "none is running" if owner is None else describe_owner(owner)
        if waited_s >= timeout_s:
            after = f" after {timeout_s:g} s" if timeout_s else ""
            instead = ", or pass a manifest to batches()" if timeout_s else ""  # of no use to a command
            do = f"start it with: prefetchd serve MANIFEST --name {name}" if owner is None else "try again in a moment"
            raise DaemonNotFound(
                f"cannot reach the daemon {name!r}: {what}{after} ({paths.socket}: {reason}); {do}{instead}"
            )
        if waited_s >= _SAY_AFTER_S and not said:
            said = True
            log.warning("waiting for the daemon %r: %s (up to %g s)", name, what, timeout_s)
        time.sleep(_RETRY_S)


def describe_owner(pid: int) -> str:
    """Say what the process that has a daemon's lock is at: it does not accept connections."""
    return "it is starting, or about to end" if process_state(pid) not in ("T", "t") else describe_process(pid)
