"""Processes that hang in the kernel although they were killed: what they may write to is theirs until they are gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable


class Quarantine:
    """Watches the pidfds of such processes, which it owns, and reports when each has ended.

    Args:
        watch, unwatch: the loop's.
        gone: called with the number of each reader that a process was, once it writes nowhere any more.
    """

    def __init__(
        self,
        watch: Callable[[int, Callable[[], None]], None],
        unwatch: Callable[[int], None],
        gone: Callable[[int], None],
    ) -> None:
        self._watch, self._unwatch, self._gone = watch, unwatch, gone
        self._pidfds: set[int] = set()

    def add(self, pidfd: int, readers: Iterable[int]) -> None:
        """Wait for the end of a process that was these readers."""
        numbers = list(readers)

        def ended() -> None:
            self._unwatch(pidfd)
            os.close(pidfd)
            self._pidfds.remove(pidfd)
            for number in numbers:
                self._gone(number)

        self._pidfds.add(pidfd)
        self._watch(pidfd, ended)

    def close(self) -> None:
        """Wait no more."""
        for pidfd in self._pidfds:
            self._unwatch(pidfd)
            os.close(pidfd)
        self._pidfds.clear()
