"""The lines that `prefetchd status` and `prefetchd list` print of reports."""

from __future__ import annotations

import pytest

from prefetchd.cli.views.agents import agent_rows, describe_agents
from prefetchd.cli.views.reports import daemon_table, wait_text

MIB = 1 << 20


def test_the_table_has_a_line_for_each_daemon_with_its_data_or_why_it_does_not_answer() -> None:
    report = {
        "uptime_s": 125.0,
        "memory": {"footprint_bytes": 20 * MIB, "budget_bytes": 200 * MIB},
        "datasets": [{"name": "train", "source": "a.txt"}, {"name": "", "source": "b.txt"}],
        "consumers": [{}, {}],
    }
    lines = daemon_table([("private", 71234, report), ("x", 7, "cannot reach it")])
    assert lines == [
        "name     pid    up         memory               trainers  data",
        "private  71234  2 min 5 s  20.0 MiB of 200 MiB  2         train=a.txt, b.txt",
        "x        7      -          -                    -         cannot reach it",
    ]


@pytest.mark.parametrize(
    ("waits_for", "text"),
    [
        (None, "waits for a batch"),
        ({"reason": "slower loop", "pid": 7, "name": "a.py"}, "waits for the slower loop of pid 7 (a.py)"),
        ({"reason": "slower loop", "pid": 7, "name": ""}, "waits for the slower loop of pid 7"),
        ({"reason": "slots", "pid": None, "name": None}, "waits for a slot"),
        ({"reason": "unread messages", "pid": None, "name": None}, "does not read its messages"),
    ],
)
def test_a_wait_names_what_it_is_for(waits_for: dict | None, text: str) -> None:
    assert wait_text({"waits_for": waits_for}) == text


AGENT = {
    "name": "cpu1:7777", "readers": 8, "state": "working", "tasks": 9, "samples": 500, "busy_s": 1.0,
    "received_bytes": 75_000_000, "round_trip_s": 0.0005, "recalled": 2, "joined_s": 10.0,
    "memory_bytes": 120 * MIB, "budget_bytes": 2048 * MIB, "reader_crashes": 0,
}  # fmt: skip


def test_agents_are_named_with_what_they_do_and_those_that_are_missing_with_why() -> None:
    report = {"agents": [AGENT], "agents_missing": {"cpu2:7777": "it cannot be reached"}}
    assert describe_agents(report) == [
        "  agents    1 with 8 readers, 1 missing",
        "            cpu1:7777: 8 readers, working, 500 samples (50/s, 7.5 MB/s since it joined), "
        "round trip 0.5 ms, 2 chunks taken back, 120 MiB of 2.0 GiB",
        "            cpu2:7777: it cannot be reached",
    ]
    assert describe_agents({"agents": [], "agents_missing": {}}) == []


def test_top_shows_what_each_agent_did_between_two_looks() -> None:
    earlier = {"uptime_s": 10.0, "agents": [{**AGENT, "samples": 300, "received_bytes": 45_000_000}]}
    latest = {"uptime_s": 12.0, "agents": [AGENT, {**AGENT, "name": "cpu3:7777", "samples": 20}], "agents_missing": {}}
    heading, first, second = agent_rows(earlier, latest)
    assert heading.split() == ["agent", "readers", "images/s", "MB/s", "trip", "back", "state"]
    assert first.split() == ["cpu1:7777", "8", "100", "15.0", "0.5", "ms", "2", "working"]
    assert second.split()[:3] == ["cpu3:7777", "8", "10"]
    assert agent_rows({"uptime_s": 1.0}, {"uptime_s": 2.0}) == []
