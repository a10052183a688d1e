"""The daemon: ties the ring, the pool, the budget and the consumers together in one event loop.

    consumer --OpenCursor/Want/Release--> daemon --Fill--> reader
             <--Granted------------------        <--Done--

After every round of events `_pump` runs the whole journey once: queued chunks to idle readers, new batches to fill if
readers are idle still, ready batches to the consumers. When nothing is left to do the loop sleeps without a time-out.

A named daemon (`serve`) listens on a socket in the run directory; a private one serves the socket it inherited, and
ends with its parent. Neither leaves anything behind, see `zygote` and `segment` for why not even when it is killed.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
from collections import deque
from multiprocessing import resource_tracker
from typing import Any

from prefetchd import __version__, budget, control, messages
from prefetchd.budget import Budget
from prefetchd.config import Config
from prefetchd.consumers import Consumer
from prefetchd.errors import ConfigError, PrefetchdError
from prefetchd.filling import BadSample, Chunk, Failure, Filler, Job
from prefetchd.layout import BatchLayout
from prefetchd.loop import EventLoop
from prefetchd.order import Order, Shard
from prefetchd.pool import Pool, PoolEvents, ReaderState
from prefetchd.scheduler import Cursor, fits_another, may_grant, next_fill, ready_for
from prefetchd.segment import Segment
from prefetchd.slots import Content, Key, Slot
from prefetchd.slots import Ring as SlotRing
from prefetchd.sources import Source, open_source
from prefetchd.units import format_bytes

log = logging.getLogger("prefetchd")

FIRST_SLOTS = 2
_CHUNK_S = 0.008
_TICK_S = 0.5
_MAX_FAILED = 256
_MAX_CONSUMERS = 1024


class Daemon:
    """One daemon; `run` returns when it was asked to stop."""

    def __init__(
        self, config: Config, loop: EventLoop, *, files_to_remove: tuple[str, ...] = (), listening: str = ""
    ) -> None:
        self._config = config
        self._loop = loop
        self._listening = listening
        self._started_s = time.monotonic()
        limit = budget.machine_limit()
        n_readers = config.num_workers or budget.usable_cores()
        # Readers take longest to start, so they start before the manifest is read.
        self._pool = Pool(
            n_readers,
            config.reader_timeout,
            PoolEvents(self._done, self._lost, self._gone, self._memory_wish, lambda: None),
            watch=loop.watch,
            unwatch=loop.unwatch,
            clock=loop.clock,
            files_to_remove=files_to_remove,
        )
        try:
            self._source: Source = open_source(config)
            self._layout = BatchLayout(config.batch_size, *self._source.x, *self._source.y)
            self._order = Order(
                self._source.n_samples, config.batch_size, config.drop_last, config.shuffle, config.seed
            )
            if not self._order.batches_per_epoch:
                raise ConfigError(
                    f"cannot serve: {self._source.n_samples} samples make no batch of {config.batch_size} with "
                    "--drop-last; lower --batch-size or leave --drop-last out"
                )
            self._budget = Budget(budget.make_plan(config, self._layout.slot_bytes, limit))
            self._pool.resize(self._budget.plan.n_readers)
            self._ring = SlotRing()
            while len(self._ring.slots) < FIRST_SLOTS:
                self._add_slot()
            self._boot_readers()
        except BaseException:
            self._pool.stop()
            raise
        self._filler = Filler(
            config.on_error, self._source.n_samples, self._sample_id_at, self._source.where, self._report_bad
        )
        self._queue: deque[Chunk] = deque()
        self._jobs: list[Job] = []
        self._failed: dict[Key, Failure] = {}
        self._seconds_per_sample = 0.0
        self._consumers: dict[int, Consumer] = {}
        self._next_consumer = 1
        self._listener: socket.socket | None = None
        self._private_fds: list[int] = []
        self._ticking = False
        self._announced = False
        self._warned_budget = False
        self._batches_made = 0
        self._max_footprint_bytes = 0

    # --- the life of the daemon

    def listen(self, listener: socket.socket) -> None:
        """Serve whoever connects to `listener`, which the daemon then owns."""
        self._listener = listener
        self._loop.watch(listener.fileno(), self._accept)

    def serve_parent(self, sock: socket.socket, parent_pidfd: int) -> None:
        """Serve the process that started this private daemon, and end with it."""
        self._private_fds.append(parent_pidfd)
        self._loop.watch(parent_pidfd, self._loop.stop)
        self._admit(sock, private=True)

    def run(self) -> None:
        """Serve until `EventLoop.stop`.

        Raises:
            PrefetchdError: if the daemon cannot go on, after telling every consumer.
        """
        try:
            self._loop.run(self._pump)
        except PrefetchdError as error:
            for consumer in self._consumers.values():
                consumer.send(messages.Fatal(type(error).__name__, str(error)))
            raise
        finally:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._listener is not None:
            self._loop.unwatch(self._listener.fileno())
            self._listener.close()
        self._pool.stop()
        for consumer in list(self._consumers.values()):
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
            os.close(consumer.pidfd)
        for slot in self._ring.slots.values():
            slot.segment.close()

    def _boot_readers(self) -> None:
        handle, fds = self._source.handle()
        boot = messages.Boot(self._config.to_wire(), handle, self._layout.to_wire(), budget.ALLOWANCE_BYTES)
        self._pool.boot(boot, fds)

    # --- the journey of a batch

    def _pump(self) -> None:
        self._give_work()
        if self._ring_may_grow() and not self._queue:
            self._add_slot()
            self._give_work()
            if self._ring_may_grow():
                self._loop.call_later(0, lambda: None)  # come round again without waiting
        for consumer in list(self._consumers.values()):
            self._serve(consumer)
        self._announce_when_ready()
        if (self._pool.busy or self._queue) and not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _give_work(self) -> None:
        while True:
            for chunk in list(self._queue):
                if chunk.job.failure is not None:
                    self._queue.remove(chunk)
                    continue
                reader = self._pool.take_idle(chunk)
                if reader is None:
                    if chunk.fresh:
                        continue
                    return
                self._queue.remove(chunk)
                chunk.job.queued.remove(chunk)
                chunk.job.out += 1
                self._ring.add_writer(chunk.job.slot, reader.number)
                self._pool.give(reader, chunk)
            if self._pool.take_idle() is None:
                return
            plan = next_fill(self._ring, self._cursors(), self._failed)
            if plan is None:
                return
            self._ring.start_fill(plan.slot, plan.key)
            epoch, batch = plan.key
            job = self._filler.start(plan.slot, epoch, batch, self._order.rows(batch), self._chunk_rows(batch))
            self._jobs.append(job)
            self._queue.extend(job.queued)

    def _chunk_rows(self, batch: int) -> int:
        """Some milliseconds of work, and at most an even share for each reader."""
        rows = self._order.rows(batch)
        share = -(-rows // (2 * self._pool.n_readers))
        if not self._seconds_per_sample:
            return share
        return max(1, min(share, round(_CHUNK_S / self._seconds_per_sample)))

    def _cursors(self) -> list[Cursor]:
        cursors = [consumer.cursor for consumer in self._consumers.values() if consumer.cursor is not None]
        return cursors or [Cursor(0, 0, Shard(self._order.batches_per_epoch), epoch=0, step=0, open=False)]

    def _sample_id_at(self, job: Job, row: int) -> int:
        return int(self._order.sample_ids(job.epoch, job.batch, row, 1)[0])

    def _done(self, reader: int, chunk: Chunk, done: messages.Done) -> None:
        self._ring.drop_writer(chunk.job.slot, reader)
        cost = done.took_s / len(chunk.rows)
        self._seconds_per_sample += (cost - self._seconds_per_sample) * (0.2 if self._seconds_per_sample else 1)
        self._filler.done(chunk, done.faults)
        self._after(chunk.job)

    def _lost(self, reader: int, chunk: Chunk, suspect: bool, exit_code: int) -> None:
        self._filler.lost(chunk, suspect=suspect, exit_code=exit_code)
        self._after(chunk.job)

    def _gone(self, reader: int) -> None:
        self._ring.reader_exited(reader)

    def _after(self, job: Job) -> None:
        """Queue what a job needs done again; finish or abandon it when nothing is left."""
        known = set(map(id, self._queue))
        self._queue.extendleft(chunk for chunk in reversed(job.queued) if id(chunk) not in known)
        if not job.finished:
            return
        self._jobs.remove(job)
        if job.failure is None:
            self._ring.finish_fill(job.slot, job.n_rows - len(job.skipped))
            self._batches_made += 1
            return
        assert job.slot.key is not None
        if len(self._failed) >= _MAX_FAILED:
            del self._failed[next(iter(self._failed))]
        self._failed[job.slot.key] = job.failure
        self._ring.abandon(job.slot)
        log.error("epoch %d batch %d: %s", job.epoch, job.batch, job.failure.text)

    def _report_bad(self, sample: BadSample) -> None:
        log.warning("bad sample %d: %s: %s", sample.sample_id, sample.where, sample.reason)

    # --- memory

    def _ring_may_grow(self) -> bool:
        return len(self._ring.slots) < self._budget.plan.n_slots and self._budget.has_slot()

    def _add_slot(self) -> None:
        slot = self._ring.add(Segment.create(self._layout.slot_bytes))
        self._budget.ring_bytes += slot.segment.n_bytes
        self._pool.add_slot(slot)

    def _remove_slot(self, slot: Slot) -> None:
        self._pool.remove_slot(slot)
        for consumer in self._consumers.values():
            if slot.number in consumer.slots:
                consumer.slots.discard(slot.number)
                consumer.send(messages.SlotClosed(slot.number))
        self._budget.ring_bytes -= slot.segment.n_bytes
        self._ring.remove(slot)

    def _memory_wish(self, _: ReaderState) -> None:
        """Grant the readers that wait for working memory what fits, making room in the ring if need be."""
        readers = sorted(self._pool.readers.values(), key=lambda reader: reader.number)
        self._budget.large_bytes = sum(reader.has_bytes for reader in readers)
        for reader in readers:
            need = reader.needs_bytes
            if not need:
                continue
            if need > self._budget.largest_decode_bytes:
                self._refuse_memory(reader, need)
                continue
            while self._budget.spare_bytes < need and len(self._ring.slots) > budget.MIN_SLOTS:
                slot = next((slot for slot in self._ring.slots.values() if slot.reusable), None)
                if slot is None:
                    break
                self._remove_slot(slot)
            if self._budget.spare_bytes >= need:
                self._budget.large_bytes += need
                self._pool.grant_memory(reader, need)

    def _refuse_memory(self, reader: ReaderState, need: int) -> None:
        chunk = next(iter(reader.chunks.values()))
        text = (
            f"cannot decode a sample of epoch {chunk.job.epoch} batch {chunk.job.batch}: it takes "
            f"{format_bytes(need)} of working memory and the budget of {format_bytes(self._budget.plan.budget_bytes)} "
            f"can give one decode {format_bytes(self._budget.largest_decode_bytes)}; "
            f"give --memory-budget {self._budget.budget_for(need)}MiB, or lower --max-image-pixels"
        )
        self._filler.fail(chunk.job, text, "BudgetError")
        self._pool.deny_memory(reader, text)

    def _own_pids(self) -> list[int]:
        pids = [os.getpid(), *self._pool.pids]
        tracker: int | None = getattr(resource_tracker._resource_tracker, "_pid", None)
        return [*pids, tracker] if tracker else pids

    def _footprint(self) -> budget.Footprint:
        ring_bytes = sum(slot.segment.allocated_bytes for slot in self._ring.slots.values())
        footprint = budget.measure(self._own_pids(), ring_bytes)
        self._max_footprint_bytes = max(self._max_footprint_bytes, footprint.total_bytes)
        return footprint

    def _tick(self) -> None:
        """While there is work: verify the footprint, look for hung readers, look after the manifest."""
        self._ticking = False
        self._source.check_unchanged()
        self._pool.tick()
        self._memory_wish_all()
        footprint = self._footprint()
        if footprint.total_bytes <= self._budget.plan.budget_bytes:
            self._warned_budget = False
            return
        readers = [reader for reader in self._pool.readers.values() if reader.ready and not reader.retiring]
        largest = max(readers, key=lambda reader: footprint.processes.get(reader.pid, 0), default=None)
        share = budget.READER_BYTES + budget.ALLOWANCE_BYTES
        if not self._warned_budget:
            self._warned_budget = True
            log.warning(
                "footprint %s is over the budget of %s; giving memory back",
                format_bytes(footprint.total_bytes),
                format_bytes(self._budget.plan.budget_bytes),
            )
        spare = next((slot for slot in self._ring.slots.values() if slot.reusable), None)
        if largest is not None and footprint.processes.get(largest.pid, 0) > share + largest.has_bytes:
            self._pool.retire(largest)
        elif spare is not None and len(self._ring.slots) > budget.MIN_SLOTS:
            self._remove_slot(spare)

    def _memory_wish_all(self) -> None:
        if any(reader.needs_bytes for reader in self._pool.readers.values()):
            self._memory_wish(next(iter(self._pool.readers.values())))

    # --- consumers

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._admit(sock, private=False)

    def _admit(self, sock: socket.socket, *, private: bool) -> None:
        try:
            pid, uid, pidfd = control.peer(sock)
        except OSError:
            sock.close()
            return
        consumer = Consumer(self._next_consumer, sock, pid, pidfd)
        if uid != os.getuid() or len(self._consumers) >= _MAX_CONSUMERS:
            why = "another user's process" if uid != os.getuid() else f"{_MAX_CONSUMERS} are connected already"
            consumer.send(messages.Fatal("DaemonNotFound", f"cannot attach: {why}; run a daemon of your own"))
            sock.close()
            os.close(pidfd)
            return
        self._next_consumer += 1
        self._consumers[consumer.number] = consumer
        self._loop.watch(sock.fileno(), functools.partial(self._hear, consumer))
        self._loop.watch(pidfd, functools.partial(self._bury, consumer))

    def _hear(self, consumer: Consumer) -> None:
        """Take in what a consumer has sent; whatever makes no sense ends its connection."""
        for _ in range(64):
            try:
                data, fds = control.receive(consumer.sock, wait=False)
            except BlockingIOError:
                return
            except (control.ConnectionEnded, OSError):
                self._hang_up(consumer)
                return
            control.close_all(fds)
            try:
                message = messages.decode_to_daemon(data)
                self._handle(consumer, message)
            except messages.DecodeError:
                log.warning(
                    "consumer %d (pid %d) sent no message of ours; ending its connection",
                    consumer.number,
                    consumer.pid,
                )
                self._hang_up(consumer)
                return
            if consumer.number not in self._consumers:
                return

    def _handle(self, consumer: Consumer, message: messages.ToDaemon) -> None:
        match message:
            case messages.Release():
                self._ring.release(message.lease, consumer.number)
                consumer.took(message.taken)
                consumer.stalled = False
            case messages.Want():
                consumer.took(message.taken)
                if consumer.cursor is not None and consumer.cursor.serial == message.serial:
                    # A grant may have crossed this on its way: then the loop has what it wants.
                    consumer.cursor.waiting = not consumer.untaken
            case messages.OpenCursor():
                self._open_cursor(consumer, message)
            case messages.CloseCursor():
                if consumer.cursor is not None and consumer.cursor.serial == message.serial:
                    self._drop_untaken(consumer, message.taken)
                    cursor = consumer.cursor
                    cursor.open, cursor.waiting, cursor.epoch, cursor.step = False, False, cursor.epoch + 1, 0
            case messages.Attach():
                self._attach(consumer, message)
            case messages.AskStatus():
                consumer.send(messages.StatusReport(self.status()))
            case messages.AskStop():
                consumer.send(messages.Stopping(os.getpid()))
                log.info("asked to stop by pid %d", consumer.pid)
                self._loop.stop()
            case messages.Configure():
                consumer.send(messages.Fatal("ConfigError", "cannot configure a daemon that is running"))

    def _attach(self, consumer: Consumer, attach: messages.Attach) -> None:
        def refuse(error: str, text: str) -> None:
            consumer.send(messages.Fatal(error, text))

        if attach.protocol != messages.PROTOCOL:
            refuse(
                "DaemonNotFound",
                f"cannot attach: this daemon is prefetchd {__version__} (protocol {messages.PROTOCOL}), the consumer "
                f"{attach.version} (protocol {attach.protocol}); restart the daemon with the consumer's version",
            )
            return
        wire = self._config.to_wire()
        for name, value in attach.options.items():
            mine = wire.get(name)
            if (list(mine) if isinstance(mine, tuple) else mine) != value:
                refuse(
                    "ConfigError",
                    f"cannot attach with {name}={value!r}: the daemon {self._config.name!r} serves {name}={mine!r}, and "
                    "its configuration decides; leave the option out, or start a daemon with it",
                )
                return
        others = [other.cursor for other in self._consumers.values() if other.cursor is not None]
        n_slots = self._budget.plan.n_slots
        if not fits_another(n_slots, others, attach.guaranteed_slots):
            refuse(
                "BudgetError",
                f"cannot attach: the ring of {n_slots} slots serves {len(others)} loops and cannot promise "
                f"{attach.guaranteed_slots} slots to another; give the daemon a larger --memory-budget",
            )
            return
        consumer.guaranteed_slots = attach.guaranteed_slots
        consumer.attached = True
        consumer.send(
            messages.Attached(
                version=__version__,
                pid=os.getpid(),
                name=self._config.name,
                layout=self._layout.to_wire(),
                n_samples=self._source.n_samples,
                batches_per_epoch=self._order.batches_per_epoch,
                drop_last=self._config.drop_last,
                classes=list(self._source.classes) if self._source.classes is not None else None,
                config=wire,
                config_digest=self._source.content_digest,
                manifest_digest=self._source.digest,
            )
        )

    def _open_cursor(self, consumer: Consumer, message: messages.OpenCursor) -> None:
        if not consumer.attached or message.rank >= message.world_size:
            self._hang_up(consumer)
            return
        self._drop_untaken(consumer, 0)
        shard = Shard(self._order.batches_per_epoch, message.rank, message.world_size, self._config.drop_last)
        consumer.stalled = False
        consumer.cursor = Cursor(
            consumer.number,
            message.serial,
            shard,
            message.epoch,
            message.step,
            guaranteed_slots=consumer.guaranteed_slots,
        )

    def _drop_untaken(self, consumer: Consumer, taken: int) -> None:
        consumer.took(taken)
        for lease in consumer.untaken:
            self._ring.release(lease, consumer.number)
        consumer.untaken.clear()

    def _serve(self, consumer: Consumer) -> None:
        """Grant the consumer's next batch if it is ready and can be spared; else say why it has to wait."""
        cursor = consumer.cursor
        while cursor is not None and consumer.wants_more:
            key = next(cursor.upcoming(1))
            if key in self._failed:
                if cursor.waiting:
                    failure = self._failed.pop(key)
                    consumer.send(messages.Failed(cursor.serial, failure.error, failure.text))
                    cursor.open = False
                return
            slot = ready_for(self._ring, cursor)
            if slot is None or not may_grant(self._ring, cursor, self._cursors(), slot):
                self._explain_stall(consumer, cursor, key, slot)
                return
            if not consumer.open_slot(slot):
                return
            lease = self._ring.grant(slot, consumer.number)
            repeated = cursor.shard.batch(cursor.step)[1]
            granted = messages.Granted(cursor.serial, lease, slot.number, cursor.epoch, key[1], slot.rows, repeated)
            if not consumer.send(granted):
                self._ring.release(lease, consumer.number)
                return
            consumer.batches += 1
            cursor.step += 1
            if cursor.waiting:
                cursor.waiting = consumer.stalled = False
            consumer.untaken.append(lease)

    def _explain_stall(self, consumer: Consumer, cursor: Cursor, key: Key, ready: Slot | None) -> None:
        """Tell a waiting consumer if it waits for others' (or its own) leases, not for a reader."""
        if not cursor.waiting or consumer.stalled:
            return
        if ready is None:
            coming = self._ring.find(key) is not None or self._ring_may_grow()
            if coming or any(slot.reusable or slot.content is Content.FILLING for slot in self._ring.slots.values()):
                return
        consumer.stalled = True
        holders = []
        for other in self._consumers.values():
            held = self._ring.held_by(other.number)
            if held:
                who = "this loader" if other is consumer else f"the loader of pid {other.pid}"
                holders.append(f"{who} holds {held}")
        text = f"of {len(self._ring.slots)} slots " + ", ".join(holders)
        consumer.send(messages.Stalled(cursor.serial, text))

    def _hang_up(self, consumer: Consumer) -> None:
        """The consumer's socket has ended. What it holds stays until its process ends."""
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        self._drop_untaken(consumer, 0)
        consumer.cursor = None
        if self._private_fds:
            self._loop.stop()  # the loader was closed; views outlive the daemon
        elif not self._ring.held_by(consumer.number):
            self._bury(consumer)

    def _bury(self, consumer: Consumer) -> None:
        """The consumer's process has ended, or nothing of it is left."""
        if self._consumers.pop(consumer.number, None) is None:
            return
        if consumer.sock.fileno() >= 0:
            self._loop.unwatch(consumer.sock.fileno())
            consumer.sock.close()
        self._loop.unwatch(consumer.pidfd)
        os.close(consumer.pidfd)
        returned = self._ring.release_all(consumer.number)
        if returned:
            log.info(
                "consumer %d (pid %d) ended holding %d slots; they are back",
                consumer.number,
                consumer.pid,
                returned,
            )

    # --- what it says of itself

    def _announce_when_ready(self) -> None:
        if self._announced or self._ring_may_grow() or not any(r.ready for r in self._pool.readers.values()):
            return
        self._announced = True
        shape, dtype = self._source.x
        plan = self._budget.plan
        log.info(
            "ready: %d samples, batches of %s %s, %d slots of %s, %d readers, memory budget %s (%s); %s",
            self._source.n_samples,
            "x".join(map(str, (self._config.batch_size, *shape))),
            dtype,
            len(self._ring.slots),
            format_bytes(plan.slot_bytes),
            self._pool.n_readers,
            format_bytes(plan.budget_bytes),
            plan.limited_by,
            self._listening or "private",
        )

    def status(self) -> dict[str, Any]:
        """Return everything that `prefetchd status --json` prints."""
        plan = self._budget.plan
        footprint = self._footprint()
        shape, dtype = self._source.x
        return {
            "version": __version__,
            "name": self._config.name,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "source": self._config.source,
            "n_samples": self._source.n_samples,
            "batches_per_epoch": self._order.batches_per_epoch,
            "batch_shape": [self._config.batch_size, *shape],
            "batch_dtype": dtype,
            "batches_made": self._batches_made,
            "ring": {
                "slots": len(self._ring.slots),
                "slot_bytes": plan.slot_bytes,
                "free": self._ring.count(Content.FREE),
                "filling": self._ring.count(Content.FILLING),
                "ready": self._ring.count(Content.READY),
                "leased": self._ring.leased_slots,
            },
            "memory": {
                "budget_bytes": plan.budget_bytes,
                "limited_by": plan.limited_by,
                "footprint_bytes": footprint.total_bytes,
                "max_footprint_bytes": self._max_footprint_bytes,
                "ring_bytes": footprint.ring_bytes,
                "process_bytes": {str(pid): n for pid, n in footprint.processes.items()},
            },
            "readers": [
                {
                    "pid": reader.pid,
                    "ready": reader.ready,
                    "samples": reader.samples,
                    "tasks": len(reader.chunks),
                }
                for reader in self._pool.readers.values()
            ],
            "reader_crashes": self._pool.crashes,
            "consumers": [
                {
                    "pid": consumer.pid,
                    "epoch": consumer.cursor.epoch if consumer.cursor else None,
                    "step": consumer.cursor.step if consumer.cursor else None,
                    "held_slots": self._ring.held_by(consumer.number),
                    "batches": consumer.batches,
                    "waiting": bool(consumer.cursor and consumer.cursor.waiting),
                }
                for consumer in self._consumers.values()
                if consumer.attached
            ],
            "bad_samples": len(self._filler.bad),
            "bad": [
                {"sample_id": bad.sample_id, "where": bad.where, "reason": bad.reason}
                for bad in list(self._filler.bad.values())[:20]
            ],
        }
