"""How many descriptors the daemon may have: as many as the system lets it, asked for as it starts."""

from __future__ import annotations

import resource

_MAX_DESCRIPTORS = 65536


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
