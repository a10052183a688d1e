"""What the system has no more of (descriptors, memory, processes, room for files), said in one line with what to do.

Any call that opens, maps, forks or writes can meet it. It is nobody's bug, so it is told as every other failure is:
around a command (`cli`), a private daemon's start, the fork server, and the daemon's loop, which tells every consumer.
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
def said(cannot: str) -> Iterator[None]:
    """Raise what runs out inside as *cannot* `cannot`; every other error stays as it is.

    Raises:
        PrefetchdError: in place of an `OSError` for want of something.
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
    told = f" ({', '.join(facts)})" if facts else ""
    return f"cannot {cannot}: {error.strerror}{told}; {_REMEDIES[error.errno]}"
