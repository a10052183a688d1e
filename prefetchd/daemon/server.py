"""The daemon: builds its parts, ties them together in one event loop, and takes them down again.

    consumer --OpenCursor/Want/Release--> consumers' manager    batch builder --Fill--> pool of readers
             <--grant queue, GrantReady--------                   ring              <--AllDone--
                                                        memory manager

After each round of events `_pump` goes through all of it once: queued chunks to idle readers, new batches if readers
are still idle, ready batches to the consumers. With nothing to do the event loop sleeps without a time-out.

A named daemon (`serve`) listens on a socket in the run directory. A private one serves the socket that it inherited,
and ends with its parent. Neither leaves anything behind, not even when it is killed: see `fork_server` and `segment`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any

from prefetchd.columns.passed import PassedTable
from prefetchd.config.options import LIVE_OPTIONS, Config
from prefetchd.config.validate import make_config
from prefetchd.daemon.consumers.manager import ConsumerManager
from prefetchd.daemon.memory import limits
from prefetchd.daemon.memory.controller import MemoryController
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import MIN_SLOTS, Plan, explain, make_plan, reader_limits
from prefetchd.daemon.memory.pressure import CachePages
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.fork_server_start import StartedForkServer, accept_signals
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.pool_events import PoolEvents
from prefetchd.daemon.readers.remote_readers import RemoteReaders
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import bridge_briefing, open_datasets
from prefetchd.daemon.status import list_bad, make_report, ready_line
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.ipc import messages, system
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ipc.failures import explained
from prefetchd.ring.segment import remove_stale_names
from prefetchd.ring.slots import Ring

log = logging.getLogger("prefetchd")

_FIRST_SLOTS = 2  # enough for the first batch; reserving pages takes time, so the others come later
_TICK_S = 0.5
_IDLE_TICK_S = 10.0  # so nodes go at about one a minute, and a loop that pauses finds most of them
_LATE_LOOK_S = 0.1  # between looks for chunks that agents do not answer


class Daemon:
    """One daemon; `run` returns after `stop`.

    Args:
        configs: what to serve, by the data sets' names; the options of `DAEMON_OPTIONS` are the first's.
        loop: the event loop to run in, borrowed.
        tables: those of the data sets that are in the starter's memory, by name; owned.
        files_to_remove: the fork server removes them if this process is killed, its lock last.
        attach_hint: says in the ready line how consumers attach.
        linger_s: it ends after so many seconds without a consumer; `None` for never.
        parent_pidfd: of a process whose end ends this one; borrowed, until `serve_parent`; -1 for none.
        fork_server: one that was started already, owned; `None` to start one.

    Raises:
        PrefetchdError: if the source or the budget cannot be served.
        Interrupted: if it is to stop before it serves.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        loop: EventLoop,
        *,
        tables: Mapping[str, PassedTable] | None = None,
        files_to_remove: tuple[str, ...] = (),
        attach_hint: str = "private",
        linger_s: float | None = None,
        parent_pidfd: int = -1,
        fork_server: StartedForkServer | None = None,
    ) -> None:
        config = next(iter(configs.values()))
        self._config = config
        self._loop = loop
        self._attach_hint = attach_hint
        self._linger_s = linger_s
        self._started_s = loop.clock()
        remove_stale_names()
        accept_signals()
        self._source_bytes = self._source_reader_bytes = self._slot_bytes = 0
        self._is_cheap = False
        self._trigger: limits.StallTrigger | None = None
        self._parent_pidfd = -1
        self._ticking = self._is_looking = self._is_resting = False
        self._announced = False
        # Readers take longest to start, so they start before the manifest is read.
        self._pool = Pool(
            config.num_workers or system.usable_cores(),
            config.reader_timeout,
            watch=loop.watch,
            unwatch=loop.unwatch,
            clock=loop.clock,
            files_to_remove=files_to_remove,
            fork_server=fork_server,
        )
        try:
            with loop.interruptible(parent_pidfd):
                self._datasets = open_datasets(configs, tables)
            self._build()
        except BaseException:
            self._pool.stop()
            raise

    def _build(self) -> None:
        self._slot_bytes = max(dataset.layout.slot_bytes for dataset in self._datasets)
        self._source_bytes = sum(dataset.shared_bytes for dataset in self._datasets)
        self._source_reader_bytes = sum(dataset.reader_bytes for dataset in self._datasets)
        self._is_cheap = all(dataset.source.facts.answers_together for dataset in self._datasets)
        plan = self._plan_for(self._config, MIN_SLOTS, own_bytes=0)
        self._pool.resize(plan.n_readers)
        self._ring = Ring()
        self._builder = BatchBuilder(self._datasets, self._ring, self._pool)
        self._caches = CachePages(
            [cache for dataset in self._datasets if (cache := dataset.source.cache)], clock=self._loop.clock
        )
        self._memory = MemoryManager(
            plan, self._ring, self._pool, make_room=self._builder.make_room, clock=self._loop.clock
        )
        self._consumers = ConsumerManager(
            self._datasets, self._ring, self._builder, self._memory, self._loop, self, linger_s=self._linger_s
        )
        self._memory.serve(self._consumers)
        self._controller = MemoryController(
            self._config,
            self._memory,
            self._ring,
            self._pool,
            self._builder,
            self._consumers,
            plan_for=self._plan_for,
            read_shortage=limits.read_shortage,
            idle_s=system.idle_seconds,
            n_cores=system.usable_cores(),
            clock=self._loop.clock,
        )
        with contextlib.suppress(OSError):  # a kernel without PSI
            self._trigger = limits.StallTrigger()
            self._loop.watch(self._trigger.fileno(), self._stalled)
        for _ in range(_FIRST_SLOTS):
            self._memory.add_slot()
        briefing: list[tuple[messages.Message, list[int]]] = [dataset.for_readers() for dataset in self._datasets]
        events = PoolEvents(
            done=self._builder.done,
            lost=self._builder.lost,
            stuck=self._builder.stuck,
            gone=self._builder.gone,
            memory=lambda: self._memory.serve_requests(self._consumers.cursors),
            outgrown=self._memory.outgrown,
            withdrawn=self._builder.withdrawn,
            returned=self._builder.returned,
        )
        self._pool.boot([*briefing, (reader_limits(plan), [])], events)
        if self._config.agents or self._config.ray is not None:
            self._pool.remote = RemoteReaders(
                bridge_briefing(self._config, self._datasets),
                dataclasses.replace(events, done=self._builder.done_elsewhere),
                travels=lambda number: not self._datasets[number].source.facts.answers_together,
                next_reader=functools.partial(next, self._pool.reader_numbers),
                watch=self._loop.watch,
                unwatch=self._loop.unwatch,
                call_later=self._loop.call_later,
                clock=self._loop.clock,
            )

    def _plan_for(self, config: Config, least_slots: int, own_bytes: int) -> Plan:
        """Plan with the memory that the machine has for this daemon, including the `own_bytes` that it has taken."""
        return make_plan(
            config,
            self._slot_bytes,
            limits.machine_limits(own_bytes),
            self._source_bytes,
            self._source_reader_bytes,
            is_cheap=self._is_cheap,
            least_slots=least_slots,
        )

    def stop(self) -> None:
        """Make `run` return after the events at hand."""
        self._loop.stop()

    def bad_samples(self, dataset: str, first: int) -> messages.BadSamples:
        """Return the bad samples of a data set from number `first` of them on, as many as a message holds.

        Raises:
            ConfigError: if there is no such data set.
        """
        for number, served in enumerate(self._datasets):
            if served.name == dataset:
                return list_bad(served, self._builder.trackers[number], first)
        raise ConfigError(f"cannot list the bad samples of {dataset!r}: the daemon serves no data set of that name")

    def change_options(self, options: dict[str, str]) -> str:
        """Change options for `prefetchd set`; return a line that says what is in force now.

        Raises:
            ConfigError: if an option cannot be changed, or has an invalid value.
        """
        for name in options:
            if name not in LIVE_OPTIONS:
                raise ConfigError(
                    f"cannot set {name.replace('_', '-')}: a running daemon can change "
                    f"{' and '.join(live.replace('_', '-') for live in LIVE_OPTIONS)} alone; restart it with the option"
                )
        config = make_config(**{**self._controller.config.to_wire(), **options})
        text = explain(self._controller.change(config))
        changed = ", ".join(f"{name.replace('_', '-')}={options[name]}" for name in options)
        log.info("set %s; %s", changed, text)
        return text

    def _stalled(self) -> None:
        """React to the kernel: tasks wait for memory, so look now, also without work."""
        assert self._trigger is not None
        self._trigger.clear()
        self._begin_ticking()

    def _look_for_stragglers(self) -> None:
        """Look a moment later, and again while agents are at work."""
        if self._pool.remote is not None and self._pool.remote.busy and not self._is_looking:
            self._is_looking = True
            self._loop.call_later(_LATE_LOOK_S, self._repeat_late)

    def _repeat_late(self) -> None:
        self._is_looking = False
        self._builder.repeat_late(self._consumers.cursors)

    def _begin_ticking(self) -> None:
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def listen(self, listener: socket.socket) -> None:
        """Serve each connection to `listener`, which the daemon then owns."""
        self._consumers.listen(listener)

    def serve_parent(self, sock: socket.socket, parent_pidfd: int) -> None:
        """Serve the process that started this private daemon, and end with it; owns both."""
        self._parent_pidfd = parent_pidfd
        self._loop.watch(parent_pidfd, self.stop)
        self._consumers.serve_only(sock)

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            PrefetchdError: if the daemon cannot go on, after telling every consumer.
        """
        # A message wakes the daemon on the sender's processor: it must not preempt a trainer that works on a batch.
        system.lower_priority()
        try:
            with explained("go on", everything=True):
                self._loop.run(self._pump)
        except PrefetchdError as error:
            self._consumers.send_to_all(messages.Fatal.of(error))
            raise
        finally:
            self._caches.tick()
            self._consumers.close()
            self._pool.stop()
            self._ring.close()
            if self._trigger is not None:
                self._loop.unwatch(self._trigger.fileno())
                self._trigger.close()
            if self._parent_pidfd >= 0:
                self._loop.unwatch(self._parent_pidfd)
                os.close(self._parent_pidfd)

    def _pump(self) -> None:
        self._consumers.read_queues()
        cursors = self._consumers.cursors
        self._memory.follow(self._controller.decide(), cursors)
        if self._memory.making_room:
            self._memory.serve_requests(cursors)
        self._give_work(cursors)
        if self._memory.may_grow():
            self._memory.grow()
            self._give_work(cursors)
        if self._consumers.serve_all():
            self._give_work(cursors)  # a grant moves a cursor on: a batch for which another loop waits may fit now
        self._controller.note_waiting(any(cursor.waiting for cursor in cursors))
        if self._memory.needs.fewer_readers or self._memory.may_grow():
            self._loop.call_later(0, lambda: None)  # come round again without waiting
        if not self._announced and not self._memory.may_grow() and self._pool.any_ready:
            self._announced = True
            log.info("%s", explain(self._memory.budget.plan, self._memory.segments))
            log.info("%s", ready_line(self.status(), self._attach_hint))
        if self._pool.busy or self._builder.has_queued or self._memory.is_grown or not self._controller.relieved:
            self._begin_ticking()
        elif self._controller.has_spare_nodes and not self._is_resting:
            self._is_resting = True
            self._loop.call_later(_IDLE_TICK_S, self._tick_at_rest)
        self._look_for_stragglers()

    def _give_work(self, cursors: list[Cursor]) -> None:
        """Keep the readers busy; while memory is short, only for loops that wait, one batch at a time."""
        if self._memory.making_room:
            cursors = []
        elif self._memory.target.paused:
            waiting = [cursor for cursor in cursors if cursor.waiting]
            cursors = [] if self._builder.has_jobs else waiting[:1]
        self._builder.give_work(cursors)

    def _tick(self) -> None:
        """Check the footprint, hung readers and the source; runs while there is work."""
        self._ticking = False
        for dataset in self._datasets:
            dataset.source.check_unchanged()
        self._caches.tick()
        self._pool.tick()
        cursors = self._consumers.cursors
        if self._pool.remote is not None:
            self._pool.remote.tick()
        self._memory.serve_requests(cursors)
        self._memory.verify(cursors)
        self._controller.tick()

    def _tick_at_rest(self) -> None:
        """Look at the nodes that idle while there is no work."""
        self._is_resting = False
        if not self._ticking:
            self._controller.tick_at_rest()

    def status(self) -> dict[str, Any]:
        """Return everything that `prefetchd status --json` prints; see `prefetchd.daemon.status`."""
        return make_report(
            self._config.name,
            self._datasets,
            self._ring,
            self._pool,
            self._memory,
            self._builder,
            self._consumers,
            self._controller,
            now_s=self._loop.clock(),
            started_s=self._started_s,
        )
