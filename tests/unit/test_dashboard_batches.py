"""Batches that the dashboard keeps, and data sets that it opens to tell where samples are."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from prefetchd.client.single import Served
from prefetchd.config.validate import make_config
from prefetchd.dashboard import batches as module
from prefetchd.dashboard.batches import Batches
from prefetchd.dashboard.frames import read_frame, write_frame
from prefetchd.dashboard.opened import Opened
from prefetchd.errors import ConfigError, ManifestError, PrefetchdError, RingExhausted


def served(source: str = "x.txt", digest: str = "d", **more: Any) -> Served:
    config = make_config(source=source, batch_size=4, **more).to_wire()
    info: Any = SimpleNamespace(
        config=config, config_digest="c", manifest_digest=digest, dataset="", versions={"decoder": "x"}
    )
    return Served(info, None, os.getpid())


class Reads:
    """Stands in for a daemon: batches of `n_bytes`, counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, n_bytes: int = 1000) -> None:
        self.places: list[tuple[int, int]] = []
        self.error: PrefetchdError | None = None
        self.n_bytes = n_bytes
        monkeypatch.setattr(module, "read_single", self.read)

    def read(self, daemon: str, dataset: str | None, epoch: int, index: int, *, name: str) -> tuple[Any, Served]:
        assert (daemon, dataset, name) == ("d", None, "dashboard")
        if self.error is not None:
            raise self.error
        self.places.append((epoch, index))
        root = np.zeros(self.n_bytes, np.uint8)
        return SimpleNamespace(root=root, epoch=epoch, index=index, sample_ids=np.arange(4)), served()


def test_batch_is_read_once_and_the_oldest_is_dropped_first(monkeypatch):
    reads, batches = Reads(monkeypatch), Batches(most_bytes=3500)
    for index in (0, 1, 2, 0, 3, 0, 1):
        found = batches.get("d", "", served(), 5, index)
        assert batches.held(found.number) is found
    assert reads.places == [(5, 0), (5, 1), (5, 2), (5, 3), (5, 1)]
    assert batches.held(0) is None


def test_batch_that_is_larger_than_the_limit_is_kept_alone(monkeypatch):
    reads, batches = Reads(monkeypatch, 9000), Batches(most_bytes=3500)
    first = batches.get("d", "", served(), 0, 0)
    assert batches.get("d", "", served(), 0, 0) is first
    batches.get("d", "", served(), 0, 1)
    assert batches.held(first.number) is None
    assert len(reads.places) == 2


def test_daemon_that_serves_other_data_under_the_same_name_is_read_again(monkeypatch):
    reads, batches = Reads(monkeypatch), Batches()
    batches.get("d", "", served(), 0, 0)
    batches.get("d", "", served(digest="other"), 0, 0)
    assert len(reads.places) == 2


def test_ring_without_a_slot_is_said_with_what_to_do_and_tried_again(monkeypatch):
    reads, batches = Reads(monkeypatch), Batches()
    reads.error = RingExhausted("cannot get the next batch: of 3 slots pid 7 holds 3")
    with pytest.raises(PrefetchdError, match=r"hold every slot.*pid 7 holds 3.*prefetchd set memory-budget"):
        batches.get("d", "", served(), 0, 0)
    reads.error = None
    assert batches.get("d", "", served(), 0, 0)


def test_one_batch_is_read_at_a_time(monkeypatch):
    batches = Batches()
    at_once, most = [], []

    def read(*_: Any, **__: Any) -> Any:
        at_once.append(1)
        most.append(len(at_once))
        threading.Event().wait(0.02)
        at_once.pop()
        return SimpleNamespace(root=np.zeros(10, np.uint8)), served()

    monkeypatch.setattr(module, "read_single", read)
    threads = [threading.Thread(target=batches.get, args=("d", "", served(), 0, n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


# --- open data sets


@pytest.fixture
def listed(tmp_path):
    """A list of 10,000 samples that are nowhere but in the list, and the first one's file."""
    import cv2

    cv2.imwrite(str(tmp_path / "0.png"), np.full((40, 80, 3), 200, np.uint8))
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{n}.png {'even' if n % 2 == 0 else 'odd'}\n" for n in range(10_000)))
    return path


def opened(path: Any, **more: Any) -> Opened:
    """Open a list as the worker does."""
    from prefetchd.data.registry import open_source

    config = make_config(source=str(path), **more)
    return Opened.open(config.to_wire(), str(path.parent), open_source(config).facts.digest)


def test_sample_is_found_in_any_epoch_as_the_order_has_it(listed):
    found = opened(listed, batch_size=64, shuffle=True, seed=3)
    for epoch, places in ((each["epoch"], each["places"]) for each in found.places(4711, range(3), 8, float("inf"))):
        (place,) = places
        assert found.order is not None
        assert found.order.sample_ids(epoch, place["batch"], place["row"], 1).tolist() == [4711]
    assert found.places(1, [0], 8, 0.0) == [{"epoch": 0, "places": None}]
    with pytest.raises(ConfigError, match="numbered from 0"):
        found.places(10_000, [0], 8, float("inf"))


def test_sample_that_is_drawn_often_or_dropped_is_said(listed):
    often = opened(listed, batch_size=4, limit=40)
    assert often.places(50, [0], 8, float("inf")) == [{"epoch": 0, "places": []}]
    dropped = opened(listed, batch_size=64, drop_last=True)
    assert dropped.places(9_999, [0], 8, float("inf")) == [{"epoch": 0, "places": []}]
    drawn = opened(listed, batch_size=10, weights="balanced", epoch_samples=100_000)
    places = drawn.places(5, [0], 8, float("inf"))[0]["places"]
    assert 1 < len(places) <= 8


def test_search_is_bounded_in_time_and_number(listed):
    found = opened(listed)
    answer = found.search("99.png", 50, float("inf"))
    assert len(answer["samples"]) == 50
    assert answer["more"]
    assert all("99.png" in sample["where"] for sample in answer["samples"])
    assert found.search("9999.png", 50, float("inf"))["samples"][0]["sample_id"] == 9999
    assert found.search("9999.png", 50, 0.0) == {"samples": [], "looked_at": 0, "n_samples": 10_000, "more": True}


def test_classes_are_counted_without_decoding(listed):
    answer = opened(listed).balance(1)
    assert answer["classes"] == [{"name": "even", "count": 5000}]
    assert (answer["n_classes"], answer["others"], answer["least"], answer["empty"]) == (2, 5000, 5000, 0)


def test_relative_paths_start_where_the_daemon_runs_and_other_data_is_refused(listed):
    options = make_config(source="list.txt").to_wire()
    with pytest.raises(ManifestError, match="no longer what the daemon opened"):
        Opened.open(options, str(listed.parent), "another")
    with pytest.raises(ManifestError, match="cannot"):
        Opened.open(options, str(listed.parent / "nowhere"), "another")


def test_frames_of_any_length_and_a_cut_one():
    read, write = os.pipe()
    with os.fdopen(write, "wb", buffering=0) as file:
        for data in (b"", b"x", b"y" * 50_000):
            write_frame(file, data)
            assert read_frame(read) == data
        file.write(b"\x10\0\0\0short")
    assert read_frame(read) is None
    os.close(read)
    read, write = os.pipe()
    with pytest.raises(TimeoutError):
        read_frame(read, 0.0)
    os.write(write, b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="too long"):
        read_frame(read)
    os.close(read)
    os.close(write)
