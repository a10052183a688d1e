"""What the live page shows of a daemon: numbers, and a verdict in plain words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prefetchd.cli.measure.rates import Rates, positions
from prefetchd.cli.views.reports import wait_text
from prefetchd.config.units import format_count
from prefetchd.dashboard.watch import Report, Watched

_IN_TIME = 0.05  # the share of waiting that nobody notices
_OFTEN = 0.5


def live_page(watched: Iterable[Watched], shown: Watched | None, now_s: float) -> dict[str, Any]:
    """Return everything that the live page shows, as plain JSON values.

    Args:
        watched: all daemons, for the choice.
        shown: the one that is shown; `None` if there is none.
        now_s: the time by the watcher's clock.
    """
    page: dict[str, Any] = {
        "daemons": [
            {
                "key": each.key,
                "name": each.name,
                "pid": each.pid,
                "state": each.state,
                "datasets": [data["name"] for data in (each.report or {}).get("datasets", ())],
            }
            for each in watched
        ],
        "shown": None,
    }
    if shown is not None:
        page["shown"] = _daemon(shown, now_s)
    return page


def _daemon(shown: Watched, now_s: float) -> dict[str, Any]:
    report, now = shown.report, shown.rates
    page: dict[str, Any] = {
        "key": shown.key,
        "name": shown.name,
        "pid": shown.pid,
        "state": shown.state,
        "state_s": round(now_s - shown.since_s, 1),
        "why": shown.why,
        "restarts": shown.restarts,
        "history": [
            [
                round(now_s - point.at_s, 1),
                round(point.images_in, 1),
                round(point.images_out, 1),
                point.memory_bytes,
                point.budget_bytes,
                _rounded(point.loading),
                _rounded(point.slower),
            ]
            for point in shown.history.points
        ],
        "report": None,
    }
    if report is not None:
        earlier = shown.reports[0][1] if len(shown.reports) == 2 else report
        page["report"] = _report(earlier, report, now if shown.state == "running" else None)
    return page


def _report(earlier: Report, report: Report, now: Rates | None) -> dict[str, Any]:
    memory = report["memory"]
    shares = shares_of(now)
    return {
        "version": report["version"],
        "uptime_s": report["uptime_s"],
        "batches_made": report["batches_made"],
        "samples_made": report["samples_made"],
        "delivered": report["delivered"],
        "images_in": None if now is None else round(now.made_per_s, 1),
        "images_out": None if now is None else round(now.delivered_per_s, 1),
        "readers_busy": None if now is None else _rounded(now.readers_busy),
        "shares": shares,
        "verdict": verdict(report, shares, None if now is None else now.readers_busy),
        "ring": report["ring"],
        "memory": {
            "footprint_bytes": memory["footprint_bytes"],
            "budget_bytes": memory["budget_bytes"],
            "ceiling_bytes": memory["ceiling_bytes"],
            "max_footprint_bytes": memory["max_footprint_bytes"],
            "ring_bytes": memory["ring_bytes"],
            "limited_by": memory["limited_by"],
            "short": memory["pressure"]["given_back"],
            "headroom_bytes": memory["pressure"]["headroom_bytes"],
        },
        "readers": [
            {
                "pid": reader["pid"],
                "state": reader["state"],
                "does": reader["does"],
                "images": None if now is None else round(now.reader_per_s.get(reader["pid"], 0.0), 1),
                "busy": None if now is None else _rounded(now.reader_busy.get(reader["pid"])),
                "memory_bytes": reader["memory_bytes"],
            }
            for reader in report["readers"]
        ],
        "reader_crashes": report["reader_crashes"],
        "agents": _agents(earlier, report),
        "consumers": _consumers(report, now),
        "datasets": [_dataset(data) for data in report["datasets"]],
        "bad_samples": report["bad_samples"],
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _agents(earlier: Report, report: Report) -> list[dict[str, Any]]:
    """Return what each agent on another machine did between two reports, and why one is missing."""
    before = {agent["name"]: agent for agent in earlier.get("agents") or ()}
    seconds = max(1e-3, report["uptime_s"] - earlier["uptime_s"])
    rows = []
    for agent in report.get("agents") or ():
        old = before.get(agent["name"], {"samples": 0, "received_bytes": 0})
        # One that has joined anew begins with nothing.
        made, received = (max(0, agent[name] - old[name]) / seconds for name in ("samples", "received_bytes"))
        rows.append(
            {
                "name": agent["name"],
                "state": agent["state"],
                "readers": agent["readers"],
                "images": round(made, 1) if agent["name"] in before else None,
                "received_bytes": round(received) if agent["name"] in before else None,
                "round_trip_s": agent["round_trip_s"],
                "recalled": agent["recalled"],
                "memory_bytes": agent["memory_bytes"],
                "budget_bytes": agent["budget_bytes"],
                "missing": "",
            }
        )
    missing = report.get("agents_missing") or {}
    return rows + [{"name": name, "state": "missing", "missing": str(reason)} for name, reason in missing.items()]


def shares_of(now: Rates | None) -> dict[str, float] | None:
    """Return the shares of the running loops' time: training, loading, slower. `None` without a loop."""
    if now is None or now.loader_bound is None:
        return None
    loading, slower = now.loader_bound, now.slower_bound or 0.0
    return {
        "training": round(max(0.0, 1 - loading - slower), 4),
        "loading": round(loading, 4),
        "slower": round(slower, 4),
    }


