"""A wait for a batch that no slot can be spared for: warns who holds what, then ends in `RingExhausted`.

Used by the `Connection` while a loop waits for its next batch. The daemon tells it of the stall, and again after a slot
came back to anybody: the time runs from then. While it lasts nobody wonders at the daemon's silence (`silence`).
"""

from __future__ import annotations

import time

from prefetchd.errors import RingExhausted
from prefetchd.user_warnings import warn_user

_WARN_S = 1.0  # or half the hold time-out, if that is less


class Stall:
    """At most one for each wait for a batch.

    Args:
        hold_timeout_s: how long to wait for a slot.
    """

    def __init__(self, hold_timeout_s: float) -> None:
        self._hold_timeout_s = hold_timeout_s
        self._warn_after_s = min(_WARN_S, hold_timeout_s / 2)
        self._warned = False
        self._holders = ""
        self._since_s = 0.0

    def begin(self, holders: str) -> None:
        """No slot can be spared from now on, since `holders` hold them."""
        self._holders = holders
        self._since_s = time.monotonic()

    def look(self) -> float:
        """Say so once if it has lasted long; return after how many seconds to look again.

        Raises:
            RingExhausted: if it has lasted as long as it may.
        """
        lasts_s = time.monotonic() - self._since_s
        if lasts_s >= self._warn_after_s and not self._warned:
            self._warned = True
            warn_user(
                f"waiting for a slot: {self._holders}; drop batches that you are done with, or pass "
                f"on_hold='copy' (RingExhausted in {self._hold_timeout_s - lasts_s:.0f} s)"
            )
        if lasts_s >= self._hold_timeout_s:
            raise RingExhausted(
                f"cannot get the next batch: {self._holders}, and none came back in "
                f"{self._hold_timeout_s:g} s; copy what you keep (x.copy()), pass on_hold='copy', or give the "
                "daemon a larger memory_budget"
            )
        return min(self._warn_after_s, self._hold_timeout_s - lasts_s)
