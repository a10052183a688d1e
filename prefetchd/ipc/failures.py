"""Failures in words: an exception of the system, or any of a daemon, as one line with a remedy.

Any call that opens, maps, forks or writes can fail for lack of something: descriptors, memory, processes, disk.
`explained` wraps each command, a daemon's start, the fork server, and the daemon's event loop, which passes the line on
to every consumer.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import resource
from collections.abc import Iterator

from prefetchd.errors import PrefetchdError
from prefetchd.ipc.sockets import ConnectionEnded

log = logging.getLogger("prefetchd")

_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit of open files (fs.file-max)",
    errno.ENOMEM: "free some memory, or raise its limits (ulimit -v, ulimit -d)",
    errno.EAGAIN: "try again, or raise the limit of processes (ulimit -u)",
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or raise the quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
}
_LIMITS = {
    errno.EMFILE: resource.RLIMIT_NOFILE,
    errno.ENOMEM: resource.RLIMIT_AS,
    errno.EAGAIN: resource.RLIMIT_NPROC,
    errno.EFBIG: resource.RLIMIT_FSIZE,
}


@contextlib.contextmanager
def explained(cannot: str, *, everything: bool = False) -> Iterator[None]:
    """Turn an `OSError` for lack of something, or a `MemoryError`, into one line, *cannot* `cannot`: ...

    Args:
        cannot: what failed, as in "start the daemon".
        everything: turn every other `Exception` too, but not the end of a connection.

    Raises:
        PrefetchdError: in place of such an exception.
    """
    try:
        yield
    except (PrefetchdError, ConnectionEnded):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            raise PrefetchdError(_shortage(cannot, error)) from error
        if isinstance(error, MemoryError):
            raise PrefetchdError(f"cannot {cannot}: it has no memory left; {_REMEDIES[errno.ENOMEM]}") from error
        if not everything:
            raise
        match error:
            case ImportError():
                why = f"{error}; reinstall prefetchd and what it needs"
            case OSError():
                where = f" ({error.filename})" if error.filename is not None else ""
                why = f"{error.strerror or type(error).__name__}{where}; see to that and start it again"
            case _:
                log.exception("the daemon cannot %s", cannot)
                why = f"{type(error).__name__}: {error}; its log has the traceback: please report it"
        raise PrefetchdError(f"cannot {cannot}: {why}") from error


def _shortage(cannot: str, error: OSError) -> str:
    assert error.errno is not None
    facts = [] if error.filename is None else [str(error.filename)]
    if error.errno in _LIMITS:
        soft = resource.getrlimit(_LIMITS[error.errno])[0]
        facts += [] if soft == resource.RLIM_INFINITY else [f"the limit is {soft}"]
    details = f" ({', '.join(facts)})" if facts else ""
    return f"cannot {cannot}: {error.strerror}{details}; {_REMEDIES[error.errno]}"
