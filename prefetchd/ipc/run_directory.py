"""Names: what a daemon is called, and its run directory, socket and lock in the file system. Chosen here only.

The run directory is `$XDG_RUNTIME_DIR/prefetchd`, or `prefetchd-UID` in the temporary folder, mode 0700 and owned by
the user; anything else there is refused, so that nobody can lay a socket in our way.
"""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from prefetchd.config.convert import daemon_name
from prefetchd.errors import ConfigError

_SUN_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class DaemonPaths:
    """Where the daemon called `name` can be found."""

    name: str
    socket: Path
    lock: Path

    @property
    def log(self) -> Path:
        """Where a shared daemon logs, as long as it lives."""
        return self.lock.with_suffix(".log")

    @property
    def files(self) -> tuple[str, ...]:
        """All that a daemon of the name may have made, the lock, which guards the others, last."""
        return os.fspath(self.socket), os.fspath(self.log), os.fspath(self.lock)

    @property
    def all_names(self) -> list[DaemonPaths]:
        """The paths of every daemon that has, or has left, a lock in the same run directory."""
        return [DaemonPaths(lock.stem, lock.with_suffix(".sock"), lock) for lock in self.lock.parent.glob("*.lock")]


def choose_name(given: str | None = None) -> str:
    """Return the daemon's name: the one given, or `PREFETCHD_NAME`, or `default`."""
    return given or os.environ.get("PREFETCHD_NAME") or "default"


def daemon_paths(name: str, *, create: bool = False) -> DaemonPaths:
    """Return the paths of the daemon called `name`; with `create`, make the run directory.

    Raises:
        ConfigError: if the name cannot be one, or the directory cannot be made, is not the user's alone, or has too
            long a path for a socket.
    """
    daemon_name(name)
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK):
        directory = Path(runtime) / "prefetchd"
    else:
        directory = Path(tempfile.gettempdir()) / f"prefetchd-{os.getuid()}"
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
                f"cannot use the run directory {directory}: it must be a directory of yours with mode 0700; "
                "remove it, or set XDG_RUNTIME_DIR"
            )
    paths = DaemonPaths(name, directory / f"{name}.sock", directory / f"{name}.lock")
    if len(os.fsencode(paths.socket)) > _SUN_PATH_BYTES:
        raise ConfigError(
            f"cannot use the socket {paths.socket}: its path is longer than {_SUN_PATH_BYTES} bytes; "
            "choose a shorter --name or set XDG_RUNTIME_DIR to a shorter folder"
        )
    return paths
