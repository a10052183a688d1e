"""One frame of `prefetchd top`: lines that show a daemon, from its latest status reports. Pure.

Every line fits the given width; 80 columns show everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefetchd.cli.measure.rates import Rates, Report, rates
from prefetchd.cli.views.charts import bar, short_duration, sparkline, stacked_bar
from prefetchd.config.units import format_bytes

_BAR_WIDTH = 24
_MOST_BAR_WIDTH = 100
_MOST_NAME_WIDTH = 24
_SHOWN_BAD = 5
_ROW_WIDTH = 90  # of a consumer without its name
LEASED, READY, FILLING, FREE = "█▓░·"


def frame(history: Sequence[Report], *, width: int = 80, height: int = 1000) -> list[str]:
    """Return the lines that show a daemon, from at least two of its reports, oldest first.

    If `height` is too small, the lists of readers and consumers are cut and end with the number left out.
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
    bad = _bad(latest)
    n_rows = max(4, height - len(top) - len(bad) - 3)  # two headings and a blank line
    consumers = _consumers(latest, now, width)
    readers = _readers(latest, now)
    n_consumers = min(len(consumers), max(2, n_rows // 2, n_rows - len(readers)))
    lines = [
        *top,
        *_cut(consumers, n_consumers, "consumers"),
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
        lines.append(f"          {loops} for the slower trainer of pid {pid}" + (f" ({name})" if name else ""))
    return lines


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
        return ["consumers none"]
    name_width = min(_MOST_NAME_WIDTH, width - _ROW_WIDTH)  # names are shown where there is space

    def named(name: str) -> str:
        return f" {name[:name_width]:<{name_width}}" if name_width >= 8 else ""

    lines = [
        f"{'consumer':>9}{named('name')} {'data':<10} {'epoch':>5} {'batch':>8} {'images/s':>8} {'waits':>5} "
        f"{'held':>4} {'lag':>6}"
    ]
    positions = {found["number"]: _position(report, found) for found in report["consumers"]}
    for found in report["consumers"]:
        number = found["number"]
        same = [
            positions[other["number"]] or 0 for other in report["consumers"] if other["dataset"] == found["dataset"]
        ]
        position = positions[number]
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
        return f" waits for {waits_for['pid']}"
    return ""


def _position(report: Report, consumer: dict[str, Any]) -> int | None:
    """Return how many steps the consumer's loop has passed, counted from epoch 0; `None` without a loop."""
    if consumer["epoch"] is None:
        return None
    data = next((data for data in report["datasets"] if data["name"] == (consumer["dataset"] or "")), None)
    steps = -(-data["batches_per_epoch"] // (consumer["world_size"] or 1)) if data is not None else 0
    return int(consumer["epoch"] * steps + consumer["step"])


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
