"""How many descriptors the daemon may have: as many as the system lets it, asked for as it starts.

A quarter of them (16 at least) is kept from the ring, one of whose slots takes one: a daemon whose slots had them all
could not hear a loop, start a reader or look at what is free.
"""

from __future__ import annotations

import resource

from prefetchd.errors import PrefetchdError

_MAX_DESCRIPTORS = 65536
_LEAST_KEPT = 16


def raise_descriptor_limit() -> int:
    """Let this process have as many descriptors as it is allowed, `_MAX_DESCRIPTORS` at most; return how many that is.

    Descriptors that wait in sockets count too: where many readers start with many slots, thousands do.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def check_descriptors(newest: int) -> None:
    """Raise `PrefetchdError` if the descriptor `newest`, a slot's, is one of those that are kept for others.

    The system gives the lowest number that is free, so its number says how many there are.
    """
    allowed = raise_descriptor_limit()
    kept = max(_LEAST_KEPT, allowed // 4)
    if newest >= allowed - kept:
        raise PrefetchdError(
            f"cannot make another slot: {allowed} open files are allowed, {newest + 1} are in use, and {kept} are kept "
            "for loops and readers; raise the limit (ulimit -n)"
        )
