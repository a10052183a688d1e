"""Objects read in this process, without a daemon: whole ones, ranges, what a list names, and the look at some."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefetchd.config.validate import make_config
from prefetchd.data.faults import EnvironmentFault, SampleFault
from prefetchd.data.files import FileBuffer
from prefetchd.data.stores import client
from prefetchd.data.stores.download import download
from prefetchd.data.stores.first_look import why_unreadable
from prefetchd.data.stores.names import exists, listing
from prefetchd.data.stores.objects import note_state, read_object
from prefetchd.data.stores.pins import Pins, make_pins
from prefetchd.data.stores.range_file import RangeFile
from prefetchd.errors import ManifestError
from tests.servers.web import FaultKind, WebFault, WebServer

pytest.importorskip("obstore")

CONTENT = random.Random(1).randbytes(300_000)
URL = "s3://b/whole.bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "whole.bin").write_bytes(CONTENT)
    (folder / "empty.bin").write_bytes(b"")
    return folder


@pytest.fixture
def store(folder: Path) -> Iterator[WebServer]:
    with WebServer(folder.parent) as server:
        keys = {"endpoint": server.url, "access_key_id": "A", "secret_access_key": "B", "region": "us-east-1"}
        client.set_up(make_config(source="x", store_options=keys, reader_timeout=4))
        yield server
        client.set_up(make_config(source="x"))


@pytest.fixture
def pins() -> Iterator[Pins]:
    pins = Pins(make_pins(1))
    yield pins
    pins.close()


def read(url: str, pins: Pins) -> bytes:
    return bytes(read_object(url, FileBuffer(0), lambda _: None, pins, 0))


@pytest.mark.parametrize("fault", [None, WebFault("reset", times=1, after_bytes=9), WebFault("status", times=2)])
def test_a_download_is_whole(store: WebServer, fault: WebFault | None) -> None:
    store.set_faults(*[] if fault is None else [fault])
    fd = download(URL)
    try:
        assert os.pread(fd, 2 * len(CONTENT), 0) == CONTENT
        with pytest.raises(OSError):
            os.ftruncate(fd, 1)
    finally:
        os.close(fd)


def test_a_download_that_fails_is_refused_and_leaves_no_descriptor(store: WebServer) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ManifestError, match=r"cannot open s3://b/none: there is no such object; check the URL"):
        download("s3://b/none")
    store.set_faults(WebFault("close", after_bytes=1000))
    with pytest.raises(ManifestError, match=r"cannot open s3://b/whole\.bin: "):
        download(URL)
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the library keeps connections


def test_a_range_file_reads_what_is_asked_for_and_keeps_some(store: WebServer) -> None:
    file = RangeFile(URL, client.head(URL))
    store.forget()
    file.keep(1000, 5000)
    file.keep(2000, 100)
    assert file.pread(4000, 1500) == CONTENT[1500:5500]
    assert store.requests().total == 1
    file.seek(-10, os.SEEK_END)
    assert file.read(100) == CONTENT[-10:]
    assert file.read(1) == b""
    assert (file.tell(), file.seek(5), file.seek(2, os.SEEK_CUR)) == (len(CONTENT), 5, 7)
    assert file.read(3) == CONTENT[7:10]


@pytest.mark.parametrize("kind", ["short", "shifted", "whole"])
def test_a_range_that_is_not_the_one_asked_for_is_never_taken(store: WebServer, kind: FaultKind) -> None:
    identity = client.head(URL)
    store.set_faults(WebFault(kind, path="/b/*"))
    with pytest.raises(EnvironmentFault):
        client.fetch(URL, identity, 100, 50)
    store.set_faults(WebFault(kind, path="/b/*", times=1))
    assert bytes(client.fetch(URL, identity, 100, 50)) == CONTENT[100:150]


def test_an_object_must_stay_what_it_was_when_it_was_first_read(store: WebServer, folder: Path, pins: Pins) -> None:
    assert read(URL, pins) == CONTENT
    (folder / "whole.bin").write_bytes(CONTENT[::-1])
    os.utime(folder / "whole.bin", (1e9, 1e9))
    with pytest.raises(ManifestError, match="was replaced while in use"):
        read(URL, pins)
    (folder / "whole.bin").unlink()
    with pytest.raises(ManifestError, match=r"cannot go on with s3://b/whole.bin: there is no such object any more"):
        read(URL, pins)


def test_a_state_that_is_noted_counts_from_then_on(store: WebServer, folder: Path, pins: Pins) -> None:
    note_state("s3://b/none", pins, 0)
    assert pins.state(0) is None
    note_state(URL, pins, 0)
    assert pins.state(0) is not None
    assert not pins.was_read(0)
    (folder / "whole.bin").write_bytes(b"another")
    with pytest.raises(ManifestError, match="was replaced while in use"):
        read(URL, pins)


@pytest.mark.parametrize(("name", "reason"), [("empty.bin", "the object is empty"), ("none", "no such object")])
def test_an_object_without_bytes_is_a_bad_sample(store: WebServer, pins: Pins, name: str, reason: str) -> None:
    with pytest.raises(SampleFault, match=reason):
        read(f"s3://b/{name}", pins)


def test_the_look_at_some_says_why_none_can_be_read(store: WebServer) -> None:
    assert why_unreadable(["s3://b/none", "s3://b/nor"]) == "there is no such object"
    assert why_unreadable(["s3://b/none", URL]) == why_unreadable([]) == ""


def test_names_below_a_prefix_come_with_what_they_are(store: WebServer) -> None:
    assert exists(URL)
    assert not exists("s3://b/none")
    found = dict(listing("s3://b/"))
    assert sorted(found) == ["s3://b/empty.bin", URL]
    assert found[URL] == client.head(URL)
