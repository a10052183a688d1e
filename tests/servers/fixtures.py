"""Servers that tests of several modules read from.

A module that takes `web`, `moto` or `store` has a fixture `home` of its own: the folder to serve.
"""

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


@pytest.fixture(scope="module")
def web(home: Path) -> Iterator[WebServer]:
    """Serve `home` for a module."""
    with WebServer(home) as server:
        yield server


@pytest.fixture
def store(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """Lend the server of a module to one test, which finds it without faults and leaves it so."""
    point_at(web, monkeypatch)
    web.set_faults()
    web.forget()
    yield web
    web.set_faults()
    web.set_delay(0)


@pytest.fixture(scope="module")
def moto(home: Path) -> Iterator[S3Server]:
    """Serve what lies in `home/data` as the bucket `data`; the test is left out without moto."""
    pytest.importorskip("moto.server")
    with S3Server() as server:
        server.fill("data", home / "data")
        yield server
