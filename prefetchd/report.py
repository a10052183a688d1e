"""What the daemon says of itself: the status report and the lines made from it. Reads the parts, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from prefetchd import __version__
from prefetchd.config import Config
from prefetchd.consumers import Consumer
from prefetchd.foreman import Foreman
from prefetchd.guard import Guard
from prefetchd.order import Order
from prefetchd.pool import Pool
from prefetchd.slots import Content, Ring
from prefetchd.sources import Source
from prefetchd.units import format_bytes, format_count

_LISTED_BAD = 20


def status(
    config: Config,
    source: Source,
    order: Order,
    ring: Ring,
    pool: Pool,
    guard: Guard,
    foreman: Foreman,
    consumers: Sequence[Consumer],
    *,
    uptime_s: float,
) -> dict[str, Any]:
    """Return the report that `prefetchd status --json` prints: plain values, bytes and seconds named as such."""
    plan = guard.budget.plan
    footprint = guard.measure()
    shape, dtype = source.x
    return {
        "version": __version__,
        "name": config.name,
        "pid": os.getpid(),
        "uptime_s": round(uptime_s, 3),
        "source": config.source.encode("utf-8", "backslashreplace").decode(),
        "n_samples": source.n_samples,
        "batches_per_epoch": order.batches_per_epoch,
        "batch_shape": [config.batch_size, *shape],
        "batch_dtype": dtype,
        "batches_made": foreman.batches_made,
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
            "max_footprint_bytes": guard.max_footprint_bytes,
            "ring_bytes": footprint.ring_bytes,
            "source_bytes": footprint.source_bytes,
            "process_bytes": {str(pid): n for pid, n in footprint.processes.items()},
        },
        "readers": [
            {
                "pid": reader.pid,
                "ready": reader.ready,
                "samples": reader.samples,
                "tasks": len(reader.chunks),
            }
            for reader in pool.readers.values()
        ],
        "reader_crashes": pool.crashes,
        "consumers": [
            {
                "pid": consumer.pid,
                "epoch": consumer.cursor.epoch if consumer.cursor else None,
                "step": consumer.cursor.step if consumer.cursor else None,
                "held_slots": ring.held_by(consumer.number),
                "batches": consumer.batches,
                "waiting": bool(consumer.cursor and consumer.cursor.waiting),
            }
            for consumer in consumers
            if consumer.attached
        ],
        "bad_samples": foreman.filler.n_bad,
        "bad": [
            {"sample_id": bad.sample_id, "where": bad.where, "reason": bad.reason}
            for bad in foreman.filler.first_bad[:_LISTED_BAD]
        ],
    }


def ready_line(report: dict[str, Any], attach_hint: str) -> str:
    """Return the line that says that the daemon serves: samples, batch, ring, readers, budget, how to attach."""
    ring, memory = report["ring"], report["memory"]
    shape = "x".join(map(str, report["batch_shape"]))
    readers = format_count(len(report["readers"]), "reader")
    return (
        f"ready: {report['n_samples']} samples, batches of {shape} {report['batch_dtype']}, {ring['slots']} slots of "
        f"{format_bytes(ring['slot_bytes'])}, {readers}, memory budget "
        f"{format_bytes(memory['budget_bytes'])} ({memory['limited_by']}); {attach_hint}"
    )


def describe(report: dict[str, Any]) -> str:
    """Return the report as the lines that `prefetchd status` prints."""
    ring, memory = report["ring"], report["memory"]
    lines = [
        f"daemon {report['name']!r}, pid {report['pid']}, up {report['uptime_s']:.0f} s, serves {report['source']}",
        f"  data      {report['n_samples']} samples, {report['batches_per_epoch']} batches an epoch of "
        f"{'x'.join(map(str, report['batch_shape']))} {report['batch_dtype']}; {report['batches_made']} made so far",
        f"  ring      {ring['slots']} slots of {format_bytes(ring['slot_bytes'])}: {ring['free']} free, "
        f"{ring['filling']} filling, {ring['ready']} ready, {ring['leased']} leased",
        f"  memory    {format_bytes(memory['footprint_bytes'])} of {format_bytes(memory['budget_bytes'])} "
        f"(budget from {memory['limited_by']}; most so far {format_bytes(memory['max_footprint_bytes'])})",
        f"  readers   {len(report['readers'])} ("
        + ", ".join(f"pid {reader['pid']}: {reader['samples']} samples" for reader in report["readers"])
        + f"), {report['reader_crashes']} replaced after a crash",
        f"  consumers {len(report['consumers'])}",
    ]
    for consumer in report["consumers"]:
        where = f"epoch {consumer['epoch']} step {consumer['step']}" if consumer["epoch"] is not None else "idle"
        waiting = ", waiting for a batch" if consumer["waiting"] else ""
        lines.append(
            f"            pid {consumer['pid']}: {where}, {consumer['batches']} batches, "
            f"holds {consumer['held_slots']} slots{waiting}"
        )
    lines.append(f"  bad       {report['bad_samples']} samples")
    lines += [f"            {bad['sample_id']}: {bad['where']}: {bad['reason']}" for bad in report["bad"]]
    return "\n".join(lines)
