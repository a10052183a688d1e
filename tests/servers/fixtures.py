"""What fixtures of several modules do with the servers: give a test one to read from, as it was at first."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.s3 import S3Server
from tests.servers.web import WebServer


def point_at(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `s3://` mean `server` for the length of a test."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@contextlib.contextmanager
def web_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Serve `folder` for one test."""
    with WebServer(folder) as server:
        point_at(server, monkeypatch)
        yield server


@contextlib.contextmanager
def shared_web(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Lend the server of a module to one test, which finds it without faults and leaves it so."""
    point_at(server, monkeypatch)
    server.set_faults()
    server.forget()
    yield server
    server.set_faults()
    server.set_delay(0)


@contextlib.contextmanager
def s3_of(folder: Path) -> Iterator[S3Server]:
    """Serve what lies in `folder/data` as the bucket `data`; the test is left out without moto."""
    pytest.importorskip("moto.server")
    with S3Server() as server:
        server.fill("data", folder / "data")
        yield server
