"""Status reports of daemons (`daemon.status`) as the lines that `prefetchd status` and `list` print. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefetchd.cli.views.charts import short_duration
from prefetchd.config.units import format_bytes, format_count


def daemon_table(found: Iterable[tuple[str, int, dict[str, Any] | str]]) -> list[str]:
    """Return a line for each daemon: name, pid, age, memory, loaders and data, or why it does not answer."""
    rows = [("name", "pid", "up", "memory", "loaders", "data")]
    for name, pid, report in found:
        if isinstance(report, str):
            rows.append((name, str(pid), "-", "-", "-", report))
            continue
        memory = report["memory"]
        used = f"{format_bytes(memory['footprint_bytes'])} of {format_bytes(memory['budget_bytes'])}"
        sources = ", ".join(f"{data['name'] and data['name'] + '='}{data['source']}" for data in report["datasets"])
        rows.append((name, str(pid), short_duration(report["uptime_s"]), used, str(len(report["consumers"])), sources))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def describe(report: dict[str, Any]) -> str:
    """Return the report as the lines that `prefetchd status` prints."""
    ring, memory = report["ring"], report["memory"]
    grows = memory["ceiling_bytes"] > memory["budget_bytes"]
    ceiling = f", growing up to {format_bytes(memory['ceiling_bytes'])}" if grows else ""
    lines = [
        f"daemon {report['name']!r}, pid {report['pid']}, up {report['uptime_s']:.0f} s, "
        f"{report['batches_made']} batches made so far",
        *map(_describe_data, report["datasets"]),
        f"  ring      {ring['slots']} slots of {format_bytes(ring['slot_bytes'])}: {ring['free']} free, "
        f"{ring['filling']} filling, {ring['ready']} ready, {ring['leased']} leased",
        f"  memory    {format_bytes(memory['footprint_bytes'])} of {format_bytes(memory['budget_bytes'])} "
        f"(budget from {memory['limited_by']}{ceiling}; most so far {format_bytes(memory['max_footprint_bytes'])})",
        *_describe_plan(memory),
        f"  readers   {len(report['readers'])} ("
        + "; ".join(f"pid {one['pid']}: {one['samples']} samples, {one['does']}" for one in report["readers"])
        + f"), {report['reader_crashes']} replaced after a crash",
        f"  consumers {len(report['consumers'])}",
    ]
    lines += [f"            {_describe_consumer(consumer)}" for consumer in report["consumers"]]
    lines.append(f"  bad       {report['bad_samples']} samples")
    for bad in report["bad"]:
        lines.append(
            f"            {bad['dataset'] and bad['dataset'] + ' '}{bad['sample_id']}: {bad['where']}: {bad['reason']}"
        )
    return "\n".join(lines)


def _describe_consumer(consumer: dict[str, Any]) -> str:
    where = f"epoch {consumer['epoch']} step {consumer['step']}" if consumer["epoch"] is not None else "idle"
    if consumer["dataset"]:
        where = f"{consumer['dataset']} {where}"
    if consumer["world_size"] not in (None, 1):
        where += f" as rank {consumer['rank']} of {consumer['world_size']}"
    if consumer["group"] is not None:
        where += f" with group {consumer['group']!r}"
    ahead = f", {consumer['ahead_slots']} more ready for it" if consumer["ahead_slots"] else ""
    waiting = f", {wait_text(consumer)}" if consumer["waiting"] else ""
    if consumer["waited_for"]:
        left_s = consumer["patience_left_s"]
        waiting = f", waited for ({'always' if left_s is None else f'{left_s:.1f} s more'})"
    if consumer["state"] in ("T", "t"):
        waiting += ", STOPPED"
    elif not consumer["reads"]:
        waiting += ", does not read its socket"
    if consumer["waited_for_slower_s"] >= 0.1:
        waiting += f" (waited {short_duration(consumer['waited_for_slower_s'])} for slower loops so far)"
    name = f"{consumer['name']}, " if consumer["name"] else ""
    return (
        f"{name}pid {consumer['pid']}: {where}, {consumer['batches']} batches, "
        f"holds {consumer['held_slots']} slots{ahead}{waiting}"
    )


def wait_text(consumer: dict[str, Any]) -> str:
    """Return what a waiting loop waits for, in words: `waits for the slower loop of pid 7 (train.py)`."""
    found = consumer["waits_for"]
    if found is None:
        return "waits for a batch"
    if found["reason"] == "slower loop":
        return f"waits for the slower loop of pid {found['pid']}" + (f" ({found['name']})" if found["name"] else "")
    return {
        "other loaders": "waits for the other loaders of its start",
        "members": "waits for the other members of its group",
        "slots": "waits for a slot",
        "memory": "waits for memory",
        "unread messages": "does not read its messages",
        "readers": "waits for the readers",
    }[found["reason"]]


def _describe_plan(memory: dict[str, Any]) -> list[str]:
    plan, measured, pressure = memory["plan"], memory["measured"], memory["pressure"]
    allowed = ", ".join(f"{limit['source']} {format_bytes(limit['bytes'])}" for limit in plan["limits"])
    lines = [
        f"            plan: daemon {format_bytes(plan['base_bytes'])} (now {format_bytes(measured['base_bytes'])}), "
        f"{format_count(plan['readers'], 'reader')} of {format_bytes(plan['reader_bytes'])} (the largest now "
        f"{format_bytes(measured['reader_bytes'])}), {plan['slots']} slots of {format_bytes(plan['slot_bytes'])}, "
        f"{format_bytes(plan['large_bytes'])} for large images",
        f"            allowed: {allowed}",
    ]
    if memory["in_force_bytes"] > memory["budget_bytes"]:
        in_force = format_bytes(memory["in_force_bytes"])
        lines.append(f"            in force: {in_force}, until users give back slots that they hold")
    if pressure["given_back"]:
        paused = ", batches are made only for loops that wait" if pressure["paused"] else ""
        lines.append(
            f"            short of memory: {format_bytes(pressure['headroom_bytes'])} left ({pressure['source']}), "
            f"tasks stalled {pressure['stalled_percent']:.0f}% of the time; gives back slots and readers{paused}"
        )
    return lines


def _describe_data(data: dict[str, Any]) -> str:
    n_batches = data["batches_per_epoch"]
    lines = (
        f"  data      {data['name'] and data['name'] + ': '}{data['source']}, {data['n_samples']} samples, "
        f"{n_batches} {'batch' if n_batches == 1 else 'batches'} an epoch of {'x'.join(map(str, data['batch_shape']))} "
        f"{data['batch_dtype']}"
    )
    return f"{lines}\n{_describe_cache(data['cache'])}" if data["cache"] else lines


def _describe_cache(cache: dict[str, Any]) -> str:
    asked = cache["hits"] + cache["misses"]
    share = f" ({100 * cache['hits'] / asked:.0f}%)" if asked else ""
    stopped = f"; not filled any further: {cache['stopped']}" if cache["stopped"] else ""
    return (
        f"  cache     {cache['folder']}: {cache['hits']} of {asked} samples from it{share}, "
        f"{cache['rows']} rows, {format_bytes(cache['bytes'])}{stopped}"
    )
