"""A daemon tells the service manager that started it when trainers can attach."""

from __future__ import annotations

import socket
from pathlib import Path

import prefetchd
from prefetchd.ipc.run_directory import daemon_paths


def test_daemon_says_that_it_is_ready_once_it_can_be_attached_to(serve, photographs, tmp_path: Path, monkeypatch):
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        serve(photographs, "--batch-size", 4, "--image-size", 16, "--num-workers", 1, name="unit", ready=False)
        assert sock.recv(100) == b"READY=1"
        assert daemon_paths("unit").socket.exists()
        with prefetchd.batches(daemon="unit") as loader:
            assert next(iter(loader)).index == 0
