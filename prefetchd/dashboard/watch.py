"""The watcher: asks every daemon of this user for its status, and keeps the latest reports and a bounded history.

    thread: ask_all() -> a report for each daemon that answers -> `Watched` (two reports, history, state)
    pages:  look() says that somebody looks -> each second; without anybody, each ten seconds

A daemon that ends stays listed as gone for a while, and the one that the user named for ever. When it comes back, under
the same name, its history goes on. Owned by the dashboard's process; ends with `close`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from prefetchd.cli.measure.rates import Rates, rates
from prefetchd.client.admin import ask_all
from prefetchd.client.launch import PRIVATE_NAME
from prefetchd.dashboard.history import History, Point
from prefetchd.errors import PrefetchdError

log = logging.getLogger("prefetchd")

Report = dict[str, Any]
State = Literal["running", "silent", "gone", "awaited"]
T = TypeVar("T")
Found = Sequence[tuple[str, int, Report | str]]

_LOOKED_AT_S = 1.0
_LEAST_S = 0.5
_ALONE_S = 10.0
_LOOKS_S = 15.0  # how long somebody who asked counts as one who looks
_GONE_S = 600.0
_MOST_GONE = 20


@dataclass(slots=True)
class Watched:
    """One daemon.

    Attributes:
        key: what pages call it: its name, or its process if it has none.
        name: its name; `private` for one without.
        pid: its process, 0 while it is awaited.
        state: whether it answers.
        since_s: when the state began.
        why: why it does not answer.
        reports: the latest two, with when they came, oldest first.
        history: for charts.
        restarts: how often another process came under its name.
    """

    key: str
    name: str
    pid: int
    state: State
    since_s: float
    why: str = ""
    reports: list[tuple[float, Report]] = field(default_factory=list)
    history: History = field(default_factory=History)
    restarts: int = 0

    @property
    def daemon(self) -> str | int:
        """Its name, or its pid, to ask it by."""
        return self.pid if self.name == PRIVATE_NAME else self.name

    @property
    def report(self) -> Report | None:
        """The latest report; of a daemon that is gone, its last one."""
        return self.reports[-1][1] if self.reports else None

    @property
    def rates(self) -> Rates | None:
        """What happened between the latest two reports."""
        return rates(self.reports[0][1], self.reports[1][1]) if len(self.reports) == 2 else None

    def become(self, state: State, now_s: float, why: str = "") -> None:
        """Change the state."""
        if state != self.state:
            self.state, self.since_s = state, now_s
        self.why = why

    def add(self, pid: int, report: Report, now_s: float) -> None:
        """Add a report that has just come."""
        if pid != self.pid:
            self.restarts += self.pid != 0
            self.pid = pid
            self.reports = []
        self.become("running", now_s)
        if self.reports and now_s - self.reports[-1][0] < _LEAST_S:
            return  # rates over a moment would be those of single batches
        self.reports = [*self.reports[-1:], (now_s, report)]
        if (now := self.rates) is not None:
            memory = report["memory"]
            self.history.add(
                Point(
                    now_s,
                    now.made_per_s,
                    now.delivered_per_s,
                    memory["footprint_bytes"],
                    memory["budget_bytes"],
                    now.loader_bound,
                    now.slower_bound,
                )
            )


def key_of(name: str, pid: int) -> str:
    """Return what pages call a daemon."""
    return f"pid-{pid}" if name == PRIVATE_NAME else name


class Watcher:
    """Watches all daemons of this user.

    Args:
        first: the name of the daemon that is shown first, and awaited if it does not run; `None` for any.
        ask: returns the report of each daemon that runs, or why it gives none.
        clock: seconds, never going back.
    """

    def __init__(
        self, first: str | None = None, ask: Callable[[], Found] = ask_all, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.first = first
        self.clock = clock
        self._ask = ask
        self._lock = threading.Lock()
        self._watched: dict[str, Watched] = {}
        if first is not None:
            self._watched[first] = Watched(first, first, 0, "awaited", clock())
        self._looked_s = float("-inf")
        self._wake = threading.Event()
        self._closing = False
        self._round_done = threading.Condition(self._lock)
        self._rounds = 0
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to ask, in a thread."""
        self._thread = threading.Thread(target=self._run, name="prefetchd-dashboard-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def look(self, show: Callable[[list[Watched]], T]) -> T:
        """Return what `show` makes of the daemons, those that run first; somebody looks at them now."""
        now_s = self.clock()
        with self._lock:
            rested = now_s - self._looked_s > _LOOKS_S
            self._looked_s = now_s
            if rested and self._thread is not None:  # what is known may be old: wait for one round, but not for long
                self._wake.set()
                seen = self._rounds
                self._round_done.wait_for(lambda: self._rounds > seen, timeout=2.0)
            return show(sorted(self._watched.values(), key=self._place))

    def daemon_of(self, key: str) -> str | int | None:
        """Return the name or pid to ask the daemon of that key by; `None` if there is none."""
        with self._lock:
            watched = self._watched.get(key)
            return None if watched is None else watched.daemon

    def _place(self, watched: Watched) -> tuple[bool, bool, bool, str]:
        return (
            watched.key != self.first,
            watched.state not in ("running", "silent"),
            watched.name == PRIVATE_NAME,
            watched.key,
        )

    def _run(self) -> None:
        while not self._closing:
            self.ask()
            looked_at = self.clock() - self._looked_s <= _LOOKS_S
            self._wake.wait(_LOOKED_AT_S if looked_at else _ALONE_S)
            self._wake.clear()

    def ask(self) -> None:
        """Ask every daemon once."""
        try:
            found = self._ask()
        except (PrefetchdError, OSError) as error:  # such as without a free descriptor: the next round may have one
            log.warning("cannot ask the daemons: %s", error)
            return
        now_s = self.clock()
        with self._lock:
            here = set()
            for name, pid, answer in found:
                key = key_of(name, pid)
                here.add(key)
                watched = self._watched.get(key)
                if watched is None:
                    watched = self._watched[key] = Watched(key, name, pid, "running", now_s)
                if isinstance(answer, str):
                    watched.become("silent", now_s, answer)
                else:
                    watched.add(pid, answer, now_s)
            for key, watched in self._watched.items():
                if key not in here and watched.state in ("running", "silent"):
                    watched.become("gone", now_s)
            self._forget(now_s)
            self._rounds += 1
            self._round_done.notify_all()

    def _forget(self, now_s: float) -> None:
        """Drop those that are gone for long, and the earliest if many are."""
        gone = sorted(
            (watched for watched in self._watched.values() if watched.state == "gone" and watched.key != self.first),
            key=lambda watched: -watched.since_s,
        )
        for number, watched in enumerate(gone):
            if number >= _MOST_GONE or now_s - watched.since_s > _GONE_S:
                del self._watched[watched.key]
