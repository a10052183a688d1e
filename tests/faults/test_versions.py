"""Consumers and daemons of different versions: each says in one line what does not fit, and what to do."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

import prefetchd
from prefetchd.client import launch
from prefetchd.ipc import messages, sockets
from prefetchd.ipc.run_directory import daemon_paths
from tests.conftest import DaemonProcess, end_thread
from tests.faults.conftest import exact

Serve = Callable[..., DaemonProcess]


def test_consumer_of_another_protocol_is_told_in_one_line(serve: Serve, forty: Path) -> None:
    """Whatever its first line goes on with, and whatever it asks."""
    serve(forty, *exact("--num-workers", 1))
    for words in (
        ["Attach", 99, "7.1.0", None, {}, 2],
        ["Attach", 99, "7.1.0", {"what": ["nobody", "knows"]}, 1, 2, 3],
        ["Attach", 0],
        ["AskStatus", 99, "more"],
    ):
        sock = launch.connect("default", timeout_s=0)
        sock.settimeout(10)
        sockets.send(sock, msgspec.msgpack.encode(words))
        data, _ = sockets.receive(sock)
        answer = messages.decode_to_consumer(data)
        assert isinstance(answer, messages.Fatal), words
        assert f"protocol {messages.PROTOCOL}" in answer.text
        assert f"(protocol {words[1]})" in answer.text
        assert "\n" not in answer.text
        sock.close()


@pytest.fixture
def fake_daemon(nothing_left: None) -> Iterator[Callable[[list[bytes]], None]]:
    """Be a daemon that answers whoever connects with the messages given, then ends the connection."""
    path = daemon_paths("default", create=True).socket
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    threads = []

    def answer(words: list[bytes]) -> None:
        def run() -> None:
            sock, _ = listener.accept()
            with sock:
                sockets.receive(sock)
                for data in words:
                    sockets.send(sock, data)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield answer
    for thread in threads:
        end_thread(thread)
    listener.close()
    path.unlink()


def test_daemon_of_another_protocol_is_told_in_one_line(fake_daemon: Callable[[list[bytes]], None]) -> None:
    """An older or newer one: it answers with an `Attached` of another shape, refuses, or hangs up without a word."""
    encode = msgspec.msgpack.encode
    for words, error, text in (
        ([encode(["Attached", "7.1.0", {"other": "shape"}])], prefetchd.DaemonNotFound, "daemon 7.1.0 speaks another"),
        ([encode(["Fatal", "DaemonNotFound", "cannot attach: protocol 99"])], prefetchd.DaemonNotFound, "protocol 99"),
        ([encode(["Fatal", "UnknownError", "cannot attach: x"])], prefetchd.PrefetchdError, "cannot attach: x"),
        ([encode(["Riddle", 1])], prefetchd.PrefetchdError, "no message of ours; this prefetchd is"),
        ([], prefetchd.DaemonLost, "or is of another version than this prefetchd"),
    ):
        fake_daemon(words)
        with pytest.raises(error, match=text) as raised:
            prefetchd.batches(timeout=5)
        assert "\n" not in str(raised.value)


def test_status_of_another_version_is_told_in_one_line(
    fake_daemon: Callable[[list[bytes]], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefetchd.cli.main import main

    monkeypatch.setattr("sys.argv", ["prefetchd", "status"])
    fake_daemon([msgspec.msgpack.encode(["News", 1])])
    assert main() == 1
    said = capsys.readouterr().err
    assert "is of another version than this prefetchd" in said
    assert said.count("\n") == 1
