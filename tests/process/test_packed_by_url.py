"""MDS and LitData in a store of objects: the same batches as from files, and few requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ManifestError
from tests.packed import write_litdata, write_mds
from tests.records import jpeg
from tests.servers.fixtures import web_of
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")

SAMPLES = 40
OPTIONS: dict[str, Any] = {"batch_size": 8, "image_size": 24, "num_workers": 2, "epochs": 2, "timeout": 60}
COLUMNS = {"image": "bytes", "label": "int", "name": "str"}
# Some samples are larger than what an index of dense ones reads whole, most are not.
ROWS = [(jpeg(n) + bytes((n % 5 == 0) * 90_000), n % 3, f"n{n}") for n in range(SAMPLES)]
FIELDS = {"image": "image", "label": "label", "name": "text"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bucket = tmp_path_factory.mktemp("packed") / "b"
    write_mds(bucket / "mds", COLUMNS, ROWS, per_shard=9)
    write_mds(bucket / "large", COLUMNS, [(image + bytes(90_000), *rest) for image, *rest in ROWS], per_shard=9)
    write_litdata(bucket / "lit", COLUMNS, ROWS)
    return bucket


@pytest.fixture
def web(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_of(bucket.parent, monkeypatch) as server:
        yield server


def plain(batch: Any) -> list[Any]:
    """The arrays of a batch, and its texts."""
    found = list(batch.values()) if hasattr(batch, "values") else [batch.x, batch.y]
    return [each if isinstance(each, np.ndarray) else list(map(str, each)) for each in found]


def batches(source: str | Path, **options: Any) -> list[list[Any]]:
    with prefetchd.batches(source, **{**OPTIONS, **options}) as loader:
        return [[np.array(each) for each in plain(batch)] for batch in loader]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


KINDS = {
    "mds": ("mds", {}),
    "mds with text for labels": ("mds/", {"y_column": "name"}),
    "mds by its index": ("mds/index.json", {"label_columns": 0}),
    "mds with fields": ("mds", {"fields": FIELDS}),
    "mds of large samples": ("large", {"y_column": "label"}),
    "large samples with fields": ("large", {"fields": FIELDS}),
    "litdata": ("lit", {}),
    "litdata with fields": ("lit", {"fields": FIELDS}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_the_files(kind: str, bucket: Path, web: WebServer) -> None:
    place, options = KINDS[kind]
    options = {**options, "shuffle": True}
    assert_equal(batches(f"s3://b/{place}", **options), batches(bucket / place, **options))


def test_a_web_server_serves_them_too_and_what_was_kept_is_not_asked_for(
    bucket: Path, web: WebServer, tmp_path: Path
) -> None:
    expected = batches(bucket / "mds", shuffle=True)
    keep = {"keep": tmp_path / "kept", "shuffle": True}
    assert_equal(batches(f"{web.url}/b/mds", **keep), expected)
    web.forget()
    assert_equal(batches(f"{web.url}/b/mds", **keep), expected)
    asked = web.requests()
    assert asked.of("GET /b/mds/shard") == 0


def test_an_index_of_large_samples_reads_around_their_starts(bucket: Path, web: WebServer) -> None:
    from prefetchd.config.validate import make_config
    from prefetchd.data.packed.records import PackedRecords

    web.set_delay(0.05)
    PackedRecords.open(make_config(source="s3://b/large")).close()
    asked = web.requests()
    assert asked.sent_bytes < 20 * 8192 + SAMPLES * 8192
    assert asked.most_at_once > 4


def test_compressed_shards_are_downloaded_whole_in_an_order_that_keeps_them_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("zstandard")
    folder = write_mds(tmp_path / "served" / "b" / "zstd", COLUMNS, ROWS, per_shard=8, compression="zstd")
    with WebServer(tmp_path / "served") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for options in ({}, {"shuffle": True, "shuffle_block": 8}):
            assert_equal(batches("s3://b/zstd", **options), batches(folder, **options))
        with pytest.raises(ManifestError, match=r"each sample would download one of them, .* give shuffle_block"):
            batches("s3://b/zstd", shuffle=True)
        with pytest.raises(ManifestError, match="are compressed, and their columns have no places"):
            batches("s3://b/zstd", fields=FIELDS)


def test_rows_of_litdata_in_arrow_files_are_refused(bucket: Path, web: WebServer) -> None:
    pytest.importorskip("pyarrow")
    write_litdata(bucket / "arrow", COLUMNS, ROWS, in_arrow=True)
    with pytest.raises(ManifestError, match=r"s3://b/arrow/chunk-0-0\.bin: LitData wrote its rows as an Arrow file"):
        batches("s3://b/arrow")


def test_what_the_index_says_wrongly_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_mds(tmp_path / "served" / "b" / "mds", COLUMNS, ROWS, per_shard=9)
    with WebServer(tmp_path / "served") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        text = (folder / "index.json").read_text()
        size = (folder / "shard.00001.mds").stat().st_size
        (folder / "index.json").write_text(text.replace(str(size), str(size + 1)))
        with pytest.raises(ManifestError, match=r"it has \d+ bytes, and \d+ are listed"):
            batches("s3://b/mds")
        (folder / "index.json").write_text(text.replace('"samples": 9', '"samples": 8'))
        with pytest.raises(ManifestError, match="it says 9 samples, and 8 are listed"):
            batches("s3://b/mds")
        (folder / "index.json").write_text(text)
        for _ in range(2):
            assert_equal(batches("s3://b/mds", cache=tmp_path / "cache"), batches(folder))
        server.set_faults(WebFault("status", code=500, path="*/index.json"))
        with pytest.raises(ManifestError, match="cannot open s3://b/mds"):
            batches("s3://b/mds", reader_timeout=2)
