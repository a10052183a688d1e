"""Status reports of daemons (`daemon.status`) as text: what `prefetchd status`, `list` and `top` print. Pure.

`describe` and `daemon_table` are the lines of `status` and `list`. `frame` is one frame of `top`, from its latest
reports: every line fits the given width, and 80 columns show everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from prefetchd.cli.measure.rates import Rates, Report, positions, rates
from prefetchd.cli.views.agents import agent_rows, describe_agents
from prefetchd.cli.views.charts import bar, short_duration, sparkline, stacked_bar
from prefetchd.config.units import format_bytes, format_count


def daemon_table(found: Iterable[tuple[str, int, dict[str, Any] | str]]) -> list[str]:
    """Return a line for each daemon: name, pid, age, memory, trainers and data, or why it does not answer."""
    rows = [("name", "pid", "up", "memory", "trainers", "data")]
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
        *describe_agents(report),
        f"  trainers  {len(report['consumers'])}",
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
    held = "slot" if consumer["held_slots"] == 1 else "slots"
    return (
        f"{name}pid {consumer['pid']}: {where}, {consumer['batches']} batches, "
        f"holds {consumer['held_slots']} {held}{ahead}{waiting}"
    )


def wait_text(consumer: dict[str, Any]) -> str:
    """Return what a waiting loop waits for, in words: `waits for the slower loop of pid 7 (train.py)`."""
    found = consumer["waits_for"]
    if found is None:
        return "waits for a batch"
    if found["reason"] == "slower loop":
        return f"waits for {_slower(found['pid'], found['name'], 'loop')}"
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
    if data.get("padding") is not None:
        lines += f"\n            packed rows: {100 * data['padding']:.2f}% of their tokens are padding"
    for bucket in (data.get("buckets") or {"buckets": ()})["buckets"]:
        lines += f"\n            {bucket['name']}: {bucket['samples']} samples in {bucket['batches']} batches"
    if data.get("buckets") and (lost := data["buckets"]["lost"]) is not None:
        without = f"{100 * lost['share_without_buckets']:.1f}% without buckets"
        lines += f"\n            {100 * lost['share']:.1f}% {lost['what']}, {without}"
    for part in data.get("mix") or ():
        share = f"{100 * part['share']:.4g}%, {part['epoch_samples']} an epoch"
        lines += f"\n            {part['source']}: {part['samples']} samples, {share}"
    return f"{lines}\n{_describe_cache(data['cache'])}" if data["cache"] else lines


def _describe_cache(cache: dict[str, Any]) -> str:
    asked = cache["hits"] + cache["misses"]
    share = f" ({100 * cache['hits'] / asked:.0f}%)" if asked else ""
    stopped = f"; not filled any further: {cache['stopped']}" if cache["stopped"] else ""
    return (
        f"  cache     {cache['folder']}: {cache['hits']} of {asked} samples from it{share}, "
        f"{cache['rows']} rows, {format_bytes(cache['bytes'])}{stopped}"
    )


_BAR_WIDTH = 24
_MOST_BAR_WIDTH = 100
_MOST_NAME_WIDTH = 24
_SHOWN_BAD = 5
_ROW_WIDTH = 90  # of a consumer without its name
LEASED, READY, FILLING, FREE = "█▓░·"


def frame(history: Sequence[Report], *, width: int = 80, height: int = 1000) -> list[str]:
    """Return the lines that show a daemon, from at least two of its reports, oldest first.

    If `height` is too small, the lists of readers and trainers are cut and end with the number left out.
    """
    latest = history[-1]
    now = rates(history[-2], latest)
    # Beside the bars, 66 columns are for text; in a wide terminal the bars grow.
    bar_width = max(_BAR_WIDTH, min(_MOST_BAR_WIDTH, width - 66))
    top = [
        _title(latest, width),
        "",
        *_flow(latest, now, bar_width),
        _ring(latest, bar_width),
        *_memory(history, bar_width),
        "",
    ]
    bad = [*_spaced(agent_rows(history[-2], latest)), *_bad(latest)]
    n_rows = max(4, height - len(top) - len(bad) - 3)  # two headings and a blank line
    consumers = _consumers(latest, now, width)
    readers = _readers(latest, now)
    n_consumers = min(len(consumers), max(2, n_rows // 2, n_rows - len(readers)))
    lines = [
        *top,
        *_cut(consumers, n_consumers, "trainers"),
        "",
        *_cut(readers, n_rows - n_consumers, "readers"),
        *bad,
    ]
    return [line[:width].rstrip() for line in lines][:height]


def _title(report: Report, width: int) -> str:
    sources = ", ".join(f"{data['name'] and data['name'] + '='}{data['source']}" for data in report["datasets"])
    samples = sum(data["n_samples"] for data in report["datasets"])
    up = short_duration(report["uptime_s"])
    title = f"prefetchd {report['name']!r} pid {report['pid']}, up {up}: {samples:,} samples of "
    left = max(8, width - len(title))
    return title + (sources if len(sources) <= left else "…" + sources[1 - left :])


def _flow(report: Report, now: Rates, bar_width: int) -> list[str]:
    lines = [f"images/s  {now.made_per_s:,.0f} decoded, {now.delivered_per_s:,.0f} delivered"]
    if now.readers_busy is not None:
        lines[0] += f"; readers {now.readers_busy:.0%} busy"
    if now.loader_bound is None:
        lines.append(f"waiting   {'no trainer is attached' if not report['consumers'] else 'no loop is running'}")
        return lines
    loader, slower = now.loader_bound, now.slower_bound or 0.0
    trainer = max(0.0, 1 - loader - slower)
    parts = [("█", round(1000 * trainer)), ("▒", round(1000 * slower)), ("░", round(1000 * loader))]
    shares = f"trainer-bound {trainer:.0%}, loader-bound {loader:.0%}"
    if slower:
        shares = f"trainer-bound {trainer:.0%}, loader {loader:.0%}, slower {slower:.0%}"
    lines.append(f"waiting   {stacked_bar(parts, bar_width)} {shares}")
    slowest = Counter(
        (found["waits_for"]["pid"], found["waits_for"]["name"])
        for found in report["consumers"]
        if found["waits_for"] is not None and found["waits_for"]["reason"] == "slower loop"
    )
    for (pid, name), count in slowest.most_common():
        loops = "a loop waits" if count == 1 else f"{count} loops wait"
        lines.append(f"          {loops} for {_slower(pid, name, 'trainer')}")
    return lines


def _slower(pid: int | None, name: str | None, what: str) -> str:
    """Return who is waited for, in words; a group has no pid."""
    if pid is None:
        return "a slower group"
    return f"the slower {what} of pid {pid}" + (f" ({name})" if name else "")


def _ring(report: Report, bar_width: int) -> str:
    ring = report["ring"]
    ready = max(0, ring["ready"] - ring["leased"])  # a leased slot is a ready one
    parts = [(LEASED, ring["leased"]), (READY, ready), (FILLING, ring["filling"]), (FREE, ring["free"])]
    return (
        f"ring      {stacked_bar(parts, bar_width)} {ring['leased']} leased {LEASED} {ready} ready {READY} "
        f"{ring['filling']} filling {FILLING} {ring['free']} free {FREE}"
    )


def _memory(history: Sequence[Report], bar_width: int) -> list[str]:
    memory = history[-1]["memory"]
    budget_bytes = memory["budget_bytes"]
    used = [report["memory"]["footprint_bytes"] for report in history]
    share = used[-1] / budget_bytes if budget_bytes else 0
    lines = [
        f"memory    {bar(share, bar_width)} {format_bytes(used[-1])} of {format_bytes(budget_bytes)} ({share:.0%}), "
        f"most {format_bytes(memory['max_footprint_bytes'])}",
        f"          {sparkline(used, budget_bytes, bar_width):<{bar_width}} over time, against the budget",
    ]
    pressure = memory["pressure"]
    if pressure["given_back"]:
        paused = ", batches only for waiting loops" if pressure["paused"] else ""
        lines.append(f"          short of memory: {format_bytes(pressure['headroom_bytes'])} left{paused}")
    return lines


def _consumers(report: Report, now: Rates, width: int) -> list[str]:
    if not report["consumers"]:
        return ["trainers  none"]
    name_width = min(_MOST_NAME_WIDTH, width - _ROW_WIDTH)  # names are shown where there is space

    def named(name: str) -> str:
        return f" {name[:name_width]:<{name_width}}" if name_width >= 8 else ""

    lines = [
        f"{'trainer':>9}{named('name')} {'data':<10} {'epoch':>5} {'batch':>8} {'images/s':>8} {'waits':>5} "
        f"{'held':>4} {'lag':>6}"
    ]
    places = positions(report)
    for found in report["consumers"]:
        number = found["number"]
        same = [places[other["number"]] or 0 for other in report["consumers"] if other["dataset"] == found["dataset"]]
        position = places[number]
        epoch = "-" if found["epoch"] is None else str(found["epoch"])
        step = "-" if found["step"] is None else f"{found['step']:,}"
        lag = "-" if position is None else f"{max(same) - position:,}"
        rank = "" if found["world_size"] in (None, 1) else f" rank {found['rank']} of {found['world_size']}"
        group = "" if found["group"] is None else f" group {found['group']}"
        state = _state(found)
        lines.append(
            f"{found['pid']:>9}{named(found['name'])} {(found['dataset'] or '-')[:10]:<10} {epoch:>5} {step:>8} "
            f"{now.consumer_per_s[number]:>8,.0f} {now.consumer_waits[number]:>5.0%} {found['held_slots']:>4} "
            f"{lag:>6}{rank}{group}{state}"
        )
    return lines


def _state(consumer: dict[str, Any]) -> str:
    if consumer["stalled"]:
        return " stalled"
    if not consumer["running"]:
        return " resting"
    if consumer["waited_for"]:
        return " waited for"
    waits_for = consumer["waits_for"]
    if waits_for is not None and waits_for["reason"] == "slower loop":
        return f" waits for {waits_for['pid'] or 'a group'}"
    return ""


def _readers(report: Report, now: Rates) -> list[str]:
    crashes = f"   {report['reader_crashes']} replaced after a crash" if report["reader_crashes"] else ""
    lines = [f"{'reader':>9} {'state':<12} {'images/s':>8} {'busy':>5} {'memory':>9}{crashes}"]
    process_bytes = report["memory"]["process_bytes"]
    for reader in report["readers"]:
        pid = reader["pid"]
        memory = format_bytes(process_bytes.get(str(pid), 0))
        lines.append(
            f"{pid:>9} {reader['state']:<12} {now.reader_per_s[pid]:>8,.0f} {now.reader_busy[pid]:>5.0%} {memory:>9}"
        )
    return lines


def _spaced(lines: list[str]) -> list[str]:
    return ["", *lines] if lines else []


def _bad(report: Report) -> list[str]:
    if not report["bad_samples"]:
        return ["", "bad       none"]
    lines = ["", f"bad       {report['bad_samples']:,} samples, the latest that are kept:"]
    return lines + [f"  {bad['where'][-45:]}: {bad['reason']}" for bad in report["bad"][-_SHOWN_BAD:]]


def _cut(lines: list[str], most: int, what: str) -> list[str]:
    if len(lines) <= max(2, most):
        return lines
    kept = max(1, most - 1)
    return [*lines[:kept], f"          and {len(lines) - kept} more {what}"]
