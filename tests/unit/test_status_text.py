"""The lines that `prefetchd status` and `prefetchd list` print of reports."""

from __future__ import annotations

import pytest

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
        "name     pid    up         memory               loaders  data",
        "private  71234  2 min 5 s  20.0 MiB of 200 MiB  2        train=a.txt, b.txt",
        "x        7      -          -                    -        cannot reach it",
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
