"""The status report of a daemon, and the line that says that it is ready.

Made in the daemon's loop when a command asks. It reads the parts and changes nothing. `cli/views` shows it to people.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from typing import Any

from prefetchd._version import __version__
from prefetchd.config.units import format_bytes, format_count
from prefetchd.daemon.consumers.consumer import Consumer, State
from prefetchd.daemon.consumers.manager import ConsumerManager
from prefetchd.daemon.memory.controller import MemoryController
from prefetchd.daemon.memory.limits import Footprint, read_shortage
from prefetchd.daemon.memory.manager import MemoryManager
from prefetchd.daemon.memory.plan import Plan
from prefetchd.daemon.readers.batch_builder import BatchBuilder
from prefetchd.daemon.readers.job_tracker import JobTracker
from prefetchd.daemon.readers.pool import Pool
from prefetchd.daemon.schedule.cursor import Cursor
from prefetchd.daemon.schedule.datasets import Dataset
from prefetchd.errors import one_line
from prefetchd.ipc import messages
from prefetchd.ipc.process import process_state
from prefetchd.ring.segment import shm_free_bytes
from prefetchd.ring.slots import Content, Ring

_LISTED_BAD = 20
_MOST_BAD_BYTES = 48 << 10  # of a list of them, far below what a message holds
_MOST_BAD = 200


def make_report(
    name: str,
    datasets: Sequence[Dataset],
    ring: Ring,
    pool: Pool,
    memory: MemoryManager,
    builder: BatchBuilder,
    manager: ConsumerManager,
    controller: MemoryController,
    *,
    now_s: float,
    started_s: float,
) -> dict[str, Any]:
    """Return the report that `prefetchd status --json` prints: plain values, bytes and seconds named as such."""
    plan = memory.budget.plan
    footprint = memory.measure()
    shortage = controller.shortage or read_shortage()
    return {
        "version": __version__,
        "name": name,
        "pid": os.getpid(),
        "uptime_s": round(now_s - started_s, 3),
        "datasets": [_dataset(dataset) for dataset in datasets],
        "batches_made": builder.batches_made,
        "samples_made": builder.samples_made,
        "delivered": manager.granter.delivered,
        "sample_seconds": builder.sample_seconds.report(),
        "wait_seconds": manager.granter.wait_seconds.report(),
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
            "ceiling_bytes": max(plan.budget_bytes, plan.ceiling_bytes),
            "limited_by": plan.limited_by,
            "footprint_bytes": footprint.total_bytes,
            "max_footprint_bytes": memory.max_footprint_bytes,
            "ring_bytes": footprint.ring_bytes,
            "source_bytes": footprint.source_bytes,
            "queue_bytes": footprint.queue_bytes,
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
                "paused": memory.target.paused,
            },
        },
        "num_workers": {"wanted": pool.n_readers, "auto": controller.is_auto, "outgrown": memory.outgrown_readers},
        "waited_s": round(controller.waited_s, 3),
        "busy_s": round(builder.busy_s, 3),
        "readers": [
            {
                "number": reader.number,  # of all that were started
                "pid": reader.pid,
                "ready": reader.ready,
                "state": reader.state,
                "samples": reader.samples,
                "busy_s": round(reader.busy_s, 3),
                "tasks": len(reader.chunks),
                "does": reader.describe(now_s),
                "memory_bytes": footprint.processes.get(reader.pid, 0),
                "reserved_bytes": reader.has_bytes,
            }
            for reader in pool.readers.values()
        ],
        "reader_crashes": pool.crashes,
        "agents": [] if pool.remote is None else pool.remote.report(),
        "agents_missing": {} if pool.remote is None else pool.remote.missing,
        "bridge_deaths": 0 if pool.remote is None else pool.remote.bridge_deaths,
        "consumers": [
            _consumer(consumer, manager, ring, is_short_of_memory=memory.target.paused)
            for consumer in manager.consumers.values()
            if consumer.attachment is not None
        ],
        "bad_samples": sum(tracker.n_bad for tracker in builder.trackers),
        "bad": [
            {"dataset": dataset.name, "sample_id": bad.sample_id, "where": bad.where, "reason": bad.reason}
            for dataset in datasets
            for bad in builder.trackers[dataset.number].first_bad[:_LISTED_BAD]
        ],
    }


def _consumer(consumer: Consumer, manager: ConsumerManager, ring: Ring, *, is_short_of_memory: bool) -> dict[str, Any]:
    """Report one loader, as far as it has taken its grants; a member of a group is where its group is."""
    assert consumer.attachment is not None
    n_ahead = len(consumer.untaken)
    cursor = consumer.cursor if consumer.group is None else manager.groups.passes.get(consumer.number)
    epoch, step = (None, None) if cursor is None else cursor.before(0 if consumer.group else n_ahead)
    waited_for = {head.consumer for head in manager.pacer.waits.values()}
    return {
        "number": consumer.number,
        "pid": consumer.pid,
        "name": consumer.attachment.request.name,
        "dataset": consumer.attachment.dataset.name,
        "group": consumer.group,
        "epoch": epoch,
        "step": step,
        "batch": _latest_batch(cursor, epoch, step),
        "rank": cursor.shard.rank if cursor else None,
        "world_size": cursor.shard.world_size if cursor else None,
        "held_slots": max(0, ring.held_by(consumer.number) - n_ahead),
        "ahead_slots": n_ahead,
        "batches": consumer.batches - n_ahead,
        "samples": consumer.samples - ring.rows_in(consumer.untaken),
        "waited_s": round(consumer.waited_s, 3),
        "waited_for_slower_s": round(manager.pacer.waited_s.get(consumer.number, 0.0), 3),
        "running": bool(cursor and cursor.open and not cursor.at_end),
        "stalled": consumer.state is State.STALLED,
        "waiting": consumer.is_waiting,
        "waits_for": _waits_for(consumer, manager, is_short_of_memory=is_short_of_memory),
        "waited_for": consumer.number in waited_for,
        "patience_left_s": _patience_left(consumer),
        "reads": not consumer.socket.blocked,
        "state": process_state(consumer.pid),
    }


def _latest_batch(cursor: Cursor | None, epoch: int | None, step: int | None) -> int | None:
    """Return the number of the batch that a loop took last, over all ranks; `None` before the first of an epoch."""
    if cursor is None or not step:
        return None
    return cursor.shard.batch(step - 1, cursor.start if epoch == cursor.epoch else 0)[0]


def _waits_for(consumer: Consumer, manager: ConsumerManager, *, is_short_of_memory: bool) -> dict[str, Any] | None:
    """Return what a waiting loop waits for; `None` if it does not wait.

    `reason` is "slower loop" (with its `pid` and `name`; neither if that is a group's), "other loaders" (of its
    `start_together`), "members" (of its group, which hold the last batches), "slots" (which others or itself hold),
    "unread messages" (of the daemon, in its socket), "memory", or "readers".
    """
    if not consumer.is_waiting:
        return None
    group = manager.groups.of(consumer)
    slower = manager.pacer.waits.get(consumer.number if group is None else group.cursor.consumer)
    if slower is not None:
        head = manager.consumers.get(slower.consumer)  # none has the number of a group's cursor
        if head is None or head.attachment is None:
            return {"reason": "slower loop", "pid": None, "name": None}
        return {"reason": "slower loop", "pid": head.pid, "name": head.attachment.request.name}
    if consumer.held_back:
        reason = "other loaders"
    elif group is not None and group.cursor.at_end:
        reason = "members"
    elif consumer.state is State.STALLED:
        reason = "slots"
    elif consumer.socket.blocked:
        reason = "unread messages"
    else:
        reason = "memory" if is_short_of_memory else "readers"
    return {"reason": reason, "pid": None, "name": None}


def _patience_left(consumer: Consumer) -> float | None:
    """Return the seconds for which others will still wait for it; `None` for always, as JSON has no infinity."""
    left_s = consumer.cursor.patience_left_s if consumer.cursor is not None else 0.0
    return round(left_s, 3) if math.isfinite(left_s) else None


def _plan(plan: Plan) -> dict[str, Any]:
    """Report the planned cost of each part, how many of each the budget has, and what limits it."""
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
    """Report what the planned parts take: the base (with the fork server), and the largest reader."""
    readers = {reader.pid: footprint.processes.get(reader.pid, 0) for reader in pool.readers.values()}
    base = sum(n for pid, n in footprint.processes.items() if pid not in readers)
    return {"base_bytes": base + footprint.source_bytes, "reader_bytes": max(readers.values(), default=0)}


def _dataset(dataset: Dataset) -> dict[str, Any]:
    first = dataset.layout.fields[0]
    return {
        "name": dataset.name,
        "source": one_line(dataset.config.source),
        "n_samples": dataset.order.n_samples,
        "batches_per_epoch": dataset.order.batches_per_epoch,
        "batch_shape": [dataset.config.batch_size, *first.shape],
        "batch_dtype": first.dtype,
        "cache": None if dataset.source.cache is None else dataset.source.cache.report(),
        "mix": _mix(dataset),
        "padding": dataset.source.facts.padding,
        "buckets": None if dataset.plan.buckets is None else dataset.plan.buckets.to_wire(),
    }


def _mix(dataset: Dataset) -> list[dict[str, Any]] | None:
    """Return the sources of a mixture, with their sizes, and what they have of the first epoch; else `None`."""
    mixture = dataset.order.mixture
    if mixture is None:
        return None
    sources = zip(dataset.source.facts.sources, mixture.sizes, mixture.counts(0), strict=True)
    return [
        {"source": name, "samples": size, "epoch_samples": count, "share": round(count / mixture.n_samples, 6)}
        for (name, _), size, count in sources
    ]


def list_bad(dataset: Dataset, tracker: JobTracker, first: int) -> messages.BadSamples:
    """Return the answer to `AskBad`: as many bad samples, from number `first` of them on, as fit into one message."""
    found: list[tuple[int, str, str]] = []
    n_bytes = 0
    for sample_id, reason in islice(tracker.reasons.items(), first, first + _MOST_BAD):
        sample = (sample_id, dataset.source.where(sample_id), one_line(reason))
        n_bytes += len(messages.encode(sample))
        if found and n_bytes > _MOST_BAD_BYTES:
            break
        found.append(sample)
    return messages.BadSamples(tracker.n_bad, len(tracker.reasons), found)


def ready_line(report: dict[str, Any], attach_hint: str) -> str:
    """Return the line that says that the daemon serves: samples, batch, ring, readers, budget, how to attach."""
    ring, memory = report["ring"], report["memory"]
    served = ", ".join(
        f"{data['name'] and data['name'] + ': '}{data['n_samples']} samples, batches of "
        f"{'up to ' if data['buckets'] is not None else ''}"
        f"{'x'.join(map(str, data['batch_shape']))} {data['batch_dtype']}"
        for data in report["datasets"]
    )
    readers = format_count(len(report["readers"]), "reader")
    return (
        f"ready: {served}, {ring['slots']} slots of "
        f"{format_bytes(ring['slot_bytes'])}, {readers}, memory budget "
        f"{format_bytes(memory['budget_bytes'])} ({memory['limited_by']}); {attach_hint}"
    )
