"""What a loader counts, and when it advises: under a clock that the test moves."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

from prefetchd.client.description import adviser, order, source_name
from prefetchd.client.log_lines import with_lines
from prefetchd.client.meter import LoaderStats, Meter
from prefetchd.ipc import system


class Clock:
    """Seconds, as far as the test has moved them."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(system, "monotonic", made)
    return made


def take(meter: Meter, clock: Clock, waits_s: float, trains_s: float, n: int = 1) -> None:
    for _ in range(n):
        with meter:
            clock.now_s += waits_s
        meter.batches += 1
        meter.samples += 8
        clock.now_s += trains_s


def test_share_of_waiting_is_that_of_the_loops_time(clock):
    meter = Meter()
    clock.now_s = 100.0
    meter.begin_loop(1)
    take(meter, clock, 1.0, 3.0, n=5)
    running = meter.read()
    assert (running.batches, running.samples, running.elapsed_s, running.waited_s) == (5, 40, 20.0, 5.0)
    assert (running.samples_per_s, running.waiting_share) == (2.0, 0.25)
    meter.end_loop(1)
    clock.now_s += 1000.0  # between two loops
    assert meter.read() == running
    meter.begin_loop(2)
    take(meter, clock, 0.0, 1.0)
    assert meter.read() - running == LoaderStats(1, 8, 1.0, 0.0)


def test_loop_that_was_superseded_does_not_end_the_time_of_the_newer_one(clock):
    meter = Meter()
    meter.begin_loop(1)
    meter.begin_loop(2)
    meter.end_loop(1)
    clock.now_s += 2.0
    assert meter.read().elapsed_s == 2.0


def test_nothing_delivered_has_no_rate_and_no_share(clock):
    assert (Meter().read().samples_per_s, Meter().read().waiting_share) == (0.0, 0.0)


def test_loop_that_waits_most_of_its_time_is_told_so_once(clock):
    meter = Meter()
    meter.advice = lambda stats: f"waited {stats.waiting_share:.0%} of {stats.elapsed_s:.0f} s"
    meter.begin_loop(1)
    take(meter, clock, 20.0, 0.2)  # the start does not count
    take(meter, clock, 0.8, 0.2, n=29)
    with pytest.warns(RuntimeWarning, match=r"waited \d\d% of \d\d s"):
        take(meter, clock, 0.8, 0.2, n=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(meter, clock, 0.8, 0.2, n=200)


@pytest.mark.parametrize(("waits_s", "trains_s", "n"), [(0.4, 0.6, 500), (0.01, 0.0, 2000), (5.0, 0.1, 40)])
def test_loop_that_waits_less_or_was_not_long_enough_is_not_told(clock, waits_s, trains_s, n):
    meter = Meter()
    meter.advice = lambda stats: "never"
    meter.begin_loop(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(meter, clock, waits_s, trains_s, n=n)


def test_many_short_loops_count_together(clock):
    meter = Meter()
    meter.advice = lambda stats: "short loops"
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for serial in range(1, 12):
            meter.begin_loop(serial)
            take(meter, clock, 0.8, 0.1, n=10)
            meter.end_loop(serial)
    assert [str(each.message) for each in given] == ["short loops"]


INFO: Any = SimpleNamespace(
    name="w", pid=1, dataset="", versions={"decoder": "x"}, config={"source": "/d/train.txt", "seed": 3, "cache": None}
)


def test_advice_names_numbers_and_what_to_do():
    private = adviser(INFO, is_private=True)(LoaderStats(100, 6400, 32.0, 24.0))
    for words in ("75% of the last 32 s", "200 images/s", "`prefetchd tune /d/train.txt`", "num_workers", "cache="):
        assert words in private
    signed = SimpleNamespace(**{**vars(INFO), "config": {"source": "https://me:word@h/a.txt?sig=1"}})
    assert "tune https://h/a.txt?...`" in adviser(signed, is_private=True)(LoaderStats(100, 6400, 32.0, 24.0))  # type: ignore[arg-type]
    assert "`prefetchd top w`" in adviser(INFO, is_private=False)(LoaderStats(100, 6400, 32.0, 24.0))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"shuffle": False}, "in the order of the data"),
        ({"shuffle": True}, "shuffled, seed 3"),
        ({"shuffle": True, "shuffle_block": 1024}, "shuffled in blocks of 1,024, seed 3"),
        ({"weights": "balanced"}, "drawn by weights='balanced', seed 3"),
    ],
)
def test_order_is_said_in_words(config, words):
    assert order({"seed": 3, **config}) == words


@pytest.mark.parametrize(
    ("dataset", "config", "name"),
    [
        ("val", {"source": "/d/val.txt"}, "val"),
        ("", {"source": "/d/photos/"}, "photos"),
        ("", {"source": "<list>"}, "<list>"),
        ("", {"source": "https://me:word@h/d/val.txt?sig=a/b"}, "val.txt?..."),
        ("", {"source": None, "mix": ["https://me:word@h/d/a.txt?sig=a/b=0.7", "/b=0.3"]}, "a mix of a.txt?..., b=0.3"),
        ("", {"source": None, "mix": {"/d/a.txt": 1.0, "/d/b.txt": 2.0}}, "a mix of a.txt, b.txt"),
    ],
)
def test_data_is_called_by_its_set_file_or_folder(dataset, config, name):
    assert source_name(SimpleNamespace(dataset=dataset, config=config)) == name  # type: ignore[arg-type]


def test_no_text_about_the_data_has_what_a_url_hides():
    url = "https://me:hidden@host/lists/train.txt?token=hidden"
    info = SimpleNamespace(dataset="", config={"source": url}, name="w", versions={})
    mixed = SimpleNamespace(dataset="", config={"mix": [f"{url}=0.5", "b.txt=0.5"]})
    texts = [adviser(info, is_private=True)(LoaderStats(100, 6400, 32.0, 24.0)), source_name(info), source_name(mixed)]  # type: ignore[arg-type]
    assert not [text for text in texts if "hidden" in text]
    assert source_name(info) == "train.txt?..."  # type: ignore[arg-type]


def looped(meter: Meter, clock: Clock, n_epochs: int) -> Generator[Any, None, None]:
    for epoch in range(n_epochs):
        for index in range(5):
            take(meter, clock, 0.25, 0.0)
            yield SimpleNamespace(epoch=epoch, index=index)


@pytest.mark.parametrize(
    ("every", "expected"), [(0, ["epoch 0:", "epoch 1:"]), (2, ["batch 2", "batch 4", "epoch 0:"])]
)
def test_lines_are_written_every_so_many_batches_and_at_the_end_of_an_epoch(clock, capsys, every, expected):
    meter = Meter()
    meter.begin_loop(1)
    for _ in with_lines(looped(meter, clock, 2), meter, every, 5, "train.txt", "images"):
        clock.now_s += 0.75
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if every == 0 else 6)
    assert all(line.startswith("prefetchd: train.txt: epoch ") for line in lines)
    assert all(words in line for words, line in zip(expected, lines, strict=False))
    assert lines[-1].endswith(
        "epoch 1: 40 images in 5 batches and 5.0 s: 8 images/s, 25% of the time waiting for the loader"
    )
