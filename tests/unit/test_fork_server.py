"""The fork server: how its children end, so that the daemon tells exceptions from exits; it never blocks on answers."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from prefetchd.ipc import reader_messages, sockets
from prefetchd.ipc.exit_status import RAISED_STATUS
from prefetchd.reader import fork_server, process


class Ended(BaseException):
    """The child has called `os._exit`."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, 0),
        (MemoryError(), RAISED_STATUS),
        (RuntimeError("can't start new thread"), RAISED_STATUS),
        (SystemExit(3), 1),
    ],
)
def test_reader_that_an_exception_ends_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    status: int,
) -> None:
    statuses = []

    def run(sock: socket.socket) -> None:
        sock.close()
        if error is not None:
            raise error

    def leave(status: int) -> None:
        statuses.append(status)
        raise Ended

    monkeypatch.setattr(fork_server, "_prctl", lambda option, value: None)
    monkeypatch.setattr(process, "main", run)
    monkeypatch.setattr(os, "_exit", leave)
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(Ended):
        fork_server._run_reader(theirs.detach(), [], os.getppid())
    assert statuses == [status]
    assert (error is None) == (capsys.readouterr().err == "")


def test_hundreds_of_readers_are_asked_for_before_an_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its answers beyond what the socket holds, it goes on reading; else both would wait for room."""
    monkeypatch.setattr(os, "fork", os.getpid)
    monkeypatch.setattr(fork_server.ForkServer, "_kill_all", lambda self: sockets.close_all(list(self._children)))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=fork_server.ForkServer(theirs).run, daemon=True)
    thread.start()
    readers = range(1, 1001)
    with ours, theirs:
        ours.settimeout(10)
        for reader in readers:
            sockets.send(ours, reader_messages.encode(reader_messages.Spawn(reader)), [0])
        answers = []
        for _ in readers:
            data, fds = sockets.receive(ours)
            sockets.close_all(fds)
            answers.append(reader_messages.decode_from_fork_server(data))
        assert answers == [reader_messages.Spawned(reader, os.getpid()) for reader in readers]
        sockets.send(ours, reader_messages.encode(reader_messages.Stop()))
        thread.join(10)
    assert not thread.is_alive()
