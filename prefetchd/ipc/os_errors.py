"""Errors of the system that ran out of something (descriptors, memory, processes, disk), as one line with a remedy.

Any call that opens, maps, forks or writes can fail so. `explained` wraps each command, a daemon's start, the fork
server, and the daemon's event loop, which passes the line on to every consumer.
"""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Iterator

from prefetchd.errors import PrefetchdError

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
def explained(cannot: str) -> Iterator[None]:
    """Turn an `OSError` for lack of something into one line, *cannot* `cannot`: ...; leave other errors alone.

    Raises:
        PrefetchdError: in place of such an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise PrefetchdError(_line(cannot, error)) from error


def _line(cannot: str, error: OSError) -> str:
    assert error.errno is not None
    facts = [] if error.filename is None else [str(error.filename)]
    if error.errno in _LIMITS:
        soft = resource.getrlimit(_LIMITS[error.errno])[0]
        facts += [] if soft == resource.RLIM_INFINITY else [f"the limit is {soft}"]
    details = f" ({', '.join(facts)})" if facts else ""
    return f"cannot {cannot}: {error.strerror}{details}; {_REMEDIES[error.errno]}"
