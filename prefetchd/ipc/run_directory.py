"""The run directory: the socket, lock and log of each named daemon, and the lock that says which one is alive.

The run directory is `$XDG_RUNTIME_DIR/prefetchd`, or `prefetchd-UID` in the temporary folder. It has mode 0700 and
belongs to the user; anything else is refused, so that no other user can place a socket there.

A daemon is alive if and only if its lock file is locked (`flock`). The kernel drops the lock with the process, so a
daemon that was killed leaves files but no lock. The first of these removes the files: its fork server, a client that
looks for it, the loader that lost it, or the next daemon of any name. Each holds the lock while it removes them, so
the files of a successor are safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prefetchd.config.convert import daemon_name
from prefetchd.errors import ConfigError

_SUN_PATH_BYTES = 107
# Those that check for a daemon, or clean up after one, hold the lock too, for some microseconds.
_SHORT_HOLD_S = 0.2


@dataclass(frozen=True, slots=True)
class DaemonPaths:
    """The files of the daemon called `name`."""

    name: str
    socket: Path
    lock: Path

    @property
    def log(self) -> Path:
        """The log file of a shared daemon; it exists as long as the daemon runs."""
        return self.lock.with_suffix(".log")

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that a daemon of this name may have made. The lock is last, as it protects the others."""
        return os.fspath(self.socket), os.fspath(self.log), os.fspath(self.lock)

    @property
    def all_names(self) -> list[DaemonPaths]:
        """The paths of every daemon with a lock file in the same run directory, running or dead."""
        return [DaemonPaths(lock.stem, lock.with_suffix(".sock"), lock) for lock in self.lock.parent.glob("*.lock")]


def choose_name(given: str | None = None) -> str:
    """Return the daemon's name: the one given, or `PREFETCHD_NAME`, or `default`."""
    return given or os.environ.get("PREFETCHD_NAME") or "default"


def daemon_paths(name: str, *, create: bool = False) -> DaemonPaths:
    """Return the paths of the daemon called `name`; with `create`, make the run directory.

    Raises:
        ConfigError: if the name is not valid, or if the directory cannot be made, is not the user's alone, or has a
            path that is too long for a socket.
    """
    daemon_name(name)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK):
        directory = Path(runtime) / "prefetchd"
    else:
        try:
            import tempfile  # few need it, and it loads much

            directory = Path(tempfile.gettempdir()) / f"prefetchd-{os.getuid()}"
        except OSError:
            raise ConfigError(
                "cannot find a folder for the run directory: no temporary folder is writable; set XDG_RUNTIME_DIR or "
                "TMPDIR to a writable folder"
            ) from None
    if create:
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run directory {directory}: {error.strerror}; set XDG_RUNTIME_DIR to a writable folder"
            ) from None
    if directory.exists():
        state = directory.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise ConfigError(
                f"cannot use the run directory {directory}: it must be your own directory with mode 0700; "
                "remove it, or set XDG_RUNTIME_DIR"
            )
    paths = DaemonPaths(name, directory / f"{name}.sock", directory / f"{name}.lock")
    if len(os.fsencode(paths.socket)) > _SUN_PATH_BYTES:
        raise ConfigError(
            f"cannot use the socket {paths.socket}: its path is longer than {_SUN_PATH_BYTES} bytes; "
            "choose a shorter name= or set XDG_RUNTIME_DIR to a shorter folder"
        )
    return paths


class RunLock:
    """The right to be the daemon of one name. Owns the descriptor of the lock file."""

    def __init__(self, fd: int, paths: DaemonPaths) -> None:
        self._fd = fd
        self._paths = paths

    @classmethod
    def acquire(cls, paths: DaemonPaths) -> RunLock | None:
        """Take the lock, or return `None` if another process has it.

        Raises:
            ConfigError: if its file cannot be made, such as on a full disk.
        """
        deadline_s = time.monotonic() + _SHORT_HOLD_S
        while True:
            try:
                fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise ConfigError(
                    f"cannot make the lock {paths.lock}: {error.strerror}; make room there, or set XDG_RUNTIME_DIR to "
                    "another folder"
                ) from None
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                if time.monotonic() > deadline_s:
                    return None
                time.sleep(0.01)
                continue
            # The last owner may have removed the file between open and flock: then this lock protects nothing.
            try:
                if os.path.samestat(os.fstat(fd), os.stat(paths.lock)):
                    break
            except FileNotFoundError:
                pass
            os.close(fd)
        with contextlib.suppress(OSError):  # on a full disk the lock holds, only its owner's pid is not in it
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd, paths)

    def release(self) -> None:
        """Remove the socket, the log and the lock file, then release the lock."""
        for path in self._paths.files:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self._fd)


def remove_left_files(files: Sequence[str], wait_s: float = 0.0) -> None:
    """Remove the files of a killed daemon, unless it is alive or another has taken its name.

    Args:
        files: all of its files, with the lock last.
        wait_s: seconds to wait for the lock; the kernel may close a dying daemon's sockets before its lock.
    """
    try:
        lock = os.open(files[-1], os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    deadline_s = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    return
                time.sleep(0.01)
        # The locked file may have been removed in between: then the name may belong to another daemon.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(files[-1])):
                for path in files:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
    finally:
        os.close(lock)


def remove_files_of_others(paths: DaemonPaths) -> None:
    """Remove the files that killed daemons of other names left in the same run directory."""
    for other in paths.all_names:
        if other.name != paths.name:
            remove_left_files(other.files)


def lock_owner(lock: Path) -> int | None:
    """Return the pid of the process that holds the lock at `lock`, or `None` if it is free (0 if unknown)."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, IsADirectoryError):  # a stray folder is no daemon
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None
