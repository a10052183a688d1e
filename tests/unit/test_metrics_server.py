"""The server of the metrics, with scrapers that hang up and a daemon that does not answer."""

from __future__ import annotations

import logging
import socket
import struct
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from prefetchd.daemon.metrics import MetricsServer
from prefetchd.errors import PrefetchdError

pytest.importorskip("prometheus_client")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def hang_up(port: int, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        sock.sendall(said)
        time.sleep(0.02)


def test_a_failed_scrape_writes_one_line_at_most_to_the_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def ask() -> dict[str, Any]:
        raise PrefetchdError("cannot reach the daemon")

    port = free_port()
    server = MetricsServer(port, "127.0.0.1", ask)
    try:
        for said in (b"", b"GET /met", b"GET /metrics HTTP/1.0\r\n"):
            hang_up(port, said)
        with (
            caplog.at_level(logging.WARNING, "prefetchd"),
            pytest.raises(urllib.error.HTTPError, match="500"),
        ):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10)
        time.sleep(0.05)
    finally:
        server.close()
    assert caplog.messages == ["cannot answer a scrape of the metrics: cannot reach the daemon"]
    assert capfd.readouterr() == ("", "")
