"""Rows of `.npy` files, and sequences, in a store of objects: the same batches as from files, and few requests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError, ManifestError, SampleError
from tests.servers.fixtures import web_of
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")

ROWS = 50
OPTIONS: dict[str, Any] = {"batch_size": 8, "num_workers": 2, "epochs": 2, "timeout": 60}


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "b"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, 32, 40)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "big-endian.npy", x.astype(">f4"))
    for shard in range(3):
        np.save(folder / f"x-{shard}.npy", x[shard * 20 : shard * 20 + 20])
    np.save(folder / "y.npy", np.arange(ROWS) * 3)
    np.save(folder / "vectors.npy", random.normal(size=(ROWS, 4)).astype(">f8"))
    np.save(folder / "small.npy", np.zeros((ROWS, 10), np.int64))
    lengths = random.integers(0, 4000, ROWS)
    np.save(folder / "tokens.npy", random.integers(0, 30_000, lengths.sum()).astype(np.int32))
    np.save(folder / "offsets.npy", np.concatenate(([0], np.cumsum(lengths))))
    np.savez(folder / "x.npz", x=x)
    return folder


@pytest.fixture
def web(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_of(bucket.parent, monkeypatch) as server:
        yield server


def batches(source: str | Path, **options: Any) -> tuple[dict[str, Any], list[tuple[np.ndarray[Any, Any], ...]]]:
    """The state after all epochs, and all batches."""
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:
        found = [(np.array(batch.x), np.array(batch.y), np.array(batch.sample_ids)) for batch in loader]
        return loader.state_dict(), found


def assert_equal(found: Any, expected: Any) -> None:
    assert found[0] == expected[0]  # so a run goes on from a copy on a disk
    assert len(found[1]) == len(expected[1])
    for one, other in zip(found[1], expected[1], strict=True):
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rows": ("x.npy", {}),
    "rows in a shuffled order": ("x.npy", {"shuffle": True, "labels": "y.npy"}),
    "rows by blocks": ("x.npy", {"shuffle": True, "shuffle_block": 5, "labels": "vectors.npy"}),
    "rows of another byte order": ("big-endian.npy", {"shuffle": True}),
    "sequences": ("tokens.npy", {"offsets": "offsets.npy", "labels": "y.npy"}),
    "sequences that are cut": ("tokens.npy", {"offsets": "offsets.npy", "max_length": 1000, "shuffle": True}),
    "sequences padded and cut behind": (
        "tokens.npy",
        {"offsets": "offsets.npy", "max_length": 3000, "padding": "post", "truncating": "post", "pad_value": 7},
    ),
}


def placed(options: dict[str, Any], home: str) -> dict[str, Any]:
    return {name: f"{home}/{value}" if name in ("labels", "offsets") else value for name, value in options.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_files(kind: str, bucket: Path, web: WebServer) -> None:
    name, options = KINDS[kind]
    expected = batches(bucket / name, **placed(options, str(bucket)))
    assert_equal(batches(f"s3://b/{name}", **placed(options, "s3://b")), expected)
    if "labels" in options:  # beside the trainer
        assert_equal(
            batches(f"{web.url}/b/{name}", **{**placed(options, web.url + "/b"), "labels": bucket / options["labels"]}),
            expected,
        )


def test_shards_are_one_array_and_rows_that_follow_one_another_are_one_request(bucket: Path, web: WebServer) -> None:
    _, expected = batches(bucket / "x.npy")
    for source in ("s3://b/x-{0..2}.npy", "s3://b/x-*.npy"):
        web.forget()
        _, found = batches(source)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
        asked = sum(web.requests().of(f"GET /b/x-{shard}.npy") for shard in range(3))
    at_open = 3 * 65
    assert asked < at_open + ROWS  # for two epochs


def test_what_is_kept_is_not_asked_for_again_and_requests_overlap(bucket: Path, web: WebServer, tmp_path: Path) -> None:
    options = {"shuffle": True, "keep": tmp_path / "kept", "num_workers": 1}
    expected = batches(bucket / "x.npy", shuffle=True)
    web.set_delay(0.05)
    assert_equal(batches("s3://b/x.npy", **options), expected)
    assert web.requests().most_at_once >= 8
    web.forget()
    assert_equal(batches("s3://b/x.npy", **options), expected)
    assert web.requests().of("GET /b/x.npy") == 0


def test_faults_are_tried_again_or_raised_and_another_object_is_none(bucket: Path, web: WebServer) -> None:
    expected = batches(bucket / "x.npy", shuffle=True)
    web.set_faults(WebFault("short", every=3), WebFault("reset", after_bytes=100, every=4, times=10))
    assert_equal(batches("s3://b/x.npy", shuffle=True), expected)
    web.set_faults()
    with prefetchd.batches("s3://b/x.npy", **{**OPTIONS, "epochs": None}, shuffle=True, reader_timeout=2) as loader:
        loop = iter(loader)
        next(loop)
        web.set_faults(WebFault("status", code=503))
        with pytest.raises(SampleError, match=r"cannot read sample \d+ \(s3://b/x.npy row \d+\)"):
            for _ in loop:
                pass
    web.set_faults()
    with prefetchd.batches("s3://b/x.npy", **{**OPTIONS, "epochs": None}, shuffle=True) as loader:
        loop = iter(loader)
        next(loop)
        os.utime(bucket / "x.npy", ns=(1, 1))
        with pytest.raises(ManifestError, match="it was replaced while in use"):
            for _ in loop:
                pass


def test_what_cannot_be_served_is_refused_with_numbers(bucket: Path, web: WebServer) -> None:
    def refusal(source: str, **options: Any) -> str:
        with pytest.raises((ManifestError, ConfigError)) as caught:
            batches(source, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "its rows have 80 bytes, a request each, and from 4096 bytes on that pays" in refusal("s3://b/small.npy")
    assert "of .npz files in a store no row is read" in refusal("s3://b/x.npz")
    assert "there is no such object" in refusal("s3://b/no.npy")
    assert "50 samples and s3://b/offsets.npy has 51 labels" in refusal("s3://b/x.npy", labels="s3://b/offsets.npy")
    assert "which is a file here; download them" in refusal(str(bucket / "x.npy"), labels="s3://b/y.npy")
    assert "not with sequences in a store" in refusal("s3://b/tokens.npy", offsets="s3://b/offsets.npy", lengths="x")
    assert "sequences in a store are not packed" in refusal(
        "s3://b/tokens.npy", offsets="s3://b/offsets.npy", pack="concat", max_length=512
    )
    np.save(bucket / "short.npy", np.arange(ROWS * 10, step=10))
    assert "its sequences have 40 bytes" in refusal("s3://b/tokens.npy", offsets="s3://b/short.npy")
