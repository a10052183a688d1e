"""Shards in a store of objects: the same batches as from files, and faults that lose no sample."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ConfigError, ManifestError, SampleError
from tests.process.commands import run_command
from tests.records import jpeg, write_tar
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")

SHARDS, SAMPLES = 3, 20
FIELDS = {"image": "image(column=jpg)", "label": "label(column=cls)", "text": "text(column=txt)"}
PARQUET_FIELDS = {"image": "image", "label": "label"}
BOX_FIELDS = {"image": "image", "boxes": "boxes", "label": "label"}
# What is served, and with which options.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tar": ("train-{0..2}.tar", {"y_column": "cls"}),
    "tar by a pattern": ("train-*.tar", {"y_column": "json:weight"}),
    "tar without labels": ("train-{2..0}.tar", {"label_columns": 0}),
    "tar with fields": ("train-{0..2}.tar", {"fields": FIELDS}),
    "tar with DALI's indexes": ("indexed/train-{0..2}.tar", {"y_column": "cls"}),
    "tar with indexes that do not fit": ("misfit/train-{0..2}.tar", {"y_column": "cls"}),
    "parquet": ("train-{0..2}.parquet", {}),
    "parquet with fields": ("train-{0..2}.parquet", {"fields": PARQUET_FIELDS}),
    "parquet with boxes": ("boxes.parquet", {"target": "boxes", "source_box_format": "xywh"}),
    "parquet with fields of boxes": ("boxes.parquet", {"fields": BOX_FIELDS, "source_box_format": "xywh"}),
    "parquet with masks": ("boxes.parquet", {"fields": {"image": "image", "mask": "mask"}}),
    "parquet of structures": ("faces.parquet", {"y_column": "label"}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bucket `data`, of shards of all kinds."""
    from tests.unit.test_tar_index import dali_index

    home = tmp_path_factory.mktemp("served")
    bucket = home / "data"
    for name in ("indexed", "misfit"):
        (bucket / name).mkdir(parents=True)
    for shard in range(SHARDS):
        members: list[tuple[str, Any]] = []
        for number in range(SAMPLES):
            key = f"{shard}{number:03d}"
            members += [(f"{key}.jpg", jpeg(shard * SAMPLES + number)), (f"{key}.cls", str(number))]
            members += [(f"{key}.json", f'{{"weight": {number / 4}}}'), (f"{key}.txt", f"sample {key}")]
        write_tar(bucket / f"train-{shard}.tar", members)
        copy = bucket / "indexed" / f"train-{shard}.tar"
        copy.write_bytes((bucket / f"train-{shard}.tar").read_bytes())
        copy.with_suffix(".idx").write_text(dali_index(copy))
        copy = bucket / "misfit" / copy.name
        copy.write_bytes((bucket / copy.name).read_bytes())
        copy.with_suffix(".idx").write_text(["<html>log in</html>", "v1.2 0\n", dali_index(copy)][shard])
    write_parquet(bucket)
    return home


def write_parquet(bucket: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for shard in range(SHARDS):
        images = [jpeg(shard * SAMPLES + number) for number in range(SAMPLES)]
        columns = {"image": images, "label": list(range(SAMPLES))}
        pq.write_table(pa.table(columns), bucket / f"train-{shard}.parquet", row_group_size=6)
    rows = []
    for number in range(SAMPLES):
        boxes = [[each, 2.0, 5.0, 6.0] for each in range(number % 3)]
        shape = cv2.imdecode(np.frombuffer(jpeg(number), np.uint8), cv2.IMREAD_GRAYSCALE).shape
        mask = cv2.imencode(".png", np.full(shape, number, np.uint8))[1].tobytes()
        rows.append({"image": jpeg(number), "boxes": boxes, "labels": [1] * len(boxes), "mask": mask, "label": number})
    pq.write_table(pa.Table.from_pylist(rows), bucket / "boxes.parquet", row_group_size=5)
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [1]}), bucket / "paths.parquet")
    faces = [{"bytes": jpeg(number), "path": None} for number in range(SAMPLES)]
    table = pa.table({"image": faces, "label": [f"class {number % 3}" for number in range(SAMPLES)]})
    pq.write_table(table, bucket / "faces.parquet", row_group_size=4)


