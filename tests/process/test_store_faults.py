"""Objects that change, and stores that forbid: never mixed bytes, and no sample dropped for what the store does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prefetchd
from prefetchd.errors import ManifestError, SampleError
from tests.records import jpeg, write_tar
from tests.servers.fixtures import web_of
from tests.servers.web import WebFault, WebServer

pytest.importorskip("obstore")

SAMPLES = 24
OPTIONS: dict[str, Any] = {"y_column": "cls", "batch_size": 4, "image_size": 24, "num_workers": 1, "timeout": 60}


def write_bucket(folder: Path, first: int = 0) -> None:
    """Two shards of images that all have one size."""
    for shard in range(2):
        members: list[tuple[str, Any]] = []
        for number in range(SAMPLES):
            content = jpeg(first + number % 8)
            members += [
                (f"{number:03d}.jpg", content + bytes(20_000 - len(content))),
                (f"{number:03d}.cls", str(number)),
            ]
        write_tar(folder / f"s-{shard}.tar", members)


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    folder = tmp_path / "served" / "b"
    folder.mkdir(parents=True)
    write_bucket(folder)
    return folder


@pytest.fixture
def web(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    with web_of(bucket.parent, monkeypatch) as server:
        yield server


def rows(loop: Iterator[Any]) -> list[np.ndarray[Any, Any]]:
    return [np.array(batch.x) for batch in loop]


def take(loop: Iterator[Any], into: list[np.ndarray[Any, Any]]) -> None:
    for batch in loop:
        into.append(np.array(batch.x))


def epoch(source: str) -> list[np.ndarray[Any, Any]]:
    with prefetchd.batches(source, **OPTIONS) as loader:
        return rows(iter(loader))


def replace(bucket: Path, seconds: int = 5) -> None:
    """Other images in shards of the same size."""
    before = [path.stat() for path in sorted(bucket.iterdir())]
    write_bucket(bucket, first=8)
    for path, old in zip(sorted(bucket.iterdir()), before, strict=True):
        assert path.stat().st_size == old.st_size
        os.utime(path, ns=(old.st_mtime_ns, old.st_mtime_ns + seconds * 10**9))


SERVERS = {
    "tags that are matched": (),
    "tags that no condition is compared with": (WebFault("unconditional", method=""),),
    "weak tags": (WebFault("weak", method=""),),
    "times alone": (WebFault("no_etag", method=""),),
}


@pytest.mark.parametrize("server", SERVERS)
def test_replaced_shards_of_the_same_size_end_the_loop_and_no_batch_is_mixed(
    server: str, bucket: Path, web: WebServer
) -> None:
    web.set_faults(*SERVERS[server])
    expected = epoch(str(bucket / "s-{0..1}.tar"))
    with prefetchd.batches("s3://b/s-{0..1}.tar", epochs=None, **OPTIONS) as loader:
        found = []
        loop = iter(loader)
        for batch in loop:
            found.append(np.array(batch.x))
            if len(found) == 3:
                break
        replace(bucket)
        with pytest.raises(ManifestError, match="it was replaced while in use; start again"):
            take(loop, found)
    for number, each in enumerate(found):
        np.testing.assert_array_equal(each, expected[number % len(expected)])
    # What was opened anew is the new data.
    assert not np.array_equal(epoch("s3://b/s-0.tar")[0], expected[0])


def test_an_index_that_is_forbidden_as_missing_ones_are_is_done_without(bucket: Path, web: WebServer) -> None:
    web.set_faults(WebFault("status", "*.idx", code=403, name="AccessDenied", method=""))
    expected = epoch(str(bucket / "s-{0..1}.tar"))
    for found, wanted in zip(epoch("s3://b/s-{0..1}.tar"), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert web.requests().of("s-0.idx") > 0


def test_a_server_that_says_nothing_of_an_object_is_warned_of_and_its_size_is_compared(
    bucket: Path, web: WebServer, capfd: pytest.CaptureFixture[str]
) -> None:
    web.set_faults(WebFault("no_identity", method=""))
    url = f"{web.url}/b/s-{{0..1}}.tar"
    with prefetchd.batches(url, epochs=None, **OPTIONS) as loader:
        loop = iter(loader)
        next(loop)
        for path in bucket.iterdir():
            path.write_bytes(path.read_bytes() + bytes(1024))
        with pytest.raises(ManifestError, match="it was replaced while in use"):
            rows(loop)
    assert "have neither an ETag nor a time" in capfd.readouterr().err


@pytest.mark.parametrize("source", ["s-{0..1}.tar", "list.txt"])
def test_a_cache_keeps_no_image_of_an_object_whose_state_cannot_be_told(
    source: str, bucket: Path, web: WebServer, tmp_path: Path
) -> None:
    web.set_faults(WebFault("no_identity", method=""))
    options = {**OPTIONS, "y_column": "cls" if "tar" in source else None, "cache": tmp_path / "cache"}

    def epoch_of(home: str) -> list[np.ndarray[Any, Any]]:
        with prefetchd.batches(f"{home}/{source}", **options) as loader:
            return rows(iter(loader))

    def write(first: int) -> None:
        write_bucket(bucket, first)
        for number in range(8):
            content = jpeg(first + number)
            (bucket / f"{number}.jpg").write_bytes(content + bytes(20_000 - len(content)))

    (bucket / "list.txt").write_text("".join(f"{number}.jpg {number}\n" for number in range(8)))
    for first in (0, 8):
        write(first)
        for found, wanted in zip(epoch_of("s3://b"), epoch_of(str(bucket)), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_a_server_without_ranges_is_refused_and_never_taken_for_one(scheme: str, bucket: Path, web: WebServer) -> None:
    url = "s3://b/s-0.tar" if scheme == "s3" else f"{web.url}/b/s-0.tar"
    expected = epoch(str(bucket / "s-0.tar"))
    web.set_faults(WebFault("whole", every=2))  # one of the servers behind the address
    for found, other in zip(epoch(url), expected, strict=True):
        np.testing.assert_array_equal(found, other)
    web.set_faults(WebFault("whole"))
    with pytest.raises(ManifestError, match=r"the server ignores ranges, and sends whole objects; give one") as caught:
        prefetchd.batches(url, **OPTIONS)
    assert "\n" not in str(caught.value)


def after_the_start(source: str, break_it: Callable[[], None], **options: Any) -> Exception:
    """The error that ends a loop in whose first epoch `break_it` is called; no sample was dropped before."""
    found = []
    with prefetchd.batches(source, epochs=None, **{**OPTIONS, **options}) as loader:
        loop = iter(loader)
        found.append(len(next(loop).x))
        break_it()
        with pytest.raises((ManifestError, SampleError)) as caught:
            found += [len(batch.x) for batch in loop]
        if caught.type is SampleError:  # else the daemon has ended
            assert loader.status()["bad_samples"] == 0
    assert set(found) == {4}
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("code", [401, 403])
@pytest.mark.parametrize("kind", ["tar", "list"])
def test_credentials_that_expire_drop_no_sample(code: int, kind: str, bucket: Path, web: WebServer) -> None:
    options: dict[str, Any] = {"on_error": "skip"}
    source = "s3://b/s-{0..1}.tar"
    if kind == "list":
        for number in range(SAMPLES):
            (bucket / f"{number}.jpg").write_bytes(jpeg(number))
        source = str(bucket.parent.parent / "list.txt")
        Path(source).write_text("".join(f"{number}.jpg {number}\n" for number in range(SAMPLES)))
        options |= {"root": "s3://b", "y_column": None}
    error = after_the_start(source, lambda: web.set_faults(WebFault("status", code=code)), **options)
    assert isinstance(error, SampleError)
    assert "renew the credentials" in str(error)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_gone_or_forbidden_in_mid_run_ends_the_loop(kind: str, bucket: Path, web: WebServer) -> None:
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        for shard in range(2):
            columns = {"image": [jpeg(number) for number in range(SAMPLES)], "cls": list(range(SAMPLES))}
            pq.write_table(pa.table(columns), bucket / f"s-{shard}.parquet", row_group_size=1)
    source, options = f"s3://b/s-{{0..1}}.{kind}", {"on_error": "skip", "shuffle": True}
    error = after_the_start(source, (bucket / f"s-1.{kind}").unlink, **options)
    assert isinstance(error, ManifestError)
    assert f"cannot go on with s3://b/s-1.{kind}: there is no such object any more" in str(error)
    if kind == "tar":
        write_bucket(bucket)
        fault = WebFault("status", code=403, path="/b/s-1.tar")
        error = after_the_start(source, lambda: web.set_faults(fault), **options)
        assert "cannot go on with s3://b/s-1.tar: the store forbids to read it any more" in str(error)
