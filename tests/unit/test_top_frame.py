"""Rates between two reports, and the frame that `top` draws of them."""

from __future__ import annotations

import copy

import pytest

from prefetchd.cli.measure.rates import rates
from prefetchd.cli.views.reports import frame


def consumer(number=1, **other):
    return {
        "number": number, "pid": 100 + number, "dataset": "", "epoch": 0, "step": 4, "rank": 0, "world_size": 1,
        "held_slots": 1, "batches": 4, "samples": 128, "waited_s": 1.0, "running": True, "stalled": False,
        "waiting": False, "waited_for": False, "group": None, "waited_for_slower_s": 0.0, "waits_for": None,
        "name": "train.py", **other,
    }  # fmt: skip


def reader(pid=200, **other):
    return {"pid": pid, "ready": True, "state": "working", "samples": 100, "busy_s": 2.0, "tasks": 1, **other}


def report(**other):
    return {
        "name": "default", "pid": 1, "uptime_s": 10.0, "batches_made": 10, "samples_made": 320, "reader_crashes": 0,
        "datasets": [{"name": "", "source": "train.txt", "n_samples": 3200, "batches_per_epoch": 100}],
        "ring": {"slots": 8, "slot_bytes": 1 << 20, "free": 1, "filling": 2, "ready": 5, "leased": 2},
        "memory": {
            "budget_bytes": 200 << 20, "footprint_bytes": 50 << 20, "max_footprint_bytes": 60 << 20,
            "process_bytes": {"200": 12 << 20},
            "pressure": {"given_back": False, "paused": False, "headroom_bytes": 1 << 30},
        },
        "readers": [reader()], "consumers": [consumer()], "bad_samples": 0, "bad": [], **other,
    }  # fmt: skip


def later(**other):
    return report(
        uptime_s=12.0,
        samples_made=520,
        readers=[reader(samples=180, busy_s=3.0)],
        consumers=[consumer(samples=192, waited_s=1.5)],
        **other,
    )


def test_rates_are_differences_over_the_daemons_own_time():
    found = rates(report(), later())
    assert found.made_per_s == 100
    assert found.delivered_per_s == 32
    assert found.loader_bound == 0.25
    assert found.slower_bound == 0
    assert found.readers_busy == 0.5
    assert found.reader_per_s == {200: 40}


def test_waiting_for_a_slower_loop_is_a_share_of_its_own_that_names_the_loop():
    waits_for = {"reason": "slower loop", "pid": 102, "name": "slow.py"}
    before = report(consumers=[consumer(1), consumer(2, waited_s=0.0)])
    after = report(
        uptime_s=12.0,
        consumers=[
            consumer(1, waited_s=2.5, waited_for_slower_s=1.0, waiting=True, waits_for=waits_for),
            consumer(2, waited_s=0.0, waited_for=True, name="slow.py"),
        ],
    )
    found = rates(before, after)
    assert (found.slower_bound, found.loader_bound) == (0.25, 0.125)
    lines = frame([before, after])
    assert any("trainer-bound 62%, loader 12%, slower 25%" in line for line in lines)
    assert "          a loop waits for the slower trainer of pid 102 (slow.py)" in lines
    assert [line.split()[-1] for line in lines if line.startswith("      10")] == ["102", "for"]


def test_a_wide_terminal_gets_wider_bars_and_the_names_of_the_loaders():
    narrow, wide = (frame([report(), later()], width=width) for width in (80, 160))
    assert not any("train.py" in line for line in narrow)
    assert any(line.split()[:2] == ["101", "train.py"] for line in wide)
    bars = [next(line for line in lines if line.startswith("ring")).count("█") for lines in (narrow, wide)]
    assert bars[1] > 3 * bars[0]


def test_who_comes_in_between_began_from_nothing_and_who_rests_waits_for_nobody():
    after = later()
    after["consumers"] = [consumer(2, samples=20, waited_s=2.0), consumer(3, running=False, waited_s=2.0, samples=0)]
    found = rates(report(), after)
    assert found.consumer_per_s == {2: 10, 3: 0}
    assert found.loader_bound == 1


def test_without_a_running_loop_nobody_is_bound():
    assert rates(report(consumers=[]), later() | {"consumers": []}).loader_bound is None


def test_the_frame_says_all_that_matters():
    text = "\n".join(frame([report(), later()]))
    for said in (
        "3,200 samples of train.txt",
        "100 decoded, 32 delivered; readers 50% busy",
        "trainer-bound 75%, loader-bound 25%",
        "2 leased █ 3 ready ▓ 2 filling ░ 1 free ·",
        "50.0 MiB of 200 MiB (25%), most 60.0 MiB",
        "bad       none",
    ):
        assert said in text
    assert [line.split() for line in frame([report(), later()]) if line.lstrip().startswith("101 ")] == [
        ["101", "-", "0", "4", "32", "25%", "1", "0"]
    ]


def test_lag_is_counted_from_the_first_of_the_same_data_over_epochs():
    both = [consumer(1, epoch=1, step=3), consumer(2, epoch=0, step=98), consumer(3, epoch=None, step=None)]
    lines = frame([report(consumers=both), report(uptime_s=11.0, consumers=both)])
    lags = {line.split()[0]: line.split()[7] for line in lines if line.lstrip().startswith("10")}
    assert lags == {"101": "0", "102": "5", "103": "-"}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60)])
def test_it_fits_whatever_there_is_to_show(width, height):
    many = report(
        readers=[reader(200 + n) for n in range(64)],
        consumers=[consumer(n, dataset="a long data set name", epoch=10**6, step=10**7) for n in range(30)],
        bad_samples=10**6,
        bad=[{"dataset": "", "sample_id": n, "where": "w" * 300, "reason": "r" * 300} for n in range(20)],
    )
    many["datasets"][0]["source"] = "/a/very/long" * 20
    lines = frame([many, copy.deepcopy(many)], width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    if height >= 24:
        assert any("more readers" in line for line in lines)
        assert any("more trainers" in line for line in lines)


def test_frame_says_who_is_waited_for_who_shares_and_that_memory_is_short():
    after = later()
    after["consumers"] = [consumer(1, waited_for=True), consumer(2, group="runs")]
    after["memory"]["pressure"] = {"given_back": True, "paused": True, "headroom_bytes": 30 << 20}
    lines = frame([report(), after])
    assert any(line.startswith("      101") and line.endswith("waited for") for line in lines)
    assert any(line.startswith("      102") and line.endswith("group runs") for line in lines)
    assert "          short of memory: 30.0 MiB left, batches only for waiting loops" in lines
