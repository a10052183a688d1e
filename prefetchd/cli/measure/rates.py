"""Rates of a daemon between two of its status reports. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates between two reports.

    Attributes:
        made_per_s: samples decoded a second.
        delivered_per_s: samples granted to consumers a second.
        loader_bound: the share of the time that running consumers waited for the loader; `None` without any.
        slower_bound: the share of the time that running consumers waited for a slower loop; `None` without any.
        readers_busy: the share of the time that readers were at work; `None` without any.
        reader_per_s: samples a second of each reader, by pid.
        reader_busy: its share of the time at work, by pid.
        consumer_per_s: samples a second of each consumer, by number.
        consumer_waits: its share of the time that it waited for either, by number.
    """

    made_per_s: float
    delivered_per_s: float
    loader_bound: float | None
    slower_bound: float | None
    readers_busy: float | None
    reader_per_s: Mapping[int, float]
    reader_busy: Mapping[int, float]
    consumer_per_s: Mapping[int, float]
    consumer_waits: Mapping[int, float]


def rates(before: Report, after: Report) -> Rates:
    """Return what happened between two reports of one daemon; one that is only in the later one began at 0."""
    elapsed_s = max(1e-3, after["uptime_s"] - before["uptime_s"])
    reader_per_s = _per_second(before, after, "readers", "pid", "samples", elapsed_s)
    # A task's time counts at its end, so a long task falls into one interval.
    reader_busy = {
        pid: min(1.0, busy) for pid, busy in _per_second(before, after, "readers", "pid", "busy_s", elapsed_s).items()
    }
    consumer_per_s = _per_second(before, after, "consumers", "number", "samples", elapsed_s)
    waits = _per_second(before, after, "consumers", "number", "waited_s", elapsed_s)
    consumer_waits = {number: min(1.0, share) for number, share in waits.items()}
    slower = _per_second(before, after, "consumers", "number", "waited_for_slower_s", elapsed_s)
    running = [found["number"] for found in after["consumers"] if found["running"]]
    # Time is charged to a slower loop at the next look, so a part of it may fall into a later interval.
    slower_shares = [min(consumer_waits[number], max(0.0, slower[number])) for number in running]
    all_shares = [consumer_waits[number] for number in running]
    return Rates(
        made_per_s=(after["samples_made"] - before["samples_made"]) / elapsed_s,
        delivered_per_s=sum(consumer_per_s.values()),
        loader_bound=(sum(all_shares) - sum(slower_shares)) / len(running) if running else None,
        slower_bound=sum(slower_shares) / len(running) if running else None,
        readers_busy=sum(reader_busy.values()) / len(reader_busy) if reader_busy else None,
        reader_per_s=reader_per_s,
        reader_busy=reader_busy,
        consumer_per_s=consumer_per_s,
        consumer_waits=consumer_waits,
    )


def _per_second(
    before: Report, after: Report, party: str, key: str, counter: str, elapsed_s: float
) -> dict[int, float]:
    earlier = {found[key]: found[counter] for found in before[party]}
    return {found[key]: (found[counter] - earlier.get(found[key], 0)) / elapsed_s for found in after[party]}


def positions(report: Report) -> dict[int, int | None]:
    """Return how many steps the loop of each consumer has passed, from epoch 0 on; `None` without a loop."""
    batches = {data["name"]: data["batches_per_epoch"] for data in report["datasets"]}
    found: dict[int, int | None] = {}
    for consumer in report["consumers"]:
        steps = -(-batches.get(consumer["dataset"] or "", 0) // (consumer["world_size"] or 1))
        passed = None if consumer["epoch"] is None else int(consumer["epoch"] * steps + consumer["step"])
        found[consumer["number"]] = passed
    return found
