"""The daemon: builds its parts, ties them together in one event loop, and takes them down again.

    consumer --OpenCursor/Want/Release--> front desk    foreman --Fill--> pool of readers
             <--mailbox, Mail------------            ring       <--AllDone--
                                                     guard (memory budget)

After every round of events `_pump` runs the whole journey once: queued chunks to idle readers, new batches to fill if
readers are idle still, ready batches to the consumers. When nothing is left to do the loop sleeps without a time-out.

A named daemon (`serve`) listens on a socket in the run directory; a private one serves the socket it inherited, and
ends with its parent. Neither leaves anything behind, see `zygote` and `segment` for why not even when it is killed.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from prefetchd import budget, messages, report
from prefetchd.cache.pressure import CachePages
from prefetchd.config import Config
from prefetchd.datasets import open_datasets
from prefetchd.errors import PrefetchdError
from prefetchd.foreman import Foreman
from prefetchd.front_desk import FrontDesk
from prefetchd.guard import Guard
from prefetchd.loop import EventLoop
from prefetchd.pool import Pool, PoolEvents
from prefetchd.segment import remove_stale_names
from prefetchd.slots import Ring

log = logging.getLogger("prefetchd")

_FIRST_SLOTS = 2  # enough for the first batch; reserving pages takes time, so the others come behind
_TICK_S = 0.5


class Daemon:
    """One daemon; `run` returns when it was asked to stop.

    Args:
        configs: what to serve, by the data sets' names; the options of `DAEMON_OPTIONS` are the first's.
        loop: the loop to run in, borrowed.
        files_to_remove: socket and lock, for the zygote to remove should this process be killed.
        attach_hint: how consumers attach, for the ready line.
        linger_s: after how long without a consumer it ends; `None` for never.

    Raises:
        PrefetchdError: if the source or the budget cannot be served.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        loop: EventLoop,
        *,
        files_to_remove: tuple[str, ...] = (),
        attach_hint: str = "private",
        linger_s: float | None = None,
    ) -> None:
        config = next(iter(configs.values()))
        self._config = config
        self._loop = loop
        self._attach_hint = attach_hint
        self._linger_s = linger_s
        self._started_s = time.monotonic()
        remove_stale_names()
        limit = budget.machine_limit()
        self._parent_pidfd = -1
        self._ticking = False
        self._announced = False
        # Readers take longest to start, so they start before the manifest is read.
        self._pool = Pool(
            config.num_workers or budget.usable_cores(),
            config.reader_timeout,
            PoolEvents(
                done=lambda reader, chunk, done: self._foreman.done(reader, chunk, done),
                lost=lambda reader, chunk, suspect, code: self._foreman.lost(
                    reader, chunk, suspect=suspect, exit_code=code
                ),
                stuck=lambda pid, reader, chunk: self._foreman.stuck(pid, reader, chunk),
                gone=lambda reader: self._foreman.gone(reader),
                memory=lambda: self._guard.serve_wishes(),
            ),
            watch=loop.watch,
            unwatch=loop.unwatch,
            clock=loop.clock,
            files_to_remove=files_to_remove,
        )
        try:
            self._build(configs, limit)
        except BaseException:
            self._pool.stop()
            raise

    def _build(self, configs: Mapping[str, Config], limit: budget.Limit) -> None:
        self._datasets = open_datasets(configs)
        slot_bytes = max(dataset.layout.slot_bytes for dataset in self._datasets)
        source_bytes = sum(dataset.source.shared_bytes for dataset in self._datasets)
        reader_bytes = sum(dataset.source.reader_bytes for dataset in self._datasets)
        is_cheap = all(dataset.source.answers_together for dataset in self._datasets)
        plan = budget.make_plan(self._config, slot_bytes, limit, source_bytes, reader_bytes, is_cheap=is_cheap)
        self._pool.resize(plan.n_readers)
        self._ring = Ring()
        self._foreman = Foreman(self._datasets, self._ring, self._pool)
        self._caches = CachePages([cache for dataset in self._datasets if (cache := dataset.source.cache)])
        self._guard = Guard(
            budget.Budget(plan),
            self._ring,
            self._pool,
            on_removed=lambda slot: self._desk.slot_removed(slot),
        )
        self._desk = FrontDesk(
            self._datasets,
            self._ring,
            self._foreman,
            self._guard,
            self._loop,
            status=self.status,
            stop=self._loop.stop,
            linger_s=self._linger_s,
        )
        for _ in range(_FIRST_SLOTS):
            self._guard.add_slot()
        briefing: list[tuple[messages.Message, list[int]]] = [dataset.for_readers() for dataset in self._datasets]
        self._pool.boot([*briefing, (messages.Boot(budget.ALLOWANCE_BYTES), [])])

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to `listener`, which the daemon then owns."""
        self._desk.listen(listener)

    def serve_parent(self, sock: socket.socket, parent_pidfd: int) -> None:
        """Serve the process that started this private daemon, and end with it; owns both."""
        self._parent_pidfd = parent_pidfd
        self._loop.watch(parent_pidfd, self._loop.stop)
        self._desk.serve_only(sock)

    def run(self) -> None:
        """Serve until `EventLoop.stop`.

        Raises:
            PrefetchdError: if the daemon cannot go on, after telling every consumer.
        """
        # A message wakes the daemon on the sender's processor: it must not take that from a trainer in mid-step.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        try:
            self._loop.run(self._pump)
        except PrefetchdError as error:
            self._desk.tell_all(messages.Fatal(type(error).__name__, str(error)))
            raise
        finally:
            self._caches.tick()
            self._desk.close()
            self._pool.stop()
            self._ring.close()
            if self._parent_pidfd >= 0:
                self._loop.unwatch(self._parent_pidfd)
                os.close(self._parent_pidfd)

    def _pump(self) -> None:
        self._foreman.give_work(self._desk.cursors)
        if self._guard.may_grow():
            self._guard.grow()
            self._foreman.give_work(self._desk.cursors)
            if self._guard.may_grow():
                self._loop.call_later(0, lambda: None)  # come round again without waiting
        self._desk.serve_all()
        if not self._announced and not self._guard.may_grow() and self._pool.any_ready:
            self._announced = True
            log.info("%s", report.ready_line(self.status(), self._attach_hint))
        if not self._ticking and (self._pool.busy or self._foreman.queue):
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        """While there is work: verify the footprint, look for hung readers, look after the manifest."""
        self._ticking = False
        for dataset in self._datasets:
            dataset.source.check_unchanged()
        self._caches.tick()
        self._pool.tick()
        self._guard.serve_wishes()
        self._guard.verify()

    def status(self) -> dict[str, Any]:
        """Return everything that `prefetchd status --json` prints; see `report.status`."""
        return report.status(
            self._config.name,
            self._datasets,
            self._ring,
            self._pool,
            self._guard,
            self._foreman,
            self._desk.granter,
            list(self._desk.consumers.values()),
            waited_for=self._desk.waited_for,
            uptime_s=time.monotonic() - self._started_s,
        )
