"""The daemon: builds its parts, ties them together in one event loop, and takes them down again.

    consumer --OpenCursor/Want/Release--> front desk    foreman --Fill--> pool of readers
             <--mailbox, GrantReady------------            ring       <--AllDone--
                                                     guard (memory budget)

After every round of events `_pump` runs the whole journey once: queued chunks to idle readers, new batches to fill if
readers are idle still, ready batches to the consumers. When nothing is left to do the loop sleeps without a time-out.

A named daemon (`serve`) listens on a socket in the run directory; a private one serves the socket it inherited, and
ends with its parent. Neither leaves anything behind, see `zygote` and `segment` for why not even when it is killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from prefetchd.config.options import LIVE_OPTIONS, Config
from prefetchd.config.validate import make_config
from prefetchd.daemon import status as report
from prefetchd.daemon.consumers.manager import FrontDesk
from prefetchd.daemon.memory import limits
from prefetchd.daemon.memory import plan as budget
from prefetchd.daemon.memory.controller import Governor
from prefetchd.daemon.memory.manager import Guard
from prefetchd.daemon.memory.pressure import CachePages
from prefetchd.daemon.readers.batch_builder import Foreman
from prefetchd.daemon.readers.pool import Pool, PoolEvents
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import open_datasets
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc import messages, os_errors
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.segment import remove_stale_names
from prefetchd.ring.slots import Ring

log = logging.getLogger("prefetchd")

_FIRST_SLOTS = 2  # enough for the first batch; reserving pages takes time, so the others come behind
_TICK_S = 0.5


class Daemon:
    """One daemon; `run` returns when it was asked to stop.

    Args:
        configs: what to serve, by the data sets' names; the options of `DAEMON_OPTIONS` are the first's.
        loop: the loop to run in, borrowed.
        files_to_remove: for the zygote to remove should this process be killed, its lock the last.
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
        self._source_bytes = self._source_reader_bytes = self._slot_bytes = 0
        self._is_cheap = False
        self._trigger: limits.StallTrigger | None = None
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
                memory=lambda: self._guard.serve_wishes(self._desk.cursors),
                outgrown=lambda reader, n_bytes: self._guard.outgrown(reader, n_bytes),
            ),
            watch=loop.watch,
            unwatch=loop.unwatch,
            clock=loop.clock,
            files_to_remove=files_to_remove,
        )
        try:
            self._build(configs)
        except BaseException:
            self._pool.stop()
            raise

    def _build(self, configs: Mapping[str, Config]) -> None:
        self._datasets = open_datasets(configs)
        self._slot_bytes = max(dataset.layout.slot_bytes for dataset in self._datasets)
        self._source_bytes = sum(dataset.source.shared_bytes for dataset in self._datasets)
        self._source_reader_bytes = sum(dataset.source.reader_bytes for dataset in self._datasets)
        self._is_cheap = all(dataset.source.answers_together for dataset in self._datasets)
        plan = self._plan_for(self._config, budget.MIN_SLOTS, own_bytes=0)
        self._pool.resize(plan.n_readers)
        self._ring = Ring()
        self._foreman = Foreman(self._datasets, self._ring, self._pool)
        self._caches = CachePages([cache for dataset in self._datasets if (cache := dataset.source.cache)])
        self._guard = Guard(
            budget.Budget(plan),
            self._ring,
            self._pool,
            on_removed=lambda slot: self._desk.slot_removed(slot),
            mail_bytes=lambda: self._desk.mail_bytes,
        )
        self._desk = FrontDesk(
            self._datasets,
            self._ring,
            self._foreman,
            self._guard,
            self._loop,
            status=self.status,
            change=self._change_options,
            stop=self._loop.stop,
            linger_s=self._linger_s,
        )
        self._governor = Governor(
            self._config,
            self._guard,
            self._ring,
            self._pool,
            plan_for=lambda config, least: self._plan_for(config, least, self._guard.measure().total_bytes),
            promised_slots=lambda: self._desk.promised_slots,
            work_done=lambda: (self._foreman.busy_s, self._foreman.samples_made),
            read_shortage=limits.read_shortage,
            n_cores=budget.usable_cores(),
            clock=self._loop.clock,
        )
        with contextlib.suppress(OSError):  # a kernel without PSI
            self._trigger = limits.StallTrigger()
            self._loop.watch(self._trigger.fileno(), self._stalled)
        for _ in range(_FIRST_SLOTS):
            self._guard.add_slot()
        briefing: list[tuple[messages.Message, list[int]]] = [dataset.for_readers() for dataset in self._datasets]
        self._pool.boot([*briefing, (budget.reader_limits(plan), [])])

    def _plan_for(self, config: Config, least_slots: int, own_bytes: int) -> budget.Plan:
        """Plan with the memory that the machine has for this daemon, `own_bytes`, that it has taken, included."""
        return budget.make_plan(
            config,
            self._slot_bytes,
            limits.machine_limits(own_bytes),
            self._source_bytes,
            self._source_reader_bytes,
            is_cheap=self._is_cheap,
            least_slots=least_slots,
        )

    def _change_options(self, options: Mapping[str, str]) -> str:
        """Change options while running, for `prefetchd set`; return what came of it, in a line."""
        for name in options:
            if name not in LIVE_OPTIONS:
                raise ConfigError(
                    f"cannot set {name.replace('_', '-')}: of a running daemon can be changed "
                    f"{', '.join(live.replace('_', '-') for live in LIVE_OPTIONS)}; restart it with the option"
                )
        config = make_config(**{**self._governor.config.to_wire(), **options})
        text = budget.explain(self._governor.change(config))
        changed = ", ".join(f"{name.replace('_', '-')}={options[name]}" for name in options)
        log.info("set %s; %s", changed, text)
        return text

    def _stalled(self) -> None:
        """Tasks stall for want of memory, the kernel says: look now, though there may be nothing to do."""
        assert self._trigger is not None
        self._trigger.clear()
        self._begin_ticking()

    def _begin_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

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
            with os_errors.explained("go on"):
                self._loop.run(self._pump)
        except PrefetchdError as error:
            self._desk.tell_all(messages.Fatal(type(error).__name__, str(error)))
            raise
        finally:
            self._caches.tick()
            self._desk.close()
            self._pool.stop()
            self._ring.close()
            if self._trigger is not None:
                self._loop.unwatch(self._trigger.fileno())
                self._trigger.close()
            if self._parent_pidfd >= 0:
                self._loop.unwatch(self._parent_pidfd)
                os.close(self._parent_pidfd)

    def _pump(self) -> None:
        self._desk.take_back_noted()
        cursors = self._desk.cursors
        self._governor.settle(cursors)
        self._give_work(cursors)
        if self._guard.may_grow():
            self._guard.grow()
            self._give_work(cursors)
        self._desk.serve_all()
        self._governor.note(any(cursor.waiting for cursor in cursors))
        if self._guard.readers_in_the_way or self._guard.may_grow():
            self._loop.call_later(0, lambda: None)  # come round again without waiting
        if not self._announced and not self._guard.may_grow() and self._pool.any_ready:
            self._announced = True
            log.info("%s", budget.explain(self._guard.budget.plan, self._guard.segments))
            log.info("%s", report.ready_line(self.status(), self._attach_hint))
        if self._pool.busy or self._foreman.queue or not self._governor.relieved:
            self._begin_ticking()

    def _give_work(self, cursors: list[Cursor]) -> None:
        """Keep the readers busy; in want of memory only for loops that wait, a batch at a time."""
        if self._governor.paused:
            waiting = [cursor for cursor in cursors if cursor.waiting]
            cursors = [] if self._foreman.has_jobs else waiting[:1]
        self._foreman.give_work(cursors)

    def _tick(self) -> None:
        """While there is work: verify the footprint, look for hung readers, look after the manifest."""
        self._ticking = False
        for dataset in self._datasets:
            dataset.source.check_unchanged()
        self._caches.tick()
        self._pool.tick()
        cursors = self._desk.cursors
        self._guard.serve_wishes(cursors)
        self._guard.verify(cursors)
        self._governor.tick()

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
            self._governor,
            passes=self._desk.passes,
            waited_for=self._desk.waited_for,
            uptime_s=time.monotonic() - self._started_s,
        )
