"""What the daemon says of itself: the status report, and the line that says that it serves.

Made in the daemon's loop, for whoever asks; reads the parts, changes nothing. `tools/status_text` has it for people.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Container, Mapping, Sequence
from typing import Any

from prefetchd._version import __version__
from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.consumers.consumer import Consumer
from prefetchd.daemon.consumers.grants import Granter
from prefetchd.daemon.memory.controller import MemoryController
from prefetchd.daemon.memory.limits import read_shortage
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import Footprint, Plan
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.errors import one_line
from prefetchd.ipc.process import process_state
from prefetchd.ring.segment import shm_free_bytes
from prefetchd.ring.slots import Content, Ring

_LISTED_BAD = 20


def status(
    name: str,
    datasets: Sequence[Dataset],
    ring: Ring,
    pool: Pool,
    memory: MemoryManager,
    builder: BatchBuilder,
    granter: Granter,
    consumers: Sequence[Consumer],
    controller: MemoryController,
    *,
    passes: Mapping[int, Cursor],
    waited_for: Container[int],
    uptime_s: float,
) -> dict[str, Any]:
    """Return the report that `prefetchd status --json` prints: plain values, bytes and seconds named as such."""
    plan = memory.budget.plan
    footprint = memory.measure()
    shortage = controller.shortage or read_shortage()
    return {
        "version": __version__,
        "name": name,
        "pid": os.getpid(),
        "uptime_s": round(uptime_s, 3),
        "datasets": [_dataset(dataset) for dataset in datasets],
        "batches_made": builder.batches_made,
        "samples_made": builder.samples_made,
        "delivered": granter.delivered,
        "sample_seconds": builder.sample_seconds.report(),
        "wait_seconds": granter.wait_seconds.report(),
        "ring": {
            "slots": len(ring.slots),
            "slot_bytes": plan.slot_bytes,
            "free": ring.count(Content.FREE),
            "filling": ring.count(Content.FILLING),
            "ready": ring.count(Content.READY),
            "leased": ring.leased_slots,
        },
        "memory": {
            "budget_bytes": plan.budget_bytes,
            "limited_by": plan.limited_by,
            "footprint_bytes": footprint.total_bytes,
            "max_footprint_bytes": memory.max_footprint_bytes,
            "ring_bytes": footprint.ring_bytes,
            "source_bytes": footprint.source_bytes,
            "mail_bytes": footprint.mail_bytes,
            "process_bytes": {str(pid): n for pid, n in footprint.processes.items()},
            "in_force_bytes": memory.budget.in_force_bytes,
            "reserved_bytes": memory.budget.reserved_bytes,
            "plan": _plan(plan),
            "measured": _measured(footprint, pool),
            "pressure": {
                "headroom_bytes": shortage.headroom_bytes,
                "source": shortage.source,
                "stalled_percent": shortage.stalled_percent,
                "given_back": not controller.relieved,
                "paused": controller.paused,
            },
        },
        "num_workers": {"wanted": pool.n_readers, "auto": controller.is_auto, "outgrown": memory.outgrown_readers},
        "waited_s": round(controller.waited_s, 3),
        "busy_s": round(builder.busy_s, 3),
        "readers": [
            {
                "pid": reader.pid,
                "ready": reader.ready,
                "state": reader.state,
                "samples": reader.samples,
                "busy_s": round(reader.busy_s, 3),
                "tasks": len(reader.chunks),
                "does": reader.describe(time.monotonic()),
                "memory_bytes": footprint.processes.get(reader.pid, 0),
                "reserved_bytes": reader.has_bytes,
            }
            for reader in pool.readers.values()
        ],
        "reader_crashes": pool.crashes,
        "consumers": [
            _consumer(
                consumer,
                consumer.cursor or passes.get(consumer.number),
                held_slots=ring.held_by(consumer.number),
                rows_ahead=ring.rows_in(consumer.untaken),
                waited_for=consumer.number in waited_for,
            )
            for consumer in consumers
            if consumer.attached
        ],
        "bad_samples": sum(tracker.n_bad for tracker in builder.trackers),
        "bad": [
            {"dataset": dataset.name, "sample_id": bad.sample_id, "where": bad.where, "reason": bad.reason}
            for dataset in datasets
            for bad in builder.trackers[dataset.number].first_bad[:_LISTED_BAD]
        ],
    }


def _consumer(
    consumer: Consumer, cursor: Cursor | None, *, held_slots: int, rows_ahead: int, waited_for: bool
) -> dict[str, Any]:
    """One loader, as far as it has taken what was granted; `cursor` is its own, or that of all members of its group."""
    n_ahead = len(consumer.untaken)
    epoch, step = (None, None) if cursor is None else cursor.before(0 if consumer.group else n_ahead)
    return {
        "number": consumer.number,
        "pid": consumer.pid,
        "dataset": consumer.dataset.name if consumer.dataset else None,
        "group": consumer.group,
        "epoch": epoch,
        "step": step,
        "rank": cursor.shard.rank if cursor else None,
        "world_size": cursor.shard.world_size if cursor else None,
        "held_slots": max(0, held_slots - n_ahead),
        "ahead_slots": n_ahead,
        "batches": consumer.batches - n_ahead,
        "samples": consumer.samples - rows_ahead,
        "waited_s": round(consumer.waited_s, 3),
        "running": bool(cursor and cursor.open and not cursor.at_end),
        "stalled": consumer.stalled,
        "waiting": consumer.waits,
        "waited_for": waited_for,
        "patience_left_s": _patience_left(consumer),
        "reads": not consumer.blocked,
        "state": process_state(consumer.pid),
    }


def _patience_left(consumer: Consumer) -> float | None:
    """Seconds for which others would still wait for it; `None` for always, as JSON has no infinity."""
    left_s = consumer.cursor.patience_left_s if consumer.cursor is not None else 0.0
    return round(left_s, 3) if math.isfinite(left_s) else None


def _plan(plan: Plan) -> dict[str, Any]:
    """What everything was planned to cost, how many of each the budget buys, and what would have allowed more."""
    return {
        "base_bytes": plan.base_bytes,
        "reader_bytes": plan.reader_share_bytes,
        "readers": plan.n_readers,
        "slot_bytes": plan.slot_bytes,
        "slots": plan.n_slots,
        "large_bytes": plan.large_bytes,
        "limits": [{"source": limit.source, "bytes": limit.n_bytes} for limit in plan.limits],
        "shm_free_bytes": shm_free_bytes(),
    }


def _measured(footprint: Footprint, pool: Pool) -> dict[str, int]:
    """What was planned, as it is: the base (with the fork server), and the largest reader."""
    readers = {reader.pid: footprint.processes.get(reader.pid, 0) for reader in pool.readers.values()}
    base = sum(n for pid, n in footprint.processes.items() if pid not in readers)
    return {"base_bytes": base + footprint.source_bytes, "reader_bytes": max(readers.values(), default=0)}


def _dataset(dataset: Dataset) -> dict[str, Any]:
    shape, dtype = dataset.source.x
    return {
        "name": dataset.name,
        "source": one_line(dataset.config.source),
        "n_samples": dataset.source.n_samples,
        "batches_per_epoch": dataset.order.batches_per_epoch,
        "batch_shape": [dataset.config.batch_size, *shape],
        "batch_dtype": dtype,
        "cache": None if dataset.source.cache is None else dataset.source.cache.report(),
    }


def ready_line(report: dict[str, Any], attach_hint: str) -> str:
    """Return the line that says that the daemon serves: samples, batch, ring, readers, budget, how to attach."""
    ring, memory = report["ring"], report["memory"]
    served = ", ".join(
        f"{data['name'] and data['name'] + ': '}{data['n_samples']} samples, batches of "
        f"{'x'.join(map(str, data['batch_shape']))} {data['batch_dtype']}"
        for data in report["datasets"]
    )
    readers = format_count(len(report["readers"]), "reader")
    return (
        f"ready: {served}, {ring['slots']} slots of "
        f"{format_bytes(ring['slot_bytes'])}, {readers}, memory budget "
        f"{format_bytes(memory['budget_bytes'])} ({memory['limited_by']}); {attach_hint}"
    )
