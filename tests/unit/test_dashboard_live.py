"""The watcher, its bounded history, and what the live page says of a daemon, from made reports."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefetchd.dashboard.history import History, Point
from prefetchd.dashboard.live import live_page, shares_of, verdict
from prefetchd.dashboard.watch import Watched, Watcher
from tests.unit.test_top_frame import consumer, reader
from tests.unit.test_top_frame import report as short_report


def report(**other: Any) -> dict[str, Any]:
    """A report as the daemon makes it."""
    made = short_report(version="1", delivered=10, **other)
    made["memory"] |= {"ceiling_bytes": 200 << 20, "ring_bytes": 8 << 20, "limited_by": "memory-budget"}
    made["readers"] = [{"does": "idle", "memory_bytes": 1 << 20, **each} for each in made["readers"]]
    made["consumers"] = [{"state": "S", "reads": True, **each} for each in made["consumers"]]
    made["datasets"] = [
        {"batch_shape": [32, 8, 8, 3], "batch_dtype": "uint8", "padding": None, "mix": None, "cache": None, **each}
        for each in made["datasets"]
    ]
    return made


class World:
    """Daemons that answer what a test says, and a clock that it moves."""

    def __init__(self, first: str | None = None) -> None:
        self.now_s = 100.0
        self.found: list[tuple[str, int, Any]] = []
        self.watcher = Watcher(first, lambda: self.found, lambda: self.now_s)

    def step(self, *found: tuple[str, int, Any], seconds: float = 1.0) -> dict[str, Any]:
        self.now_s += seconds
        self.found = list(found)
        self.watcher.ask()
        return self.page()

    def page(self, key: str | None = None) -> dict[str, Any]:
        def show(watched: list[Watched]) -> dict[str, Any]:
            chosen = [each for each in watched if key is None or each.key == key]
            return live_page(watched, chosen[0] if chosen else None, self.watcher.clock())

        page = self.watcher.look(show)
        json.dumps(page, allow_nan=False)
        return page


def later(seconds: float = 1.0, **other: Any) -> dict[str, Any]:
    made = report(uptime_s=10.0 + seconds, samples_made=320 + int(100 * seconds), **other)
    for each in made["consumers"]:
        each["samples"] += int(64 * seconds)
    return made


def test_rates_and_history_come_with_the_second_report():
    world = World()
    page = world.step(("a", 1, report()))
    assert page["shown"]["report"]["images_in"] is None
    assert page["shown"]["history"] == []
    page = world.step(("a", 1, later()))
    assert page["shown"]["report"]["images_in"] == 100
    assert page["shown"]["report"]["images_out"] == 64
    assert page["shown"]["report"]["shares"] == {"training": 1.0, "loading": 0.0, "slower": 0.0}
    assert page["shown"]["history"] == [[0.0, 100.0, 64.0, 50 << 20, 200 << 20, 0.0, 0.0]]


def test_two_reports_at_nearly_the_same_time_make_no_rate():
    world = World()
    world.step(("a", 1, report()))
    world.step(("a", 1, later()))
    page = world.step(("a", 1, later(1.01)), seconds=0.01)
    assert len(page["shown"]["history"]) == 1
    assert page["shown"]["report"]["images_in"] == 100


def test_daemon_that_ends_is_shown_as_gone_and_comes_back_with_its_history():
    world = World()
    world.step(("a", 1, report()))
    world.step(("a", 1, later()))
    page = world.step(seconds=3)
    assert page["shown"]["state"] == "gone"
    assert page["shown"]["report"]["images_in"] is None
    assert page["shown"]["report"]["batches_made"] == 10
    world.step(("a", 2, report(uptime_s=1.0, samples_made=0)))
    page = world.step(("a", 2, report(uptime_s=2.0, samples_made=50)))
    assert page["shown"]["state"] == "running"
    assert page["shown"]["restarts"] == 1
    assert page["shown"]["pid"] == 2
    assert [point[1] for point in page["shown"]["history"]] == [100.0, 50.0]


def test_daemon_that_was_named_is_awaited_and_first():
    world = World("later")
    page = world.step(("other", 1, report()))
    assert page["shown"]["key"] == "later"
    assert page["shown"]["state"] == "awaited"
    assert world.page("nothing")["shown"] is None
    page = world.step(("other", 1, report()), ("later", 2, report()))
    assert page["shown"]["state"] == "running"
    assert [each["key"] for each in page["daemons"]] == ["later", "other"]


def test_private_daemons_are_told_apart_and_one_that_does_not_answer_says_why():
    world = World()
    page = world.step(("private", 7, report()), ("private", 8, "it is stopped"), ("z", 9, report()))
    assert [(each["key"], each["state"]) for each in page["daemons"]] == [
        ("z", "running"), ("pid-7", "running"), ("pid-8", "silent"),
    ]  # fmt: skip
    assert world.page("pid-8")["shown"]["why"] == "it is stopped"
    assert world.watcher.daemon_of("pid-7") == 7
    assert world.watcher.daemon_of("z") == "z"
    assert world.watcher.daemon_of("y") is None


def test_gone_daemons_are_forgotten_after_a_while_and_many_at_once():
    world = World("kept")
    world.step(("kept", 5, report()), *(("private", 10 + n, report()) for n in range(60)))
    page = world.step()
    assert len(page["daemons"]) == 21
    page = world.step(seconds=601)
    assert [each["key"] for each in page["daemons"]] == ["kept"]


def test_history_is_bounded_and_covers_all_the_time():
    history = History(most=100)
    for second in range(10_000):
        history.add(Point(float(second), 50.0, float(second % 2), second, 10_000, 0.25, None))
    assert len(history.points) <= 100
    assert history.points[0].at_s < 500
    assert history.points[-1].at_s > 9_700
    assert all(abs(point.images_in - 50) < 1e-9 for point in history.points)
    assert all(abs(point.images_out - 0.5) < 0.02 for point in history.points[:-1])
    assert [point.memory_bytes for point in history.points] == [int(point.at_s) for point in history.points]
    assert {point.loading for point in history.points} == {0.25}
    assert {point.slower for point in history.points} == {None}


def waiting(seconds: float, slower: float = 0.0, busy_s: float = 2.5) -> dict[str, str]:
    """The verdict on a second in which a loop waited for so long."""
    watched = Watched("a", "a", 1, "running", 0.0)
    watched.add(1, report(), 0.0)
    after = later(
        consumers=[consumer(waited_s=1.0 + seconds, waited_for_slower_s=slower)], readers=[reader(busy_s=busy_s)]
    )
    watched.add(1, after, 1.0)
    assert watched.rates is not None
    return verdict(after, shares_of(watched.rates), watched.rates.readers_busy)


@pytest.mark.parametrize(
    ("found", "tone", "text", "hint"),
    [
        (waiting(0.01), "good", "in time", ""),
        (waiting(0.3), "quiet", "runs 70% of its time", ""),
        (waiting(0.7), "warn", "waits 70% of its time for batches", "storage may be"),
        (waiting(0.7, busy_s=3.0), "warn", "waits 70%", "1 reader at work without a pause"),
        (waiting(0.8, slower=0.7), "warn", "wait 70% of their time for a slower one", "patience"),
    ],
)
def test_verdict_says_how_it_goes_and_what_helps(found: dict[str, str], tone: str, text: str, hint: str):
    assert found["tone"] == tone
    assert text in found["text"]
    assert hint in found["hint"]


def test_verdict_without_a_loop_and_short_of_memory():
    assert "No trainer" in verdict(report(consumers=[]), None, None)["text"]
    assert "none is in a loop" in verdict(report(consumers=[consumer(running=False)]), None, None)["text"]
    short = report()
    short["memory"]["pressure"]["given_back"] = True
    assert "short of memory" in verdict(short, None, None)["text"]


def test_trainers_have_their_lag_and_what_they_do_in_words():
    slower = {"reason": "slower loop", "pid": 102, "name": "slow.py"}
    made = later(
        consumers=[
            consumer(1, epoch=1, step=2, waiting=True, waits_for=slower),
            consumer(2, step=50, name="slow.py", waited_for=True),
            consumer(3, epoch=None, step=None, running=False),
            consumer(4, step=7, state="T"),
        ]
    )
    world = World()
    rows = world.step(("a", 1, made))["shown"]["report"]["consumers"]
    assert [row["lag"] for row in rows] == [0, 52, None, 95]
    assert [row["does"] for row in rows] == [
        "waits for the slower loop of pid 102 (slow.py)", "others wait for it", "is between two loops",
        "is stopped (SIGSTOP)",
    ]  # fmt: skip


def agent(**changes: Any) -> dict[str, Any]:
    return {
        "name": "box-2", "state": "works", "readers": 4, "samples": 100, "received_bytes": 1000, "round_trip_s": 0.002,
        "recalled": 0, "memory_bytes": 5, "budget_bytes": 0, "joined_s": 9.0, **changes,
    }  # fmt: skip


def test_agents_have_rates_and_missing_ones_a_reason():
    world = World()
    world.step(("a", 1, report(agents=[agent()])))
    after = later(
        2.0,
        agents=[agent(samples=300, received_bytes=5000), agent(name="new")],
        agents_missing={"box-3": "connection refused"},
    )
    rows = world.step(("a", 1, after), seconds=2)["shown"]["report"]["agents"]
    assert [(row["name"], row.get("images"), row.get("received_bytes"), row["missing"]) for row in rows] == [
        ("box-2", 100.0, 2000, ""), ("new", None, None, ""), ("box-3", None, None, "connection refused"),
    ]  # fmt: skip
    assert report().get("agents") is None
    assert World().step(("a", 1, report()))["shown"]["report"]["agents"] == []