def batches(source: str, **options: Any) -> list[list[np.ndarray[Any, Any]]]:
    """All arrays of all batches of two epochs."""
    given = {"batch_size": 16, "image_size": 24, "shuffle": True, "epochs": 2, "num_workers": 2, **options}
    with prefetchd.batches(source, timeout=60, **given) as loader:
        return [[np.array(each) for each in plain(batch)] for batch in loader]


def plain(batch: Any) -> list[Any]:
    """The arrays of a batch, and its texts."""
    found = list(batch.values()) if hasattr(batch, "values") else [batch.x, batch.y]
    return [each if isinstance(each, np.ndarray) else list(map(str, each)) for each in found]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("server", ["web", "moto"])
def test_batches_are_those_of_the_files(
    kind: str, server: str, home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in request.getfixturevalue(server).environment.items():
        monkeypatch.setenv(name, value)
    pattern, options = KINDS[kind]
    assert_equal(batches(f"s3://data/{pattern}", **options), batches(str(home / "data" / pattern), **options))


@pytest.mark.parametrize(
    "pattern", ["train-{0..2}.tar", "train-2.tar", "indexed/train-{0..2}.tar", "train-{0..2}.parquet"]
)
def test_shards_of_signed_urls_are_those_of_the_files(pattern: str, store: WebServer, home: Path) -> None:
    options: dict[str, Any] = {} if "parquet" in pattern else {"y_column": "cls"}
    found = batches(f"{store.url}/data/{pattern}?sv=2&sig=a%2Fb.c", **options)
    assert_equal(found, batches(str(home / "data" / pattern), **options))


def test_an_index_is_made_and_taken_over_the_store(store: WebServer, home: Path, tmp_path: Path) -> None:
    source, index = "s3://data/train-{0..2}.tar", tmp_path / "train.idx"
    assert run_command("index", source, "-o", index).returncode == 0
    store.forget()
    code = (  # in a process of its own: the store's library keeps its connections
        "from prefetchd.config.validate import make_config; from prefetchd.data.tar.records import TarShards; "
        f"TarShards.open(make_config(source={source!r}, index={str(index)!r}, y_column='cls'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert store.requests().total == SHARDS  # a look at each shard
    found = batches(source, index=str(index), y_column="cls")
    (home / "data" / "train.index").write_bytes(index.read_bytes())
    assert_equal(batches(source, index="s3://data/train.index", y_column="cls"), found)
    assert_equal(found, batches(str(home / "data" / "train-{0..2}.tar"), y_column="cls"))
    with pytest.raises(ManifestError, match="is not what was indexed"):
        batches(str(home / "data" / "train-{0..2}.tar"), index=str(index))


def test_reads_overlap_from_the_first_sample(store: WebServer) -> None:
    store.set_delay(0.05)
    batches("s3://data/train-{0..2}.tar", y_column="cls", num_workers=1)
    assert store.requests().most_at_once >= 16


def test_two_readers_have_many_requests_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of batches to come too: where the store answers late, a batch takes as many rounds as it takes waits."""
    bucket = tmp_path / "served" / "b"
    bucket.mkdir(parents=True)
    members = [(f"{n:03d}.{end}", content) for n in range(400) for end, content in (("jpg", jpeg(n % 8)), ("cls", "1"))]
    write_tar(bucket / "s.tar", members)
    with WebServer(bucket.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        index = tmp_path / "s.idx"
        assert run_command("index", "s3://b/s.tar", "-o", index).returncode == 0
        server.set_delay(0.5)
        server.forget()
        batches("s3://b/s.tar", index=str(index), y_column="cls", epochs=1)
        assert server.requests().most_at_once >= 240


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def downloads(store: WebServer, kind: str) -> int:
    """Requests for bytes of the shards; not the looks whether there is an index of DALI's."""
    return sum(store.requests().of(f"GET /data/train-{shard}.{kind}") for shard in range(SHARDS))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_what_is_kept_is_not_downloaded_again(kind: str, store: WebServer, home: Path, tmp_path: Path) -> None:
    pattern, options = KINDS[kind]
    expected = batches(str(home / "data" / pattern), **options)
    options = {**options, "keep": tmp_path / "kept"}
    assert_equal(batches(f"s3://data/{pattern}", **options), expected)
    first = downloads(store, kind)
    assert first > 0
    store.forget()
    assert_equal(batches(f"s3://data/{pattern}", **options), expected)
    # Which ranges of a row group are read together depends on which reader gets which rows.
    assert downloads(store, kind) <= (0 if kind == "tar" else first // 2)
    entries = sorted(path for path in (tmp_path / "kept").glob("??/*") if path.is_file())
    for path in entries:
        damage(path)
    store.forget()
    assert_equal(batches(f"s3://data/{pattern}", **options), expected)
    assert downloads(store, kind) > 0
    if kind == "tar":  # else a reader may end with a range that it removed, and was not asked for
        assert {path for path in (tmp_path / "kept").glob("??/*") if path.is_file()} >= set(entries)


@pytest.mark.parametrize("kind", ["tar", "tar with fields", "parquet"])
def test_decoded_images_of_shards_are_kept_as_those_of_files(
    kind: str, store: WebServer, home: Path, tmp_path: Path
) -> None:
    pattern, options = KINDS[kind]
    more = {"cache_image_size": 32, "augment": "random_resized_crop", **options}
    expected = batches(str(home / "data" / pattern), **more)
    suffix = "parquet" if kind == "parquet" else "tar"
    for run in range(2):
        store.forget()
        assert_equal(batches(f"s3://data/{pattern}", cache=tmp_path / "cache", **more), expected)
        if (
            run and kind != "tar with fields"
        ):  # what opens the shards, and nothing for their samples; texts are not kept
            assert downloads(store, suffix) <= SHARDS * (SAMPLES + 4 if suffix == "tar" else 4)
    with prefetchd.batches(
        f"s3://data/{pattern}", batch_size=16, image_size=24, cache=tmp_path / "cache", timeout=60, **more
    ) as loader:
        list(loader)
        assert loader.status()["datasets"][0]["cache"]["misses"] == 0


def test_two_daemons_keep_in_one_folder_and_a_full_one_is_done_without(
    store: WebServer, home: Path, tmp_path: Path
) -> None:
    pattern, options = KINDS["tar"]
    expected = batches(str(home / "data" / pattern), **options)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(batches, f"s3://data/{pattern}", **options, keep=tmp_path / "kept") for _ in range(2)]
        for run in runs:
            assert_equal(run.result(timeout=100), expected)
    small = {**options, "keep": tmp_path / "small", "keep_size": "64KiB"}
    assert_equal(batches(f"s3://data/{pattern}", **small), expected)
    assert 0 < sum(path.stat().st_blocks * 512 for path in (tmp_path / "small").glob("??/*")) <= 64 << 10


def test_keep_is_refused_where_nothing_comes_from_a_store(home: Path, tmp_path: Path) -> None:
    source = str(home / "data" / "train-0.tar")
    with pytest.raises(ConfigError, match="nothing of it is read from a store; leave keep out"):
        batches(source, y_column="cls", keep=tmp_path / "kept")
    with pytest.raises(ConfigError, match="cannot use keep_size without a folder"):
        batches(source, y_column="cls", keep_size="1GiB")
    assert not (tmp_path / "kept").exists()


FAULTS = {
    "a storm of 503": [WebFault("status", times=12, retry_after_s=0)],
    "throttling": [WebFault("status", code=429, times=4), WebFault("status", name="SlowDown", times=8)],
    "resets in mid-body": [WebFault("reset", after_bytes=200, every=3, times=12)],
    "resets before an answer": [WebFault("reset", after_bytes=-1, every=4, times=8)],
    "bodies that end early": [WebFault("close", after_bytes=100, every=3, times=12)],
    "ranges that are short": [WebFault("short", missing_bytes=7, every=3, times=12)],
    "other ranges": [WebFault("shifted", every=3, times=12)],
    "slow first bytes": [WebFault("slow", delay_s=0.5, every=5)],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("pattern", ["train-{0..2}.tar", "train-{0..2}.parquet"])
def test_faults_that_pass_change_no_batch(fault: str, pattern: str, store: WebServer, home: Path) -> None:
    options: dict[str, Any] = {"on_error": "skip", "epochs": 1, **KINDS["tar" if "tar" in pattern else "parquet"][1]}
    with prefetchd.batches(
        f"s3://data/{pattern}", batch_size=16, image_size=24, shuffle=True, num_workers=2, timeout=60, **options
    ) as loader:
        store.set_faults(*FAULTS[fault])
        found = [[np.array(each) for each in plain(batch)] for batch in loader]
        assert loader.status()["bad_samples"] == 0
    assert_equal(found, batches(str(home / "data" / pattern), **options))


@pytest.mark.parametrize(
    ("on_error", "fault"),
    [("raise", WebFault("status")), ("skip", WebFault("short")), ("substitute", WebFault("hang"))],
    ids=["raise", "skip", "substitute"],
)
def test_faults_that_last_are_raised_under_any_policy(on_error: str, fault: WebFault, store: WebServer) -> None:
    """The store fails once the data set is open: within the time that a reader has, and no sample is dropped."""
    rows = []

    def take(loop: Iterator[Any]) -> None:
        rows.extend(len(batch.x) for batch in loop)

    with prefetchd.batches(
        "s3://data/train-{0..2}.tar",
        y_column="cls",
        batch_size=16,
        image_size=24,
        num_workers=1,
        reader_timeout=1,
        timeout=110,
        on_error=on_error,
        epochs=20,
    ) as loader:
        loop = iter(loader)
        next(loop)
        store.set_faults(fault)
        with pytest.raises(SampleError, match=r"train-\d.tar"):
            take(loop)
    assert set(rows) <= {16, SHARDS * SAMPLES % 16}


def test_a_reader_that_aborts_while_it_reads_makes_no_sample_bad(store: WebServer, home: Path) -> None:
    """As the store's library does where it gets no memory; more often than a decoder may before a sample is bad."""
    options: dict[str, Any] = {"y_column": "cls", "batch_size": 4, "epochs": 1, "num_workers": 1, "on_error": "skip"}
    expected = batches(str(home / "data" / "train-0.tar"), **options)
    killed: list[int] = []
    store.set_delay(0.4)
    with prefetchd.batches("s3://data/train-0.tar", image_size=24, shuffle=True, timeout=60, **options) as loader:
        end_s = time.monotonic() + 60
        while len(killed) < 4 and time.monotonic() < end_s:
            at_work = [each["pid"] for each in loader.status()["readers"] if each["tasks"] and each["pid"]]
            for pid in set(at_work) - set(killed):
                time.sleep(0.1)  # by now it waits for its first reads
                os.kill(pid, signal.SIGABRT)
                killed.append(pid)
            time.sleep(0.02)
        store.set_delay(0)
        found = [[np.array(each) for each in plain(batch)] for batch in loader]
        assert loader.status()["bad_samples"] == 0
    assert len(killed) == 4
    assert_equal(found, expected)


def test_a_shard_that_is_replaced_ends_the_loop_in_words(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tmp_path / "served" / "b"
    bucket.mkdir(parents=True)
    path = bucket / "a.tar"
    path.write_bytes((home / "data" / "train-0.tar").read_bytes())
    with WebServer(bucket.parent) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        with prefetchd.batches(
            "s3://b/a.tar", y_column="cls", batch_size=4, image_size=24, num_workers=1, epochs=None, timeout=60
        ) as loader:
            loop = iter(loader)
            next(loop)
            os.utime(path, ns=(1, 1))
            with pytest.raises(ManifestError, match="it was replaced while in use"):
                for _ in loop:
                    pass


def test_what_cannot_be_opened_is_said_in_a_line(store: WebServer, home: Path) -> None:
    def refusal(source: str, **options: Any) -> str:
        with pytest.raises((ManifestError, ConfigError)) as caught:
            batches(source, **options)
        message = str(caught.value)
        assert "\n" not in message
        return message

    assert "there is no such object" in refusal("s3://data/no.tar")
    assert "no file has such a name" in refusal("s3://data/no-*.tar")
    (home / "data" / "empty.parquet").touch()
    assert "it is empty (0 bytes); write the file again" in refusal("s3://data/empty.parquet")
    (home / "data" / "empty.parquet").unlink()
    assert "its only sample is not readable" in refusal("s3://data/paths.parquet")
    (home / "data" / "folder.page").write_text("\n<!DOCTYPE html>\n<title>Index of photos</title>\n")
    assert "it is a web page (HTML), and a web server lists no folders" in refusal(f"{store.url}/data/folder.page")
    (home / "data" / "folder.page").unlink()
    store.set_faults(WebFault("status", code=403, method=""))
    assert "forbids" in refusal("s3://data/train-0.tar")
