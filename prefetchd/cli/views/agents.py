"""Agents on other machines as text, for `prefetchd status` and `top`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefetchd.config.units import format_bytes, format_count

_NAME_WIDTH = 24


def describe_agents(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each agent that makes batches, and for each that does not and why, as `status` prints them."""
    agents, missing = report.get("agents") or [], report.get("agents_missing") or {}
    if not agents and not missing:
        return []
    n_readers = sum(agent["readers"] for agent in agents)
    lines = [f"  agents    {len(agents)} with {format_count(n_readers, 'reader')}, {len(missing)} missing"]
    for agent in agents:
        seconds = max(1e-9, agent["joined_s"])
        recalled = f", {agent['recalled']} chunks taken back" if agent["recalled"] else ""
        unread = f", {agent['unread']} that it could not make" if agent.get("unread") else ""
        lines.append(
            f"            {agent['name']}: {format_count(agent['readers'], 'reader')}, {agent['state']}, "
            f"{agent['samples']} samples ({agent['samples'] / seconds:.0f}/s, "
            f"{agent['received_bytes'] / seconds / 1e6:.1f} MB/s since it joined){unread}, "
            f"round trip {1000 * agent['round_trip_s']:.1f} ms{recalled}"
        )
        if agent["budget_bytes"]:
            lines[-1] += f", {format_bytes(agent['memory_bytes'])} of {format_bytes(agent['budget_bytes'])}"
    lines += [f"            {name}: {reason}" for name, reason in missing.items()]
    return lines


def agent_rows(earlier: Mapping[str, Any], latest: Mapping[str, Any]) -> list[str]:
    """Return the table of agents in a frame of `top`: what each did between two reports; empty without any."""
    agents, missing = latest.get("agents") or [], latest.get("agents_missing") or {}
    if not agents and not missing:
        return []
    before = {agent["name"]: agent for agent in earlier.get("agents") or []}
    seconds = max(1e-9, latest["uptime_s"] - earlier["uptime_s"])
    lines = [
        f"{'agent':<{_NAME_WIDTH}} {'readers':>7} {'images/s':>8} {'MB/s':>7} {'trip':>8} {'back':>5}  state"
    ]  # fmt: skip
    for agent in agents:
        name = agent["name"]
        old = before.get(name, {"samples": 0, "received_bytes": 0})
        # One that has joined anew begins with nothing.
        made = max(0, agent["samples"] - old["samples"]) / seconds
        rate = max(0, agent["received_bytes"] - old["received_bytes"]) / seconds / 1e6
        lines.append(
            f"{name[-_NAME_WIDTH:]:<{_NAME_WIDTH}} {agent['readers']:>7} {made:>8,.0f} {rate:>7.1f} "
            f"{1000 * agent['round_trip_s']:>5.1f} ms {agent['recalled']:>5}  {agent['state']}"
        )
    lines += [f"{name[-_NAME_WIDTH:]:<{_NAME_WIDTH}} {'-':>7} {reason}" for name, reason in missing.items()]
    return lines
