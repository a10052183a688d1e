"""Who is alive: the run lock of a named daemon, and what a process that does not answer is at.

A daemon is alive if and only if its lock file is locked (`flock`), whatever files lie about: a lock that can be taken
belonged to a dead one. The kernel drops the lock with the process, so no clean-up can be forgotten.

The files of one that was killed are removed by the first who notices: its fork server, the loader that loses it, or the
next daemon of any name. Each does so with the lock held, so what a successor has made is safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path

from prefetchd.errors import ConfigError
from prefetchd.ipc.run_directory import DaemonPaths

# Who asks whether a daemon is alive, or clears up after a dead one, has the lock for some microseconds too.
_GLANCE_S = 0.2


class RunLock:
    """The right to be the daemon of a name; owns the lock file's descriptor."""

    def __init__(self, fd: int, paths: DaemonPaths) -> None:
        self._fd = fd
        self._paths = paths

    @classmethod
    def acquire(cls, paths: DaemonPaths) -> RunLock | None:
        """Take the lock, or return `None` if another process has it.

        Raises:
            ConfigError: if its file cannot be made, such as on a full disk.
        """
        deadline_s = time.monotonic() + _GLANCE_S
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
            # Between open and flock the last owner may have removed the file: then this lock guards nothing.
            try:
                if os.path.samestat(os.fstat(fd), os.stat(paths.lock)):
                    break
            except FileNotFoundError:
                pass
            os.close(fd)
        with contextlib.suppress(OSError):  # a full disk: it is not told then who has the lock, which is held still
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return cls(fd, paths)

    def release(self) -> None:
        """Remove the socket, the log of a shared daemon and the lock file, then give the lock up."""
        for path in self._paths.files:
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self._fd)


def remove_left_files(files: Sequence[str], wait_s: float = 0.0) -> None:
    """Remove the files of a daemon that was killed, unless it lives, or another has taken its name over.

    Args:
        files: all of them, its lock the last.
        wait_s: how long the lock may still be held: the kernel may close a dying daemon's sockets before its lock.
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
        # What we have locked may have been removed meanwhile: then the name may be another's by now.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(files[-1])):
                for path in files:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
    finally:
        os.close(lock)


def remove_files_of_others(paths: DaemonPaths) -> None:
    """Remove what killed daemons of other names have left in the same run directory: perhaps nobody asks for them."""
    for other in paths.all_names:
        if other.name != paths.name:
            remove_left_files(other.files)


def lock_owner(lock: Path) -> int | None:
    """Return the pid of the process that holds the lock at `lock`, or `None` if nobody does (0 if it is unknown)."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(fd)
    return None


def process_state(pid: int) -> str:
    """Return the kernel's one-letter state of a process (`T` is stopped), or `""` if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1].decode()
    except OSError:
        return ""


def describe_process(pid: int) -> str:
    """Say what a process that does not answer is at, and what helps: `pid 7 is stopped; continue it with ...`."""
    state = process_state(pid)
    if state in ("T", "t"):
        return f"pid {pid} is stopped (SIGSTOP, or a debugger); continue it with: kill -CONT {pid}"
    if state in ("", "Z", "X"):
        return f"pid {pid} has ended"
    if state == "D":
        return f"pid {pid} waits in the kernel (state D), such as for a disk or for memory"
    return f"pid {pid} is alive (state {state}); see its log"