def verdict(report: Report, shares: dict[str, float] | None, readers_busy: float | None) -> dict[str, str]:
    """Return how it goes in one sentence, with what to do: `tone` (good, warn or quiet), `text` and `hint`."""
    if report["memory"]["pressure"]["given_back"]:
        return _say("warn", "The machine is short of memory.", "The daemon gives back memory, and loads more slowly.")
    if shares is None:
        running = [found for found in report["consumers"] if found["running"]]
        if report["consumers"] and not running:
            return _say("quiet", "Trainers are attached, and none is in a loop now.", "")
        return _say(
            "quiet",
            "No trainer is attached." if not report["consumers"] else "Measuring.",
            "The first batches are ready for it." if report["ring"]["ready"] else "",
        )
    if shares["slower"] >= _OFTEN:
        return _say(
            "warn",
            f"Trainers wait {shares['slower']:.0%} of their time for a slower one that shares their batches.",
            "Give the slow one a daemon of its own, or lower its patience.",
        )
    if shares["loading"] >= _OFTEN:
        hint = "Readers are not always at work: storage may be slow, or other programs take the cores."
        if readers_busy is not None and readers_busy > 0.8:
            n_readers = format_count(len(report["readers"]), "reader")
            hint = f"{n_readers} at work without a pause: more cores, a cache or smaller images help."
        return _say("warn", f"Training waits {shares['loading']:.0%} of its time for batches.", hint)
    if shares["loading"] + shares["slower"] >= _IN_TIME:
        return _say(
            "quiet",
            f"Training runs {shares['training']:.0%} of its time, and waits for batches for the rest.",
            "",
        )
    return _say("good", "Training gets its batches in time.", "")


def _say(tone: str, text: str, hint: str) -> dict[str, str]:
    return {"tone": tone, "text": text, "hint": hint}


def _consumers(report: Report, now: Rates | None) -> list[dict[str, Any]]:
    places = positions(report)
    rows = []
    for found in report["consumers"]:
        number = found["number"]
        place = places[number]
        ahead = max(
            (places[other["number"]] or 0 for other in report["consumers"] if other["dataset"] == found["dataset"]),
            default=0,
        )
        rows.append(
            {
                "pid": found["pid"],
                "name": found["name"],
                "dataset": found["dataset"],
                "group": found["group"],
                "rank": found["rank"],
                "world_size": found["world_size"],
                "epoch": found["epoch"],
                "step": found["step"],
                "batch": found.get("batch"),
                "lag": None if place is None else ahead - place,
                "images": None if now is None else round(now.consumer_per_s.get(number, 0.0), 1),
                "waits": None if now is None else _rounded(now.consumer_waits.get(number)),
                "held": found["held_slots"],
                "does": _does(found),
            }
        )
    return rows


def _does(found: dict[str, Any]) -> str:
    """Return what a trainer does, in words."""
    if found["state"] in ("T", "t"):
        return "is stopped (SIGSTOP)"
    if not found["reads"]:
        return "does not read its socket"
    if not found["running"]:
        return "is between two loops"
    if found["waited_for"]:
        return "others wait for it"
    return wait_text(found) if found["waiting"] else "trains"


def _dataset(data: dict[str, Any]) -> dict[str, Any]:
    cache = data["cache"]
    return {
        "name": data["name"],
        "source": data["source"],
        "n_samples": data["n_samples"],
        "batches_per_epoch": data["batches_per_epoch"],
        "batch_shape": data["batch_shape"],
        "batch_dtype": data["batch_dtype"],
        "padding": data["padding"],
        "mix": data["mix"],
        "cache": None
        if cache is None
        else {name: cache[name] for name in ("folder", "hits", "misses", "rows", "bytes")},
    }
