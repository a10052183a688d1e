"""A wait for a batch that no slot can be spared for: warns who holds what, then ends in `RingExhausted`.

Used by the `Connection` while a loop waits for its next batch. The daemon tells it of the stall, and again after a slot
came back to anybody: the time runs from then. While it lasts nobody wonders at the daemon's silence (`silence`).

A wait for a daemon that says nothing: looks into it, says what is found, and gives the daemon up in the end.

Used by the `Connection` and its `Uplink` wherever they wait. A daemon that is stopped is named after the first look;
one at work is asked what at, and its answer is logged; one that says nothing for minutes, though asked, is lost.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from prefetchd.client.user_warnings import warn_user
from prefetchd.errors import DaemonLost, RingExhausted
from prefetchd.ipc.process import describe_process, process_state

log = logging.getLogger("prefetchd")

LOOK_S = 2.0  # a wait as long is looked into
REPORT_S = 30.0
GIVE_UP_S = 300.0


class Silence:
    """One wait for the daemon called `name`.

    Args:
        name: of the daemon; empty while it is not known.
        pid: its process.
        ask: asks it for its status, without waiting; `None` while it cannot be asked: then only one that is stopped
            is given up, as there is no bound to how long another takes to start.
    """

    def __init__(self, name: str, pid: int, ask: Callable[[], None] | None = None) -> None:
        self._what = f"the daemon {name!r}" if name else "the daemon"
        self._pid = pid
        self._ask = ask
        self._started_s = self._heard_s = self._said_s = self._looked_s = time.monotonic()
        self._asked = self._said_stopped = False

    @property
    def lasts_s(self) -> float:
        """How long the wait has lasted."""
        return time.monotonic() - self._started_s

    def next_look_s(self, timeout_s: float | None) -> float:
        """How long to wait until the next look, or until `timeout_s` of the whole wait are over."""
        return LOOK_S if timeout_s is None else max(0.0, min(LOOK_S, timeout_s - self.lasts_s))

    def look(self) -> None:
        """Call every `LOOK_S` while nothing comes.

        Raises:
            DaemonLost: if it is given up.
        """
        now_s = time.monotonic()
        # While this process was stopped itself, perhaps with the daemon, by a scheduler of jobs, it did not listen.
        deaf_s = max(0.0, now_s - self._looked_s - 2 * LOOK_S)
        self._heard_s, self._looked_s = min(now_s, self._heard_s + deaf_s), now_s
        stopped = process_state(self._pid) in ("T", "t")
        if not stopped and self._ask is None:
            self._heard_s = now_s
        if now_s - self._heard_s >= GIVE_UP_S:
            raise DaemonLost(
                f"cannot go on: {self._what} has said nothing for {now_s - self._heard_s:.0f} s: "
                f"{describe_process(self._pid)}"
            )
        if now_s - self._said_s < REPORT_S and (self._said_stopped or not stopped):
            return
        self._said_s, self._said_stopped = now_s, stopped
        if stopped or self._asked or self._ask is None:
            what = f"{self._what}, which does not answer: {describe_process(self._pid)}"
            log.warning("has waited %.0f s for %s", self.lasts_s, what)
        else:
            self._asked = True
            self._ask()

    def answered(self, report: dict[str, Any]) -> None:
        """The daemon has told what it is at."""
        self._heard_s, self._asked = time.monotonic(), False
        try:
            readers = "; ".join(f"pid {reader['pid']} {reader['does']}" for reader in report["readers"])
        except (KeyError, TypeError):
            readers = "unknown"
        log.warning(
            "has waited %.0f s for a batch of %s (pid %d), which is at work; its readers: %s",
            self.lasts_s,
            self._what,
            self._pid,
            readers,
        )


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
