"""A reader's own memory: the limit that the kernel holds it to, and whether it has grown beyond its share.

Used by the reader, in its process alone. Reservations keep decoding within the budget. This is the second line, for
what they cannot know: a user's function, or a decoder that takes more than its header claims. RLIMIT_DATA makes an
allocation that is too large a `MemoryError` of one sample, instead of a machine without memory. The reader looks at
`outgrown` between samples, so a function that leaks costs a fresh reader now and then, and nothing more. RLIMIT_DATA
counts private writable pages, touched or not, so it stands somewhat above the share. RLIMIT_AS would count the slots
and every library as well.
"""

from __future__ import annotations

import resource

from prefetchd.ipc.process import anonymous_bytes, memory_bytes, open_own_statm, private_bytes


class ReaderMemory:
    """Holds this process to its share from now on.

    Args:
        share_bytes: private memory that it may take, what it has now included.
        slack_bytes: how much more it may map, for what is mapped and never touched: stacks of threads, a heap's end.
    """

    def __init__(self, share_bytes: int, slack_bytes: int) -> None:
        self.share_bytes = share_bytes
        self._statm = open_own_statm()
        # Pages shared with the fork server count in part, until one of the two writes to them. Growth counts from here.
        self._private_bytes = private_bytes("self")
        self._anonymous_bytes = anonymous_bytes(self._statm)
        self._lent_bytes = 0
        self._hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        mapped_bytes = memory_bytes("self", "status", "VmData")  # what RLIMIT_DATA is compared with
        self._limit_bytes = mapped_bytes + max(0, share_bytes - self._private_bytes) + slack_bytes
        self._set_limit()

    @property
    def bytes_now(self) -> int:
        """What the process takes, to a few pages (2 us)."""
        return self._private_bytes + anonymous_bytes(self._statm) - self._anonymous_bytes

    @property
    def outgrown(self) -> bool:
        """Whether it takes more than its share, and than what was lent."""
        return self.bytes_now > self.share_bytes + self._lent_bytes

    def lend(self, n_bytes: int) -> None:
        """Allow `n_bytes` beyond the share, in place of what was lent before."""
        if n_bytes != self._lent_bytes:
            self._lent_bytes = n_bytes
            self._set_limit()

    def _set_limit(self) -> None:
        soft = self._limit_bytes + self._lent_bytes
        if self._hard != resource.RLIM_INFINITY:
            soft = min(soft, self._hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, self._hard))
