"""An inspection: decode every sample of a list of images once, with a daemon's own parts and no consumers.

    sweep (the batches that are left) -> batch builder -> readers -> facts in the ring -> `Inspected`

`prefetchd verify` calls it. It owns a pool, a ring and a memory manager, and its process's end ends the readers.
Bad samples are confirmed as in serving (`batch_job`). A failure of a whole batch (the machine's, or a decode beyond the
budget) is narrowed down: a second data set, whose batches are single samples, asks for that batch's samples one by one.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from prefetchd.cli.verify.findings import KEPT, Inspected
from prefetchd.config.options import Config
from prefetchd.daemon.memory.limits import machine_limits
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import make_plan, reader_limits
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.known_samples import BadSample
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.readers.pool_events import PoolEvents
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.data.cache.keys import DEFAULT_QUALITY
from prefetchd.data.fields.inspection import InspectedFields
from prefetchd.data.fields.source import FieldsSource
from prefetchd.data.images.inspection import FACTS, InspectedImages
from prefetchd.data.images.source import ImageSource
from prefetchd.data.manifest.dialect import MalformedLine
from prefetchd.data.order.plan import OrderPlan, plan_sweep
from prefetchd.data.registry import open_source
from prefetchd.errors import ConfigError
from prefetchd.ipc import messages, system
from prefetchd.ipc.descriptors import memfd_of_length
from prefetchd.ipc.event_loop import EventLoop
from prefetchd.ring.layout import BatchLayout
from prefetchd.ring.segment import map_read_only, map_writable
from prefetchd.ring.slots import Content, Key, Ring, Slot
from prefetchd.sampling.sharding import Shard

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_ROWS = 64
_ALONE = 1  # the number of the data set whose batches are single samples
_FIRST_SLOTS = 2
_TICK_S = 0.5


def inspect(config: Config, on_progress: Callable[[int, int, int], None]) -> Inspected:
    """Decode every sample of `config.source` once; the options are those that it would be served with.

    Args:
        config: its `num_workers` and `memory_budget` hold here too.
        on_progress: called now and then with (samples done, samples, bad ones so far).

    Raises:
        PrefetchdError: if it cannot be served at all.
    """
    started_s = time.monotonic()
    inspection = _Inspection(config, on_progress)
    try:
        inspection.run()
    finally:
        inspection.close()
    return Inspected(
        inspection.images,
        inspection.malformed,
        inspection.facts,
        inspection.verdicts,
        inspection.interrupted,
        time.monotonic() - started_s,
        inspection.n_readers,
        inspection.n_samples,
    )


@dataclass(slots=True)
class _Sweep(Cursor):
    """A cursor that passes each batch once and takes finished batches in any order."""

    left: Iterator[Key] = field(default_factory=lambda: iter(()))
    begun: dict[Key, None] = field(default_factory=dict)  # ordered: what was begun first is needed first

    def upcoming(self, horizon: int) -> Iterator[Key]:
        """Yield the batches that are begun and not done, then more of them, `horizon` in all."""
        for key in islice(self.left, max(0, horizon - len(self.begun))):
            self.begun[key] = None
        return islice(self.begun, horizon)


class _Inspection:
    def __init__(self, config: Config, on_progress: Callable[[int, int, int], None]) -> None:
        self._on_progress = on_progress
        self.malformed: list[MalformedLine] = []
        self.verdicts: dict[int, tuple[str, bool]] = {}
        self._reasons: dict[str, str] = {}  # each kept once
        self.interrupted = False
        self._done = 0
        self._ticking = False
        self._loop = EventLoop()
        # As in a daemon, readers start before the manifest is read.
        self._pool = Pool(
            config.num_workers or system.usable_cores(),
            config.reader_timeout,
            watch=self._loop.watch,
            unwatch=self._loop.unwatch,
            clock=self._loop.clock,
        )
        self._ring = Ring()
        try:
            self._build(config)
        except BaseException:
            self.close()
            raise

    def _build(self, config: Config) -> None:
        # Whole images: of a random crop, only the rows that it shows are decoded.
        config = dataclasses.replace(
            config, augment=(), views=(), cache=None, cache_size="auto", cache_image_size=None, cache_format="raw",
            cache_quality=DEFAULT_QUALITY, on_error="skip", shuffle=False, shuffle_block=None, drop_last=False,
            batch_size=BATCH_ROWS, bucket_sizes=(), bucket_file=None,
        )  # fmt: skip
        source = open_source(config, self.malformed)
        if not isinstance(source, ImageSource):
            raise ConfigError(
                f"cannot verify {config.source}: arrays have nothing to decode; give a list of images, a directory of "
                "them, tar shards or Parquet files"
            )
        self.images = source
        inspected = (InspectedFields if isinstance(source, FieldsSource) else InspectedImages).of(source)
        order = plan_sweep(config, source)
        config = dataclasses.replace(config, weights=None, replace=True, epoch_samples=None)  # of the order alone
        self._datasets = [
            _dataset(0, config, inspected, order),
            _dataset(_ALONE, dataclasses.replace(config, batch_size=1), inspected, order),
        ]
        self.n_samples = order.order.n_samples
        self.facts = _shared_array(inspected.facts.n_samples)
        slot_bytes = self._datasets[0].layout.slot_bytes
        source_bytes = inspected.facts.shared_bytes + order.shared_bytes + self.facts.nbytes
        plan = make_plan(config, slot_bytes, machine_limits(), source_bytes, 2 * inspected.facts.reader_bytes)
        self.n_readers = plan.n_readers
        self._pool.resize(plan.n_readers)
        self._builder = BatchBuilder(self._datasets, self._ring, self._pool, self._found_bad)
        self._memory = MemoryManager(plan, self._ring, self._pool)
        for _ in range(_FIRST_SLOTS):
            self._memory.add_slot()
        events = PoolEvents(
            done=self._builder.done,
            lost=self._builder.lost,
            stuck=self._builder.stuck,
            gone=self._builder.gone,
            memory=lambda: self._memory.serve_requests([self._sweep]),
            outgrown=self._memory.outgrown,
        )
        first: list[tuple[messages.Message, list[int]]] = [dataset.for_readers() for dataset in self._datasets]
        self._pool.boot([*first, (reader_limits(plan), [])], events)
        n_batches = self._datasets[0].order.batches_per_epoch
        # It always waits: it takes no leases, whose return would be the batch builder's occasion to begin more.
        self._sweep = _Sweep(0, 0, 0, Shard(n_batches), waiting=True, left=self._keys(n_batches))

    def _keys(self, n_batches: int) -> Iterator[Key]:
        for batch in range(n_batches):
            yield 0, 0, batch

    def run(self) -> None:
        """Run until every batch is done or a signal stops it."""
        quiet = logging.getLogger("prefetchd")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL)  # the report lists each bad sample once
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.on_signal(number, self._interrupt)
        try:
            self._loop.run(self._pump)
        finally:
            quiet.setLevel(level)

    def _interrupt(self) -> None:
        self.interrupted = True
        self._loop.stop()

    def _pump(self) -> None:
        while self._take_finished():
            pass
        if not self._sweep.begun and next(self._sweep.upcoming(1), None) is None:
            self._loop.stop()
            return
        if self._memory.may_grow():
            self._memory.grow()
            self._loop.call_later(0, lambda: None)
        self._builder.give_work([self._sweep])
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(_TICK_S, self._tick)

    def _take_finished(self) -> bool:
        """Collect the batches that are made or have failed; return whether there were any."""
        found = False
        for key in list(self._sweep.begun):
            slot = self._ring.find(key)
            if slot is not None and slot.content is Content.READY:
                self._take(key, slot)
            elif key in self._builder.failed:
                self._take_failed(key, self._builder.failed.pop(key).text)
            else:
                continue
            found = True
            del self._sweep.begun[key]
        return found

    def _take(self, key: Key, slot: Slot) -> None:
        number, _, batch = key
        layout = self._datasets[number].layout
        memory = map_read_only(slot.segment.fd, slot.segment.n_bytes)
        root = np.frombuffer(memory, np.uint8)
        (facts,) = layout.arrays(root, slot.rows)
        kept = self.facts[layout.sample_ids(root, slot.rows)]
        for column, name in enumerate(FACTS):
            kept[name] = facts[:, column]
        kept["seen"] = True
        self.facts[layout.sample_ids(root, slot.rows)] = kept
        self._count(self._datasets[number].order.rows(0, batch))

    def _take_failed(self, key: Key, text: str) -> None:
        number, _, batch = key
        order = self._datasets[number].order
        if number != _ALONE:
            first = batch * BATCH_ROWS
            for sample_id in range(first, first + order.rows(0, batch)):
                self._sweep.begun[_ALONE, 0, sample_id] = None
        else:
            # A verdict stands: where no sample is good, the last batch fails for that alone.
            if batch not in self.verdicts:
                self._note(batch, text, judged=False)
            self._count(1)

    def _count(self, n_samples: int) -> None:
        self._done += n_samples
        self._on_progress(self._done, self.n_samples, len(self.verdicts))

    def _found_bad(self, dataset: Dataset, sample: BadSample) -> None:
        self._note(sample.sample_id, sample.reason, judged=True)

    def _note(self, sample_id: int, reason: str, *, judged: bool) -> None:
        self.verdicts[sample_id] = self._reasons.setdefault(reason, reason), judged

    def _tick(self) -> None:
        """Check the footprint, hung readers and the manifest, as a daemon does."""
        self._ticking = False
        self._datasets[0].source.check_unchanged()
        self._pool.tick()
        self._memory.serve_requests([self._sweep])
        self._memory.verify([self._sweep])
        self._on_progress(self._done, self.n_samples, len(self.verdicts))

    def close(self) -> None:
        """End the readers and give the ring back; the source stays open."""
        self._pool.stop()
        self._ring.close()
        self._loop.close()


def _shared_array(n_samples: int) -> NDArray[Any]:
    """Return zeros in a segment, so that the footprint counts them once: as the source's and not as the process's."""
    n_bytes = max(1, n_samples * KEPT.itemsize)
    fd = memfd_of_length("prefetchd-facts", n_bytes)
    try:
        return np.frombuffer(map_writable(fd, n_bytes), KEPT, n_samples)
    finally:
        os.close(fd)


def _dataset(number: int, config: Config, source: InspectedImages, plan: OrderPlan) -> Dataset:
    plan = dataclasses.replace(plan, order=dataclasses.replace(plan.order, batch_size=config.batch_size))
    return Dataset(number, "", config, source, plan, (BatchLayout(config.batch_size, source.facts.fields),))
